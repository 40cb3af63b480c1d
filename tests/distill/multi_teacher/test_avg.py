"""The average over teachers: mean, sum, survival, and one teacher through the same code."""

from __future__ import annotations

import pytest
import torch

from distill.multi_teacher.base import COMBINERS, MultiTeacherModel, find_combiner, register_combiner
from distill.training.run_state import RunState
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, tiny_context

SOFT = ("--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--distill_hard_rate=0.5")


def teacher_terms(output: object, count: int = 2) -> list[torch.Tensor]:
    return [output.parts[f"teacher_loss/teacher_{i}_t{i}"] for i in range(count)]


@pytest.mark.parametrize("flags", [SOFT, (*SOFT, "--distill_logits_parallel"), ("--student_model=tinybert",)])
def test_mean_and_sum(flags: tuple[str, ...]) -> None:
    mean, total = step(tiny_context(*TWO_TEACHERS, *flags)), step(tiny_context(*TWO_TEACHERS, *flags,
                                                                               "--avgmt_sum_loss"))
    terms = teacher_terms(mean)
    assert terms[0] != terms[1]
    torch.testing.assert_close(mean.loss.detach(), (terms[0] + terms[1]) / 2)
    torch.testing.assert_close(total.loss.detach(), terms[0] + terms[1])


def test_every_part_is_recorded_for_each_teacher() -> None:
    parts = step(tiny_context(*TWO_TEACHERS, *SOFT)).parts
    for i in (0, 1):
        torch.testing.assert_close(parts[f"teacher_loss/teacher_{i}_t{i}"],
                                   parts[f"pre_loss/pt_soft_t{i}"] + parts[f"pre_loss/pt_hard_t{i}"])
    assert "Train/hard_loss" in parts


def test_two_equal_teachers_are_one() -> None:
    one = tiny_context(*TEACHER, *SOFT)
    two = tiny_context(*TEACHER, "--mt_num_layers=3:3", *SOFT)
    two.model.load_state_dict(one.model.state_dict())
    for teacher in two.teachers:
        teacher.load_state_dict(one.teachers[0].state_dict())
    torch.testing.assert_close(step(one).loss, step(two).loss)


def survivors(iteration: int, p: float = 0.5, rank_seed: int = 1) -> tuple[list[int], object]:
    context = tiny_context(*TWO_TEACHERS, "--student_model=kd", "--distill_pt_soft", "--distill_hard_rate=0.5",
                           f"--avgmt_teacher_survival_p={p}", run=RunState(seed=rank_seed, iteration=iteration))
    output = step(context)
    return [i for i in (0, 1) if f"teacher_loss/teacher_{i}_t{i}" in output.parts], output


def test_survival_adds_the_label_term_which_the_mean_counts() -> None:
    seen = set()
    for iteration in range(12):
        alive, output = survivors(iteration)
        seen.add(tuple(alive))
        hard = 0.5 * output.hard_loss.detach()
        terms = [output.parts[f"teacher_loss/teacher_{i}_t{i}"] for i in alive]
        torch.testing.assert_close(output.loss.detach(), (sum(terms) + hard) / (len(terms) + 1))
        torch.testing.assert_close(output.parts["multi_teacher_model/hard_loss"], hard)
    assert {(), (0, 1)} <= seen and len(seen) >= 3
    assert survivors(3)[0] == survivors(3)[0]


def test_nobody_survives_at_zero() -> None:
    alive, output = survivors(0, p=0.0)
    assert alive == []
    torch.testing.assert_close(output.loss, 0.5 * output.hard_loss)


def test_the_label_term_of_survival_is_a_term() -> None:
    """`kd` without any switch is an error, but not where the combiner adds the label."""
    context = tiny_context(*TEACHER, "--student_model=kd", "--avgmt_teacher_survival_p=0.5")
    assert step(context).loss.isfinite()


def test_counting_the_label_twice_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tiny_context(*TEACHER, "--student_model=kd", *COPA, "--distill_ft_hard", "--avgmt_teacher_survival_p=0.5")
    assert "the label counts twice" in caplog.text and "--distill_ft_hard" in caplog.text


def test_a_disabled_teacher_is_not_run_and_has_no_intermediate_loss() -> None:
    flags = (*TWO_TEACHERS, "--student_model=tinybert")
    both, one = tiny_context(*flags), tiny_context(*flags, "--mt_disable_operation=0:1")
    one.teachers[1].forward = None  # would fail if it were called
    terms, output = teacher_terms(step(both)), step(one)
    torch.testing.assert_close(output.loss.detach(), terms[0] / 2)


def test_a_probability_is_a_probability() -> None:
    with pytest.raises(ValueError, match="--avgmt_teacher_survival_p=1.5 must be a probability"):
        tiny_context(*TEACHER, *SOFT, "--avgmt_teacher_survival_p=1.5")


def test_names_of_combiners() -> None:
    assert find_combiner(None) is find_combiner("") is find_combiner("tmkd") is COMBINERS["avg"]
    with pytest.raises(ValueError, match="--multi_teacher_model=agv is not a combiner.*did you mean avg"):
        find_combiner("agv")


def test_a_combiners_parameters_are_saved_under_its_name() -> None:
    @register_combiner("scaled")
    class Scaled(MultiTeacherModel):
        def __init__(self, args: object) -> None:
            super().__init__(args)
            self.scale = torch.nn.Parameter(torch.ones(1))

        def compute(self, *given: object, **kwargs: object) -> torch.Tensor:
            return self.scale.sum() * given[-1]["loss"]

    try:
        context = tiny_context(*TEACHER, *SOFT, "--multi_teacher_model=scaled")
        step(context)
        assert dict(context.student.named_parameters())["student.multi_teacher_model.scale"].grad is not None
    finally:
        del COMBINERS["scaled"]
    with pytest.raises(ValueError, match="--multi_teacher_model=avg is taken by AvgTeacher"):
        register_combiner("avg")(Scaled)
