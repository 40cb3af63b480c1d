"""The report page: read back with a parser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from distill.report.__main__ import main
from distill.report.charts import MOST_POINTS, thinned, ticks
from distill.report.records import read_run

VOID = {"meta"}


class Page(HTMLParser):
    """Checks the nesting, collects captions, lines and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.captions, self.paths, self.addresses, self.text = [], [], 0, [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.paths += tag == "path"
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.paths += tag == "path"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.captions if self.open and self.open[-1] == "figcaption" else self.text).append(data.strip())


def write_run(folder: Path, *, offset: float = 0.0, tail: str = "") -> Path:
    records = [{"kind": "start", "what": "pretraining", "method": "kd", "parameters": 10, "trained_parameters": 9,
                "teacher_parameters": [20], "iterations": 4, "notes": ["<b>batch</b> 4 -> 8"]}]
    records += [{"kind": "train", "iteration": n, "epoch": 0, "loss": 3.0 / n + offset, "pre_loss/pt_soft": 1.0 / n,
                 "lr": 1e-4 * n, "grad_norm": None if n == 2 else 1.0, "tokens_per_second": 900.0 + n}
                for n in (1, 2, 3, 3, 4)]
    records += [{"kind": "validation", "iteration": 4, "loss": 1.5, "perplexity": 4.5},
                {"kind": "metrics", "iteration": 4, "epoch": 0, "accuracy": 0.75}]
    folder.mkdir(parents=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    (folder / "results.json").write_text('{"accuracy": 0.75, "type": "validation", "epoch": 0}\n')
    return folder


def report(*runs: Path, output: Path) -> Page:
    assert main([*map(str, runs), f"--output={output}"]) == 0
    return Page(output.read_text(encoding="utf-8"))


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "one" / "tensorboard"), write_run(tmp_path / "two", offset=1.0)
    page = report(first.parent, second, output=tmp_path / "report.html")
    for caption in ("Training loss", "pre_loss/pt_soft", "Learning rate", "Throughput", "accuracy", "Validation loss"):
        assert caption in page.captions
    assert page.addresses == []
    text = "".join(page.text)
    assert "one" in text and "two" in text and "<b>batch</b> 4 -> 8" in text and "accuracy 0.75" in text
    # both runs in each of 8 charts; the gap in the gradient norm cuts two more
    assert page.paths == 2 * len(page.captions) + 2


def test_a_repeated_iteration_counts_once_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", tail='{"kind": "train", "iteration": 5, "lo')
    run = read_run(folder)
    assert [x for x, _ in run.curve("train", "loss")] == [1, 2, 3, 4]
    assert run.curve("train", "grad_norm")[1] == (2, None)
    page = report(folder, output=tmp_path / "report.html")
    assert "4 of 4" in "".join(page.text)


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", tail='not json\n{"kind": "end", "seconds": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 9: .*remove the line"):
        read_run(folder)


def test_no_records_is_an_error_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing")])
    assert "no metrics.jsonl there" in capsys.readouterr().err


def test_long_curves_are_averaged() -> None:
    curve = thinned([(n, float(n % 2)) for n in range(4 * MOST_POINTS)])
    assert len(curve) == MOST_POINTS and all(y == 0.5 for _, y in curve)


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3.0, 47.0, [10, 20, 30, 40]), (2.0, 2.0, [2.0])])
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    report(write_run(tmp_path / "run"), output=tmp_path / "report.html")
    assert not re.search(r"https?:|@import|url\(|<script", (tmp_path / "report.html").read_text())
