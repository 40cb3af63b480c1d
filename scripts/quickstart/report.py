"""Reads the records of a finished run and writes table.md, table.json and curves.png."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from rich.table import Table  # noqa: E402

from scripts.quickstart.plan import ALONE, DISTILLED, MODELS, SCRATCH, TEACHER, Step, step_folder  # noqa: E402
from scripts.quickstart.runner import DONE_FILE, read_records  # noqa: E402

COLOURS = {TEACHER: "tab:gray", ALONE: "tab:blue", DISTILLED: "tab:orange", SCRATCH: "tab:green"}


@dataclass(frozen=True)
class Row:
    """One model: a number for each seed (the teacher has one).

    Attributes:
        losses: validation loss after pretraining, empty without pretraining.
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
    """The numbers of a run. ``gain`` is distilled minus alone, in points, a seed."""

    rows: list[Row]
    gain: list[float]
    num_questions: int


def make_report(run: Path, plan: Sequence[Step]) -> Report:
    """The numbers of a run whose steps are all done."""
    rows = [_row(run, [step for step in plan if step.model == model], model) for model in MODELS]
    by_model = {row.model: row for row in rows}
    pairs = zip(by_model[DISTILLED].accuracies, by_model[ALONE].accuracies, strict=True)
    return Report(rows, [distilled - alone for distilled, alone in pairs], _num_questions(run))


def _row(run: Path, steps: list[Step], model: str) -> Row:
    losses, accuracies, seconds = [], [], []
    parameters = 0
    for seed in dict.fromkeys(step.seed for step in steps):
        of_seed = [step for step in steps if step.seed == seed]
        records = {step.name: read_records(step_folder(run, step.name) / "records") for step in of_seed}
        parameters = next(r["parameters"] for found in records.values() for r in found if r["kind"] == "start")
        losses += [_last(records[s.name], "validation")["loss"] for s in of_seed if s.stage == "pretraining"]
        tuned = [step for step in of_seed if step.stage == "fine-tuning"]
        accuracies.append(_last(records[tuned[-1].name], "metrics")["accuracy"])
        seconds.append(sum(_seconds(run, step) for step in of_seed))
    return Row(model, parameters, losses, accuracies, seconds)


def _last(records: list[dict], kind: str) -> dict:
    return [record for record in records if record["kind"] == kind][-1]


def _seconds(run: Path, step: Step) -> float:
    return json.loads((step_folder(run, step.name) / DONE_FILE).read_text())["seconds"]


def _num_questions(run: Path) -> int:
    folder = run / "world/tasks/COPA"
    return sum(len((folder / f"{part}.jsonl").read_text().splitlines()) for part in ("val", "test"))


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """``mean`` or, for several seeds, ``mean ± standard deviation``; a dash for nothing."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
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


def summary(report: Report) -> list[str]:
    """The sentences below the table."""
    seeds = len(report.gain)
    error = math.sqrt(0.25 / report.num_questions) * 100
    lines = [
        f"{report.num_questions:,} held-out questions about causes that no labelled question names; chance is 50 % "
        f"(standard error of one accuracy: at most {error:.1f} points).",
        f"Distillation gained {mean_and_spread(report.gain, 1)} points over the student alone"
        + (f" ({seeds} seeds, mean ± standard deviation)." if seeds > 1 else " (one seed; try --seeds 3)."),
    ]
    losses = {row.model: row.losses for row in report.rows}
    gaps = [alone - distilled for alone, distilled in zip(losses[ALONE], losses[DISTILLED], strict=True)]
    lines.append(
        f"Its validation loss after the same number of steps on the same text is {mean_and_spread(gaps, 3)} lower."
    )
    return lines


def rich_table(report: Report) -> Table:
    """The table for the terminal."""
    table = Table()
    for i, header in enumerate(HEADERS):
        table.add_column(header, justify="left" if i == 0 else "right")
    for row in report.rows:
        table.add_row(*cells(row))
    return table


def write_report(run: Path, plan: Sequence[Step], report: Report) -> None:
    """Write table.md, table.json and curves.png into the run's folder."""
    lines = ["| " + " | ".join(HEADERS) + " |", "| --- " + "| ---: " * (len(HEADERS) - 1) + "|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in report.rows]
    (run / "table.md").write_text("\n".join([*lines, "", *summary(report), ""]), encoding="utf-8")
    (run / "table.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    draw_curves(run, plan)


def draw_curves(run: Path, plan: Sequence[Step]) -> None:
    """Left: validation loss of pretraining. Right: loss of fine-tuning, each curve divided by its first value."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    named: set[tuple[str, str]] = set()
    for step in plan:
        if step.training is None:
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
            color=COLOURS[step.model],
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
