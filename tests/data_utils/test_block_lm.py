from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from data_utils.block_lm import BlockLM, BlockLMConfig, Row, Sample, collate_rows
from data_utils.tokenizers import Tokenizer, make_tokenizer
from tests.golden.data_cases import BATCH_KEYS, seeded_batch
from tests.helpers.shared import require_shared

LENGTH = 64


def objective(tokenizer: Tokenizer, max_length: int = LENGTH, **options: float | bool) -> BlockLM:
    return BlockLM(BlockLMConfig(**options), tokenizer, max_length)


def sample(tokenizer: Tokenizer, number: int = 0, documents: int = 1, size: int = 30) -> Sample:
    """Documents of ``size`` different tokens (never a command), each closed by eos, a sentence end in the middle."""
    enc, eos, stop = tokenizer.command_id("ENC"), tokenizer.command_id("eos"), tokenizer.encode(".")[0]
    words = np.arange(10, 10 + size * documents).reshape(documents, size)
    words = 10 + (words + number) % 60
    words[words == stop] = 10
    words[:, size // 2] = stop
    text = np.concatenate([np.concatenate(([enc], row, [eos])) for row in words])
    loss_mask = np.ones_like(text)
    loss_mask[text == enc] = 0
    return Sample(text, loss_mask)


def restore(row: Row, block: BlockLM, mask: int) -> list[int]:
    """The original text from a row of spans, by plain loops: what the layout must not lose."""
    blanks: dict[int, list[int]] = {}
    place = row.sep
    while place < len(row.tokens):
        assert row.tokens[place] == block.sop
        position, words = int(row.position_ids[0, place]), []
        while row.labels[place] != block.eop:
            words.append(int(row.labels[place]))
            place += 1
            assert row.tokens[place] == words[-1] and row.position_ids[0, place] == position
            assert row.position_ids[1, place] == len(words) + 1
        place += 1
        assert row.tokens[position] == mask
        blanks[position] = words
    text: list[int] = []
    for position, token in enumerate(row.tokens[:row.sep].tolist()):
        text += blanks.pop(position) if position in blanks else [token]
    assert not blanks
    return text


def test_layout_by_hand(tokenizer: Tokenizer) -> None:
    block = objective(tokenizer)
    mask, sop, eop = (tokenizer.command_id(name) for name in ("MASK", "sop", "eop"))
    row = block.lay_out_spans(np.array([10, 11, 12, 13, 14, 15]), [(4, 5), (1, 3)], "bert")
    assert row.tokens.tolist() == [10, mask, 13, mask, 15, sop, 14, sop, 11, 12]
    assert row.labels.tolist() == [10, mask, 13, mask, 15, 14, eop, 11, 12, eop]
    assert row.loss_mask.tolist() == [0] * 5 + [1] * 5
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 3, 1, 1, 1], [0, 0, 0, 0, 0, 1, 2, 1, 2, 3]]
    assert row.sep == 5
    flat = BlockLM(replace(block.config, block_position=False), tokenizer, LENGTH)
    assert flat.lay_out_spans(np.arange(10, 16), [(4, 5)], "bert").position_ids[1].tolist() == [0] * 6 + [1, 1]


def test_suffix_by_hand(tokenizer: Tokenizer) -> None:
    block = objective(tokenizer, task_mask=True)
    mask, sop = tokenizer.command_id("gMASK"), tokenizer.command_id("sop")
    given = Sample(np.array([10, 11, 12, 13, 14]), np.array([0, 0, 0, 1, 1]))
    row = block.lay_out_suffix(given, 2)
    assert row.tokens.tolist() == [10, 11, mask, sop, 12, 13]
    assert row.labels.tolist() == [10, 11, mask, 12, 13, 14]
    assert row.loss_mask.tolist() == [0, 0, 0, 0, 1, 1]
    assert row.position_ids.tolist() == [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]] and row.sep == 3
    flat = objective(tokenizer, block_position=False).lay_out_suffix(given, 2)
    assert flat.position_ids[1].tolist() == [0, 0, 0, 1, 1, 1]
    nothing = block.lay_out_suffix(given, 5)
    assert nothing.tokens.tolist() == [10, 11, 12, 13, 14, mask] and nothing.position_ids.shape == (2, 6)


