"""Pre-training batches: data parts, worker processes, broadcast inside the model-parallel group."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from data_utils.block_lm import BlockLM, BlockLMConfig, collate_rows
from data_utils.corpora import CacheOptions, Documents, load_documents
from data_utils.corpora.documents import SelectedDocuments
from data_utils.datasets.block import BlockDataset
from data_utils.flags import DEFAULT_TEXT_KEY
from data_utils.samplers import SampleOrder, sample_numbers
from data_utils.splits import load_split_indices, parse_split, shuffled_indices, split_indices
from data_utils.tokenizers.base import Tokenizer
from data_utils.workers import start_worker
from model.parallel import groups

logger = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]
PART_NAMES = ("train", "valid", "test")
_PADDED_KEYS = ("tokens", "labels", "loss_mask", "position_ids")


@dataclass(frozen=True)
class BatchPlan:
    """Which samples a rank sees.

    Attributes:
        name: data part; together with ``seed`` and the global sample number it keys all draws of a sample.
        batch_size: samples of one rank's micro-batch.
        num_workers: processes that prepare batches ahead; 0: none. Batches do not depend on it.
    """

    name: str
    batch_size: int
    data_rank: int = 0
    data_size: int = 1
    seed: int = 1234
    shuffle: bool = False
    num_workers: int = 0


class BlockLMLoader:
    """Micro-batches by number: batch ``k`` is a pure function of ``k``, so resuming means asking for it."""

    def __init__(self, dataset: BlockDataset, objective: BlockLM, plan: BatchPlan) -> None:
        self.plan, self.num_samples = plan, len(dataset)
        self._dataset, self._objective = dataset, objective
        self._order = SampleOrder(len(dataset), plan.shuffle, plan.seed)

    def batch(self, number: int) -> Batch:
        """Micro-batch ``number`` (from 0, over the whole run) of this rank: see :func:`collate_rows` for the keys."""
        plan = self.plan
        rows = []
        for sample_number in sample_numbers(number, plan.batch_size, plan.data_rank, plan.data_size):
            sample = self._dataset.sample(self._order.index(sample_number))
            rows += self._objective.training_rows(sample, Random(f"{plan.name}/{plan.seed}/{sample_number}"))[0]
        return collate_rows(rows)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Micro-batches ``start, start + 1, …`` without end; worker processes stop when the iterator is closed."""
        if self.plan.num_workers == 0:
            yield from map(self.batch, itertools.count(start))
            return
        # A generator of its own: otherwise the loader draws a number from the run's, on the ranks that read data and
        # once more on resuming, and dropout differs.
        loader = DataLoader(_BatchNumbers(self), batch_size=None, sampler=_CountFrom(start),
                            num_workers=self.plan.num_workers, worker_init_fn=start_worker, generator=torch.Generator())
        batches = iter(loader)
        try:
            yield from batches
        finally:
            del batches


class _BatchNumbers(Dataset):
    """A map from batch number to batch, for torch's loader."""

    def __init__(self, loader: BlockLMLoader) -> None:
        self._loader = loader

    def __getitem__(self, number: int) -> Batch:
        return self._loader.batch(number)


@dataclass(frozen=True)
class _CountFrom:
    start: int

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


@dataclass(frozen=True)
class PretrainData:
    """Loaders of the three parts, None where there is no such data."""

    train: BlockLMLoader | None = None
    valid: BlockLMLoader | None = None
    test: BlockLMLoader | None = None


def build_pretrain_data(args: argparse.Namespace, tokenizer: Tokenizer, *, data_rank: int = 0, data_size: int = 1,
                        is_writer: bool = True, max_documents: int | None = None) -> PretrainData:
    """Loaders for ``--train-data``, ``--valid-data`` and ``--test-data``.

    The corpus is tokenized on first use; of several ranks one does it, the others wait. Evaluation parts take
    ``--eval-batch-size`` and ``--eval-seq-length`` where given.

    Args:
        is_writer: this rank writes what ``--save-splits`` and ``--save-test-data`` name; one of all ranks does.
        max_documents: read only the first documents of each corpus (dry runs).

    Raises:
        ValueError: no ``--block-lm``; a corpus, split or objective that cannot work. FileNotFoundError: no such corpus.
    """
    if not (args.block_lm or args.masked_lm):
        raise ValueError("pre-training needs --block-lm (GLM); plain left-to-right training is not supported")
    rank, size, seed_name = data_rank, data_size, ""
    shard = None
    if args.loader_scatter:
        if args.loader_scatter < 1 or data_size % args.loader_scatter:
            raise ValueError(f"--loader-scatter={args.loader_scatter} must divide the data-parallel size ({data_size})")
        shard = data_rank % args.loader_scatter
        rank, size = data_rank // args.loader_scatter, data_size // args.loader_scatter
        seed_name = f"shard{shard}/"
    parts = _document_parts(args, tokenizer, shard=shard, is_writer=is_writer, max_documents=max_documents)
    config = BlockLMConfig.from_args(args)
    loaders: dict[str, BlockLMLoader] = {}
    for name, documents in parts.items():
        if documents is None:
            continue
        is_train = name == "train"
        length = args.seq_length if is_train else getattr(args, "eval_seq_length", None) or args.seq_length
        batch_size = args.batch_size if is_train else getattr(args, "eval_batch_size", None) or args.batch_size
        plan = BatchPlan(seed_name + name, batch_size, rank, size, seed=args.seed, shuffle=args.shuffle and is_train,
                         num_workers=args.num_workers)
        dataset = BlockDataset(
            documents, tokenizer, length, sample_across_documents=not args.sample_one_document,
            non_sentence_start=args.non_sentence_start)
        loaders[name] = BlockLMLoader(dataset, BlockLM(config, tokenizer, length), plan)
    return PretrainData(**loaders)


