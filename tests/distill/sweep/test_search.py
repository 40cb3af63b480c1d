"""Which configurations are tried and given up."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from distill.sweep.domains import Domain, parse_domain
from distill.sweep.search import GridSearch, OptunaSearch, grid_points
from distill.sweep.types import Point

SPACE = {"--lr": parse_domain("--lr", "float:1e-6..1e-3:log"), "--layers": parse_domain("--layers", "int:1..8"),
         "--map": parse_domain("--map", "choice:a,b")}
GRID = {"--b": Domain("grid", ("1", "2")), "--a": Domain("choice", ("x", "y", "z"))}


def search(folder: Path, space: dict = SPACE, **options: object) -> OptunaSearch:
    settings = {"kind": "tpe", "trials": 12, "seed": 3, "pruner": "none", "startup": 2, "warmup": 1, "parallel": False}
    return OptunaSearch("copa", space, storage=folder / "optuna.jsonl", **{**settings, **options})


def score(point: Point) -> float:
    return -abs(math.log10(float(point["--lr"])) + 4.5) - 0.01 * int(point["--layers"])


def run(found: OptunaSearch, points: list[Point], most: int = 100) -> list[Point]:
    while len(points) < most and (point := found.ask()) is not None:
        points.append(point)
        found.tell(len(points) - 1, "done", score(point))
    return points


def test_a_grid_is_every_combination_the_last_flag_first() -> None:
    grid = GridSearch(GRID)
    points = [grid.ask() for _ in range(6)]
    assert [(point["--b"], point["--a"]) for point in points] == [
        ("1", "x"), ("1", "y"), ("1", "z"), ("2", "x"), ("2", "y"), ("2", "z")]
    assert grid.total == 6 and grid.ask() is None
    grid = GridSearch(GRID)
    grid.restore(points[:4])
    assert grid.ask() == points[4]
    assert grid_points({}) == [Point()]
    with pytest.raises(ValueError, match="--lr has a range"):
        GridSearch(SPACE)


def test_drawn_points_lie_in_their_domains(tmp_path: Path) -> None:
    for kind in ("random", "tpe"):
        (tmp_path / kind).mkdir()
        for point in run(search(tmp_path / kind, kind=kind), []):
            assert 1e-6 <= float(point["--lr"]) <= 1e-3 and 1 <= int(point["--layers"]) <= 8
            assert point["--map"] in ("a", "b")


def test_the_same_seed_gives_the_same_search_also_after_a_kill(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    whole = run(search(tmp_path / "a"), [])
    assert len(set(whole)) == 12
    assert run(search(tmp_path / "b", seed=4), []) != whole
    first = search(tmp_path / "c")
    points = run(first, [], most=7)
    first.ask()  # nobody has heard of this one
    with open(tmp_path / "c" / "optuna.jsonl", "a", encoding="utf-8") as file:
        file.write('{"op_code": ')
    (tmp_path / "c" / "optuna.jsonl.lock").touch()
    again = search(tmp_path / "c")
    again.restore(points)
    assert run(again, points) == whole


def test_the_estimator_looks_where_it_was_good(tmp_path: Path) -> None:
    points = run(search(tmp_path, trials=24), [])
    late, early = points[-8:], points[:8]
    assert sum(map(score, late)) / len(late) > sum(map(score, early)) / len(early)


def test_listed_values_are_drawn_once_each(tmp_path: Path) -> None:
    found = search(tmp_path, GRID, kind="random", trials=50)
    points = []
    while (point := found.ask()) is not None:
        points.append(point)
        found.tell(len(points) - 1, "done", 0.5)
    assert sorted(points, key=str) == sorted(grid_points(GRID), key=str) and found.total == 6


def test_a_grid_can_be_pruned_and_keeps_its_order(tmp_path: Path) -> None:
    found = search(tmp_path, GRID, kind="grid", pruner="median", startup=2)
    gains, given_up = [0.5, 0.75, 0.25, 0.875, 0.375, 0.625], []
    for number, gain in enumerate(gains):
        assert found.ask() == grid_points(GRID)[number]
        pruned = any(found.report(number, step, gain * step) for step in (1, 2, 3))
        given_up.append(pruned)
        found.tell(number, "pruned" if pruned else "done", None if pruned else gain)
    assert given_up == [False, False, True, False, True, True]
    assert found.ask() is None


def test_a_kill_while_a_grid_is_asked_loses_no_point(tmp_path: Path) -> None:
    def grid() -> OptunaSearch:
        return search(tmp_path, GRID, kind="grid", pruner="median")

    known: list[Point] = []
    for number in range(6):
        found = grid()
        found.restore(known)
        if number % 2:
            found._study.enqueue_trial(dict(grid_points(GRID)[number]))  # killed before it was asked for
        else:
            found.ask()  # killed before the journal had it
        found = grid()
        found.restore(known)
        known.append(found.ask())
    assert known == grid_points(GRID) and grid().total == 6


def test_a_failed_configuration_that_is_run_again_counts(tmp_path: Path) -> None:
    def grid() -> OptunaSearch:
        return search(tmp_path, GRID, kind="grid", pruner="median", startup=1)

    found, states = grid(), []
    points = [found.ask(), found.ask()]
    found.report(0, 1, 0.1)
    found.tell(0, "failed", None)
    for _ in range(2):  # the second time it is known already
        found = grid()
        found.restore(points)
        assert [found.report(0, step, 0.5) for step in (1, 2)] == [False, False]
        found.tell(0, "done", 0.5)
        states.append([trial.state.name for trial in found._study.get_trials()])
    assert states == [["FAIL", "RUNNING", "COMPLETE"]] * 2
    assert not found.report(1, 1, 0.0) and found.report(1, 2, 0.25)  # it is the median that others are compared with


def test_nothing_is_pruned_in_its_warm_up_and_a_step_decides_once(tmp_path: Path) -> None:
    found = search(tmp_path, GRID, kind="grid", pruner="median", startup=1, warmup=2)
    found.ask(), found.ask()
    assert not any(found.report(0, step, 1.0) for step in (1, 2, 3))
    found.tell(0, "done", 1.0)
    assert [found.report(1, step, 0.0) for step in (1, 2, 3, 3)] == [False, False, True, False]
    assert not found.report(1, 4, math.nan) and not found.report(7, 1, 0.0)


def test_successive_halving_lets_the_best_third_of_a_rung_go_on(tmp_path: Path) -> None:
    found = search(tmp_path, GRID, kind="grid", pruner="asha", warmup=1)
    kept = []
    for number in range(6):
        found.ask()
        kept.append(not found.report(number, 1, float(number % 3)))
        found.tell(number, "failed", None)
    assert kept[0] and not all(kept) and sum(kept) >= 2


def test_without_optuna_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="--search=tpe needs Optuna: pip install optuna"):
        search(tmp_path)
    with pytest.raises(ValueError, match="--pruner=asha needs Optuna"):
        search(tmp_path, GRID, kind="grid", pruner="asha")
    assert GridSearch(GRID).total == 6
