"""What one optimizer step reads.

All micro-batches of a step are fetched before the first forward pass, so that the ranks can agree on three things: how
many loss tokens the whole step has (the one denominator of the masked token loss: the split of a batch into
micro-batches and ranks then changes nothing), the longest row (all are padded to it), and whether to stop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from data_utils.loaders import broadcast_batch, pad_lm_batch
from model.parallel.groups import parallel_state

Batch = dict[str, torch.Tensor]


#: What a sample of a language-model task calls what the objective of pretraining calls otherwise.
_LM_NAMES = {"text": "tokens", "target": "labels", "position_id": "position_ids"}


def with_lm_names(batch: Batch) -> Batch:
    """A batch of a language-model task under the names of pretraining; any other as it is."""
    if "position_id" not in batch:
        return batch
    return {_LM_NAMES.get(name, name): tensor for name, tensor in batch.items()}


class Source(Protocol):
    """Training data as one sequence of micro-batches, numbered from 0 over the whole run.

    Attributes:
        total: number of micro-batches in the run.
        accumulation: micro-batches per optimizer step.
        per_iteration: micro-batches per iteration (the unit of intervals and of ``train_iters``).
    """

    total: int
    accumulation: int
    per_iteration: int

    def iterate(self, start: int) -> Generator[Batch]:
        """This data-parallel rank's micro-batches from number ``start`` on."""

    def epoch(self, position: int) -> int:
        """Epoch that micro-batch ``position`` belongs to."""


class TextSource:
    """Pretraining: an iteration is an optimizer step."""

    def __init__(self, loader: Any, train_iters: int, accumulation: int) -> None:
        self.loader = loader
        self.accumulation = self.per_iteration = accumulation
        self.total = train_iters * accumulation

    def iterate(self, start: int) -> Generator[Batch]:
        return self.loader.iterate(start)

    def epoch(self, position: int) -> int:
        plan = self.loader.plan
        return position * plan.batch_size * plan.data_size // self.loader.num_samples


class TaskSource:
    """Fine-tuning: an iteration is a micro-batch. A step may reach over the end of an epoch.

    ``max_steps`` ends the run after so many optimizer steps.
    """

    def __init__(self, loader: Any, epochs: int, accumulation: int, *, max_steps: int | None = None) -> None:
        self.loader = loader
        self.accumulation, self.per_iteration = accumulation, 1
        self.batches_per_epoch = loader.batches_per_epoch
        self.total = epochs * self.batches_per_epoch
        if max_steps is not None:
            self.total = min(self.total, max_steps * accumulation)

    def iterate(self, start: int) -> Generator[Batch]:
        first, skip = divmod(start, self.batches_per_epoch)
        for epoch in range(first, -(-self.total // self.batches_per_epoch)):
            yield from map(with_lm_names, self.loader.epoch(epoch, skip=skip))
            skip = 0

    def epoch(self, position: int) -> int:
        return position // self.batches_per_epoch


class MixedSource(TaskSource):
    """A task in which some steps read a text of the blank-filling objective instead (``--block-lm-ratio``).

    Such a step takes the place of one of the task, whose examples wait for their next epoch. Whether a step is one, and
    its texts, depend on the number of the step alone: on all ranks alike, and again after a resume.

    Args:
        texts: gives micro-batch number n of the labelled texts, as in pretraining.
        ratio: r; a step is one with probability r / (1 + r).
        name: keys the draws, with the seed in it.
    """

    def __init__(self, task: TaskSource, texts: Any, ratio: float, name: str) -> None:
        vars(self).update(vars(task))
        self.texts, self.share, self.name = texts, ratio / (1.0 + ratio), name

    def reads_text(self, position: int) -> bool:
        """Whether micro-batch ``position`` belongs to a step that fills blanks."""
        return random.Random(f"{self.name}/{position // self.accumulation}").random() < self.share

    def iterate(self, start: int) -> Generator[Batch]:
        for position, batch in enumerate(super().iterate(start), start):
            yield self.texts.batch(position) if self.reads_text(position) else batch


@dataclass
class Window:
    """The micro-batches of one optimizer step, on the device.

    Attributes:
        start: number of the first one.
        batches: at most ``accumulation`` of them, fewer at the end of the run.
        weights: share of each in the step's loss; their mean over data-parallel ranks adds up to 1.
        token_denominators: what the sum of masked token losses of each is divided by; None without a token loss.
        num_tokens: positions of all ranks, padding included.
        num_samples: samples of all ranks.
        stop: a rank was asked to stop; the batches must not be trained on.
    """

    start: int
    batches: list[Batch]
    weights: list[float]
    token_denominators: list[float | None]
    num_tokens: int
    num_samples: int
    stop: bool


def windows(source: Source, position: int, device: torch.device, should_stop: Callable[[], bool]) -> Iterator[Window]:
    """The steps of a run from micro-batch ``position`` on. Every rank has to consume them in step."""
    reads_data = parallel_state().model_rank == 0
    batches = source.iterate(position) if reads_data else None
    try:
        while position < source.total:
            count = min(source.accumulation, source.total - position)
            micro_batches = [broadcast_batch(next(batches) if batches is not None else None) for _ in range(count)]
            yield _agree(position, micro_batches, device, should_stop())
            position += count
    finally:
        if batches is not None:
            batches.close()


def _agree(start: int, batches: list[Batch], device: torch.device, stop: bool) -> Window:
    state = parallel_state()
    inputs = [batch["tokens"] if "tokens" in batch else batch["text"] for batch in batches]
    is_text = "tokens" in batches[0]
    samples = [len(tensor) for tensor in inputs]
    sums = [sum(int(batch["loss_mask"].sum()) for batch in batches) if is_text else 0, sum(samples),
            sum(tensor.numel() for tensor in inputs)]
    maxima = [max(tensor.shape[-1] for tensor in inputs), int(stop)]
    (loss_tokens, num_samples, num_tokens), (longest, stop_any) = _reduce(sums, maxima, device)
    if is_text:
        batches = [pad_lm_batch(batch, longest) for batch in batches]
    # Gradients are averaged over the data-parallel ranks: weights and denominators undo that.
    weights = [count * state.data_size / num_samples for count in samples]
    denominators = [max(1, loss_tokens) * weight / state.data_size if is_text else None for weight in weights]
    return Window(start, [to_device(batch, device) for batch in batches], weights, denominators, num_tokens,
                  num_samples, bool(stop_any))


def _reduce(sums: list[int], maxima: list[int], device: torch.device) -> tuple[list[int], list[int]]:
    """Sums over data-parallel ranks, and maxima over all ranks (the stop must reach every model-parallel rank too)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return sums, maxima
    total, largest = torch.tensor(sums, device=device), torch.tensor(maxima, device=device)
    dist.all_reduce(total, group=parallel_state().data_group)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return total.tolist(), largest.tolist()


def stop_is_asked(stop: bool, device: torch.device) -> bool:
    """Whether any rank was asked to stop. Every rank has to call it."""
    return bool(_reduce([0], [int(stop)], device)[1][0])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``; on a CPU the same tensors."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
