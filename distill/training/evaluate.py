"""Losses and scores without training: validation loss, and the metrics of a task."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from data_utils.loaders import broadcast_batch
from distill.training.batches import Batch, to_device, with_lm_names
from distill.training.forward_step import forward_step, run_model
from distill.training.session import Session
from model.checkpoint.nonparameters import backbone_of
from model.parallel.cross_entropy import vocab_parallel_argmax
from model.parallel.groups import parallel_state
from tasks.data import EvalSet, TrainLoader
from tasks.evaluation import average_scores, compute_metrics, merge_predictions, predict, predict_spans, score_batch
from tasks.spec import TaskSpec


class EvaluationStopped(Exception):
    """SIGTERM came during an evaluation inside a training run; all ranks raise it together."""


class Evaluation:
    """Goes through batches until a rank of the model-parallel group is asked to stop."""

    def __init__(self, session: Session) -> None:
        self._should_stop, self._device = session.should_stop, session.runtime.device
        self._is_cut_short = False

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, each after a look at the signal; they are the same ones on all ranks of the group."""
        for batch in batches:
            if self._should_stop is not None and self._any(self._should_stop(), parallel_state().model_group):
                self._is_cut_short = True
                return
            yield batch

    def finish(self) -> None:
        """Data-parallel ranks, which may have unequal numbers of batches, agree only here."""
        if self._should_stop is not None and self._any(self._is_cut_short, parallel_state().data_group):
            raise EvaluationStopped

    def _any(self, flag: bool, group: dist.ProcessGroup | None) -> bool:
        if group is None or dist.get_world_size(group) == 1:
            return flag
        flags = torch.tensor(int(flag), device=self._device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=group)
        return bool(flags)


@contextmanager
def evaluating(session: Session) -> Iterator[Evaluation]:
    """Inside: no gradients, no dropout, no teachers; methods neither draw nor advance.

    Raises:
        EvaluationStopped: at the end, where :meth:`Evaluation.over` was cut short on any rank.
    """
    was_training, session.run.is_training = session.run.is_training, False
    session.model.eval()
    evaluation = Evaluation(session)
    try:
        with torch.no_grad():
            yield evaluation
        evaluation.finish()
    finally:
        session.run.is_training = was_training
        session.model.train()


def text_loss(session: Session, loader: Any, start: int, num_batches: int) -> float:
    """Mean loss per masked token over ``num_batches`` micro-batches of every data-parallel rank, from ``start`` on."""
    total, tokens = 0.0, 0
    with evaluating(session) as evaluation, closing(_on_first_rank(loader.iterate(start))) as batches:
        for batch in evaluation.over(itertools.islice(batches, num_batches)):
            batch = to_device(batch, session.runtime.device)
            total += float(forward_step(session.context, batch, token_denominator=1.0).hard_loss)
            tokens += int(batch["loss_mask"].sum())
    total, tokens = _sum_over_data_parallel(session, total, tokens)
    return total / max(1.0, tokens)


def task_loss(session: Session, loader: TrainLoader, num_batches: int) -> float:
    """Mean loss per sample over the first ``num_batches`` batches of a labelled set in training form (in a
    language-model task: per token of an answer)."""
    total, count, is_text = 0.0, 0, session.context.stage == "lm"
    with evaluating(session) as evaluation:
        for batch in evaluation.over(itertools.islice(loader.epoch(0), num_batches)):
            batch = to_device(with_lm_names(batch), session.runtime.device)
            output = forward_step(session.context, batch, token_denominator=1.0)
            total += float(output.hard_loss if is_text else output.hard_loss_per_sample.sum())
            count += int(batch["loss_mask"].sum()) if is_text else len(batch["label"])
    total, count = _sum_over_data_parallel(session, total, count)
    return total / max(1.0, count)


def predictions(session: Session, spec: TaskSpec, eval_set: EvalSet) -> list[int]:
    """The predicted choice or class of every example of the set, in its order, on every rank."""
    mine: dict[str, int] = {}
    with evaluating(session) as evaluation:
        for tensors, uids in evaluation.over(eval_set):
            best = _predicted(session, spec, to_device(with_lm_names(tensors), session.runtime.device))
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


def _predicted(session: Session, spec: TaskSpec, batch: Batch) -> torch.Tensor:
    """The predicted choice, class, or (language-model form) whether the answer is what the model would write, [b]."""
    context, segment_id = session.context, batch.get("segment_id")
    if context.stage == "lm":
        best = vocab_parallel_argmax(run_model(context, context.model, batch)[0])
        backbone = backbone_of(context.model)
        ids = best if backbone is None else backbone.ids_of_columns(best)
        return predict_spans(ids, batch["labels"], batch["loss_mask"])
    # Pieces of answers are scored one by one: a part of the batch may hold a part of an answer.
    rows = {name: tensor for name, tensor in batch.items() if name != "segment_id"}
    scores = score_batch(lambda part: run_model(context, context.model, part)[0], rows, spec)
    return predict(scores, batch.get("loss_mask"), spec, segment_id)


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
