from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from data_utils.tokenizers import Tokenizer
from tasks import data
from tasks.data import EvalSet, TrainLoader, build_task_data, make_split, split_file

WriteLines = Callable[..., Path]
COPA_ROW = {"premise": "The man slid.", "choice1": "It grew.", "choice2": "It is wet.", "question": "effect"}


def arguments(folder: Path, **changes: object) -> argparse.Namespace:
    values = {"task": "COPA", "data_dir": str(folder), "cloze_eval": True, "pattern_id": 0, "seq_length": 32,
              "batch_size": 4, "eval_batch_size": None, "seed": 7, "epochs": 1, "train_split": "train",
              "valid_data": None, "test_data": None, "num_workers": 0, "few_superglue": False,
              "fix_variable_num_choices": False}
    return argparse.Namespace(**{**values, **changes})


@pytest.fixture
def copa(write_lines: WriteLines) -> Path:
    rows = [{**COPA_ROW, "label": index % 2, "idx": index} for index in range(7)]
    unlabelled = [{**COPA_ROW, "idx": index} for index in range(3)]
    write_lines("train.jsonl", *rows)
    write_lines("dev32.jsonl", *rows[:2])
    write_lines("test.jsonl", *unlabelled)
    write_lines("unlabeled.jsonl", *unlabelled)
    return write_lines("val.jsonl", *rows[:5]).parent


def loaders(copa: Path, tokenizer: Tokenizer, size: int, batch_size: int) -> list[TrainLoader]:
    return [build_task_data(arguments(copa, batch_size=batch_size), tokenizer, data_rank=rank, data_size=size).train
            for rank in range(size)]


def test_every_epoch_has_its_own_order_and_keeps_the_last_batch(copa: Path, tokenizer: Tokenizer) -> None:
    loader, = loaders(copa, tokenizer, 1, 4)
    assert loader.batches_per_epoch == 4  # 14 examples: COPA's training set has both orders of the choices
    first, second = (list(loader.epoch(epoch)) for epoch in (0, 1))
    assert [len(batch["label"]) for batch in first] == [4, 4, 4, 2]
    assert sorted(loader.order(0)) == list(range(14)) and loader.order(0) != loader.order(1)
    assert loader.order(1) == torch.randperm(14, generator=torch.Generator().manual_seed(7 + 1)).tolist()
    assert any(not torch.equal(one["text"], other["text"]) for one, other in zip(first, second))


