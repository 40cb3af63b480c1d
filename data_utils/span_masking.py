"""Where the blanks of the block language model go: span lengths, placement, sentences, short pieces.

Everything here is a pure function of its arguments and of the ``random.Random`` handed in. Spans are half-open
``(start, end)`` pairs of positions in one sample; ``n`` is the sample's length in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random

import numpy as np

Span = tuple[int, int]

MASK_RATIO = 0.15
MAX_SPAN_LENGTH = 39
_SPAN_LENGTHS = range(1, MAX_SPAN_LENGTH + 1)


def span_length_weights(average: float) -> list[float]:
    """Cumulated Poisson(``average``) weights of the lengths 1 … 39 (0 is excluded, so the mean is a little higher)."""
    return list(accumulate(math.exp(length * math.log(average) - average - math.lgamma(length + 1))
                           for length in _SPAN_LENGTHS))


def draw_span_lengths(rng: Random, cumulated_weights: Sequence[float], total: int, *,
                      single: bool = False) -> list[int]:
    """Lengths until their sum reaches ``total`` (it may overshoot); with ``single`` exactly one."""
    lengths: list[int] = []
    covered = 0
    while covered < total or (single and not lengths):
        length = rng.choices(_SPAN_LENGTHS, cum_weights=cumulated_weights)[0]
        lengths.append(length)
        covered += length
        if single:
            break
    return lengths


def place_in_document(lengths: Sequence[int], total_length: int, offset: int,
                      draw: Callable[[int, int], int]) -> list[Span]:
    """Spread spans over one document with at least one token between neighbours.

    Args:
        lengths: in the order in which they will stand, left to right.
        total_length: usable tokens of the document; ``offset``: position of the first of them in the sample.
        draw: ``draw(low, high)`` gives an integer, both ends included; called once per span.
    """
    slack = total_length - sum(lengths) - len(lengths) + 1
    starts = sorted(draw(0, slack) for _ in lengths)
    spans: list[Span] = []
    shift = offset
    for start, length in zip(starts, lengths):
        spans.append((start + shift, start + shift + length))
        shift += length + 1
    return spans


def usable_documents(text: np.ndarray, enc_id: int, eos_id: int) -> list[Span]:
    """Maskable stretch of every document of a sample, from the last document to the first.

    A leading ENC and the closing eos of a document do not count; neither does the last token of a sample whose last
    document is not closed.
    """
    stretches: list[Span] = []
    start = 0
    ends = np.flatnonzero(text == eos_id).tolist()
    if not ends or ends[-1] != len(text) - 1:
        ends.append(len(text) - 1)
    for end in ends:
        first = start + 1 if start < len(text) and text[start] == enc_id else start
        stretches.append((first, max(end, first)))
        start = end + 1
    return stretches[::-1]


def place_spans(text: np.ndarray, lengths: Sequence[int], enc_id: int, eos_id: int,
                draw: Callable[[int, int], int]) -> list[Span] | None:
    """Place spans in a sample of several documents; None if they do not all fit.

    Documents take lengths in the order given, the shortest document first: every document but the longest while its
    share of masked tokens stays within 15 %, the longest whatever fits with a token between spans.
    """
    documents = sorted(usable_documents(text, enc_id, eos_id), key=lambda span: span[1] - span[0])
    spans: list[Span] = []
    taken = 0
    for number, (start, end) in enumerate(documents):
        usable = end - start
        is_longest = number == len(documents) - 1
        limit = usable + 1 if is_longest else int(MASK_RATIO * usable)
        used, first = 0, taken
        while taken < len(lengths):
            cost = lengths[taken] + (1 if is_longest else 0)  # In the longest, a span brings its neighbour's gap along.
            if used + cost > limit:
                break
            used += cost
            taken += 1
        if taken > first:
            spans += place_in_document(lengths[first:taken], usable, start, draw)
    return spans if taken == len(lengths) else None


def sentence_spans(text: np.ndarray, is_end: np.ndarray, enc_id: int, eos_id: int, *,
                   keep_later_enc: bool = False) -> list[Span]:
    """Sentences of a sample, left to right: candidates for mode ``sentence``.

    A sentence ends after a token with a sentence end. What stands before an eos without one is no candidate, the
    unfinished rest of the sample is.

    Args:
        is_end: bool table over ids, see ``Tokenizer.sentence_ends``.
        keep_later_enc: leave the ENC of later documents in their first sentence, as the release does. A model then
            learns to emit ENC, so training leaves it out.
    """
    spans: list[Span] = []
    size = len(text)
    start = 1 if size and text[0] == enc_id else 0
    for position in np.flatnonzero(is_end[text] | (text == eos_id)).tolist():
        if text[position] == eos_id:
            start = position + 1
            if not keep_later_enc and start < size and text[start] == enc_id:
                start += 1
        elif position >= start:
            spans.append((start, position + 1))
            start = position + 1
    if start < size:
        spans.append((start, size))
    return spans


def choose_sentences(rng: Random, spans: list[Span], total: int) -> list[Span]:
    """Sentences in random order until they hold ``total`` tokens."""
    rng.shuffle(spans)
    chosen: list[Span] = []
    covered = 0
    for start, end in spans:
        if covered >= total:
            break
        chosen.append((start, end))
        covered += end - start
    return chosen


def cut_short_pieces(rng: Random, text: np.ndarray, length: int, count: int, is_end: np.ndarray,
                     enc_id: int, eos_id: int) -> list[Span]:
    """``count`` pieces of at most ``length`` tokens from a sample, starts and ends at sentence borders where possible.

    Returns half-open spans that leave out the leading ENC; the caller puts one in front of each piece.
    """
    first = 1 if len(text) and text[0] == enc_id else 0
    size = len(text) - first
    if size <= length:
        return [(first, len(text))] * count
    border = is_end[text[first:]] | (text[first:] == eos_id)
    pieces: list[Span] = []
    for _ in range(count):
        start = rng.randrange(size - length)
        before = np.flatnonzero(border[:start])
        start = int(before[-1]) + 1 if len(before) else 0
        end = start + length
        inside = np.flatnonzero(border[start:end])
        if len(inside) and inside[-1] + 1 >= length // 2:
            end = start + int(inside[-1]) + 1
        pieces.append((first + start, first + end))
    return pieces