@pytest.mark.parametrize("mode", ["bert", "sentence", "gpt"])
def test_rows_restore_their_text(tokenizer: Tokenizer, mode: str) -> None:
    options = {"bert": (1.0, 0.0), "sentence": (0.0, 1.0), "gpt": (0.0, 0.0)}[mode]
    block = objective(tokenizer, bert_prob=options[0], gap_sentence_prob=options[1], gpt_infill_prob=0.0,
                      task_mask=True)
    for number in range(40):
        given = sample(tokenizer, number, documents=1 if mode == "gpt" else 2)
        (row,), drawn = block.training_rows(given, Random(number))
        assert drawn == mode and restore(row, block, block.mask_of_mode[mode]) == given.text.tolist()
        hidden = int((row.labels[row.sep:] != block.eop).sum())
        assert {"bert": 9 <= hidden <= 48, "sentence": hidden >= 9, "gpt": hidden >= 16}[mode]
        if mode == "sentence":
            later_enc = given.text.tolist().index(tokenizer.command_id("ENC"), 1)
            assert tokenizer.command_id("ENC") not in row.labels[row.sep:] and later_enc
        assert row.position_ids[0].max() < len(given.text)


def test_modes_are_drawn_per_sample_with_their_probabilities(tokenizer: Tokenizer) -> None:
    block = objective(tokenizer, bert_prob=0.5, gap_sentence_prob=0.2, single_span_prob=0.1)
    given = sample(tokenizer)
    modes = [block.training_rows(given, Random(f"x/{n}"))[1] for n in range(3000)]
    for mode, share in (("bert", 0.1 + 0.9 * 0.5), ("sentence", 0.9 * 0.2), ("gpt", 0.9 * 0.3)):
        assert abs(modes.count(mode) / 3000 - share) < 0.03
    single = objective(tokenizer, single_span_prob=1.0)
    assert all((single.training_rows(given, Random(n))[0][0].tokens == single.sop).sum() == 1 for n in range(20))


def test_prediction_order(tokenizer: Tokenizer) -> None:
    given = sample(tokenizer, size=60)
    straight = objective(tokenizer, bert_prob=1.0, shuffle_blocks=False)
    shuffled = objective(tokenizer, bert_prob=1.0)
    ranks = []
    for n in range(200):
        row = straight.training_rows(given, Random(n))[0][0]
        assert (np.diff(row.position_ids[0, row.sep:]) >= 0).all()
        row = shuffled.training_rows(given, Random(n))[0][0]
        places = row.position_ids[0, row.sep:][row.tokens[row.sep:] == shuffled.sop]
        ranks.append((places < places[0]).sum() / max(len(places) - 1, 1))
    assert abs(np.mean(ranks) - 0.5) < 0.08


def test_decoder_and_context_masks(tokenizer: Tokenizer) -> None:
    block = objective(tokenizer, bert_prob=1.0, block_mask_prob=0.5)
    given = sample(tokenizer, size=60)
    masked = total = 0
    for n in range(100):
        row = block.training_rows(given, Random(n))[0][0]
        inside = row.tokens[row.sep:]
        masked += int((inside == block.dblock).sum())
        total += int((inside != block.sop).sum())
        assert block.dblock not in row.tokens[:row.sep] and block.dblock not in row.labels
    assert abs(masked / total - 0.5) < 0.05
    context = objective(tokenizer, bert_prob=1.0, context_mask_ratio=0.05)
    for n in range(30):
        row = context.training_rows(given, Random(n))[0][0]
        changed = np.flatnonzero(row.tokens == context.dblock)
        masks = np.flatnonzero(row.tokens == context.mask_of_mode["bert"])
        assert len(changed) == int(0.05 * len(given.text)) and (changed < row.sep).all()
        assert all(np.abs(masks - place).min() <= 3 for place in changed)
        assert context.dblock not in row.labels


