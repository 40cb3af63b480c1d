"""Tables and page of a sweep: their numbers are those of the runs' files, and the page is whole."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from distill.sweep import runner, scheduler
from distill.sweep.display import read_results
from distill.sweep.live import duration, progress_table
from distill.sweep.results import Spread
from tests.distill.sweep.fakes import Sweep
from tests.distill.test_report import Page


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two tasks, a grid of two by two, two seeds, two stages; one task is refused."""
    patch = pytest.MonkeyPatch()
    patch.setattr(scheduler, "POLL", 0.02)
    patch.setattr(runner, "_revision", lambda: "")
    patch.setenv("DS_ACCELERATOR", "cpu")
    found = Sweep(tmp_path_factory.mktemp("sweep"), "--tasks=copa,cb", "--lr=grid:1e-5,2e-5",
                  "--temperature=grid:1,<b>", "--score_1e-5=0.5", "--score_2e-5=0.75", "--seeds=2",
                  "--behaviour_cb=refuse", "--again_1__epochs=3", "--parallel=4")
    assert found.run()[0] == runner.FAILURES
    patch.undo()
    return found


def test_the_page_is_whole_and_needs_nothing_else(sweep: Sweep) -> None:
    text = (sweep.folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses == [] and "<script" not in text
    words = " ".join(page.text)
    for part in ("16 trial(s): 8 done, 8 failed", "Curves: copa", "What matters", "Failed: 8", "copa-002-s1235",
                 "lr=2e-5, temperature=<b>", "0.7500 ± 0.0000", "no multiple of --num-attention-heads", "--gpus=0"):
        assert part in words, part
    assert page.captions.count("accuracy") == 2  # a chart for each stage
    assert page.paths == 2 * 8  # a line for each trial in each of them


def test_every_number_is_that_of_the_result_file(sweep: Sweep) -> None:
    lines = list(csv.DictReader(io.StringIO((sweep.folder / "results.csv").read_text(encoding="utf-8"))))
    assert len(lines) == 32 and {line["--temperature"] for line in lines} == {"1", "<b>"}
    page = " ".join(Page((sweep.folder / "report.html").read_text(encoding="utf-8")).text)
    done = [line for line in lines if line["state"] == "done"]
    assert len(done) == 16
    for line in done:
        file = sweep.folder / "trials" / line["trial"] / f"stage_{line['stage']}" / "result.json"
        result = json.loads(file.read_text(encoding="utf-8"))["max_score_dict"]["accuracy"]
        assert float(line["accuracy"]) == float(line["score"]) == result["score_dict"]["accuracy"]
        assert int(line["epoch"]) == result["epoch"]
        assert f"{line['trial']}" in page and f"{result['score_dict']['accuracy']:.6g}" in page
    for group in sweep.results["configurations"]:
        scores = [float(line["score"]) for line in done if group["task"] == line["task"]
                  and [group["configuration"], group["stage"]] == [int(line["configuration"]), int(line["stage"])]]
        assert group["score"] == (None if not scores else vars(Spread.of(scores)))


def test_what_matters_is_the_flag_that_changes_the_score(sweep: Sweep) -> None:
    shares = dict(sweep.results["importance"]["copa"]["shares"])
    assert shares["--lr"] == pytest.approx(1) and shares["--temperature"] == pytest.approx(0)
    assert "too few" in sweep.results["importance"]["cb"]["note"]
    best, = (group for group in sweep.results["configurations"] if group["is_best"])
    assert best["values"]["--lr"] == "2e-5" and best["stage"] == 1


def test_the_list_of_results_is_read_by_the_display(sweep: Sweep) -> None:
    file, = sweep.folder.glob("tune_*.json")
    runs = read_results(file)
    assert len(runs) == 16 and all(run.is_whole for run in runs)
    assert {run.metrics["accuracy"] for run in runs} == {0.5, 0.75}


def test_markdown_names_scores_and_failures(sweep: Sweep) -> None:
    text = (sweep.folder / "results.md").read_text(encoding="utf-8")
    assert "| copa | 2: lr=2e-5, temperature=1 | 1 | 0.7500 ± 0.0000 * | accuracy 0.7500 ± 0.0000 | 2 of 2 |" in text
    assert "| cb-000-s1234 | 0 | refused | distill/finetune.py: error: --hidden-size=100" in text


def test_a_spread_is_the_sample_deviation() -> None:
    assert Spread.of([1.0, 2.0, 3.0]) == Spread(2.0, 1.0) and Spread.of([0.5]) == Spread(0.5, None)
    assert str(Spread(0.5, 0.01)) == "0.5000 ± 0.0100" and str(Spread(62.5, None)) == "62.50"


def test_the_table_of_a_running_sweep_shows_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "POLL", 0.02)
    monkeypatch.setattr(runner, "_revision", lambda: "")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pictures: list[str] = []

    def picture(recorder: runner._Recorder, trial: object, index: int) -> None:
        out = io.StringIO()
        Console(file=out, width=200).print(progress_table(recorder._view._campaign, 20))
        pictures.append(out.getvalue())

    monkeypatch.setattr(runner._Recorder, "started", picture)
    Sweep(tmp_path, "--tasks=copa,cb", "--lr=grid:1,2", "--score=0.5", "--epochs=1").run()
    assert len(pictures) == 4
    assert "4 trial(s): 1 running, 3 waiting" in pictures[0] and "4 trial(s): 3 done, 1 running" in pictures[3]
    assert "copa-000" in pictures[1] and "accuracy 0.5000" in pictures[1]


def test_times_in_words() -> None:
    assert [duration(seconds) for seconds in (3.14, 75, 7384)] == ["3.1 s", "1 min 15 s", "2 h 03 min"]
