"""Losses and scores without training: validation loss, and the metrics of a task."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from data_utils.loaders import broadcast_batch
from distill.training.batches import Batch, to_device
from distill.training.forward_step import forward_step
from distill.training.session import Session
from model.parallel.groups import parallel_state
from tasks.data import EvalSet, TrainLoader
from tasks.evaluation import average_scores, compute_metrics, merge_predictions, predict, score_batch
from tasks.spec import TaskSpec


@contextmanager
def evaluating(session: Session) -> Iterator[None]:
    """Inside: no gradients, no dropout, no teachers; methods neither draw nor advance."""
    was_training, session.run.is_training = session.run.is_training, False
    session.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        session.run.is_training = was_training
        session.model.train()


def text_loss(session: Session, loader: Any, start: int, num_batches: int) -> float:
    """Mean loss per masked token over ``num_batches`` micro-batches of every data-parallel rank, from ``start`` on."""
    total, tokens = 0.0, 0
    with evaluating(session), closing(_on_first_rank(loader.iterate(start))) as batches:
        for batch in itertools.islice(batches, num_batches):
            batch = to_device(batch, session.runtime.device)
            total += float(forward_step(session.context, batch, token_denominator=1.0).hard_loss)
            tokens += int(batch["loss_mask"].sum())
    total, tokens = _sum_over_data_parallel(session, total, tokens)
    return total / max(1.0, tokens)


def choice_loss(session: Session, loader: TrainLoader, num_batches: int) -> float:
    """Mean loss per sample over the first ``num_batches`` batches of a labelled set in training form."""
    total, samples = 0.0, 0
    with evaluating(session):
        for batch in itertools.islice(loader.epoch(0), num_batches):
            losses = forward_step(session.context, to_device(batch, session.runtime.device)).hard_loss_per_sample
            total += float(losses.sum())
            samples += len(losses)
    total, samples = _sum_over_data_parallel(session, total, samples)
    return total / max(1.0, samples)


def predictions(session: Session, spec: TaskSpec, eval_set: EvalSet) -> list[int]:
    """The predicted choice or class of every example of the set, in its order, on every rank."""
    mine: dict[str, int] = {}
    with evaluating(session):
        for tensors, uids in eval_set:
            batch = to_device(tensors, session.runtime.device)
            scores = score_batch(lambda part: _scores(session, part), batch, spec)
            best = predict(scores, batch.get("loss_mask"), spec)
            mine.update(zip(uids, best.tolist(), strict=True))
    state = parallel_state()
    parts: list[Any] = [mine]
    if state.data_size > 1:
        parts = [None] * state.data_size
        dist.all_gather_object(parts, mine, group=state.data_group)
    return merge_predictions(eval_set, parts)


def task_scores(session: Session, spec: TaskSpec,
                eval_sets: Sequence[EvalSet]) -> tuple[dict[str, float], list[list[int]]]:
    """The task's metrics over all labelled sets, weighted by their sizes, and the predictions of each set."""
    found = [predictions(session, spec, eval_set) for eval_set in eval_sets]
    scores = [(len(eval_set.examples), compute_metrics(spec, eval_set.examples, predicted))
              for eval_set, predicted in zip(eval_sets, found) if eval_set.has_labels]
    return (average_scores(scores) if scores else {}), found


def _scores(session: Session, batch: Batch) -> torch.Tensor:
    return session.context.model(
        batch["text"], batch["position"], batch["mask"], batch.get("target"), batch.get("logit_mask"))[0]


def _on_first_rank(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches of the model-parallel group's first rank on all of its ranks."""
    reads = parallel_state().model_rank == 0
    iterator = iter(batches)
    while True:
        yield broadcast_batch(next(iterator) if reads else None)


def _sum_over_data_parallel(session: Session, total: float, count: float) -> tuple[float, float]:
    state = parallel_state()
    if state.data_size == 1:
        return total, count
    values = torch.tensor([total, count], dtype=torch.float64, device=session.runtime.device)
    dist.all_reduce(values, group=state.data_group)
    return values[0].item(), values[1].item()