def _document_parts(args: argparse.Namespace, tokenizer: Tokenizer, *, shard: int | None, is_writer: bool,
                    max_documents: int | None) -> dict[str, Documents | None]:
    """Documents of train, valid and test; a part with data of its own gets them all."""
    options = CacheOptions(
        pre_tokenize=not args.no_pre_tokenize, in_memory=args.no_lazy_loader, english_only=args.filter_english,
        data_root=args.data_root, fallback_root=args.cache_dir)

    def load(names: list[str], key: str) -> Documents:
        documents = load_documents(
            names, tokenizer, options, text_key="text" if key == DEFAULT_TEXT_KEY else key,
            loose_json=args.loose_json, max_documents=max_documents)
        return _restrict(documents, half=args.half_lazy_loader, shards=args.loader_scatter, shard=shard)

    eval_key = args.eval_text_key or args.text_key
    parts: dict[str, Documents | None] = dict.fromkeys(PART_NAMES)
    if args.train_data:
        shares = parse_split(args.split, has_valid_data=bool(args.valid_data), has_test_data=bool(args.test_data))
        documents = load(args.train_data, args.text_key)
        if sum(share > 0 for share in shares) == 1:
            parts[PART_NAMES[next(index for index, share in enumerate(shares) if share)]] = documents
        else:
            order = (load_split_indices(args.load_splits, len(documents)) if args.load_splits
                     else shuffled_indices(len(documents)))
            if args.save_splits and is_writer:
                np.save(args.save_splits, order)
            cut = split_indices(shares, order)
            parts.update({name: None if indices is None else SelectedDocuments(documents, indices)
                          for name, indices in zip(PART_NAMES, cut)})
    if args.valid_data:
        parts["valid"] = load(args.valid_data, eval_key)
    if args.test_data:
        parts["test"] = load(args.test_data, eval_key)
    if args.save_test_data and is_writer and parts["test"] is not None:
        _save_documents(parts["test"], tokenizer, args.save_test_data)
    return parts


def _restrict(documents: Documents, *, half: bool, shards: int | None, shard: int | None) -> Documents:
    if half:  # Two thirds, whatever the flag's name says: kept for equal samples with the release.
        documents = SelectedDocuments(documents, np.arange(len(documents) * 2 // 3))
    if shards and shard is not None:
        if len(documents) < shards:
            raise ValueError(f"--loader-scatter={shards} needs at least that many documents (got {len(documents)})")
        documents = SelectedDocuments(documents, shuffled_indices(len(documents))[shard::shards])
    return documents


def _save_documents(documents: Documents, tokenizer: Tokenizer, path: str) -> None:
    eos = tokenizer.command_id("eos")
    with open(Path(path), "w", encoding="utf-8") as stream:
        for index in range(len(documents)):
            document = documents.document(index, eos)
            text = tokenizer.decode(document.window(0, len(document) - 1).text.tolist())
            stream.write(text.replace("\n", " ") + "\n")


def pad_lm_batch(batch: Batch, length: int) -> Batch:
    """The batch with its rows padded to ``length`` by zeros. Raises ValueError if they are longer."""
    missing = length - batch["tokens"].shape[-1]
    if missing < 0:
        raise ValueError(f"cannot pad rows of {batch['tokens'].shape[-1]} tokens to {length}")
    if missing == 0:
        return batch
    return {key: torch.nn.functional.pad(value, (0, missing)) if key in _PADDED_KEYS else value
            for key, value in batch.items()}


def broadcast_batch(batch: Batch | None) -> Batch:
    """The batch of the model-parallel group's first rank, on every rank of the group (int64 CPU tensors).

    The other ranks may pass None. Identity at model-parallel size 1.
    """
    if groups.get_model_parallel_world_size() == 1:
        if batch is None:
            raise ValueError("the only rank of a model-parallel group must bring the batch")
        return batch
    group, source = groups.get_model_parallel_group(), groups.get_model_parallel_src_rank()
    is_source = groups.get_model_parallel_rank() == 0
    if is_source and any(value.dtype != torch.int64 for value in batch.values()):
        raise ValueError("batches are broadcast as int64; got "
                         + ", ".join(f"{key} {value.dtype}" for key, value in batch.items()))
    header = [[(key, tuple(value.shape)) for key, value in batch.items()] if is_source else None]
    dist.broadcast_object_list(header, src=source, group=group)
    shapes = header[0]
    device = torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")
    sizes = [int(np.prod(shape)) for _, shape in shapes]
    flat = (torch.cat([value.reshape(-1) for value in batch.values()]).to(device) if is_source
            else torch.empty(sum(sizes), dtype=torch.int64, device=device))
    dist.broadcast(flat, src=source, group=group)
    pieces = flat.cpu().split(sizes)
    return {key: piece.view(shape) for (key, shape), piece in zip(shapes, pieces)}
