"""The formulas of the schedule, written out."""

from __future__ import annotations

import math

import pytest

from distill.training.lr_schedule import LearningRateSchedule


def rates(schedule: LearningRateSchedule, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(schedule.rate())
        schedule.step()
    return found


def test_linear_with_warmup_goes_on_below_the_last_share() -> None:
    found = rates(LearningRateSchedule(2.0, 10, warmup=0.2, style="linear", decay_ratio=0.1), 13)
    expected = [0.0, 1.0, 2.0] + [2 - 2 * 0.9 * (t - 2) / 8 for t in range(3, 13)]
    assert found == pytest.approx(expected)
    assert found[12] < 0.2


def test_cosine_ends_at_the_last_share() -> None:
    found = rates(LearningRateSchedule(1.0, 20, warmup=0.1, style="cosine", decay_ratio=0.05), 25)
    expected = [0.05 * (1 + (1 / 0.05 - 1) * (1 + math.cos(math.pi * min(1, (t - 2) / 18))) / 2) for t in range(3, 25)]
    assert found[:3] == pytest.approx([0, 0.5, 1]) and found[3:] == pytest.approx(expected)
    assert found[20:] == pytest.approx([0.05] * 5)


@pytest.mark.parametrize("style", ["constant", "exponential"])
def test_constant(style: str) -> None:
    assert rates(LearningRateSchedule(0.5, 10, warmup=0.0, style=style), 12) == [0.5] * 12


def test_a_fractional_warmup_is_kept() -> None:
    schedule = LearningRateSchedule(1.0, 15, warmup=0.1)
    assert rates(schedule, 3) == pytest.approx([0, 1 / 1.5, 1 - 0.9 * 0.5 / 13.5])


def test_without_decay_ratio_the_cosine_ends_at_zero() -> None:
    assert rates(LearningRateSchedule(1.0, 4, style="cosine", decay_ratio=0.0), 5)[-1] == pytest.approx(0)


def test_a_warmup_of_more_than_half_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup"):
        LearningRateSchedule(1.0, 10, warmup=0.6)


def test_state_restores_position_and_warmup_only() -> None:
    first = LearningRateSchedule(1.0, 10, warmup=0.2, style="cosine", decay_ratio=0.1)
    rates(first, 5)
    state = first.state_dict()
    assert state == {"warmup_iter": 2.0, "num_iters": 5, "decay_style": "cosine", "end_iter": 8.0, "decay_ratio": 10.0}
    second = LearningRateSchedule(1.0, 20, warmup=0.2, style="linear", decay_ratio=0.1)
    second.load_state_dict(state)
    assert (second.steps, second.warmup_steps, second.style, second.decay_steps) == (5, 2.0, "linear", 16.0)


def test_switch_to_linear_starts_from_the_current_rate() -> None:
    schedule = LearningRateSchedule(1.0, 10, style="cosine", decay_ratio=0.1)
    rates(schedule, 4)
    current = schedule.rate()
    schedule.switch_to_linear(10)
    found = rates(schedule, 7)
    assert found[0] == pytest.approx(current) and found[6] == pytest.approx(0.1 * current)


def test_a_switched_schedule_goes_on_after_a_resume() -> None:
    def fresh() -> LearningRateSchedule:
        return LearningRateSchedule(1.0, 40, warmup=0.1, style="cosine")

    schedule, resumed = fresh(), fresh()
    rates(schedule, 9)
    schedule.switch_to_linear(40)
    rates(schedule, 7)
    resumed.load_state_dict(schedule.state_dict())
    resumed.switch_to_linear(40)  # the flag is still there
    assert rates(resumed, 20) == rates(schedule, 20)


def test_when_the_linear_rate_falls_below_zero() -> None:
    schedule = LearningRateSchedule(1.0, 20, warmup=0.1, decay_ratio=0.1)
    step = schedule.first_negative_step()
    found = rates(schedule, step + 1)
    assert found[step] < 0 <= found[step - 1]
    assert LearningRateSchedule(1.0, 20, style="cosine").first_negative_step() is None
    assert LearningRateSchedule(1.0, 20, decay_ratio=1.0).first_negative_step() is None


def test_a_schedule_that_has_not_begun_is_not_switched() -> None:
    schedule, plain = (LearningRateSchedule(1.0, 10, warmup=0.2, style="cosine") for _ in range(2))
    schedule.switch_to_linear(10)  # its rate is 0, which would be the peak of the new one
    assert rates(schedule, 10) == rates(plain, 10)
