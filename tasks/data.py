"""The data of a fine-tuning run: which file belongs to which split, the training loader, the evaluation sets."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from data_utils import block_lm
from data_utils.tokenizers import Tokenizer
from data_utils.workers import start_worker
from tasks.bert_encoding import BertEncoder
from tasks.collate import collate
from tasks.encoding import Sample, TaskEncoder
from tasks.examples import Example, Split, nearest
from tasks.files import JSON_LINES, FileFormat
from tasks.registry import Task, get_task
from tasks.spec import TaskOptions, TaskSpec

Batch = dict[str, torch.Tensor]

#: Below this many examples, encoding in the training process is quicker than starting workers.
MIN_EXAMPLES_FOR_WORKERS = 10_000

_SPLIT_KINDS = ("train", "dev", "test", "unlabeled")

_LOG = logging.getLogger(__name__)


def make_split(name: str, *, for_training: bool = False) -> Split:
    """The split of a name: train, dev, test, unlabeled, or the stem of another file.

    Whatever is trained on is read like train, with labels and, in COPA, both orders of the choices; ``unlabeled`` alone
    has no labels. Evaluation reads other stems like dev.
    """
    if for_training:
        return Split(name, "unlabeled" if name == "unlabeled" else "train")
    return Split(name, name if name in _SPLIT_KINDS else "dev")


def split_file(data_dir: str | Path, split: Split, few_superglue: bool = False,
               form: FileFormat = JSON_LINES) -> Path:
    """The file (RACE: folder) of a split; FileNotFoundError names what the folder has instead."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"--data-dir={data_dir} is not a folder; give the folder of one task with "
                                f"{', '.join(dict.fromkeys(form.names.values()))} in the task's official format "
                                "(SuperGLUE: python -m tasks.superglue.download)")
    path = folder / form.file_name(split.name, few_superglue)
    if not path.exists():
        present = [file.name for file in sorted(folder.iterdir()) if file.suffix == path.suffix]
        stems = [Path(name).stem for name in present]
        raise FileNotFoundError(
            f"{path} (split {split.name!r}) does not exist{nearest(path.stem, stems)}; {folder} has "
            f"{', '.join(present) or f'no {path.suffix} file'}. Choose the training file with --train-split=STEM, the "
            "evaluation files with --valid-data STEM ...")
    return path


def read_split(spec: TaskSpec, path: Path, split: Split, *, training_form: bool) -> list[Example]:
    """The examples of a file, sorted by number of choices (stable); ValueError where two have one guid."""
    lines = spec.files.read(path)
    examples = sorted(spec.read(lines, split, training_form), key=lambda example: example.num_choices)
    if not examples:
        raise ValueError(f"{path} has no examples of task {spec.name} ({len(lines)} lines were read); name a file with "
                         "at least one")
    if not training_form:
        seen: set[str] = set()
        for example in examples:
            if example.guid in seen:
                raise ValueError(f"{path}: two examples are called {example.guid!r}; predictions are collected under "
                                 "that name, so every idx must be unique in the file")
            seen.add(example.guid)
    return examples


class EncodedExamples(Dataset):
    """Examples that are encoded when asked for."""

    def __init__(self, examples: Sequence[Example], encoder: TaskEncoder | BertEncoder) -> None:
        self.examples, self.encoder = examples, encoder

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Sample:
        return self.encoder(self.examples[index])

    def collator(self, fixed_num_choices: int | None = None) -> _Collator:
        """What makes a batch of samples."""
        keep_mask = self.encoder.spec.variable_num_choices or self.encoder.options.segment_length > 0
        return _Collator(keep_mask, fixed_num_choices)


class LabelledTexts:
    """Labelled examples as texts of the blank-filling objective (``--block-lm-ratio``), for a ``BlockLMLoader``."""

    def __init__(self, data: EncodedExamples) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, index: int) -> block_lm.Sample:
        """The text of one example with its answer in the blank, and its loss mask."""
        return self.data.encoder.labelled_text(self.data.examples[index])


