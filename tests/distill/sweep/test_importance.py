"""How much searched values matter."""

from __future__ import annotations

import random
import sys

import pytest

from distill.sweep.domains import Domain, parse_domain
from distill.sweep.importance import CHANCE, COMBINATIONS, importance
from distill.sweep.search import grid_points
from distill.sweep.types import Point

GRID = {"--lr": Domain("grid", ("1", "2")), "--t": Domain("grid", ("1", "10")), "--one": Domain("grid", ("x",))}
RANGE = {"--lr": parse_domain("--lr", "float:0.001..1:log"), "--n": parse_domain("--n", "int:1..9"),
         "--map": parse_domain("--map", "choice:a,b")}


def gain(point: Point) -> float:
    lr, t = int(point["--lr"]) == 2, int(point["--t"]) == 10
    return 3.0 * lr + 1.0 * t + 2.0 * (lr and t)


def test_shares_of_a_full_grid_are_those_of_the_analysis_of_variance() -> None:
    found = importance(GRID, [(point, gain(point)) for point in grid_points(GRID)])
    # Scores 0, 1, 3, 6 around 2.5: 21 in all; means of --lr 0.5 and 4.5: 16; of --t 1.5 and 3.5: 4; the rest: 1.
    assert dict(found.shares) == pytest.approx({"--lr": 16 / 21, "--t": 4 / 21, COMBINATIONS: 1 / 21})
    assert [name for name, _ in found.shares] == ["--lr", "--t", COMBINATIONS]


def test_what_the_seeds_do_is_told_apart() -> None:
    samples = [(point, gain(point) + shift) for point in grid_points(GRID) for shift in (-1.0, 1.0)]
    found = importance(GRID, samples)
    assert dict(found.shares) == pytest.approx({"--lr": 32 / 50, "--t": 8 / 50, COMBINATIONS: 2 / 50, CHANCE: 8 / 50})
    assert sum(share for _, share in found.shares) == pytest.approx(1)


def test_missing_runs_are_said_to_be_missing() -> None:
    samples = [(point, gain(point) + shift) for point in grid_points(GRID) for shift in (-1.0, 1.0)][:-1]
    found = importance(GRID, samples)
    assert "some runs are missing" in found.note and COMBINATIONS not in dict(found.shares)


@pytest.mark.parametrize(("space", "count", "note"), [
    ({}, 1, "nothing was searched"), ({"--one": GRID["--one"]}, 1, "nothing was searched"),
    (GRID, 3, "too few to tell"), (RANGE, 9, "10 are needed")])
def test_where_there_is_nothing_to_say_that_is_said(space: dict, count: int, note: str) -> None:
    points = [Point.of({"--lr": str(n + 1), "--t": str(n)}) for n in range(count)]
    found = importance(space, [(point, float(n)) for n, point in enumerate(points)])
    assert found.shares == () and note in found.note


def test_equal_scores_tell_nothing() -> None:
    found = importance(GRID, [(point, 0.5) for point in grid_points(GRID)])
    assert found.shares == () and "same score" in found.note


def test_ranges_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    points = [Point.of({"--lr": f"{10 ** draw.uniform(-3, 0):.6g}", "--n": str(draw.randint(1, 9)),
                        "--map": draw.choice("ab")}) for _ in range(60)]
    found = importance(RANGE, [(point, float(point["--lr"])) for point in points])
    assert found.shares[0][0] == "--lr" and found.shares[0][1] > 0.5 and "Optuna" in found.note
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install optuna" in importance(RANGE, [(point, float(point["--lr"])) for point in points]).note
