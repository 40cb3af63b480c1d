"""Annealing-KD: the loss in plain loops at several iterations, the flags it needs."""

from __future__ import annotations

import pytest

from distill.schedules import annealing_factor
from distill.training.run_state import RunState
from tests.distill.methods import contract
from tests.helpers.tiny_distill import CB, COPA, TEACHER, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

ANNEALING = (*TEACHER, "--student_model=annealing_kd")
TASK = (*ANNEALING, *COPA, "--distill_ft_soft", "--distill_ft_soft_mse")
TEXT = (*ANNEALING, "--distill_pt_soft", "--distill_pt_soft_mse")


@pytest.mark.parametrize("iteration", [0, 43, 70, 99])
def test_task_in_loops(iteration: int) -> None:
    output = step(tiny_context(*TASK, "--distill_soft_rate=0.5", run=RunState(iteration=iteration, train_iters=100)))
    phi = annealing_factor(iteration, 100, 7)
    errors = [(s - phi * t) ** 2 for row, targets in zip(
        output.logits.tolist(), output.teacher_outputs[0]["logits"].tolist(), strict=True)
        for s, t in zip(row, targets, strict=True)]
    assert output.loss.item() == pytest.approx(0.5 * sum(errors) / len(errors), rel=1e-9)
    assert output.parts["pre_loss/fai_t_t0"].item() == pytest.approx(phi)


def test_text_is_masked() -> None:
    batch = tiny_lm_batch()
    output = step(tiny_context(*TEXT, "--annealing_kd_max_t=4", run=RunState(iteration=60, train_iters=100)), batch)
    difference = output.logits - annealing_factor(60, 100, 4) * output.teacher_outputs[0]["logits"]
    expected = (difference.square() * batch["loss_mask"][..., None]).mean()
    assert output.loss.item() == pytest.approx(expected.item())


def test_nothing_is_tapped_and_everything_learns() -> None:
    assert student_of(*TASK).student_taps() == {} and student_of(*TASK).teacher_taps(0) == {}
    contract.assert_learns(*TASK)


def test_reductions_and_splits() -> None:
    contract.assert_reductions_agree(*ANNEALING, *CB, "--distill_ft_soft", "--distill_ft_soft_mse", "--distill_ft_hard")
    contract.assert_split_changes_nothing(*TASK)


@pytest.mark.parametrize("flags", [TASK, TEXT], ids=["copa", "text"])
def test_half_precision_and_padding(flags: tuple[str, ...]) -> None:
    contract.assert_finite(*flags)


@pytest.mark.parametrize(("flags", "message"), [
    ((*COPA, "--distill_ft_soft"), "add --distill_ft_soft and --distill_ft_soft_mse"),
    ((*COPA, "--distill_ft_soft_mse"), "add --distill_ft_soft and --distill_ft_soft_mse"),
    (("--distill_pt_soft",), "add --distill_pt_soft and --distill_pt_soft_mse"),
    ((*COPA, "--distill_pt_soft", "--distill_pt_soft_mse"), "add --distill_ft_soft and --distill_ft_soft_mse"),
    ((*TASK, "--annealing_kd_max_t=0"), "--annealing_kd_max_t=0.0 must be above 0"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *ANNEALING, *flags)


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([TASK, TEXT])
