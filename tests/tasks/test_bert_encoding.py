from __future__ import annotations

import pytest

from data_utils.tokenizers import Tokenizer
from tasks.bert_encoding import BertEncoder, shortened
from tasks.collate import collate
from tasks.examples import Example
from tasks.registry import get_task
from tasks.spec import TaskOptions

RTE = Example("dev-1", "it is wet", "so it is", label="not_entailment")
RECORD = Example("dev-2", "the man grew", "@placeholder slid", label="0", num_choices=2,
                 meta={"candidates": ["man", "woman"], "answers": ["man"]})


def encoder(task: str, tokenizer: Tokenizer, seq_length: int = 12) -> BertEncoder:
    options = TaskOptions(seq_length=seq_length)
    return BertEncoder(get_task(task, options), options, tokenizer)


def words(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " ".join(map(tokenizer.id_to_token, ids))


def test_two_texts(tokenizer: Tokenizer) -> None:
    sample = encoder("rte", tokenizer)(RTE)
    assert words(tokenizer, sample["text"].tolist()) == "[CLS] it is wet [SEP] so it is [SEP] [PAD] [PAD] [PAD]"
    assert sample["types"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert sample["padding_mask"].tolist() == [1] * 9 + [0] * 3 and sample["label"].item() == 1
    assert set(sample) == {"text", "types", "padding_mask", "label"}


def test_one_text(tokenizer: Tokenizer) -> None:
    sample = encoder("sst2", tokenizer, 6)(Example("dev-1", "it is wet", label="1"))
    assert words(tokenizer, sample["text"].tolist()) == "[CLS] it is wet [SEP] [PAD]"
    assert sample["types"].sum() == 0 and sample["padding_mask"].sum() == 5


def test_a_row_for_each_choice(tokenizer: Tokenizer) -> None:
    encode = encoder("record", tokenizer, 24)
    sample = encode(RECORD)
    rows = [words(tokenizer, row) for row in sample["text"].tolist()]
    assert sample["text"].shape == sample["types"].shape == sample["padding_mask"].shape == (2, 24)
    ends = [row.split(" [PAD]")[0].split()[-3:] for row in rows]
    assert ends == [["slid", word, "[SEP]"] for word in ("man", "woman")]
    other = Example("dev-3", "it", "@placeholder is", label="0", num_choices=3,
                    meta={"candidates": ["a", "b", "man"], "answers": ["a"]})
    batch = collate([sample, encode(other)])
    assert batch["types"].shape == (2, 3, 24) and batch["loss_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_longer_text_loses_its_end(tokenizer: Tokenizer) -> None:
    long = Example("dev-1", "it is wet it is wet it is wet", "so it is", label="entailment")
    sample = encoder("rte", tokenizer, 10)(long)
    assert words(tokenizer, sample["text"].tolist()) == "[CLS] it is wet it [SEP] so it is [SEP]"
    record = encoder("record", tokenizer, 9)(RECORD)
    assert [words(tokenizer, row).split("[SEP]")[1].split()[-1] for row in record["text"].tolist()] == ["man", "woman"]


@pytest.mark.parametrize(("first", "second", "room", "expected"), [
    (3, 3, 6, (3, 3)), (9, 1, 6, (5, 1)), (1, 9, 6, (1, 5)), (9, 9, 6, (3, 3)), (9, 9, 7, (4, 3)), (4, 9, 7, (4, 3)),
    (5, 0, 3, (3, 0)), (0, 5, 3, (0, 3)), (5, 5, 0, (0, 0)), (3, 4, 6, (3, 3)),
])
def test_lengths(first: int, second: int, room: int, expected: tuple[int, int]) -> None:
    one, other = shortened(range(first), range(second), room)
    assert (list(one), list(other)) == (list(range(expected[0])), list(range(expected[1])))