class TrainLoader:
    """The training batches of one data-parallel rank.

    Epoch e visits the examples in an order drawn from (seed + e); position i of it goes to rank i mod ranks, so the
    union of the ranks' n-th batches is what one rank with the whole batch size sees. Ranks get equally many examples:
    the first ones of the order are repeated at its end where needed. The last, shorter batch is kept.

    Args:
        collate: makes a batch of samples; default: that of :class:`EncodedExamples`.
        repeat: False where no example may come twice, as in a validation loss; the numbers of batches may differ then.

    Attributes:
        has_labels: False for unlabelled data, whose ``label`` tensors mean nothing.
        batches_per_epoch: of this rank, the same on every rank.
    """

    def __init__(self, data: Dataset, *, batch_size: int, seed: int, data_rank: int = 0, data_size: int = 1,
                 collate: Callable[[Sequence[Any]], Batch] | None = None, num_workers: int = 0,
                 has_labels: bool = True, repeat: bool = True) -> None:
        self.repeat = repeat
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.collate = collate or data.collator()
        self.data_rank, self.data_size, self.has_labels = data_rank, data_size, has_labels
        self.num_workers = num_workers if len(data) >= MIN_EXAMPLES_FOR_WORKERS else 0
        self.batches_per_epoch = math.ceil(math.ceil(len(data) / data_size) / batch_size)

    def order(self, epoch: int) -> list[int]:
        """The indices that this rank visits in an epoch."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(len(self.data), generator=generator)
        missing = -len(order) % self.data_size
        if missing and self.repeat:
            order = torch.cat((order, order.repeat(-(-missing // len(order)))[:missing]))
        return order[self.data_rank::self.data_size].tolist()

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch; ``skip`` leaves out that many at its beginning (a resumed run)."""
        order = self.order(epoch)[skip * self.batch_size:]
        batches = [order[start:start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        yield from _load(self.data, batches, self.collate, self.num_workers)


class EvalBatch(NamedTuple):
    """``tensors`` of some examples and their guids."""

    tensors: Batch
    uids: list[str]


class EvalSet:
    """The examples of an evaluation split; iterating gives this rank's batches. Over all ranks each example comes once.

    Attributes:
        name: of the split. examples: all of them, in order. has_labels: whether metrics can be computed.
    """

    def __init__(self, name: str, data: EncodedExamples, *, batch_size: int, data_rank: int = 0, data_size: int = 1,
                 num_workers: int = 0) -> None:
        self.name, self.data, self.batch_size = name, data, batch_size
        self.indices = range(data_rank, len(data), data_size)
        self.num_workers = num_workers if len(data) >= MIN_EXAMPLES_FOR_WORKERS else 0
        # A set of answers may stand in for a label (ReCoRD): then at least one example must have some.
        self.has_labels = name != "unlabeled" and all(
            example.is_labelled and example.label is not None for example in data.examples) and any(
            example.meta.get("answers", True) for example in data.examples)

    @property
    def examples(self) -> Sequence[Example]:
        """All examples of the split, whatever the rank."""
        return self.data.examples

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        batches = [list(self.indices[start:start + self.batch_size])
                   for start in range(0, len(self.indices), self.batch_size)]
        for indices, batch in zip(batches, _load(self.data, batches, self.data.collator(), self.num_workers)):
            yield EvalBatch(batch, [self.examples[index].guid for index in indices])


@dataclass(frozen=True)
class _Collator:
    """:func:`collate`, without the choice mask where every example has all choices (a class: workers can pickle it).

    Pieces of answers (``--segment-length``) always have a mask: their number differs with the length of the answers.
    """

    keep_mask: bool
    fixed_num_choices: int | None

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        batch = collate(samples, self.fixed_num_choices)
        if not self.keep_mask and "loss_mask" not in samples[0]:  # the language-model form has a mask of its own
            batch.pop("loss_mask", None)
        return batch


def _load(data: Dataset, batches: list[list[int]], collate: Callable[[Sequence[Any]], Batch],
          num_workers: int) -> Iterator[Batch]:
    if not num_workers:
        return (collate([data[index] for index in batch]) for batch in batches)
    # A generator of its own: otherwise the loader draws a number from the run's, and a resumed run would differ.
    return iter(DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=num_workers,
                           worker_init_fn=start_worker, generator=torch.Generator()))


@dataclass(frozen=True)
class TaskData:
    """All data of a run.

    Attributes:
        spec: the task.
        train: None with ``--epochs=0``.
        valid: the first evaluation split in training form (its labels mean something for ReCoRD too), for the
            validation loss of ``--eval-interval``; None with ``--epochs=0`` or where that split has no labels.
        dev: the evaluation sets of ``--valid-data`` (default: dev).
        test: those of ``--test-data`` (default: none).
    """

    spec: Task
    train: TrainLoader | None
    valid: TrainLoader | None
    dev: tuple[EvalSet, ...]
    test: tuple[EvalSet, ...] = ()


def build_task_data(args: Namespace, tokenizer: Tokenizer, *, data_rank: int = 0, data_size: int = 1) -> TaskData:
    """The data of ``--task`` below ``--data-dir`` for one data-parallel rank.

    ``--fix_variable_num_choices`` acts on the training batches alone: evaluation must score every candidate. With
    ``--pretrained-bert`` the samples are those of a BERT.
    """
    if not args.data_dir:
        raise ValueError("--data-dir is missing: the folder of the task with train.jsonl, val.jsonl, ...")
    options = TaskOptions.from_args(args)
    spec = get_task(args.task, options)
    is_bert = getattr(args, "pretrained_bert", False)
    encoder = (BertEncoder if is_bert else TaskEncoder)(spec, options, tokenizer)
    fixed = spec.max_num_choices if options.fix_variable_num_choices and spec.variable_num_choices else None
    workers = getattr(args, "num_workers", 0)

    def examples(split: Split, training_form: bool) -> EncodedExamples:
        path = split_file(args.data_dir, split, options.few_superglue, spec.files)
        found = read_split(spec, path, split, training_form=training_form)
        _LOG.info("task %s: %d examples from %s", spec.name, len(found), path)
        return EncodedExamples(found, encoder)

    def train_loader(split: Split, *, repeat: bool = True) -> TrainLoader:
        found = examples(split, True)
        return TrainLoader(found, collate=found.collator(fixed), has_labels=split.kind != "unlabeled", seed=args.seed,
                           batch_size=args.batch_size, data_rank=data_rank, data_size=data_size, num_workers=workers,
                           repeat=repeat)

    def eval_sets(names: Sequence[str]) -> tuple[EvalSet, ...]:
        size = args.eval_batch_size or args.batch_size
        return tuple(EvalSet(name, examples(make_split(name), False), batch_size=size, data_rank=data_rank,
                             data_size=data_size, num_workers=workers) for name in names)

    names = args.valid_data or ["dev"]
    dev, test = eval_sets(names), eval_sets(args.test_data or [])
    train = valid = None
    if args.epochs != 0:
        train = train_loader(make_split(args.train_split, for_training=True))
        valid = train_loader(make_split(names[0]), repeat=False) if dev[0].has_labels else None
    return TaskData(spec, train, valid, dev, test)
