from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from data_utils.flags import add_data_flags
from data_utils.loaders import BlockLMLoader, PretrainData, broadcast_batch, build_pretrain_data, pad_lm_batch
from data_utils.tokenizers import Tokenizer
from tests.helpers.distributed import run_distributed

KEYS = {"tokens", "labels", "loss_mask", "position_ids", "attention_mask"}


def arguments(*words: str, corpus: Path | None = None, **values: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_data_flags(parser)
    given = ["--train-data", str(corpus)] if corpus else []
    args = parser.parse_args(["--block-lm", "--seq-length", "48", "--num-workers", "0", *given, *words])
    defaults = {"batch_size": 4, "eval_batch_size": None, "eval_seq_length": None, "seed": 7}
    return argparse.Namespace(**(vars(args) | defaults | values))


@pytest.fixture()
def corpus(text_file: Path, tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_bytes(text_file.read_bytes())
    return file


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def rows_of(loader: BlockLMLoader, batch_numbers: range) -> list[tuple[object, ...]]:
    """Unpadded rows of some batches."""
    rows = []
    for number in batch_numbers:
        batch = loader.batch(number)
        for index in range(len(batch["tokens"])):
            size = int(batch["attention_mask"][index]) + int(
                (batch["position_ids"][index, 1] > 0).sum())
            rows.append(tuple(tuple(batch[key][index, ..., :size].flatten().tolist())
                              for key in ("tokens", "labels", "loss_mask", "position_ids")))
    return rows


def test_batches_have_the_agreed_keys(corpus: Path, tokenizer: Tokenizer) -> None:
    data = build_pretrain_data(arguments("--split", "8,1,1", corpus=corpus, eval_batch_size=3, eval_seq_length=32),
                               tokenizer)
    batch = data.train.batch(0)
    assert set(batch) == KEYS and all(value.dtype == torch.int64 for value in batch.values())
    assert batch["tokens"].shape[0] == 4 and batch["position_ids"].shape == (4, 2, batch["tokens"].shape[1])
    assert (batch["attention_mask"] <= 48).all() and batch["loss_mask"].sum() > 0
    valid = data.valid.batch(0)
    assert valid["tokens"].shape[0] == 3 and (valid["attention_mask"] <= 33).all()
    assert not same(data.valid.batch(0), data.test.batch(0))


def test_batches_do_not_depend_on_ranks_or_micro_batches(corpus: Path, tokenizer: Tokenizer) -> None:
    def rows(batch_size: int, ranks: int, numbers: range) -> list[tuple[object, ...]]:
        loaders = [build_pretrain_data(arguments(corpus=corpus, batch_size=batch_size), tokenizer, data_rank=rank,
                                       data_size=ranks).train for rank in range(ranks)]
        return [row for number in numbers for loader in loaders for row in rows_of(loader, range(number, number + 1))]

    whole = rows(8, 1, range(3))
    assert whole == rows(4, 1, range(6)) == rows(4, 2, range(3)) == rows(2, 2, range(6))
    assert len(set(whole)) == len(whole) == 24


def test_worker_processes_change_nothing_and_stop(corpus: Path, tokenizer: Tokenizer) -> None:
    others = set(torch.multiprocessing.active_children())  # of the shared pool
    plain = build_pretrain_data(arguments(corpus=corpus), tokenizer).train
    expected = [plain.batch(number) for number in range(5, 11)]
    assert all(same(a, b) for a, b in zip(expected, itertools.islice(plain.iterate(5), 6)))
    for workers in ("1", "2"):
        loader = build_pretrain_data(arguments("--num-workers", workers, corpus=corpus), tokenizer).train
        batches = loader.iterate(5)
        assert all(same(a, b) for a, b in zip(expected, itertools.islice(batches, 6)))
        batches.close()
    assert set(torch.multiprocessing.active_children()) <= others


def test_seed_changes_the_blanks_and_shuffle_the_order(corpus: Path, tokenizer: Tokenizer) -> None:
    first = build_pretrain_data(arguments(corpus=corpus), tokenizer).train.batch(0)
    other_seed = build_pretrain_data(arguments(corpus=corpus, seed=8), tokenizer).train.batch(0)
    shuffled = build_pretrain_data(arguments("--shuffle", corpus=corpus), tokenizer)
    assert not same(first, other_seed) and not same(first, shuffled.train.batch(0))
    assert same(shuffled.valid.batch(0), build_pretrain_data(arguments(corpus=corpus), tokenizer).valid.batch(0))


def document_starts(data: PretrainData, tokenizer: Tokenizer) -> set[str]:
    documents = data.train._dataset._documents
    return {tokenizer.decode(documents.document(i, 0).window(0, 99).text.tolist()) for i in range(len(documents))}


def test_parts_of_the_corpus(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    order_file, test_file = tmp_path / "order.npy", tmp_path / "test.txt"
    saved = build_pretrain_data(arguments("--split", "8,1,1", "--save-splits", str(order_file), "--save-test-data",
                                          str(test_file), corpus=corpus), tokenizer)
    assert sorted(np.load(order_file)) == list(range(119))
    lines = test_file.read_text().splitlines()
    assert saved.test.num_samples == 1000 * len(lines) and lines[0].endswith((".", "!", "?"))
    np.save(order_file, np.load(order_file)[::-1].copy())
    loaded = build_pretrain_data(arguments("--split", "8,1,1", "--load-splits", str(order_file), corpus=corpus),
                                 tokenizer)
    assert not same(loaded.train.batch(0), saved.train.batch(0))
    whole = build_pretrain_data(arguments("--split", "1", corpus=corpus), tokenizer)
    assert whole.valid is None and whole.test is None and whole.train.num_samples == 119_000
    given = build_pretrain_data(arguments("--valid-data", str(corpus), "--split", "949,50,1", corpus=corpus), tokenizer)
    assert given.valid.num_samples == 119_000 and given.test is not None
    only_valid = build_pretrain_data(arguments("--valid-data", str(corpus)), tokenizer)
    assert only_valid.train is None and only_valid.valid is not None


def test_reading_options(corpus: Path, tokenizer: Tokenizer) -> None:
    reference = build_pretrain_data(arguments("--split", "1", corpus=corpus), tokenizer)
    in_memory = build_pretrain_data(arguments("--split", "1", "--no-lazy-loader", corpus=corpus), tokenizer)
    assert same(reference.train.batch(3), in_memory.train.batch(3))
    half = build_pretrain_data(arguments("--split", "1", "--half-lazy-loader", corpus=corpus), tokenizer)
    assert half.train.num_samples == 1000 * (119 * 2 // 3)
    text = build_pretrain_data(arguments("--split", "1", "--no-pre-tokenize", corpus=corpus), tokenizer)
    assert document_starts(text, tokenizer) == document_starts(reference, tokenizer)
    one = build_pretrain_data(arguments("--split", "1", "--sample-one-document", "--bert-prob", "1", corpus=corpus),
                              tokenizer)
    assert all(((one.train.batch(k)["labels"] == tokenizer.command_id("ENC")).sum(1) == 1).all() for k in range(4))


def test_scattered_shards_share_no_document(corpus: Path, tokenizer: Tokenizer) -> None:
    args = arguments("--split", "1", "--loader-scatter", "2", corpus=corpus)
    data = [build_pretrain_data(args, tokenizer, data_rank=rank, data_size=4) for rank in range(4)]
    sizes = [part.train.num_samples for part in data]
    assert sizes[0] == sizes[2] and sizes[1] == sizes[3] and sizes[0] + sizes[1] == 119_000
    assert data[0].train.plan.data_size == 2 and [part.train.plan.data_rank for part in data] == [0, 0, 1, 1]
    assert not same(data[0].train.batch(0), data[2].train.batch(0))
    with pytest.raises(ValueError, match="--loader-scatter=3"):
        build_pretrain_data(arguments("--loader-scatter", "3", corpus=corpus), tokenizer, data_size=4)


def test_refusals(corpus: Path, tokenizer: Tokenizer) -> None:
    args = arguments(corpus=corpus)
    args.block_lm = False
    with pytest.raises(ValueError, match="--block-lm"):
        build_pretrain_data(args, tokenizer)
    with pytest.raises(ValueError, match=r"lid\.176\.bin"):
        build_pretrain_data(arguments("--filter-english", corpus=corpus), tokenizer)


def test_padding_to_a_common_length(corpus: Path, tokenizer: Tokenizer) -> None:
    batch = build_pretrain_data(arguments(corpus=corpus), tokenizer).train.batch(0)
    length = batch["tokens"].shape[1]
    padded = pad_lm_batch(batch, length + 5)
    assert padded["position_ids"].shape == (4, 2, length + 5) and padded["attention_mask"].shape == (4,)
    for key in KEYS - {"attention_mask"}:
        assert torch.equal(padded[key][..., :length], batch[key]) and (padded[key][..., length:] == 0).all()
    assert pad_lm_batch(batch, length) is batch
    with pytest.raises(ValueError, match="cannot pad"):
        pad_lm_batch(batch, length - 1)


def _broadcast(step: int) -> dict[str, torch.Tensor]:
    rank = torch.distributed.get_rank()
    first = rank // 2 * 2
    batch = {"tokens": torch.full((2, 3 + step), 10 * first + step), "attention_mask": torch.tensor([first, step]),
             "position_ids": torch.arange(12).view(1, 2, 6) + first}
    return broadcast_batch(batch if rank == first else None)


@pytest.mark.distributed
def test_broadcast_inside_the_model_parallel_group() -> None:
    for step in range(2):
        results = run_distributed(_broadcast, 4, step, model_parallel_size=2)
        for rank, batch in enumerate(results):
            assert batch["attention_mask"].tolist() == [rank // 2 * 2, step]
            assert batch["tokens"].shape == (2, 3 + step) and same(batch, results[rank // 2 * 2])


def test_single_rank_broadcast_is_the_identity() -> None:
    batch = {"tokens": torch.zeros(1, 2, dtype=torch.int64)}
    assert broadcast_batch(batch) is batch
    with pytest.raises(ValueError, match="must bring"):
        broadcast_batch(None)
