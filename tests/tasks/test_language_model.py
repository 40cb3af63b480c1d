"""Language-model tasks: passages, windows over them, metrics, and what their command lines may hold."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_utils.block_lm import BlockLM, BlockLMConfig
from data_utils.tokenizers import Tokenizer, make_tokenizer
from tasks.flags import add_task_flags, check_task_flags
from tasks.language_model import LANGUAGE_MODEL_TASKS
from tasks.language_model.data import build_language_model_data, passage_lines, passage_scores
from tasks.language_model.passages import ordinary_spelling, read_documents, read_lambada, read_wikitext
from tasks.language_model.spec import Passage, PassageScore
from tasks.language_model.windows import Window, Windows, cut_windows
from tests.helpers.shared import require_shared

WriteLines = Callable[..., Path]


# ---- windows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "size", "stride", "expected"), [
    (0, 5, 4, [(0, 0, 5)]),  # all of it fits
    (0, 10, 4, [(0, 0, 10)]),
    (0, 19, 4, [(0, 0, 10), (10, 6, 4), (14, 6, 4), (18, 9, 1)]),
    (0, 19, 10, [(0, 0, 10), (10, 1, 9)]),  # no overlap, but the last one has room for a context
    (3, 5, 4, [(3, 3, 2)]),  # a prompt of 3
    (12, 14, 4, [(12, 8, 2)]),  # a prompt that does not fit: its end
    (12, 30, 4, [(12, 6, 4), (16, 6, 4), (20, 6, 4), (24, 6, 4), (28, 8, 2)]),
])
def test_windows_of_ten_tokens(first: int, size: int, stride: int, expected: list[tuple[int, int, int]]) -> None:
    assert [window[1:] for window in cut_windows(0, first, size, 10, stride)] == expected


def test_every_token_is_scored_once_behind_as_much_context_as_fits() -> None:
    for first in (0, 2, 9, 40):
        for size in range(first + 1, first + 45):
            for stride in (1, 3, 7, 10):
                windows = list(cut_windows(5, first, size, 10, stride))
                scored = [token for _, start, _, count in windows for token in range(start, start + count)]
                assert scored == list(range(first, size))
                for passage, start, context, count in windows:
                    assert passage == 5 and 0 < count and context + count <= 10
                    assert context == min(start, 10 - count), "no room is left unused"


def windows_of(tokenizer: Tokenizer, *passages: Passage, length: int = 8, stride: int | None = 2,
               unidirectional: bool = False, limit: int | None = None, **config: Any) -> Windows:
    objective = BlockLM(BlockLMConfig(**config), tokenizer, length)
    return Windows(passages, tokenizer, objective, stride=stride, unidirectional=unidirectional, limit=limit)


def spelled(tokenizer: Tokenizer, row: Any) -> list[str]:
    """Tokens, targets of the scored places, both position rows and the length of Part A, as words."""
    return [" ".join(map(tokenizer.id_to_token, row.tokens)),
            " ".join(tokenizer.id_to_token(label) for label, is_scored in zip(row.labels, row.loss_mask) if is_scored),
            *(" ".join(map(str, positions)) for positions in row.position_ids), str(row.sep)]


def test_rows_are_those_of_pretraining_by_generation(tokenizer: Tokenizer) -> None:
    text = Passage("", "yes no maybe true false so because wet", 8)
    first, second = (spelled(tokenizer, row) for row in windows_of(tokenizer, text))
    sop = "<|startofpiece|>"
    assert first == [f"[CLS] [MASK] {sop} yes no maybe true false", "yes no maybe true false so",
                     "0 1 1 1 1 1 1 1", "0 0 1 2 3 4 5 6", "2"]
    assert second == [f"[CLS] maybe true false so [MASK] {sop} because", "because wet",
                      "0 1 2 3 4 5 5 5", "0 0 0 0 0 0 1 2", "6"]


def test_from_left_to_right_the_context_is_read_in_part_b(tokenizer: Tokenizer) -> None:
    text = Passage("", "yes no maybe true false so because wet", 8)
    first, second = (spelled(tokenizer, row) for row in windows_of(tokenizer, text, unidirectional=True))
    sop = "<|startofpiece|>"
    assert first == spelled(tokenizer, windows_of(tokenizer, text)[0]), "there is no context yet"
    assert second == [f"[CLS] [MASK] {sop} maybe true false so because", "because wet", "0 1 1 1 1 1 1 1",
                      "0 0 1 2 3 4 5 6", "2"]


def test_the_mask_of_generation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(tokenizer.id_to_token(token) for token in range(tokenizer.num_text_tokens)))
    masks = make_tokenizer("BertWordPieceTokenizer", str(vocabulary), task_mask=True)
    row = windows_of(masks, Passage("it is", "wet", 1), task_mask=True)[0]
    assert spelled(masks, row)[0] == "[CLS] it is [gMASK] <|startofpiece|>"


def test_a_word_keeps_the_end_of_its_context(tokenizer: Tokenizer) -> None:
    passage = Passage("yes no maybe true false so because", " razor chin", 1)
    row, = windows_of(tokenizer, passage, stride=None)
    assert spelled(tokenizer, row)[:2] == ["[CLS] true false so because [MASK] <|startofpiece|> razor", "razor chin"]


def test_a_limit_of_windows(tokenizer: Tokenizer) -> None:
    texts = [Passage("", "yes no maybe true false so because wet", 8), Passage("", " ", 0), Passage("", "it", 1)]
    assert [window.passage for window in windows_of(tokenizer, *texts).windows] == [0, 0, 1]
    few = windows_of(tokenizer, *texts, limit=1)
    assert few.windows == [Window(0, 0, 0, 6)] and few.passages == texts[:1]


# ---- passages ---------------------------------------------------------------------------------------------------


def test_documents_in_lines_and_in_json(write_lines: WriteLines) -> None:
    plain = write_lines("a.txt", "It is wet.", " ", "\u201cWet\u201d it is")
    assert list(read_documents(plain, "text")) == [Passage("", "It is wet.", 3), Passage("", '"Wet" it is', 3)]
    lines = write_lines("a.jsonl", {"text": "It is wet.", "prompt": "So?"}, {"body": "a", "sentence": "b"})
    assert list(read_documents(lines, "body")) == [Passage("So?", "It is wet.", 3), Passage("", "a", 1)]
    bad = write_lines("b.jsonl", {"text": "It"}, {"body": "It"})
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2: field 'text' is missing \(present: 'body'\)"):
        list(read_documents(bad, "text"))


def test_the_last_word_keeps_its_blank(write_lines: WriteLines) -> None:
    found = list(read_lambada(write_lines("a.jsonl", {"text": 'He said: "it is\nwet." \n'}, {"text": " "}), "text"))
    assert found == [Passage('He said: "it is', '\nwet."', 1)]
    assert list(read_lambada(write_lines("a.txt", "it is wet"), "text")) == [Passage("it is", " wet", 1)]
    with pytest.raises(ValueError, match=r"b\.txt, line 2: 'wet' is one word"):
        list(read_lambada(write_lines("b.txt", "it is", "wet"), "text"))


def test_wikitext_is_one_text(write_lines: WriteLines) -> None:
    path = write_lines("wiki.test.tokens", " ", " = It = ", " ", " It is wet @-@ ish ( wet ) . ")
    passage, = read_wikitext(path, "text")
    assert passage == Passage("", "\n= It =\n\nIt is wet-ish (wet).", 3 + 9 + 4), "words and the ends of four lines"
    assert list(read_wikitext(write_lines("empty.tokens", " ", ""), "text")) == []


@pytest.mark.parametrize(("stretch", "expected"), [
    ("a guest @-@ starring role , 1 @,@ 000 or 1 @.@ 5", "a guest-starring role, 1,000 or 1.5"),
    ('the episode " Teddy \'s Story " of ; it', 'the episode "Teddy\'s Story" of; it'),
    (" = = Career = = ", "== Career =="),
    ("( 2000 ) [ 3 ] for $ 5 !", "(2000) [3] for $5!"),
    ("one . Two ... three", "one. Two ... three"),
])
def test_ordinary_spelling(stretch: str, expected: str) -> None:
    assert ordinary_spelling(stretch) == expected


def test_words_of_the_published_file() -> None:
    path = require_shared("data", "text", "wikitext-2", "test.txt")
    assert next(read_wikitext(path, "text")).num_words == 245_569


# ---- metrics ----------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    passages = [Passage("", "", 2), Passage("", "", 1)]
    scores = [PassageScore(6.0, 4, True), PassageScore(3.0, 1, False)]
    found = {name: metric(passages, scores) for name, metric in LANGUAGE_MODEL_TASKS["lambda"].metrics.items()}
    assert found == {"accuracy": 50.0, "loss": pytest.approx(9 / 5), "ppl": pytest.approx(math.exp(9 / 5)),
                     "word_ppl": pytest.approx(math.exp(3.0))}
    assert list(found) == ["accuracy", "ppl", "word_ppl", "loss"]
    assert list(LANGUAGE_MODEL_TASKS["wikitext"].metrics) == ["ppl", "word_ppl", "loss"]
    worst = [PassageScore(100.0, 4, False)]
    assert LANGUAGE_MODEL_TASKS["wikitext"].metrics["ppl"](passages, worst) == math.exp(20), "as in pretraining"


def test_windows_are_put_together_by_passage(tokenizer: Tokenizer) -> None:
    data = windows_of(tokenizer, Passage("", "yes no maybe true false so because wet", 8), Passage("", "it", 1))
    parts = {2: PassageScore(3.0, 1, True), 0: PassageScore(1.0, 6, True), 1: PassageScore(2.0, 2, False)}
    scores = passage_scores(data, parts)
    assert scores == [PassageScore(3.0, 8, False), PassageScore(3.0, 1, True)]
    lines = passage_lines(LANGUAGE_MODEL_TASKS["lambda"], scores)
    assert lines[1] == {"idx": 1, "tokens": 1, "loss": 3.0, "correct": True}
    assert passage_lines(LANGUAGE_MODEL_TASKS["wikitext"], scores)[0] == {"idx": 0, "tokens": 8, "loss": 3.0}
    with pytest.raises(ValueError, match="1 of 3 windows have no score, the first is number 1"):
        passage_scores(data, {0: parts[0], 2: parts[2]})


# ---- data and flags ---------------------------------------------------------------------------------------------


def arguments(*words: str, **changes: Any) -> argparse.Namespace:
    """The arguments of a command, those of other rooms with small values."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_task_flags(parser)
    values = {"block_lm": True, "masked_lm": False, "valid_data": ["x.txt"], "test_data": None, "train_data": None,
              "data_dir": None, "epochs": 0, "seq_length": 12, "overlapping_eval": 3, "batch_size": 2, "seed": 1,
              "eval_batch_size": None, "text_key": "sentence", "eval_text_key": None, "task_mask": False,
              "bert_prob": 0.5, "gap_sentence_prob": 0.0, "gap_sentence_ratio": 0.15, "gpt_min_ratio": 0.5,
              "gpt_infill_prob": 0.5, "avg_block_length": 3, "single_span_prob": 0.0, "short_seq_prob": 0.0,
              "block_mask_prob": 0.0, "context_mask_ratio": 0.0, "random_position": False, "sentinel_token": False,
              "no_shuffle_block": False, "no_block_position": False}
    return argparse.Namespace(**{**vars(parser.parse_args(["--task=language_model", *words])), **values, **changes})


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_ranks_share_out_the_windows(tokenizer: Tokenizer, write_lines: WriteLines, size: int) -> None:
    write_lines("a.txt", "yes no maybe true false so because wet yes no maybe true", "it is", "wet wet wet")
    args = arguments(valid_data=["a.txt"], data_dir=str(write_lines("b.txt", "it").parent))
    sets = [build_language_model_data(args, tokenizer, data_rank=rank, data_size=size).dev[0] for rank in range(size)]
    batches = [[(batch, numbers) for batch, numbers in one] for one in sets]
    assert sorted(number for one in batches for _, numbers in one for number in numbers) == [0, 1, 2, 3]
    for one in batches:
        lengths = [batch["tokens"].shape[1] for batch, _ in one]
        assert lengths == sorted(lengths, reverse=True)
        for batch, numbers in one:
            assert len(batch["attention_mask"]) == len(numbers) <= 2
            assert batch["loss_mask"].sum(1).tolist() == [sets[0].data.windows[number].count for number in numbers]
    assert sets[0].name == "a" and len(sets[0].passages) == 3


