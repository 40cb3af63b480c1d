from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from data_utils import span_masking

ENC, EOS, END = 2, 0, 9


def is_end() -> np.ndarray:
    table = np.zeros(100, dtype=bool)
    table[END] = True
    return table


@pytest.mark.parametrize("average", [3, 6])
def test_span_lengths_follow_poisson_without_zero(average: int) -> None:
    weights = span_masking.span_length_weights(average)
    drawn = span_masking.draw_span_lengths(Random(0), weights, 60_000)
    assert 60_000 <= sum(drawn) < 60_000 + 39
    norm = sum(average ** k * math.exp(-average) / math.factorial(k) for k in range(1, 40))
    for length in range(1, 12):
        share = average ** length * math.exp(-average) / math.factorial(length) / norm
        assert abs(drawn.count(length) / len(drawn) - share) < 0.015
    assert len(span_masking.draw_span_lengths(Random(1), weights, 0, single=True)) == 1
    assert span_masking.draw_span_lengths(Random(1), weights, 0) == []


def test_spans_keep_apart_and_avoid_borders() -> None:
    rng = Random(3)
    for _ in range(300):
        sizes = [rng.randint(1, 30) for _ in range(rng.randint(1, 4))]
        parts = [np.concatenate(([ENC], np.full(size, 5), [EOS])) for size in sizes]
        text = np.concatenate(parts)[: rng.choice([None, -1])]
        lengths = [rng.randint(1, 3) for _ in range(rng.randint(1, 5))]
        spans = span_masking.place_spans(text, lengths, ENC, EOS, rng.randint)
        if spans is None:
            continue
        assert [end - start for start, end in spans] == lengths
        taken = sorted(spans)
        assert all(start >= 1 and end < len(text) for start, end in taken)
        assert all(after[0] > before[1] for before, after in zip(taken, taken[1:]))
        assert all((text[start:end] == 5).all() for start, end in taken)


def test_too_many_spans_do_not_fit() -> None:
    text = np.array([ENC, 5, 5, 5, EOS])
    assert span_masking.place_spans(text, [2, 2], ENC, EOS, Random(0).randint) is None
    assert span_masking.place_spans(text, [1, 1], ENC, EOS, Random(0).randint) == [(1, 2), (3, 4)]


def test_sentences() -> None:
    text = np.array([ENC, 5, END, 6, END, 7, EOS, ENC, 8, END, 4])
    spans = span_masking.sentence_spans(text, is_end(), ENC, EOS)
    assert spans == [(1, 3), (3, 5), (8, 10), (10, 11)]  # 7 stands before an eos without an end
    assert span_masking.sentence_spans(text, is_end(), ENC, EOS, keep_later_enc=True)[2] == (7, 10)
    chosen = span_masking.choose_sentences(Random(0), list(spans), 3)
    assert 3 <= sum(end - start for start, end in chosen) < 6 and set(chosen) <= set(spans)
    assert span_masking.choose_sentences(Random(0), list(spans), 0) == []


def test_short_pieces_end_with_sentences() -> None:
    text = np.array([ENC] + ([5] * 9 + [END]) * 20)
    pieces = span_masking.cut_short_pieces(Random(5), text, 40, 50, is_end(), ENC, EOS)
    assert len(pieces) == 50 and len(set(pieces)) > 5
    for start, end in pieces:
        assert 1 <= start < end <= len(text) and end - start <= 40
        assert start == 1 or text[start - 1] == END
        assert text[end - 1] == END
    short = np.array([ENC, 5, 5])
    assert span_masking.cut_short_pieces(Random(0), short, 40, 2, is_end(), ENC, EOS) == [(1, 3), (1, 3)]
    no_borders = np.array([ENC] + [5] * 99)
    assert {end - start for start, end in
            span_masking.cut_short_pieces(Random(0), no_borders, 40, 9, is_end(), ENC, EOS)} == {40}
