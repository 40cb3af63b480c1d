"""The scores of a sweep as tables: every stage of every trial, configurations over their seeds, what failed."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill.sweep.campaign import Campaign
from distill.sweep.files import write_text
from distill.sweep.importance import Importance, importance
from distill.sweep.scores import MEAN
from distill.sweep.search import Space
from distill.sweep.study import Study
from distill.sweep.trials import DONE, FAILED, Trial

CSV, JSON, MARKDOWN = "results.csv", "results.json", "results.md"
COMMAND, TRIAL, STAGE = "*cmd", "*trial", "*stage"


@dataclass(frozen=True)
class Row:
    """One stage of one trial.

    Attributes:
        values: searched flags. state, kind, reason: see :class:`~distill.sweep.trials.StageRun`.
        metrics: all scores of the best scoring. score: what ranks the trial (see ``--objective``).
        epoch: of the best scoring (-1: the final one). epochs: planned. last_epoch: scored last.
        log, checkpoint: paths; the log below the study folder.
    """

    trial: str
    task: str
    configuration: int
    values: dict[str, str]
    seed: int | None
    stage: int
    state: str
    kind: str
    reason: str
    score: float | None
    metrics: dict[str, float]
    epoch: int | None
    epochs: int | None
    last_epoch: int | None
    seconds: float | None
    attempts: int
    status: int | None
    devices: tuple[str, ...]
    checkpoint: str
    log: str
    command: str


def digits_of(value: float) -> int:
    """Digits behind the point that are worth showing: scores are shares, or times 100."""
    return 2 if abs(value) >= 1.5 else 4


@dataclass(frozen=True)
class Spread:
    """Mean over seeds; ``deviation`` (n-1) is None for a single one."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        digits = digits_of(self.mean)
        return f"{self.mean:.{digits}f}" + ("" if self.deviation is None else f" ± {self.deviation:.{digits}f}")


@dataclass(frozen=True)
class Group:
    """One stage of a configuration of a task, over its seeds.

    Attributes:
        done, trials: how many of the seeds are scored, and of how many.
        score, metrics: over the seeds that are scored; the metrics are those that are shown.
        best_trial: with the best score. is_best: whether the configuration is the best of its task (last stage).
    """

    task: str
    configuration: int
    values: dict[str, str]
    stage: int
    done: int
    trials: int
    score: Spread | None
    metrics: dict[str, Spread]
    best_trial: str | None
    is_best: bool = False

    @property
    def label(self) -> str:
        """The searched values in short."""
        return ", ".join(f"{flag.lstrip('-')}={value}" for flag, value in self.values.items())


@dataclass(frozen=True)
class Summary:
    """Everything that the tables and the report show."""

    objective: str
    total: int
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    importance: dict[str, Importance]

    @property
    def failed(self) -> list[Row]:
        """The stages that failed."""
        return [row for row in self.rows if row.state == FAILED]

    @property
    def has_scores(self) -> bool:
        """Whether a run has come to its end."""
        return any(row.state == DONE for row in self.rows)

    def best(self, task: str) -> Group | None:
        """The best configuration of a task."""
        return next((group for group in self.groups if group.task == task and group.is_best), None)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(row.task for row in self.rows))


def summarize(campaign: Campaign, study: Study, space: Space) -> Summary:
    """The sweep as it stands."""
    trials = sorted(campaign.trials, key=lambda trial: (trial.position, trial.number))
    rows = tuple(row for trial in trials for row in _rows(trial, campaign, study))
    groups = []
    for task in dict.fromkeys(trial.task for trial in trials):
        groups += _groups([trial for trial in trials if trial.task == task], campaign)
    shares = {}
    for task in campaign.searches if space else ():
        done = [trial for trial in trials if trial.task == task and trial.state == DONE]
        shares[task] = importance(space, [(trial.point, campaign.gain(trial)) for trial in done])
    return Summary(campaign.objective.metric or MEAN, campaign.total, rows, tuple(groups), shares)


def _rows(trial: Trial, campaign: Campaign, study: Study) -> Iterable[Row]:
    for index, stage in enumerate(trial.stages):
        best = campaign.best(trial, index)
        result = stage.result or {}
        command = trial.plan.stages[index] if trial.plan.stages else None
        log = str(study.log_file(trial, index).relative_to(study.folder)) if stage.attempts else ""
        yield Row(
            trial.id, trial.task, trial.number, dict(trial.point), trial.seed, index, stage.state, stage.kind,
            stage.reason, campaign.objective.value(best.scores) if best else None, dict(best.scores) if best else {},
            best.epoch if best else None, result.get("args", {}).get("epochs"), result.get("epoch"), stage.seconds,
            stage.attempts, stage.status, stage.devices, command.checkpoint if command else "", log, stage.line)


