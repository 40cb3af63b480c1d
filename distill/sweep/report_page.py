"""The HTML page of a sweep: scores, curves, what matters, what failed. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence

from distill.report.charts import Curve, chart, number
from distill.report.page import document, key
from distill.sweep.campaign import Campaign
from distill.sweep.files import write_text
from distill.sweep.importance import Importance
from distill.sweep.live import duration
from distill.sweep.outcome import log_tail
from distill.sweep.results import GROUP_HEADER, Row, Spread, Summary, counts_text, group_cells
from distill.sweep.study import Study
from distill.sweep.trials import DONE, FAILED, Trial

REPORT = "report.html"
#: Configurations of a task in one chart: the best ones; more lines cannot be told apart.
MOST_CURVES = 16
#: Values of a flag in the table of means; drawn numbers are all different.
MOST_VALUES = 12

_STYLE = """
.best td{font-weight:600}.failed td:first-child{color:var(--c5)}.number{text-align:right}
.bars{display:grid;grid-template-columns:max-content minmax(80px,420px) max-content;gap:6px 12px;align-items:center;
margin:6px 0 14px}.bar{height:12px;background:var(--c0);border-radius:2px;min-width:1px}
pre{background:color-mix(in srgb,var(--rule) 45%,transparent);padding:10px 12px;overflow-x:auto;font-size:12px;
white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0}details{margin:8px 0}summary{cursor:pointer}h3{font-size:14px;
margin:20px 0 6px}td.reason{min-width:320px;overflow-wrap:anywhere}
"""


def write_report(summary: Summary, campaign: Campaign, study: Study) -> None:
    """``report.html`` in the study folder."""
    write_text(study.folder / REPORT, render(summary, campaign, study))


def render(summary: Summary, campaign: Campaign, study: Study) -> str:
    """The whole page as text."""
    body = [_head(summary, study), _scores(summary), _failures(summary, study)]
    curves = [_curves(task, campaign) for task in summary.tasks]
    body += curves if any(curves) or not summary.has_scores else ["<h2>Curves</h2><p>The runs left no records of their "
                                                                  "epochs (a dry run leaves none).</p>"]
    body += [_matters(summary, campaign), _trials(summary)]
    body.append('<p class="note">± is the standard deviation over seeds (n-1). A configuration is judged by its last '
                "stage, with the scores of its best epoch. The horizontal axis of the curves is the iteration; point "
                "at a line to read it.</p>")
    return document(f"Sweep: {study.folder.name}", "".join(body), _STYLE)


def _head(summary: Summary, study: Study) -> str:
    facts = study.facts
    lines = [f"<p>{_text(counts_text(summary))}. Ranked by {_text(summary.objective)}.</p>"]
    for task in summary.tasks:
        if (best := summary.best(task)) is not None:
            what = f" with {best.label}" if best.values else ""
            metrics = ", ".join(f"{name} {spread}" for name, spread in best.metrics.items())
            lines.append(f"<p><b>{_text(task)}</b>: best {_text(metrics)}{_text(what)} ({best.done} of {best.trials} "
                         f"run(s), best trial {_text(best.best_trial or '')})</p>")
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items() if value)
    lines.append(f"<details><summary>Command and versions</summary><pre>{_text(shlex.join(facts['words']))}</pre>"
                 f"<p class=note>begun {_text(facts['created'])} on {_text(facts['machine'])} in "
                 f"{_text(facts['working_folder'])}; {_text(versions)}</p></details>")
    return "".join(lines)


def _scores(summary: Summary) -> str:
    rows = [(group_cells(group), "best" if group.is_best else "") for group in summary.groups]
    return f"<h2>Scores</h2>{_table(GROUP_HEADER, rows)}"


def _failures(summary: Summary, study: Study) -> str:
    if not summary.failed:
        return ""
    parts = [f"<h2>Failed: {len(summary.failed)}</h2>"]
    for row in summary.failed:
        values = ", ".join(f"{flag.lstrip('-')}={value}" for flag, value in row.values.items())
        parts.append(f"<h3>{_text(row.trial)}, stage {row.stage}: {_text(row.kind)}</h3><p>{_text(row.reason)}"
                     f"{f' <span class=unit>({_text(values)})</span>' if values else ''}</p>")
        if row.log:
            text = log_tail(study.folder / row.log)
            parts.append(f"<details><summary>End of {_text(row.log)}, after {row.attempts} attempt(s)</summary>"
                         f"<pre>{_text(text) or '(empty)'}</pre></details>")
    return "".join(parts)


def _curves(task: str, campaign: Campaign) -> str:
    """A chart for every stage and shown metric of a task: a line a trial, a colour a configuration."""
    trials = [trial for trial in campaign.trials if trial.task == task and trial.curve]
    if not trials:
        return ""
    chosen = _best_configurations(trials, campaign)
    parts = [f"<h2>Curves: {_text(task)}</h2>"]
    if len(chosen) > 1:
        parts.append(key([_label(next(trial for trial in trials if trial.number == number)) for number in chosen]))
    charts = []
    for index in range(max(len(trial.stages) for trial in trials)):
        with_curve = [trial for trial in trials if index < len(trial.stages) and trial.stages[index].curve]
        names = dict.fromkeys(name for trial in with_curve
                              for name in campaign.objective.shown(trial.stages[index].curve[0].scores))
        for name in names:
            lines = [(chosen.index(trial.number), trial.id, curve) for trial in with_curve
                     if trial.number in chosen and (curve := _curve(trial, index, name))]
            charts.append(chart(name, lines, f"stage {index}"))
    parts.append(f'<div class="charts">{"".join(charts)}</div>')
    hidden = len({trial.number for trial in trials}) - len(chosen)
    return "".join(parts) + (f"<p class=note>{hidden} further configuration(s) are not drawn.</p>" if hidden else "")


def _curve(trial: Trial, index: int, name: str) -> Curve:
    return [(evaluation.iteration, evaluation.scores[name]) for evaluation in trial.stages[index].curve
            if name in evaluation.scores]


def _best_configurations(trials: Sequence[Trial], campaign: Campaign) -> list[int]:
    """Numbers of those that are drawn, in rising order."""
    best: dict[int, float] = {}
    for trial in trials:
        reached = campaign.objective.gain(trial.curve[-1].scores)
        best[trial.number] = max(best.get(trial.number, reached), reached)
    return sorted(sorted(best, key=lambda number: -best[number])[:MOST_CURVES])


def _label(trial: Trial) -> str:
    values = ", ".join(f"{flag.lstrip('-')}={value}" for flag, value in trial.point.items())
    return f"{trial.number}: {values}" if values else str(trial.number)


def _matters(summary: Summary, campaign: Campaign) -> str:
    if not summary.importance:
        return ""
    parts = ["<h2>What matters</h2>"]
    for task, found in summary.importance.items():
        parts.append(f"<h3>{_text(task)}</h3>{_bars(found)}")
        runs = [trial for trial in campaign.trials if trial.task == task and trial.state == DONE]
        parts.append(_means(runs, campaign))
    return "".join(parts)


def _bars(found: Importance) -> str:
    note = f"<p class=note>{_text(found.note)}</p>" if found.note else ""
    bars = "".join(f'<span>{_text(flag)}</span><span class="bar" style="width:{max(0.0, min(1.0, share)):.1%}"></span>'
                   f"<span>{share:.0%}</span>" for flag, share in found.shares)
    return f'<div class="bars">{bars}</div>{note}' if bars else note


def _means(runs: Sequence[Trial], campaign: Campaign) -> str:
    """The mean score at every value of every flag that has few of them."""
    rows = []
    for flag in dict.fromkeys(flag for trial in runs for flag in trial.point):
        by_value: dict[str, list[float]] = {}
        for trial in runs:
            best = campaign.best(trial)
            if best is not None:
                by_value.setdefault(trial.point[flag], []).append(campaign.objective.value(best.scores))
        if 1 < len(by_value) <= MOST_VALUES:
            rows += [((flag, value, str(Spread.of(scores)), str(len(scores))), "")
                     for value, scores in by_value.items()]
    return _table(("flag", "value", "mean score over all runs with it", "runs"), rows) if rows else ""


def _trials(summary: Summary) -> str:
    rows = [(_trial_cells(row), "failed" if row.state == FAILED else "") for row in summary.rows]
    header = ("trial", "values", "seed", "stage", "state", "score", "all scores", "epoch", "planned", "time",
              "attempts", "devices", "reason")
    return f"<h2>Trials</h2>{_table(header, rows)}"


def _trial_cells(row: Row) -> tuple[str, ...]:
    values = ", ".join(f"{flag.lstrip('-')}={value}" for flag, value in row.values.items())
    return (row.trial, values, _or_dash(row.seed), str(row.stage), row.state,
            "-" if row.score is None else f"{row.score:.6g}",
            ", ".join(f"{name} {number(value)}" for name, value in row.metrics.items()), _or_dash(row.epoch),
            _or_dash(row.epochs), "-" if row.seconds is None else duration(row.seconds), str(row.attempts),
            ", ".join(row.devices), row.reason)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _table(header: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    reason = header.index("reason") if "reason" in header else -1
    lines = []
    for cells, kind in rows:
        columns = "".join(f'<td{" class=reason" if n == reason and cell else ""}>{_text(cell)}</td>'
                          for n, cell in enumerate(cells))
        lines.append(f'<tr{f" class={kind}" if kind else ""}>{columns}</tr>')
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>')


def _text(text: str) -> str:
    return html.escape(text)
