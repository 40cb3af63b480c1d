"""Schedules as pure functions of the iteration."""

from __future__ import annotations

import pytest

from distill.schedules import annealing_factor, redraw_period, transfer_stage


def test_annealing_rises_in_stairs() -> None:
    values = [annealing_factor(iteration, 70, 7) for iteration in range(70)]
    assert values == sorted(values) and len(set(values)) == 7
    assert values[0] == pytest.approx(1 / 7) and values[-1] == 1.0
    assert annealing_factor(70, 70, 7) == annealing_factor(500, 70, 7) == 1.0
    assert annealing_factor(0, 0, 7) == pytest.approx(1 / 7)


def test_annealing_is_evaluated_in_the_written_order() -> None:
    assert annealing_factor(70, 100, 10) == pytest.approx(0.7)  # in exact fractions 0.8
    assert annealing_factor(43, 100, 7) == pytest.approx(1 - 3 / 7)
    assert annealing_factor(0, 10, 2.5) == pytest.approx(1 - 2 / 2.5)


def test_transfer_advances_after_each_share() -> None:
    stages = [transfer_stage(iteration, 90, 2) for iteration in range(90)]
    assert [stages.index(stage) for stage in (1, 2, 3)] == [0, 31, 61]
    assert [transfer_stage(iteration, 10, 2) for iteration in (4, 5, 7, 8, 1000)] == [1, 2, 2, 3, 3]  # 3.3 and 6.7
    counted, stage = [], 1
    for iteration in range(100):  # as a counter that advances after a step
        counted.append(stage)
        stage += stage <= 5 and iteration >= 100 / 6 * stage
    assert counted == [transfer_stage(iteration, 100, 5) for iteration in range(100)]


def test_redraws() -> None:
    common = {"epoch": 5, "iteration": 70}
    assert redraw_period(**common, every_epochs=2, every_iterations=3000) == ("epoch", 2)
    assert redraw_period(**common, every_epochs=0, every_iterations=30) == ("iteration", 2)
    assert redraw_period(**common, every_epochs=0, every_iterations=0) == ("iteration", 70)
