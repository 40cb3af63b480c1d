"""What the scores of a run mean: which metrics are shown, which epoch was the best, what better is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Metrics that are shown, the most telling first; of those that a run has, the first two (three of rouge) are kept.
PRIORITY = ("f1a", "f1", "f1-macro", "em", "acc", "accuracy", "ppl", "rouge-1", "rouge-2", "rouge-l")
#: The objective where no metric is named: the mean of the kept ones.
MEAN = "score"
_MINIMISED = ("ppl", "perplexity", "loss")  # and what ends in them, as word_ppl
_NOT_SCORES = ("kind", "iteration", "epoch")

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """One scoring of a run; ``epoch`` is -1 for the last one, which scores the best weights."""

    iteration: int
    epoch: int
    scores: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def is_minimised(metric: str) -> bool:
    """Whether less is better."""
    return metric.lower().endswith(_MINIMISED)


def kept_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """The metrics that are shown of those that a run has, in the order of :data:`PRIORITY`."""
    names = list(names)
    ranked = sorted((name for name in names if name.lower() in PRIORITY), key=lambda name: PRIORITY.index(name.lower()))
    most = 3 if ranked and ranked[0].lower().startswith("rouge") else 2
    return tuple(ranked[:most] or names[:1])


@dataclass(frozen=True)
class Objective:
    """What ranks configurations: one metric, or the mean of the kept ones.

    Of these only such that are better in the direction of the first one count: an accuracy and a perplexity have no
    mean.
    """

    metric: str | None = None

    def shown(self, names: Iterable[str]) -> tuple[str, ...]:
        """The metrics that are shown, of those that a run has."""
        return (self.metric,) if self.metric else kept_metrics(names)

    def metrics(self, names: Iterable[str]) -> tuple[str, ...]:
        """The metrics that count, of those that a run has."""
        shown = self.shown(names)
        return tuple(name for name in shown if is_minimised(name) == is_minimised(shown[0]))

    def value(self, scores: Scores) -> float:
        """The number that is optimised, in the metric's own sign; NaN where a score is missing or not finite."""
        values = [scores.get(name) for name in self.metrics(scores)]
        return math.fsum(values) / len(values) if values and all(map(_is_number, values)) else math.nan

    def gain(self, scores: Scores) -> float:
        """The same, more being better; minus infinity where there is none."""
        value = self.value(scores)
        if math.isnan(value):
            return -math.inf
        return -value if self.minimises(scores) else value

    def minimises(self, names: Iterable[str]) -> bool:
        """Whether less is better, given the metrics of a run."""
        return any(map(is_minimised, self.metrics(names)))

    def best(self, result: Mapping[str, Any], curve: Sequence[Evaluation] = ()) -> Evaluation:
        """The best scoring that a result file tells of.

        Args:
            curve: scorings of the run. A result file keeps the greatest value of every metric; of a metric that is
                minimised the best is found among all of them.

        Raises:
            ValueError: it tells of none, or not of the metric.
        """
        found = evaluations_of(result)
        if not found:
            raise ValueError("the result file holds no scores")
        if self.metric is not None and self.metric not in found[0].scores:
            raise ValueError(f"--objective={self.metric}: the scores are {', '.join(found[0].scores)}")
        if self.minimises(found[0].scores):
            found += curve
        return max(found, key=lambda evaluation: self.gain(evaluation.scores))


def evaluations_of(result: Mapping[str, Any]) -> list[Evaluation]:
    """The scorings in a result file (the best of each metric), in the order of its metrics."""
    found: list[Evaluation] = []
    for entry in result.get("max_score_dict", {}).values():
        evaluation = Evaluation(entry.get("iteration", 0), entry.get("epoch", 0), dict(entry["score_dict"]))
        if evaluation not in found:
            found.append(evaluation)
    return found


def read_curve(file: Path, since: float, known: Sequence[Evaluation] = ()) -> list[Evaluation]:
    """The scorings of a running or finished run, from its records (``metrics.jsonl``), without the final one.

    Args:
        since: time of the run's start; records of an earlier run in the same folder are left alone.
        known: what was read before, returned where there is no file to read.
    """
    try:
        if file.stat().st_mtime < since:
            return list(known)
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return list(known)
    found = []
    for line in text.split("\n")[:-1]:  # the last piece is empty, or a line that is being written
        if '"metrics"' not in line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "metrics" and record.get("epoch", -1) >= 0:
            found.append(Evaluation(record.get("iteration", 0), record["epoch"], {
                name: value for name, value in record.items() if name not in _NOT_SCORES and _is_number(value)}))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
