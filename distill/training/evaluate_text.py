"""Language-model evaluation: the loss of every token of the passages of a file, each token once.

Axes: b windows, s sequence, m scored tokens of a batch, v vocabulary, p model-parallel ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from distill.training.batches import Batch, to_device
from distill.training.evaluate import evaluating
from distill.training.session import Session
from model.checkpoint.nonparameters import backbone_of
from model.parallel.cross_entropy import vocab_parallel_argmax, vocab_parallel_cross_entropy
from model.parallel.groups import parallel_state
from tasks.language_model.data import EvalTexts, passage_scores
from tasks.language_model.spec import LanguageModelTask, PassageScore

logger = logging.getLogger(__name__)


def text_scores(session: Session, task: LanguageModelTask,
                eval_sets: Sequence[EvalTexts]) -> tuple[dict[str, float], list[list[PassageScore]]]:
    """The task's metrics over the passages of all files together, and the scores of each file's passages, on every
    rank."""
    found = [passage_scores(eval_set.data, window_scores(session, eval_set)) for eval_set in eval_sets]
    if len(eval_sets) > 1:
        for eval_set, scores in zip(eval_sets, found):
            logger.info(" %s | %s", eval_set.name, ", ".join(
                f"{name} {metric(eval_set.passages, scores):.4f}" for name, metric in task.metrics.items()))
    passages = [passage for eval_set in eval_sets for passage in eval_set.passages]
    together = [score for scores in found for score in scores]
    return {name: metric(passages, together) for name, metric in task.metrics.items()}, found


def window_scores(session: Session, eval_set: EvalTexts) -> dict[int, PassageScore]:
    """The score of every window of the file by its number, from all data-parallel ranks."""
    mine: dict[int, PassageScore] = {}
    with evaluating(session) as evaluation:
        for batch, numbers in evaluation.over(eval_set):
            mine.update(zip(numbers, _batch_scores(session, to_device(batch, session.runtime.device)), strict=True))
    state = parallel_state()
    if state.data_size == 1:
        return mine
    parts: list[Any] = [None] * state.data_size
    dist.all_gather_object(parts, mine, group=state.data_group)
    return {number: score for part in parts for number, score in part.items()}


def _batch_scores(session: Session, batch: Batch) -> list[PassageScore]:
    model, is_scored = session.context.model, batch["loss_mask"].bool()
    logits, _ = model(batch["tokens"], batch["position_ids"], batch["attention_mask"],
                      output_positions=is_scored)  # [m, v/p]
    backbone = backbone_of(model)
    labels, best = batch["labels"][is_scored], vocab_parallel_argmax(logits)
    columns, ids = (labels, best) if backbone is None else (backbone.map_input_to_ids(labels),
                                                            backbone.ids_of_columns(best))
    losses = vocab_parallel_cross_entropy(logits, columns).double()
    is_right = ids == labels
    counts = is_scored.sum(dim=-1).tolist()
    return [PassageScore(float(own.sum()), len(own), bool(right.all()))
            for own, right in zip(losses.split(counts), is_right.split(counts))]
