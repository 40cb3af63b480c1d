"""``--segment-length``, ``--fast-decode``, the language-model form, prompts without a place, labelled texts."""

from __future__ import annotations

import pytest
import torch

from data_utils.block_lm import BlockLM, BlockLMConfig
from data_utils.loaders import BatchPlan, BlockLMLoader
from data_utils.tokenizers import Tokenizer
from tasks.collate import collate
from tasks.data import EncodedExamples, LabelledTexts, TrainLoader
from tasks.encoding import DECODED_TOKENS
from tasks.evaluation import score_batch
from tasks.examples import Example
from tasks.losses import sum_segments
from tests.tasks.test_encoding import COPA, RTE, S, encoder, ids, padded

WSC = Example("train-1", "the man slid his razor", label="True", idx=1, meta={
    "span1_text": "the man", "span2_text": "his", "span1_index": 0, "span2_index": 3})
RECORD = Example("x", "the rain grew", "it is @placeholder .", "0", meta={
    "candidates": ["wet", "a b", "the man slid"], "answers": []})


def test_pieces_of_answers(tokenizer: Tokenizer) -> None:
    made = encoder("copa", tokenizer, pattern_id=1, segment_length=2)
    sample = made(COPA)  # answers: it grew eop | it is wet eop
    assert sample["segment_id"].tolist() == [0, 0, 1, 1]
    pieces = ["it grew", "eop", "it is", "wet eop"]
    earlier = ["", "it grew", "", "it is"]
    for row, (piece, before) in enumerate(zip(pieces, earlier)):
        part_a = ids(tokenizer, f"ENC it grew or it is wet ? the man slid , so {before} MASK . eos")
        sep, blank = len(part_a), 13 + len(before.split())
        targets = ids(tokenizer, piece)
        assert sample["mask"][row].item() == sep
        assert sample["text"][row].tolist() == padded(part_a + ids(tokenizer, "sop") + targets[:-1], tokenizer.pad_id)
        assert sample["target"][row].tolist() == padded([0] * sep + targets)
        assert sample["position"][row, 0].tolist() == padded([*range(sep)] + [blank] * len(targets))
        assert sample["logit_mask"][row].tolist() == padded([0] * sep + [1] * len(targets))


def test_pieces_are_shortened_each_for_itself(tokenizer: Tokenizer) -> None:
    long = Example("dev-4", "the man slid " * 40, label=0, meta=COPA.meta)
    sample = encoder("copa", tokenizer, segment_length=2)(long)
    assert (sample["mask"] + sample["logit_mask"].sum(1)).tolist() == [S] * 4


def test_whole_answers_are_one_piece(tokenizer: Tokenizer) -> None:
    whole, pieces = (encoder("copa", tokenizer, segment_length=size)(COPA) for size in (0, 4))
    assert pieces.pop("segment_id").tolist() == [0, 1]
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_sums_over_pieces_do_not_depend_on_the_batch(tokenizer: Tokenizer) -> None:
    made = encoder("record", tokenizer, segment_length=2, seq_length=32)
    other = Example("y", "it", "is @placeholder", "0", meta={"candidates": ["wet"], "answers": []})
    alone = [sum_of(made, [one]) for one in (RECORD, other)]
    together = sum_of(made, [RECORD, other])
    assert together[0].tolist() == [alone[0][0][0].tolist(), [alone[1][0][0].item(), 0.0, 0.0]]
    assert together[1].tolist() == [[1, 1, 1], [1, 0, 0]]


