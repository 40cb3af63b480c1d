"""Tables of scores, from old results files and new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.sweep.display import read_results, run_scores, show, show_path, stages_of


def result(task: str = "COPA", *, best: dict[str, tuple[int, dict[str, float]]] | None = None, epoch: int = -1,
           epochs: int = 5, **more: Any) -> dict[str, Any]:
    """What the training script writes; ``best`` is metric -> (epoch, its scores)."""
    best = best or {"accuracy": (3, {"accuracy": 0.75})}
    return {"args": {"save": f"runs/{task}", "epochs": epochs, "iteration": 9, "task": task, "wsc_negative": None},
            "now": "2026-01-02", "epoch": epoch, "*cmd": f"deepspeed … --task={task}", "max_score_dict": {
                name: {"epoch": number, "iteration": 10 * number, "score_dict": scores}
                for name, (number, scores) in best.items()}, **more}


def test_the_first_two_metrics_are_kept() -> None:
    scores = {"acc": 0.9, "em": 0.2, "f1a": 0.7, "loss": 3.0}
    found = run_scores(result("MultiRC", best={"em": (4, scores)}))
    assert list(found.metrics.items()) == [("f1a", 0.7), ("em", 0.2)] and found.epoch == 4 and found.planned == 5
    scores = {"rouge-l": 0.3, "rouge-1": 0.4, "rouge-2": 0.1}
    assert list(run_scores(result("xsum", best={"rouge-1": (0, scores)})).metrics) == ["rouge-1", "rouge-2", "rouge-l"]


def test_the_epoch_with_the_largest_sum_is_shown() -> None:
    first, second = {"f1": 0.8, "em": 0.5}, {"f1": 0.7, "em": 0.7}
    assert run_scores(result("ReCoRD", best={"f1": (1, first), "em": (2, second)})).epoch == 2


def test_less_perplexity_is_better() -> None:
    best = {"ppl": (1, {"ppl": 20.0}), "other": (2, {"ppl": 12.0})}
    assert run_scores(result("wikitext", best=best)).epoch == 2


def test_accuracy_and_perplexity_are_shown_and_the_first_one_decides() -> None:
    good, bad = {"accuracy": 0.7, "ppl": 8.0}, {"accuracy": 0.4, "ppl": 5.0}
    found = run_scores(result("lambda", best={"accuracy": (1, good), "ppl": (2, bad)}))
    assert found.epoch == 1 and found.metrics == good


def test_consecutive_runs_of_a_task_are_stages() -> None:
    runs = [run_scores(result(task)) for task in ("COPA", "COPA", "CB", "CB", "CB", "COPA")]
    runs.append(run_scores({**result("WSC"), "args": {"task": "WSC", "epochs": 5, "wsc_negative": True}}))
    runs.append(run_scores(result("WSC")))
    assert [[run.task for run in stage] for stage in stages_of(runs)] == [
        ["COPA", "CB", "COPA", "WSC", "WSC"], ["COPA", "CB"], ["CB"]]


def test_a_file_that_tells_the_stage_is_believed() -> None:
    runs = [run_scores(result("COPA", **{"*stage": stage})) for stage in (0, 1, 0, 1)]
    assert [len(stage) for stage in stages_of(runs)] == [2, 2]


def test_text(tmp_path: Path) -> None:
    file = tmp_path / "tune.json"
    file.write_text(json.dumps([result("COPA"), result("COPA", best={"accuracy": (0, {"accuracy": 55.0})}, epoch=2)]))
    assert show_path(file) == show(read_results(file)) == "\n".join([
        "deepspeed … --task=COPA", "COPA  runs/COPA", "accuracy  epoch  planned  last", "0.75      3      5        -1",
        "75.00     3      5        -1", "",
        "deepspeed … --task=COPA", "COPA  runs/COPA  error!", "accuracy  epoch  planned  last",
        "55        0      5        2", "",
        "stage 0", "task\tmetric\tresult\tx 100\tepoch\tplanned\tlast", "COPA\taccuracy\t0.75\t75.00\t3\t5\t-1", "",
        "stage 1", "task\tmetric\tresult\tx 100\tepoch\tplanned\tlast", "COPA\taccuracy\t55\t\t0\t5\t2\terror!"])
    assert show([]) == "no results"


def test_a_run_without_scores_is_an_error() -> None:
    found = run_scores({**result(), "max_score_dict": {}})
    assert not found.is_whole and "COPA\t\t\t\t\t5\t-1\terror!" in show([found])
    assert run_scores(result(epoch=4)).is_whole and not run_scores(result(epoch=3)).is_whole


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not valid JSON"), ("{}", "does not hold a JSON list"), ('[{"args": {}}]', "result 1 has not the form"),
    ("[3]", "result 1 has not the form"),
    ('[{"args": {"task": "x"}, "max_score_dict": {"f1": {"score_dict": {"f1": "much"}}}}]', "has not the form")])
def test_damaged_files(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "tune.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(file)


def test_a_missing_file_is_no_sweep(tmp_path: Path) -> None:
    """The published launcher went on to a real run."""
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        show_path(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="holds no sweep"):
        show_path(tmp_path)


def test_a_study_folder(tmp_path: Path) -> None:
    runs = tmp_path / "list.json"
    (tmp_path / "study.json").write_text(json.dumps({"format": 1, "result_list": str(runs)}))
    assert show_path(tmp_path) == "no results yet\n"
    runs.write_text(json.dumps([result()]))
    (tmp_path / "results.md").write_text("# Sweep\n")
    assert show_path(tmp_path) == f"# Sweep\n\n{show(read_results(runs))}"
