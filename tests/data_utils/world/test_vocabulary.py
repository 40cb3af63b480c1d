"""The world's vocabularies and frequency tables."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from data_utils.tokenizers import Tokenizer, make_tokenizer
from data_utils.world.vocabulary import VERBALIZERS, wordpiece_vocabulary
from tests.data_utils.world.conftest import read_lines
from tests.data_utils.world.judge import PARTS

FOREIGN = 'Zürich, 1996: "What?!" – naïve Σ 東京 café_42\tend'


def every_text(world: Path) -> list[str]:
    texts = [line["text"] for part in ("train", "valid") for line in read_lines(world / f"text/{part}.jsonl")]
    for task in ("COPA", "CB", "RTE", "BoolQ"):
        for part in PARTS:
            for line in read_lines(world / f"tasks/{task}/{part}.jsonl"):
                texts += [value for value in line.values() if isinstance(value, str) and " " in value]
    return texts


@pytest.fixture(scope="module", params=["BertWordPieceTokenizer", "GPT2BPETokenizer"])
def tokenizer(request: pytest.FixtureRequest, world: Path) -> Tokenizer:
    return make_tokenizer(request.param, str(world / ("vocab.txt" if "Bert" in request.param else "gpt2")))


def test_every_generated_word_is_one_token(tokenizer: Tokenizer, world: Path) -> None:
    words = {word for text in every_text(world) for word in re.findall(r"[A-Za-z]+", text)}
    assert len(words) > 600
    many = [word for word in sorted(words) if len(tokenizer.encode_plain(f" {word}")) != 1]
    assert not many


def test_pattern_words_and_verbalizers_are_one_token(tokenizer: Tokenizer) -> None:
    for word in (*(v.capitalize() for v in ("yes", "no", "maybe")), "true", "false", "neither", "because", "so"):
        assert len(tokenizer.encode_plain(f" {word}")) == 1
        tokenizer.word_to_id(f" {word}", keep_blank=True)


def test_any_other_text_encodes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_plain(FOREIGN)
    assert len(ids) > 20 and max(ids) < tokenizer.num_tokens
    if tokenizer.has_command("unk") and tokenizer.num_text_tokens > 1000:
        assert tokenizer.decode(ids) == FOREIGN  # bytes lose nothing
    plain = "strange quux zebra 1996!"
    assert tokenizer.command_id("unk") not in tokenizer.encode_plain(plain)


def test_wordpiece_file_is_small_and_without_repeats(world: Path) -> None:
    lines = (world / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines == wordpiece_vocabulary() and lines[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(lines) == len(set(lines)) <= 1022  # with the two block symbols at most 1,024 rows


@pytest.mark.parametrize(
    ("name", "tokenizer_type", "path"),
    [
        ("BertWordPieceTokenizer_vocab.txt", "BertWordPieceTokenizer", "vocab.txt"),
        ("GPT2BPETokenizer_gpt2.txt", "GPT2BPETokenizer", "gpt2"),
    ],
)
def test_frequency_table(world: Path, name: str, tokenizer_type: str, path: str) -> None:
    tokenizer = make_tokenizer(tokenizer_type, str(world / path))
    text = (world / name).read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert list(rows[0]) == ["origin_no", "sort_id", "token", "number", "frequency"]
    sort_id = [int(row["sort_id"]) for row in rows]
    assert sorted(sort_id) == list(range(tokenizer.num_tokens))
    assert all(sort_id[int(row["origin_no"])] == i for i, row in enumerate(rows))
    assert all(row["token"] == tokenizer.id_to_token(int(row["sort_id"])) for row in rows)

    counts = Counter(i for line in read_lines(world / "text/train.jsonl") for i in tokenizer.encode(line["text"]))
    assert all(int(row["number"]) == counts[int(row["sort_id"])] for row in rows)
    total = sum(counts.values())
    assert all(row["frequency"] == f"{int(row['number']) / total:.3e}" for row in rows)

    protected = {command.id for command in tokenizer.commands} | {tokenizer.word_to_id(" yes", keep_blank=True)}
    num_protected = next(i for i, row in enumerate(rows) if row["token"].strip("Ġ") == "the")
    assert protected <= set(sort_id[:num_protected]) and num_protected <= len(protected) + 2 * len(VERBALIZERS)
    numbers = [int(row["number"]) for row in rows[num_protected:]]
    assert numbers == sorted(numbers, reverse=True)