def sum_of(made: object, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token scores minus its id, summed over the pieces."""
    batch = collate([made(one) for one in examples])
    scores = score_batch(lambda part: -(part["target"] * part["logit_mask"]).sum(-1).float(), batch, made.spec, size=2)
    return sum_segments(scores, batch["segment_id"], batch["loss_mask"])


def test_training_batches_with_pieces_keep_the_mask_of_rows(tokenizer: Tokenizer) -> None:
    long = Example("dev-4", "it", label=0, meta={**COPA.meta, "choice1": "it is wet it is wet"})
    data = EncodedExamples([COPA, long], encoder("copa", tokenizer, segment_length=2, seq_length=40))
    batch, = TrainLoader(data, batch_size=2, seed=1).epoch(0)
    assert sorted(batch["loss_mask"].sum(1).tolist()) == [4, 6]


def test_text_and_answers_apart(tokenizer: Tokenizer) -> None:
    sample = encoder("copa", tokenizer, pattern_id=1, fast_decode=True)(COPA)
    part_a = ids(tokenizer, "ENC it grew or it is wet ? the man slid , so MASK . eos")
    sep = len(part_a)
    assert sample["text"].tolist() == padded(part_a, tokenizer.pad_id) and sample["mask"].item() == sep
    assert sample["position"].tolist() == [padded([*range(sep)]), [0] * S]
    assert sample["dec_mask"].tolist() == [sep, sep] and sample["label"].item() == 1
    assert {name for name in sample if "target" in name or "logit" in name} == {"dec_target", "dec_logit_mask"}
    for c, answer in enumerate((ids(tokenizer, "it grew eop"), ids(tokenizer, "it is wet eop"))):
        rest = DECODED_TOKENS - len(answer)
        text = [*ids(tokenizer, "sop"), *answer[:-1]]
        assert sample["dec_text"][c].tolist() == text + [tokenizer.pad_id] * rest
        assert sample["dec_target"][c].tolist() == answer + [0] * rest
        assert sample["dec_logit_mask"][c].tolist() == [1] * len(answer) + [0] * rest
        assert sample["dec_position"][c].tolist() == [[13] * len(answer) + [0] * rest,
                                                      [*range(1, len(answer) + 1)] + [0] * rest]


def test_apart_long_answers_lose_their_end_and_texts_keep_one_place(tokenizer: Tokenizer) -> None:
    meta = {**RECORD.meta, "candidates": ["wet", "wet " * 20]}
    long = Example("x", "the rain " * 40, RECORD.text_b, "0", meta=meta)
    sample = encoder("record", tokenizer, fast_decode=True)(long)
    assert sample["mask"].item() == S - 1
    assert sample["dec_target"][1].tolist() == ids(tokenizer, "wet") * DECODED_TOKENS
    flat = encoder("record", tokenizer, fast_decode=True, no_block_position=True)(RECORD)
    assert flat["dec_position"][2, 1].tolist() == [1] * 4 + [0] * 12


def test_apart_batches_pad_choices(tokenizer: Tokenizer) -> None:
    made = encoder("record", tokenizer, fast_decode=True)
    few = Example("y", "it", "is @placeholder", "0", meta={"candidates": ["a"], "answers": []})
    batch = collate([made(RECORD), made(few)])
    assert batch["text"].shape == (2, S) and batch["dec_text"].shape == (2, 3, DECODED_TOKENS)
    assert batch["loss_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert torch.equal(batch["dec_target"][1, 2], batch["dec_target"][1, 0])
    shapes = []

    def score(part: dict[str, torch.Tensor]) -> torch.Tensor:
        shapes.append((tuple(part["text"].shape), part["dec_text"].shape[1]))
        return part["dec_target"].sum(-1).float()

    scores = score_batch(score, batch, made.spec, size=2)
    assert shapes == [((2, S), 2), ((2, S), 1)] and torch.equal(scores, batch["dec_target"].sum(-1).float())


def test_apart_needs_one_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="--fast-decode encodes the text once.*pattern 2 of task copa.*--pattern-id"):
        encoder("copa", tokenizer, pattern_id=2, fast_decode=True)(COPA)


def test_language_model_form(tokenizer: Tokenizer) -> None:
    made = encoder("wsc", tokenizer, seq_length=48)
    sample = made(WSC)
    sep, answer = sample["attention_mask"].item(), ids(tokenizer, "the man eop")
    assert set(sample) == {"text", "target", "loss_mask", "position_id", "attention_mask", "label"}
    assert sample["text"][sep:sep + 4].tolist() == [*ids(tokenizer, "sop the man"), tokenizer.pad_id]
    assert sample["target"][sep:].tolist() == answer + [0] * (45 - sep) and not sample["target"][:sep].any()
    assert sample["loss_mask"].tolist() == [0] * sep + [1] * 3 + [0] * (45 - sep)
    assert sample["position_id"][1].tolist() == [0] * sep + [1, 2, 3] + [0] * (45 - sep)
    assert sample["label"].item() == 1
    batch, = TrainLoader(EncodedExamples([WSC, WSC], made), batch_size=2, seed=1).epoch(0)
    assert torch.equal(batch["loss_mask"][0], sample["loss_mask"]) and batch["text"].shape == (2, 48)


def test_prompt_tokens_need_a_place(tokenizer: Tokenizer) -> None:
    for task, example in (("record", RECORD), ("mrpc", Example("x", "it is wet", "is it", label="1"))):
        with pytest.raises(ValueError, match="--continuous-prompt: this pattern has no place.*--prefix-prompt"):
            encoder(task, tokenizer, continuous_prompt=True, num_prompt_tokens=2)(example)
        sample = encoder(task, tokenizer, prefix_prompt=2)(example)
        assert sample["prompt_pos"].flatten().tolist()[:2] == [1, 2]
    assert "prompt_pos" not in encoder("rte", tokenizer, cloze_eval=False, prefix_prompt=2)(RTE)


def test_labelled_texts(tokenizer: Tokenizer) -> None:
    rte = encoder("rte", tokenizer, pattern_id=1).labelled_text(RTE)
    assert rte.text.tolist() == ids(tokenizer, "ENC it is wet ? no , the rain eos")
    assert rte.loss_mask.tolist() == [0] + [1] * 9
    for changes in ({}, {"fast_decode": True}, {"segment_length": 2}):
        copa = encoder("copa", tokenizer, pattern_id=1, **changes).labelled_text(COPA)
        assert copa.text.tolist() == ids(
            tokenizer, "ENC it grew or it is wet ? the man slid , so it is wet . eos")
    wsc = encoder("wsc", tokenizer, seq_length=48).labelled_text(WSC)
    assert wsc.text.tolist()[-4:] == ids(tokenizer, "the man . eos")
    words = encoder("cb", tokenizer, multi_token=True).labelled_text(Example("x", "it", "wet", "neutral"))
    assert tokenizer.word_to_id("maybe") in words.text
    long = encoder("rte", tokenizer).labelled_text(Example("x", "the rain " * 40, "wet", "entailment"))
    assert len(long.text) == S - 1  # as many tokens as with the answer behind the text
    with pytest.raises(ValueError, match="example x of task rte has no label; --block-lm-ratio"):
        encoder("rte", tokenizer).labelled_text(Example("x", "it", "wet"))


def test_labelled_texts_feed_the_objective(tokenizer: Tokenizer) -> None:
    data = LabelledTexts(EncodedExamples([RTE, RTE, RTE], encoder("rte", tokenizer)))
    loader = BlockLMLoader(data, BlockLM(BlockLMConfig(), tokenizer, S), BatchPlan("texts", batch_size=2))
    batch = loader.batch(0)
    assert set(batch) == {"tokens", "labels", "loss_mask", "position_ids", "attention_mask"}
    assert len(batch["tokens"]) == 2 and batch["loss_mask"].sum() > 0
