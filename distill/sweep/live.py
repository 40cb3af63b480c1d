"""What a person sees while a sweep runs: a table that is kept up to date, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distill.sweep.campaign import Campaign
from distill.sweep.results import GROUP_HEADER, Summary, digits_of, group_cells
from distill.sweep.study import Study
from distill.sweep.trials import DONE, FAILED, PRUNED, RUNNING, SKIPPED, WAITING, Trial

#: Seconds between two drawings of the table.
REDRAW = 0.5
_COLOURS = {DONE: "green", FAILED: "red", RUNNING: "cyan", PRUNED: "yellow", SKIPPED: "dim", WAITING: "dim"}


class View(Protocol):
    """Is told by the scheduler what happens."""

    def started(self, trial: Trial, index: int) -> None:
        """A stage has started."""

    def ended(self, trial: Trial, index: int) -> None:
        """An attempt of a stage has ended, or a trial could not be planned."""

    def refresh(self, campaign: Campaign) -> None:
        """Time has passed."""


class PlainView:
    """A line for everything that happens."""

    def __init__(self, console: Console, study: Study, campaign: Campaign) -> None:
        self._console, self._study, self._campaign = console, study, campaign

    def say(self, text: str) -> None:
        """Print a line as it is, however long."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def started(self, trial: Trial, index: int) -> None:
        stage = trial.stages[index]
        where = f" on {', '.join(stage.devices)}" if stage.devices else ""
        again = f", attempt {stage.attempts}" if stage.attempts > 1 else ""
        self.say(f"{self._place()} {trial.id} stage {index} started{where}{again}; log: "
                 f"{self._study.log_file(trial, index)}")

    def ended(self, trial: Trial, index: int) -> None:
        self.say(f"{self._place()} {trial.id} stage {index} {_verdict(trial, index, self._campaign)}")

    def refresh(self, campaign: Campaign) -> None:
        return None

    def _place(self) -> str:
        total, final = self._campaign.total, sum(trial.is_final for trial in self._campaign.trials)
        return f"[{final:>{len(str(total))}}/{total}]"


class LiveView(PlainView):
    """The same lines for what ends, above a table of what runs and what was last."""

    def __init__(self, console: Console, study: Study, campaign: Campaign, live: Live) -> None:
        super().__init__(console, study, campaign)
        self._live, self._drawn = live, 0.0

    def started(self, trial: Trial, index: int) -> None:
        self._drawn = 0.0

    def refresh(self, campaign: Campaign) -> None:
        if time.monotonic() - self._drawn >= REDRAW:
            self._drawn = time.monotonic()
            self._live.update(progress_table(campaign, self._console.height), refresh=True)


@contextmanager
def watching(console: Console, study: Study, campaign: Campaign) -> Iterator[View]:
    """A view of a sweep on this console."""
    if not console.is_terminal:
        yield PlainView(console, study, campaign)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveView(console, study, campaign, live)


def progress_table(campaign: Campaign, height: int = 30) -> Table:
    """What runs, what comes next, and what ended last, in as many lines as fit."""
    counts = Counter(trial.state for trial in campaign.trials)
    counts[WAITING] += campaign.total - len(campaign.trials)
    title = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    table = Table(title=f"{campaign.total} trial(s): {title}", title_justify="left", expand=True)
    for name in ("trial", "values", "stage", "state", "time", "last scores"):
        table.add_column(name, overflow="fold" if name in ("values", "last scores") else "ellipsis")
    running = [trial for trial in campaign.trials if trial.state == RUNNING]
    rest = [trial for trial in campaign.trials if trial.state not in (RUNNING, WAITING)]
    room = max(3, height - 8 - len(running))
    waiting = [trial for trial in campaign.trials if trial.state == WAITING][:max(0, room - len(rest))]
    for trial in [*rest[-room:], *running, *waiting]:
        table.add_row(*_progress_cells(trial, campaign))
    return table


def _progress_cells(trial: Trial, campaign: Campaign) -> list[Text]:
    index = next((number for number, stage in enumerate(trial.stages) if stage.state == RUNNING), None)
    state, shown = trial.state, len(trial.stages) - 1 if index is None else index
    seconds = [stage.seconds for stage in trial.stages if stage.seconds is not None]
    if index is not None and trial.stages[index].began is not None:
        seconds.append(time.time() - trial.stages[index].began)
    values = ", ".join(f"{flag.lstrip('-')}={value}" for flag, value in trial.point.items())
    failure, best = trial.failure(), campaign.best(trial)
    last = (failure[1].reason if failure else scores_text(best.scores) if best else
            f"{len(trial.curve)} evaluation(s), {scores_text(trial.curve[-1].scores)}" if trial.curve else "")
    return [Text(trial.id), Text(values), Text(f"{shown + 1} of {len(trial.stages)}"),
            Text(state, style=_COLOURS.get(state, "")), Text(duration(sum(seconds)) if seconds else ""), Text(last)]


def _verdict(trial: Trial, index: int, campaign: Campaign) -> str:
    stage = trial.stages[index]
    took = f" after {duration(stage.seconds)}" if stage.seconds is not None else ""
    if stage.state == DONE:
        best = campaign.best(trial, index)
        return f"done{took}: {scores_text(best.scores) if best else ''}"
    if stage.state == WAITING:
        return f"failed{took}, is tried again: {stage.reason}"
    name = {FAILED: f"FAILED ({stage.kind})", PRUNED: "given up"}.get(stage.state, stage.state)
    return f"{name}{took}{f': {stage.reason}' if stage.reason else ''}"


def scores_text(scores: dict[str, float]) -> str:
    """Scores in a line."""
    return ", ".join(f"{name} {value:.{digits_of(value)}f}" for name, value in scores.items())


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def print_summary(console: Console, summary: Summary, files: Sequence[str]) -> None:
    """The table at the end, what failed, and where everything is."""
    table = Table(title=f"Ranked by {summary.objective}; * is the best configuration of a task", title_justify="left")
    for name in GROUP_HEADER:
        table.add_column(name, overflow="fold")
    for group in summary.groups:
        table.add_row(*map(Text, group_cells(group)), style="bold" if group.is_best else "")
    console.print(table)
    for row in summary.failed:
        console.print(Text(f"FAILED  {row.trial} stage {row.stage} ({row.kind}): {row.reason}", style="red"),
                      soft_wrap=True)
    for file in files:
        console.print(file, soft_wrap=True, markup=False, highlight=False)
