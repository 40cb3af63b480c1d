"""The page: what the runs are, then every quantity as a chart with a line a run. Nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence
from typing import Any

from distill.report.charts import NUM_COLOURS, chart, number
from distill.report.records import Run

#: Title and unit of fields whose name does not say it.
TITLES = {
    "loss": ("Training loss", ""), "mean_loss": ("Training loss, mean between log lines", ""),
    "hard_loss": ("Label loss", ""), "lr": ("Learning rate", ""), "grad_norm": ("Gradient norm before clipping", ""),
    "loss_scale": ("Loss scale", ""), "tokens_per_second": ("Throughput", "tokens/s"),
    "ms_per_iteration": ("Time an iteration", "ms"), "peak_memory_mb": ("Peak memory of rank 0", "MB"),
    "perplexity": ("Perplexity", ""), "skipped_micro_batches": ("Skipped micro-batches", "")}
LOSSES = ("loss", "mean_loss", "hard_loss")
OPTIMISATION = ("lr", "grad_norm", "loss_scale", "skipped_micro_batches")
SPEED = ("tokens_per_second", "ms_per_iteration", "peak_memory_mb")

STYLE = """
:root{--bg:#fff;--ink:#1c1f24;--soft:#626a75;--rule:#e3e6ea;--c0:#2563b8;--c1:#d1602a;--c2:#218a5c;--c3:#9550b5;
--c4:#b08a00;--c5:#c4375f;--c6:#2c8a9e;--c7:#6d6f75}
@media(prefers-color-scheme:dark){:root{--bg:#15181d;--ink:#e6e9ee;--soft:#98a1ad;--rule:#2b3038;--c0:#6ea8f5;
--c1:#f0935f;--c2:#55c493;--c3:#c58be0;--c4:#d9b73a;--c5:#f07a99;--c6:#62c3d8;--c7:#a9adb5}}
*{box-sizing:border-box}body{margin:0;padding:24px 28px 60px;background:var(--bg);color:var(--ink);
font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:1860px}
h1{font-size:20px;margin:0 0 14px}h2{font-size:15px;margin:34px 0 10px;padding-top:14px;
border-top:1px solid var(--rule)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 18px 4px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
th{font-weight:500;color:var(--soft);white-space:nowrap}thead th{color:var(--ink);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(440px,100%),1fr));gap:18px 26px}
figure{margin:0;min-width:0}figcaption{font-weight:600;font-size:13px;overflow-wrap:anywhere}
.unit,.empty,.note{color:var(--soft);font-weight:400}
svg{width:100%;height:auto;display:block}.grid{stroke:var(--rule)}.tick{fill:var(--soft);font-size:11px}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.dashed{stroke-dasharray:5 4}.hit{fill:transparent}
.hit:hover{fill:var(--ink);fill-opacity:.18}.key{position:sticky;top:0;background:var(--bg);padding:6px 0;z-index:1;
display:flex;flex-wrap:wrap;gap:4px 20px}.key i{display:inline-block;width:22px;height:0;border-top:3px solid;
vertical-align:middle;margin-right:7px}
"""


def render(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    title = f"Report: {runs[0].name}" if len(runs) == 1 else f"Report: {len(runs)} runs"
    body = [key([run.name for run in runs]) if len(runs) > 1 else "", _overview(runs)]
    terms = [name for name in _names(runs, "train") if name not in (*LOSSES, *OPTIMISATION, *SPEED)]
    for heading, kind, names in (
            ("Losses", "train", LOSSES), ("Named terms", "train", terms),
            ("Validation", "validation", _names(runs, "validation")), ("Scores", "metrics", _names(runs, "metrics")),
            ("Optimisation", "train", OPTIMISATION), ("Speed and memory", "train", SPEED)):
        body.append(_section(runs, heading, kind, names))
    body.append('<p class="note">The horizontal axis is the iteration. Long curves are averaged over neighbours; a gap '
                "is a value that was not finite. Point at a line to read it.</p>")
    return document(title, "".join(body))


def document(title: str, body: str, style: str = "") -> str:
    """A whole page with a heading; what stands below it is HTML. The colours are those of the charts."""
    colours = "".join(f".line.c{n}{{stroke:var(--c{n})}}.dot.c{n}{{fill:var(--c{n})}}"
                      f".key .c{n}{{border-color:var(--c{n})}}" for n in range(NUM_COLOURS))
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/><title>{html.escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1"/>'
            f"<style>{STYLE}{colours}{style}</style></head>\n<body><h1>{html.escape(title)}</h1>{body}</body></html>\n")


def key(names: Sequence[str]) -> str:
    """Which colour is whose, as HTML."""
    items = "".join(f'<span><i class="c{n % NUM_COLOURS}"{_dash(n)}></i>{html.escape(name)}</span>'
                    for n, name in enumerate(names))
    return f'<div class="key">{items}</div>'


def _names(runs: Sequence[Run], kind: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.names(kind)))


def _dash(run: int) -> str:
    return ' style="border-top-style:dashed"' if run >= NUM_COLOURS else ""


def _section(runs: Sequence[Run], heading: str, kind: str, names: Sequence[str]) -> str:
    charts = []
    for name in names:
        curves = [(n, run.name, curve) for n, run in enumerate(runs) if (curve := run.curve(kind, name))]
        if curves:
            title, unit = TITLES.get(name, (name, ""))
            charts.append(chart("Validation loss" if (kind, name) == ("validation", "loss") else title, curves, unit))
    return f'<h2>{heading}</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _overview(runs: Sequence[Run]) -> str:
    """The runs side by side, one column each."""
    columns = [_facts(run) for run in runs]
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = "".join(f"<td>{html.escape(column.get(name, ''))}</td>" for column in columns)
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    return (f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>')


def _facts(run: Run) -> dict[str, str]:
    start, facts = run.start, {}
    if start:
        facts["what"] = f"{start.get('what', '')}, {start.get('method') or 'without distillation'}"
        facts["trained parameters"] = f"{start.get('trained_parameters', 0):,} of {start.get('parameters', 0):,}"
        if start.get("teacher_parameters"):
            facts["teachers' parameters"] = ", ".join(f"{count:,}" for count in start["teacher_parameters"])
        facts["on"] = (f"{start.get('world_size', 1)} x {start.get('device', '?')}, model-parallel "
                       f"{start.get('model_parallel_size', 1)}, {start.get('engine', '?')}, {start.get('dtype', '?')}")
        facts["global batch"] = str(start.get("global_batch_size", "?"))
    if run.train:
        last = run.train[-1]
        facts["iterations"] = f"{last.get('iteration', 0):,}" + (
            f" of {start['iterations']:,}" if start.get("iterations") else "")
        facts["last training loss"] = _text(last.get("loss"))
        speeds = [value for _, value in run.curve("train", "tokens_per_second") if value is not None]
        if speeds:
            facts["tokens a second (median)"] = f"{statistics.median(speeds):,.0f}"
    if run.validation:
        facts["last validation loss"] = _text(run.validation[-1].get("loss"))
    for file, content in run.results.items():
        facts[file] = ", ".join(f"{name} {_text(value)}" for name, value in content.items())
    seconds = run.end.get("seconds")
    facts["ended"] = "not yet, or stopped" if seconds is None else f"after {seconds:,.0f} s"
    if start.get("notes"):
        facts["values changed at the start"] = "; ".join(map(str, start["notes"]))
    return facts


def _text(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