def test_texts_to_train_on(tokenizer: Tokenizer, write_lines: WriteLines) -> None:
    folder = write_lines("a.txt", "it is wet", "so it is").parent
    args = arguments(valid_data=["a.txt", str(folder / "a.txt")], data_dir=str(folder), train_data=["a.txt", "a.txt"],
                     epochs=2)
    data = build_language_model_data(args, tokenizer)
    assert [one.name for one in data.dev] == ["a-0", "a-1"] and data.train.batches_per_epoch == 2
    batch = next(data.train.epoch(0))
    assert set(batch) == {"tokens", "labels", "loss_mask", "position_ids", "attention_mask"}
    assert data.valid.data is data.dev[0].data


def test_files_that_are_not_there_or_empty(tokenizer: Tokenizer, write_lines: WriteLines) -> None:
    with pytest.raises(FileNotFoundError, match=r"--valid-data=x\.txt: no such file \(x\.txt or data/x\.txt\)"):
        build_language_model_data(arguments(data_dir="data"), tokenizer)
    empty = write_lines("empty.txt", " ")
    with pytest.raises(ValueError, match=r"empty\.txt holds no text"):
        build_language_model_data(arguments(valid_data=[str(empty)]), tokenizer)
    odd = write_lines("odd.txt", "\x00")
    with pytest.raises(ValueError, match="the tokenizer makes no token"):
        build_language_model_data(arguments(valid_data=[str(odd)]), tokenizer)


@pytest.mark.parametrize("words", [["--task=lambda"], ["--task=LAMBDA", "--unidirectional"], ["--task=wikitext"]])
def test_published_words_pass(words: list[str]) -> None:
    check_task_flags(arguments("--finetune", *words))


@pytest.mark.parametrize(("words", "changes", "message"), [
    (["--cloze-eval"], {}, "--cloze-eval belongs to tasks with patterns or labels; --task=language_model scores texts"),
    (["--pattern-id=2"], {}, "--pattern-id=2 belongs to tasks with patterns"),
    (["--fix_variable_num_choices"], {}, "--fix_variable_num_choices belongs"),
    (["--train-split=unlabeled"], {}, "--train-split=unlabeled belongs"),
    ([], {"block_lm": False}, "needs --block-lm"),
    ([], {"masked_lm": True}, "without --masked-lm"),
    ([], {"valid_data": []}, "--task=language_model scores the files of --valid-data"),
    ([], {"epochs": 3}, "--epochs=3 trains on the files of --train-data"),
    ([], {"overlapping_eval": 11}, "--overlapping-eval=11 has to lie between 1 and 10.*--seq-length=12"),
])
def test_what_cannot_act_is_refused(words: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task_flags(arguments(*words, **changes))
