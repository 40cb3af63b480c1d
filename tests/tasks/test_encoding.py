from __future__ import annotations

import logging

import pytest
import torch

from data_utils.tokenizers import Tokenizer
from tasks.encoding import TaskEncoder, verbalizer_id
from tasks.examples import Example
from tasks.registry import get_task
from tasks.spec import TaskOptions

RTE = Example("dev-1", "the rain", "it is wet.", "not_entailment", 1)
COPA = Example("dev-2", "The man slid.", label=1, idx=2,
               meta={"choice1": "It grew.", "choice2": "It is wet.", "question": "effect"})
S = 24


def encoder(task: str, tokenizer: Tokenizer, **options: object) -> TaskEncoder:
    chosen = TaskOptions(**{"cloze_eval": True, "seq_length": S, **options})
    return TaskEncoder(get_task(task, chosen), chosen, tokenizer)


def padded(values: list[int], fill: int = 0) -> list[int]:
    return values + [fill] * (S - len(values))


def ids(tokenizer: Tokenizer, words: str) -> list[int]:
    """One token a word; ENC, MASK, sop, eop, eos stand for the commands."""
    commands = ("ENC", "MASK", "sop", "eop", "eos", "sep")
    return [tokenizer.command_id(word) if word in commands else tokenizer.word_to_id(word) for word in words.split()]


def test_single_word_layout(tokenizer: Tokenizer) -> None:
    sample = encoder("rte", tokenizer, pattern_id=1)(RTE)
    part_a = ids(tokenizer, "ENC it is wet ? MASK , the rain eos")
    sep = len(part_a)
    assert sample["text"].tolist() == padded(part_a + ids(tokenizer, "sop"), tokenizer.pad_id)
    assert sample["position"].tolist() == [padded([*range(sep), 5]), padded([0] * sep + [1])]
    assert sample["mask"].item() == sep and sample["label"].item() == 1
    assert sample["logit_mask"].tolist() == padded([0] * sep + [1])
    assert sample["target"].tolist() == ids(tokenizer, "yes no")
    assert all(tensor.dtype == torch.int64 for tensor in sample.values())


def test_multi_choice_layout(tokenizer: Tokenizer) -> None:
    sample = encoder("copa", tokenizer, pattern_id=1)(COPA)
    part_a = ids(tokenizer, "ENC it grew or it is wet ? the man slid , so MASK . eos")
    sep = len(part_a)
    answers = [ids(tokenizer, "it grew eop"), ids(tokenizer, "it is wet eop")]
    assert sample["label"].item() == 1 and sample["mask"].tolist() == [sep, sep]
    for c, answer in enumerate(answers):
        sop = ids(tokenizer, "sop")
        assert sample["text"][c].tolist() == padded(part_a + sop + answer[:-1], tokenizer.pad_id)
        assert sample["target"][c].tolist() == padded([0] * sep + answer)
        assert sample["logit_mask"][c].tolist() == padded([0] * sep + [1] * len(answer))
        assert sample["position"][c].tolist() == [padded([*range(sep)] + [13] * len(answer)),
                                                  padded([0] * sep + [*range(1, len(answer) + 1)])]


def test_conjunction_pattern_has_one_answer_word(tokenizer: Tokenizer) -> None:
    sample = encoder("copa", tokenizer, pattern_id=2)(COPA)
    sep = sample["mask"].tolist()
    assert sep[1] == sep[0] + 1  # the choices stand behind the blank
    assert [sample["target"][c, sep[c]:sep[c] + 3].tolist() for c in range(2)] == [
        [*ids(tokenizer, "so eop"), 0]] * 2


def test_label_words_as_choices(tokenizer: Tokenizer) -> None:
    made = encoder("cb", tokenizer, multi_token=True)
    assert made.spec.head == "multi_token" and made.spec.is_multi_choice
    sample = made(Example("x", "the rain", "it is wet", "neutral"))
    assert sample["text"].shape == (3, S) and sample["label"].item() == 2
    sep = int(sample["mask"][0])
    assert [sample["target"][c, sep:sep + 2].tolist() for c in range(3)] == [
        ids(tokenizer, f"{word} eop") for word in ("yes", "no", "maybe")]


