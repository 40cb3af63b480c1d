"""Scores of finished runs as text: old results files of the launcher and new ones, in the published tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.json_files import read_json
from distill.sweep.results import COMMAND, MARKDOWN, STAGE
from distill.sweep.scores import Objective, kept_metrics
from distill.sweep.study import read_facts

ERROR = "error!"
_HEADER = ("task", "metric", "result", "x 100", "epoch", "planned", "last")


@dataclass(frozen=True)
class RunScores:
    """The scores of one run, as they are shown.

    Attributes:
        command: as it was run; empty if it is not known.
        save: folder for results. task: name for the training script; ``wsc_negative`` is the other form of WSC.
        stage: of its trial; None in old files, which do not tell it.
        metrics: that are shown, with the values of the best epoch.
        epoch: of these values. planned: epochs of the run. last: epoch that was scored last (-1: the final scoring).
    """

    command: str
    save: str
    task: str
    wsc_negative: bool
    stage: int | None
    metrics: Mapping[str, float]
    epoch: int | None
    planned: int | None
    last: int | None

    @property
    def is_whole(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self.metrics) and self.last is not None and (self.last == -1 or self.last + 1 == self.planned)


def show_path(path: str | Path) -> str:
    """The scores in a results file, or in the folder of a sweep.

    Raises:
        ValueError: there is no such file or folder, or it holds something else.
    """
    path = Path(path)
    if not path.is_dir():
        return show(read_results(path))
    table = path / MARKDOWN
    text = table.read_text(encoding="utf-8") if table.is_file() else "no results yet\n"
    runs = Path(read_facts(path)["result_list"])
    return f"{text}\n{show(read_results(runs))}" if runs.is_file() else text


def read_results(path: str | Path) -> list[RunScores]:
    """The runs of a results file: a JSON list of what the training script wrote for each, with its command.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    content = read_json(path, list, f"--show_tune={path}")
    return [run_scores(result, f"--show_tune={path}: result {number}") for number, result in enumerate(content, 1)]


def run_scores(result: Any, where: str = "result") -> RunScores:
    """What is shown of one result.

    Raises:
        ValueError: it is none; ``where`` is named.
    """
    try:
        args, best = result["args"], Objective().best(result) if result["max_score_dict"] else None
        kept = {name: float(best.scores[name]) for name in kept_metrics(best.scores)} if best else {}
        return RunScores(
            str(result.get(COMMAND, "")), str(args.get("save", "")), str(args["task"]), bool(args.get("wsc_negative")),
            result.get(STAGE), kept, best.epoch if best else None, args.get("epochs"), result.get("epoch"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} has not the form of a result file ({type(error).__name__}: {error})") from None


def show(runs: Sequence[RunScores]) -> str:
    """Every run with its command, then the lines for a spreadsheet, stage by stage."""
    if not runs:
        return "no results"
    parts = ["\n".join(_run_lines(run)) for run in runs]
    for number, stage in enumerate(stages_of(runs)):
        parts.append("\n".join([f"stage {number}", *_spreadsheet_lines(stage)]))
    return "\n\n".join(parts)


def stages_of(runs: Iterable[RunScores]) -> list[list[RunScores]]:
    """The runs by stage. In a file that does not tell it, consecutive runs of the same task are its stages."""
    stages: dict[int, list[RunScores]] = {}
    previous, number = None, 0
    for run in runs:
        task = (run.task, run.wsc_negative)
        number = run.stage if run.stage is not None else number + 1 if task == previous else 0
        previous = task
        stages.setdefault(number, []).append(run)
    return [stages[number] for number in sorted(stages)]


def percent(value: float) -> str:
    """The value times 100, where it is a share in (0, 1]."""
    return f"{100 * value:.2f}" if 0 < value <= 1 else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _run_lines(run: RunScores) -> list[str]:
    names = [*run.metrics, "epoch", "planned", "last"]
    tail = [_text(run.epoch), _text(run.planned), _text(run.last)]
    values = [*(f"{value:.6g}" for value in run.metrics.values()), *tail]
    hundred = [*map(percent, run.metrics.values()), *tail]
    rows = (names, values, hundred) if any(map(percent, run.metrics.values())) else (names, values)
    name = f"{run.task} (negative)" if run.wsc_negative else run.task
    title = f"{name}  {run.save}{'' if run.is_whole else f'  {ERROR}'}"
    return [*([run.command] if run.command else []), title, *aligned(rows)]


def _spreadsheet_lines(runs: Sequence[RunScores]) -> list[str]:
    """Tab-separated columns, one line a metric."""
    lines = ["\t".join(_HEADER)]
    for run in runs:
        for name, value in run.metrics.items() or [("", math.nan)]:
            cells = [run.task, name, f"{value:.6g}" if name else "", percent(value), _text(run.epoch),
                     _text(run.planned), _text(run.last), *([] if run.is_whole else [ERROR])]
            lines.append("\t".join(cells))
    return lines


def _text(value: int | None) -> str:
    return "" if value is None else str(value)