def test_random_position_and_sentinels(tokenizer: Tokenizer, vocab_file: object) -> None:
    given = sample(tokenizer)
    block = objective(tokenizer, bert_prob=1.0, random_position=True)
    offsets = set()
    for n in range(100):
        row = block.training_rows(given, Random(n))[0][0]
        offset = int(row.position_ids[0, 0])
        offsets.add(offset)
        assert row.position_ids[0, :row.sep].tolist() == list(range(offset, offset + row.sep))
        assert row.position_ids[0].max() < LENGTH
    assert len(offsets) > 10
    numbered = make_tokenizer("BertWordPieceTokenizer", str(vocab_file), num_sentinels=LENGTH - 1)
    block = objective(numbered, bert_prob=1.0, sentinel_token=True)
    row = block.lay_out_spans(np.arange(10, 20), [(7, 8), (1, 3)], "bert")
    ids = {name: numbered.command_id(name) for name in ("MASK", "MASK1", "sop", "sop1")}
    assert row.tokens.tolist() == [10, ids["MASK1"], 13, 14, 15, 16, ids["MASK"], 18, 19,
                                   ids["sop"], 17, ids["sop1"], 11, 12]
    assert set(row.position_ids[0, row.sep:].tolist()) == {LENGTH}
    with pytest.raises(ValueError, match="sentinel"):
        objective(tokenizer, sentinel_token=True)


def test_short_sequences_give_several_rows(tokenizer: Tokenizer) -> None:
    block = objective(tokenizer, max_length=128, short_seq_prob=1.0, bert_prob=1.0)
    given = sample(tokenizer, documents=4)
    for n in range(20):
        rows, _ = block.training_rows(given, Random(n))
        assert 1 <= len(rows) <= 3
        for row in rows:
            assert row.tokens[0] == tokenizer.command_id("ENC") and row.loss_mask.any()
    with pytest.raises(ValueError, match="above 33"):
        objective(tokenizer, max_length=33, short_seq_prob=0.1)


def test_masked_lm(tokenizer: Tokenizer) -> None:
    block = objective(tokenizer, bert_prob=1.0, masked_lm=True)
    batch = collate_rows([block.training_rows(sample(tokenizer, n, size=20 + n), Random(n))[0][0] for n in range(4)])
    assert batch["position_ids"].shape == batch["tokens"].shape
    changed = batch["tokens"] != batch["labels"]
    assert (batch["tokens"][changed] == tokenizer.command_id("MASK")).all()
    assert (batch["loss_mask"].bool() == changed).all() and changed.any(dim=1).all()
    assert batch["attention_mask"].tolist() == [20 + n + 2 for n in range(4)]
    with pytest.raises(ValueError, match="no generation mode"):
        BlockLMConfig(masked_lm=True, bert_prob=0.5)


def test_tiny_samples_stay_in_the_batch(tokenizer: Tokenizer) -> None:
    enc, eos = tokenizer.command_id("ENC"), tokenizer.command_id("eos")
    for options in ({"bert_prob": 1.0}, {"bert_prob": 0.0}, {"bert_prob": 0.0, "gap_sentence_prob": 1.0}):
        block = objective(tokenizer, **options)
        for text in ([enc, 11, eos], [enc, 11, 12, eos], [enc, 11], [enc, 11, 12, 13, 14, eos], [enc]):
            array = np.array(text)
            for n in range(20):
                (row,), _ = block.training_rows(Sample(array, (array != enc).astype(np.int64)), Random(n))
                assert len(row.tokens) == len(row.labels) == row.position_ids.shape[1]
                assert row.loss_mask.any() or len(text) < 3


def test_padding_is_zero_and_right(tokenizer: Tokenizer) -> None:
    block = objective(tokenizer)
    rows = [block.lay_out_spans(np.arange(10, 10 + size), [(1, 2)], "bert") for size in (5, 8)]
    batch = collate_rows(rows)
    assert batch["tokens"].shape == (2, 10) and batch["position_ids"].shape == (2, 2, 10)
    for key in ("tokens", "labels", "loss_mask", "position_ids"):
        assert (batch[key][0, ..., 7:] == 0).all()
    assert batch["attention_mask"].tolist() == [5, 8]
    with pytest.raises(ValueError, match="at least one row"):
        collate_rows([])


@pytest.mark.parametrize("options", [
    {"bert_prob": 0.8, "gap_sentence_prob": 0.3}, {"bert_prob": -0.1}, {"gpt_min_ratio": 1.5},
    {"avg_block_length": 0}])
def test_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="--"):
        BlockLMConfig(**options)


def test_seeded_batches_of_the_release() -> None:
    file = require_shared("golden_data", "blocklm.json")
    shared = require_shared()
    for number, case in enumerate(json.loads(file.read_text())["cases"]):
        batch = seeded_batch(case, shared)
        for key in (*BATCH_KEYS, "mode"):
            assert batch[key] == case["batch"][key], f"case {number}, {key}"
