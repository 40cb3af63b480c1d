"""Reads the records of a finished run and writes table.md, table.json and curves.png."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from rich.table import Table  # noqa: E402

from scripts.quickstart.runner import DONE_FILE, read_records  # noqa: E402
from scripts.quickstart.steps import Source, Step, step_folder  # noqa: E402

COLOURS = ("tab:gray", "tab:blue", "tab:orange", "tab:green")


@dataclass(frozen=True)
class Row:
    """One model: a number for each seed (the teacher has one).

    Attributes:
        losses: validation loss after pretraining (of the evaluation step, if there is one); empty without pretraining.
        accuracies: share of right answers to the held-out questions, per cent.
        seconds: of all its steps together, a seed.
    """

    model: str
    parameters: int
    losses: list[float]
    accuracies: list[float]
    seconds: list[float]


@dataclass(frozen=True)
class Report:
    """The numbers of a run. ``gain`` and ``loss_change`` are treated minus baseline, in points and nats, a seed."""

    rows: list[Row]
    gain: list[float]
    loss_change: list[float]
    num_questions: int

    def row(self, model: str) -> Row:
        """The row of a model."""
        return next(row for row in self.rows if row.model == model)


@dataclass(frozen=True)
class Experiment:
    """What is run and how its table reads.

    Attributes:
        steps: each after those it needs.
        models: the rows of the table.
        baseline, treated: the models whose difference is reported.
        sentences: the lines below the table.
    """

    steps: Sequence[Step]
    models: Sequence[str]
    baseline: str
    treated: str
    source: Source
    sentences: Callable[[Experiment, Report], list[str]]


def make_report(run: Path, experiment: Experiment) -> Report:
    """The numbers of a run whose steps are all done."""
    rows = {model: _row(run, [step for step in experiment.steps if step.model == model], model)
            for model in experiment.models}
    treated, baseline = rows[experiment.treated], rows[experiment.baseline]
    return Report(list(rows.values()), _differences(treated.accuracies, baseline.accuracies),
                  _differences(treated.losses, baseline.losses), experiment.source.num_questions())


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def summary(experiment: Experiment, report: Report) -> list[str]:
    """The sentences below the table."""
    return experiment.sentences(experiment, report)


def questions_said(experiment: Experiment, report: Report) -> str:
    """How many questions were asked, and how far chance goes."""
    error = math.sqrt(0.25 / report.num_questions) * 100
    about = " about causes that no labelled question names" if experiment.source.world else ""
    return (f"{report.num_questions:,} held-out questions{about}; chance is 50 % (standard error of one accuracy: at "
            f"most {error:.1f} points).")


def num_seeds_said(report: Report) -> str:
    """What the numbers are taken over, in brackets."""
    seeds = len(report.gain)
    return f" ({seeds} seeds, mean ± standard deviation)" if seeds > 1 else " (one seed; try --seeds 3)"


def _row(run: Path, steps: list[Step], model: str) -> Row:
    losses, accuracies, seconds = [], [], []
    parameters = 0
    for seed in dict.fromkeys(step.seed for step in steps):
        of_seed = [step for step in steps if step.seed == seed]
        records = {step.name: read_records(step_folder(run, step.name) / "records") for step in of_seed}
        parameters = next(r["parameters"] for found in records.values() for r in found if r["kind"] == "start")
        read = [step for step in of_seed if step.stage in ("pretraining", "evaluation")]
        losses += [_last(records[step.name], "validation")["loss"] for step in read[-1:]]
        tuned = [step for step in of_seed if step.stage == "fine-tuning"]
        accuracies.append(_last(records[tuned[-1].name], "metrics")["accuracy"])
        seconds.append(sum(_seconds(run, step) for step in of_seed))
    return Row(model, parameters, losses, accuracies, seconds)


def _last(records: list[dict], kind: str) -> dict:
    return [record for record in records if record["kind"] == kind][-1]


def _seconds(run: Path, step: Step) -> float:
    return json.loads((step_folder(run, step.name) / DONE_FILE).read_text())["seconds"]

def mean_and_spread(values: Sequence[float], digits: int, *, sign: bool = False) -> str:
    """``mean`` or, for several seeds, ``mean ± standard deviation``; a dash for nothing. ``sign``: also a plus."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{'+' if sign else ''}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


HEADERS = ("model", "parameters", "validation loss", "held-out COPA, %", "seconds")


def cells(row: Row) -> tuple[str, ...]:
    """A table row as text."""
    return (
        row.model,
        f"{row.parameters:,}",
        mean_and_spread(row.losses, 3),
        mean_and_spread(row.accuracies, 1),
        mean_and_spread(row.seconds, 0),
    )


def rich_table(report: Report) -> Table:
    """The table for the terminal."""
    table = Table()
    for i, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if i == 0 else "right")
    for row in report.rows:
        table.add_row(*cells(row))
    return table


def write_report(run: Path, experiment: Experiment, report: Report) -> None:
    """Write table.md, table.json and curves.png into the run's folder."""
    lines = ["| " + " | ".join(HEADERS) + " |", "| --- " + "| ---: " * (len(HEADERS) - 1) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in report.rows]
    (run / "table.md").write_text("\n".join([*lines, "", *summary(experiment, report), ""]), encoding="utf-8")
    (run / "table.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    draw_curves(run, experiment)


def draw_curves(run: Path, experiment: Experiment) -> None:
    """Left: validation loss of pretraining. Right: loss of fine-tuning, each curve divided by its first value."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    named: set[tuple[str, str]] = set()
    for step in experiment.steps:
        if step.stage not in ("pretraining", "fine-tuning"):
            continue
        records = read_records(step_folder(run, step.name) / "records")
        axis = left if step.stage == "pretraining" else right
        kind, key = ("validation", "loss") if step.stage == "pretraining" else ("train", "mean_loss")
        points = [(r["iteration"], r[key]) for r in records if r["kind"] == kind and r[key] is not None]
        if not points:
            continue
        scale = points[0][1] if step.stage == "fine-tuning" else 1.0
        stage = ", stage 1" if "stage1" in step.name else ", stage 2" if "stage2" in step.name else ""
        label = None if (step.stage, step.model + stage) in named else step.model + stage
        named.add((step.stage, step.model + stage))
        style = "--" if "stage1" in step.name else "-"
        axis.plot(
            [x for x, _ in points],
            [y / scale for _, y in points],
            style,
            color=COLOURS[experiment.models.index(step.model)],
            label=label,
            alpha=0.85,
        )
    left.set(title="Pretraining", xlabel="iteration", ylabel="validation loss per masked token")
    right.set(title="Fine-tuning on COPA", xlabel="iteration", ylabel="training loss / its first value")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(run / "curves.png", dpi=130)
    plt.close(figure)