def _groups(trials: Sequence[Trial], campaign: Campaign) -> list[Group]:
    found, gains = [], {}
    for number in dict.fromkeys(trial.number for trial in trials):
        members = [trial for trial in trials if trial.number == number]
        for index in range(max(len(trial.stages) for trial in members)):
            scored = [(trial, best) for trial in members if index < len(trial.stages)
                      and (best := campaign.best(trial, index)) is not None]
            group, gain = _group(members, index, scored, campaign)
            is_last = index == len(members[0].stages) - 1
            if scored and is_last:
                gains[len(found)] = gain
            found.append(group)
    if gains:
        best = max(gains, key=gains.__getitem__)
        found[best] = replace(found[best], is_best=True)
    return found


def _group(members: Sequence[Trial], index: int, scored: Sequence[tuple[Trial, Any]],
           campaign: Campaign) -> tuple[Group, float]:
    first, objective = members[0], campaign.objective
    metrics: dict[str, Spread] = {}
    score, best_trial, gain = None, None, 0.0
    if scored:
        for name in objective.shown(scored[0][1].scores):
            metrics[name] = Spread.of([best.scores[name] for _, best in scored if name in best.scores])
        gains = [objective.gain(best.scores) for _, best in scored]
        gain, best_trial = statistics.fmean(gains), scored[gains.index(max(gains))][0].id
        score = Spread.of([objective.value(best.scores) for _, best in scored])
    return Group(first.task, first.number, dict(first.point), index, len(scored),
                 max(len(members), len(campaign.seeds)), score, metrics, best_trial), gain


# Files ----------------------------------------------------------------------------------------------------------------


def write_tables(summary: Summary, study: Study) -> None:
    """``results.csv``, ``results.json`` and ``results.md`` in the study folder."""
    write_text(study.folder / CSV, csv_text(summary))
    write_text(study.folder / JSON, json.dumps(as_json(summary), ensure_ascii=False, indent=2) + "\n")
    write_text(study.folder / MARKDOWN, markdown_text(summary))


def write_result_list(campaign: Campaign, path: Path) -> None:
    """The published form: a list of what the runs wrote, each with its command."""
    trials = sorted(campaign.trials, key=lambda trial: (trial.number, campaign.seeds.index(trial.seed), trial.position))
    content = [{**stage.result, COMMAND: stage.line, TRIAL: trial.id, STAGE: index}
               for trial in trials for index, stage in enumerate(trial.stages) if stage.state == DONE and stage.result]
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def csv_text(summary: Summary) -> str:
    """One line a stage of a trial, a column for each searched flag and each metric."""
    flags = list(dict.fromkeys(flag for row in summary.rows for flag in row.values))
    metrics = list(dict.fromkeys(name for row in summary.rows for name in row.metrics))
    plain = [name for name in Row.__dataclass_fields__ if name not in ("values", "metrics", "devices")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*plain, "devices", *flags, *metrics])
    for row in summary.rows:
        content = asdict(row)
        writer.writerow([*("" if content[name] is None else content[name] for name in plain), " ".join(row.devices),
                         *(row.values.get(flag, "") for flag in flags),
                         *(row.metrics.get(name, "") for name in metrics)])
    return out.getvalue()


def as_json(summary: Summary) -> dict[str, Any]:
    """Everything, for programs."""
    return {"objective": summary.objective, "trials_planned": summary.total,
            "trials": [asdict(row) for row in summary.rows], "configurations": [asdict(g) for g in summary.groups],
            "importance": {task: asdict(found) for task, found in summary.importance.items()}}


def counts_text(summary: Summary) -> str:
    """How many trials there are in each state, in words."""
    states: dict[str, str] = {}
    for row in summary.rows:
        before = states.get(row.trial)
        states[row.trial] = row.state if before in (None, DONE) else before
    parts = [f"{sum(state == name for state in states.values())} {name}" for name in dict.fromkeys(states.values())]
    return f"{summary.total} trial(s): {', '.join(parts) or 'none started'}"


def markdown_text(summary: Summary) -> str:
    """The tables for reading."""
    parts = [f"# Sweep\n\n{counts_text(summary)}. Ranked by {summary.objective}.\n"]
    parts.append(_markdown(GROUP_HEADER, [group_cells(group) for group in summary.groups]))
    if summary.failed:
        parts.append("\n## Failed\n")
        parts.append(_markdown(("trial", "stage", "what", "reason", "log"), [
            (row.trial, str(row.stage), row.kind, row.reason, row.log) for row in summary.failed]))
    return "\n".join(parts)


GROUP_HEADER = ("task", "configuration", "stage", "score", "metrics", "runs", "best trial")


def group_cells(group: Group) -> tuple[str, ...]:
    """A configuration as a line of the score table; the best of a task is marked."""
    return (group.task, f"{group.configuration}" + (f": {group.label}" if group.values else ""), str(group.stage),
            ("-" if group.score is None else str(group.score)) + (" *" if group.is_best else ""),
            ", ".join(f"{name} {spread}" for name, spread in group.metrics.items()), f"{group.done} of {group.trials}",
            group.best_trial or "-")


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
                     for row in rows) + "\n"