def test_position_options(tokenizer: Tokenizer) -> None:
    plain = encoder("copa", tokenizer)(COPA)["position"]
    flat = encoder("copa", tokenizer, no_block_position=True)(COPA)["position"]
    assert torch.equal(flat[:, 0], plain[:, 0])
    assert torch.equal(flat[:, 1], (plain[:, 1] > 0).long())
    assert torch.equal(encoder("copa", tokenizer, masked_lm=True)(COPA)["position"], plain[:, 0])
    single = encoder("rte", tokenizer, masked_lm=True)(RTE)["position"]
    assert torch.equal(single, encoder("rte", tokenizer)(RTE)["position"][0])


def test_long_texts_fill_the_sequence_exactly(tokenizer: Tokenizer) -> None:
    long = Example("dev-3", "the rain " * 40, "it is wet " * 5, "entailment")
    sample = encoder("rte", tokenizer, pattern_id=1)(long)
    assert sample["mask"].item() == S - 1 and sample["text"][-1].item() == tokenizer.command_id("sop")
    text = sample["text"].tolist()
    blank = text.index(tokenizer.command_id("MASK"))
    # 24 - ENC, eos, sop, "?", blank, "," leaves 18: shared equally between the sides
    assert blank == 1 + 9 + 1 and S - 2 - (blank + 2) == 9
    copa = Example("dev-4", "the man slid " * 40, label=0, meta=COPA.meta)
    rows = encoder("copa", tokenizer)(copa)
    assert (rows["logit_mask"][:, -1] == 1).all()  # each choice is cut on its own: no place is left in either
    assert rows["mask"].tolist() == [S - 3, S - 4]


def test_a_pattern_that_cannot_be_shortened_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"example dev-2 of task copa does not fit into --seq-length=12: .*too long.*"
                                         "raise --seq-length"):
        encoder("copa", tokenizer, seq_length=12)(COPA)


def test_classifier_form(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    made = encoder("rte", tokenizer, cloze_eval=False)
    sample = made(RTE)
    row = ids(tokenizer, "ENC the rain sep it is wet . eos")
    assert sample["text"].tolist() == padded(row, tokenizer.pad_id) and sample["mask"].item() == len(row)
    assert sample["position"].tolist() == [padded([*range(len(row))]), [0] * S]
    assert set(sample) == {"text", "position", "mask", "label"}
    with caplog.at_level(logging.WARNING):
        cut = [made(Example("x", "the rain " * 40, "wet", "entailment")) for _ in range(2)]
    assert cut[0]["mask"].item() == S and cut[0]["text"][-1].item() == tokenizer.command_id("eos")
    assert len(caplog.records) == 1 and f"--seq-length={S}" in caplog.text
    rows = encoder("copa", tokenizer, cloze_eval=False)(COPA)
    assert rows["text"][0].tolist() == padded(ids(tokenizer, "ENC the man slid . so sep it grew . eos"),
                                              tokenizer.pad_id)
    record = Example("x", "the rain", "it is @placeholder", "0", meta={"candidates": ["wet", "a b"], "answers": []})
    rows = encoder("record", tokenizer, cloze_eval=False)(record)
    assert rows["text"].shape == (2, S)
    assert rows["text"][1, :rows["mask"][1]].tolist()[-3:] == ids(tokenizer, "a b eos")


def test_prompt_tokens(tokenizer: Tokenizer) -> None:
    sample = encoder("rte", tokenizer, pattern_id=1, continuous_prompt=True, num_prompt_tokens=3,
                     prefix_prompt=2)(RTE)
    positions = sample["prompt_pos"].tolist()
    assert positions == [1, 2, 3, 8, 11]  # the prefix, then one token in each of the pattern's three slots
    assert sample["text"][positions].tolist() == [0] * 5


class FakeBPE:
    """Knows the pieces `` Yes`` (1), ``Yes`` (2) and ``No`` (3); everything else is several pieces."""

    def word_to_id(self, word: str, *, keep_blank: bool = False) -> int:
        pieces = {" Yes": 1, "Yes": 2, "No": 3}
        if keep_blank and word in pieces:
            return pieces[word]
        if word.strip() not in pieces:
            raise ValueError(word)
        return pieces[word.strip()]


def test_verbalizer_rule() -> None:
    bpe = FakeBPE()
    assert verbalizer_id(bpe, " Yes") == 1 and verbalizer_id(bpe, " Yes", with_blank=False) == 2
    assert verbalizer_id(bpe, " No") == 3  # only the stripped word is one piece
    with pytest.raises(ValueError, match="neither"):
        verbalizer_id(bpe, " neither")
