"""From scores to predictions, metrics, the best epoch and prediction files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from tasks.data import Batch, EvalSet
from tasks.examples import Example, nearest
from tasks.losses import mask_choices, sum_segments
from tasks.registry import Task
from tasks.spec import TaskSpec

#: Choices of an example that are scored at a time; a bound on memory, without influence on the scores.
CHOICES_AT_A_TIME = 10
#: Metrics of which less is better.
LESS_IS_BETTER = ("loss", "ppl", "word_ppl")


def choice_chunks(batch: Batch, spec: TaskSpec, size: int = CHOICES_AT_A_TIME) -> Iterator[Batch]:
    """The batch in parts of at most ``size`` choices (or pieces of answers); one part where a sample is one row.

    What has no choice axis stays as it is: ``label``, and with ``--fast-decode`` the text.
    """
    if not spec.is_multi_choice:
        yield batch
        return
    decoded = "dec_text" in batch
    cut = {name for name in batch if (name.startswith("dec_") or name == "loss_mask" if decoded else name != "label")}
    for start in range(0, batch["dec_text" if decoded else "text"].shape[1], size):
        yield {name: tensor[:, start:start + size] if name in cut else tensor for name, tensor in batch.items()}


def score_batch(score: Callable[[Batch], torch.Tensor], batch: Batch, spec: TaskSpec,
                size: int = CHOICES_AT_A_TIME) -> torch.Tensor:
    """Scores [b, c] of a batch; ``score`` gives them for a part of it with at most ``size`` choices."""
    return torch.cat([score(part) for part in choice_chunks(batch, spec, size)], dim=1)


def predict(scores: torch.Tensor, choice_mask: torch.Tensor | None, spec: TaskSpec,
            segment_id: torch.Tensor | None = None) -> torch.Tensor:
    """Index of the best real choice (or class) of each sample, [b], from scores [b, c].

    With ``segment_id`` the scores are those of pieces of answers. WSC with candidates: 1 where choice 0 wins, else 0.
    """
    if segment_id is not None:
        best = mask_choices(*sum_segments(scores, segment_id, choice_mask)).argmax(dim=-1)
    else:
        best = mask_choices(scores, choice_mask if spec.variable_num_choices else None).argmax(dim=-1)
    return (best == 0).long() if spec.first_choice_is_true else best


def predict_spans(best_tokens: torch.Tensor, target: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Predictions of the language-model form, [b]: 1 where ``best_tokens`` (the model's most probable token at each
    place, [b, s]) equals ``target`` [b, s] wherever ``loss_mask`` [b, s] is 1."""
    return ((best_tokens == target) | (loss_mask == 0)).all(dim=-1).long()


def merge_predictions(eval_set: EvalSet, parts: Sequence[Mapping[str, int]]) -> list[int]:
    """Predictions of all ranks (guid -> index), in the order of the examples; ValueError if one is missing."""
    merged = {uid: prediction for part in parts for uid, prediction in part.items()}
    missing = [example.guid for example in eval_set.examples if example.guid not in merged]
    if missing:
        raise ValueError(f"{len(missing)} of {len(eval_set.examples)} examples of {eval_set.name} have no prediction, "
                         f"the first is {missing[0]!r}; collect the parts of all data-parallel ranks")
    return [merged[example.guid] for example in eval_set.examples]


def compute_metrics(spec: TaskSpec, examples: Sequence[Example], predictions: Sequence[int]) -> dict[str, float]:
    """All metrics of the task, in its order."""
    labels = [spec.label_index(example) for example in examples]
    return {name: metric(predictions, labels, examples) for name, metric in spec.metrics.items()}


def average_scores(scores: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """The scores of several sets (number of examples, metrics), weighted by their numbers of examples."""
    total = sum(count for count, _ in scores)
    return {name: sum(count * one[name] for count, one in scores) / total for name in scores[0][1]}


def validation_metric(spec: Task, wanted: str | None = None) -> str:
    """The metric that decides which epoch is best: ``--validation-metric``, or the first one of the task."""
    if wanted is not None and wanted not in spec.metrics:
        raise ValueError(f"--validation-metric={wanted}: task {spec.name} has "
                         f"{', '.join(spec.metrics)}{nearest(wanted, spec.metrics)}")
    return wanted or next(iter(spec.metrics))


def is_better(metric: str, score: float, best: float | None) -> bool:
    """Whether a score becomes the best: the first always, then only strictly better ones."""
    return best is None or (score < best if metric in LESS_IS_BETTER else score > best)


def prediction_lines(spec: TaskSpec, examples: Sequence[Example],
                     predictions: Sequence[int]) -> list[dict[str, object]]:
    """What the official evaluation wants: ``{"idx", "label"}`` for each example, in order, or as the task says."""
    if spec.prediction_lines is not None:
        return spec.prediction_lines(examples, predictions)
    return [{"idx": example.idx, "label": spec.predicted_label(example, prediction)}
            for example, prediction in zip(examples, predictions, strict=True)]


def write_predictions(folder: Path, spec: TaskSpec, eval_set: EvalSet, predictions: Sequence[int]) -> Path:
    """Writes ``<task>-<split>.jsonl`` (whole or not at all) and returns its path."""
    path = folder / f"{spec.name}-{eval_set.name}.jsonl"
    write_lines(path, prediction_lines(spec, eval_set.examples, predictions))
    return path


def write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Writes JSON lines, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)


def results_line(scores: Mapping[str, float], kind: str, epoch: int | None = None) -> dict[str, object]:
    """The content of ``results.json`` (kind "validation", with the epoch) and ``test_results.json`` (kind "test")."""
    return {**scores, "type": kind, **({} if epoch is None else {"epoch": epoch})}