def test_skip_resumes_inside_an_epoch(copa: Path, tokenizer: Tokenizer) -> None:
    loader, = loaders(copa, tokenizer, 1, 4)
    whole, rest = list(loader.epoch(3)), list(loader.epoch(3, skip=2))
    assert len(rest) == 2 and all(torch.equal(one[name], other[name]) for one, other in zip(whole[2:], rest)
                                  for name in one)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_see_what_one_rank_sees(copa: Path, tokenizer: Tokenizer, size: int) -> None:
    one, = loaders(copa, tokenizer, 1, 4)
    ranks = loaders(copa, tokenizer, size, 4 // size)
    orders = [rank.order(5) for rank in ranks]
    assert len({len(order) for order in orders}) == 1 and {rank.batches_per_epoch for rank in ranks} == {4}
    for number in range(3):
        together = {index for order in orders for index in order[number * 4 // size:(number + 1) * 4 // size]}
        assert together == set(one.order(5)[number * 4:(number + 1) * 4])
    repeated = -14 % size
    assert sorted(sum(orders, [])) == sorted(list(range(14)) + one.order(5)[:repeated])


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_evaluation_visits_every_example_once(copa: Path, tokenizer: Tokenizer, size: int) -> None:
    sets: Sequence[EvalSet] = [build_task_data(arguments(copa, eval_batch_size=2), tokenizer, data_rank=rank,
                                               data_size=size).dev[0] for rank in range(size)]
    uids = []
    for one in sets:
        batches = list(one)
        assert len(batches) == len(one)
        assert all(len(batch.uids) == len(batch.tensors["label"]) for batch in batches)
        uids += [uid for batch in batches for uid in batch.uids]
    assert sorted(uids) == [f"dev-{index}" for index in range(5)]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_the_validation_loss_reads_every_example_once(copa: Path, tokenizer: Tokenizer, size: int) -> None:
    ranks = [build_task_data(arguments(copa, batch_size=2), tokenizer, data_rank=rank, data_size=size).valid
             for rank in range(size)]
    assert sorted(index for rank in ranks for index in rank.order(0)) == list(range(5))
    assert sum(len(batch["label"]) for rank in ranks for batch in rank.epoch(0)) == 5


def test_batch_keys(copa: Path, tokenizer: Tokenizer) -> None:
    loader, = loaders(copa, tokenizer, 1, 4)
    batch = next(iter(loader.epoch(0)))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "text": (4, 2, 32), "position": (4, 2, 2, 32), "mask": (4, 2), "target": (4, 2, 32), "logit_mask": (4, 2, 32),
        "label": (4,)}


def test_splits(copa: Path, tokenizer: Tokenizer) -> None:
    built = build_task_data(arguments(copa, train_split="unlabeled", valid_data=["dev", "dev32"], test_data=["test"]),
                            tokenizer)
    assert built.train is not None and not built.train.has_labels and len(built.train.data) == 6
    assert built.valid is not None and built.valid.has_labels
    assert [(one.name, len(one.examples), one.has_labels) for one in (*built.dev, *built.test)] == [
        ("dev", 5, True), ("dev32", 2, True), ("test", 3, False)]
    few = build_task_data(arguments(copa, few_superglue=True, test_data=["test"], epochs=0), tokenizer)
    assert [len(one.examples) for one in (*few.dev, *few.test)] == [2, 5]
    assert few.train is None and few.valid is None
    own = build_task_data(arguments(copa, train_split="dev32"), tokenizer)
    assert own.train is not None and own.train.has_labels and len(own.train.data) == 4


def test_missing_files_name_what_is_there(copa: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(FileNotFoundError, match=r"unlabelled\.jsonl .*did you mean 'unlabeled'.*--train-split=STEM"):
        build_task_data(arguments(copa, train_split="unlabelled"), tokenizer)
    with pytest.raises(FileNotFoundError, match="--data-dir=.*nowhere is not a folder"):
        split_file(copa / "nowhere", make_split("train"))
    with pytest.raises(ValueError, match="--data-dir is missing"):
        build_task_data(arguments(copa, data_dir=None), tokenizer)


def test_labels_are_required_for_training(copa: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: field 'label' is missing.*--train-split=unlabeled"):
        build_task_data(arguments(copa, train_split="test"), tokenizer)


def test_equal_names_are_refused_in_evaluation(copa: Path, write_lines: WriteLines, tokenizer: Tokenizer) -> None:
    write_lines("val.jsonl", {**COPA_ROW, "label": 0, "idx": 3}, {**COPA_ROW, "label": 0, "idx": 3})
    with pytest.raises(ValueError, match=r"val\.jsonl: two examples are called 'dev-3'"):
        build_task_data(arguments(copa), tokenizer)


def record_rows() -> list[dict[str, object]]:
    rows = []
    for index, count in enumerate((12, 3, 5)):
        names = [f"n{number:02d}" for number in range(count)]
        entities = [{"start": 4 * number, "end": 4 * number + 2} for number in range(count)]
        rows.append({"idx": index, "passage": {"text": " ".join(names), "entities": entities},
                     "qas": [{"idx": index, "query": "it is @placeholder", "answers": [{"text": "n01"}]}]})
    return rows


def test_number_of_choices_varies(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, record_rows())))
    args = arguments(tmp_path, task="ReCoRD", seq_length=64)
    built = build_task_data(args, tokenizer)
    batch = next(iter(built.train.epoch(0)))
    assert batch["text"].shape == (3, 10, 64) and sorted(batch["loss_mask"].sum(1).tolist()) == [3, 5, 10]
    scored = list(built.dev[0])[0]
    assert scored.tensors["loss_mask"].sum(1).tolist() == [3, 5, 12]  # sorted by number of choices
    args.fix_variable_num_choices, args.batch_size = True, 1
    built = build_task_data(args, tokenizer)
    assert {batch["text"].shape[1] for batch in built.train.epoch(0)} == {10}
    assert [batch.tensors["text"].shape[1] for batch in built.dev[0]] == [3, 5, 12]  # evaluation scores all


def test_workers_change_nothing(copa: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = build_task_data(arguments(copa), tokenizer)
    monkeypatch.setattr(data, "MIN_EXAMPLES_FOR_WORKERS", 1)
    helped = build_task_data(arguments(copa, num_workers=2), tokenizer)
    assert helped.train.num_workers == 2
    before = torch.get_rng_state()
    pairs = list(zip(alone.train.epoch(2), helped.train.epoch(2), strict=True))
    assert all(torch.equal(one[name], other[name]) for one, other in pairs for name in one)
    assert [batch.uids for batch in alone.dev[0]] == [batch.uids for batch in helped.dev[0]]
    assert torch.equal(before, torch.get_rng_state())  # a resumed run draws the same dropout
