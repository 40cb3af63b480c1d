"""Continuation-KD: gate and weights in plain loops, also closed, masked and rated; the flags it needs."""

from __future__ import annotations

import pytest
import torch

from distill.schedules import annealing_factor
from distill.training.run_state import RunState
from tests.distill.methods import contract
from tests.helpers.tiny_distill import CB, COPA, TEACHER, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

CONTINUATION = (*TEACHER, "--student_model=continuation_kd")
ON = ("--distill_ft_soft", "--distill_ft_soft_mse", "--distill_ft_hard")
TASK = (*CONTINUATION, *COPA, *ON)
TEXT = (*CONTINUATION, "--distill_pt_soft", "--distill_pt_soft_mse", "--distill_pt_hard")


def psi_at(iteration: int) -> float:
    """Of 100 iterations, with the default flags."""
    return 1.0 if iteration > 66.6 else iteration / 133.3


@pytest.mark.parametrize("iteration", [0, 40, 66, 67, 99])
def test_label_weight(iteration: int) -> None:
    student = student_of(*TASK, run=RunState(iteration=iteration, train_iters=100))
    assert student.label_weight() == pytest.approx(psi_at(iteration))


@pytest.mark.parametrize("gate", ["open", "half", "closed"])
def test_task_in_loops(gate: str) -> None:
    """The gate is a sample's own and sees the rated soft loss."""
    run = RunState(iteration=40, train_iters=100)
    rates = ("--distill_soft_rate=0.5", "--distill_hard_rate=0.25")
    logits = step(tiny_context(*TASK, run=run))
    phi, psi = annealing_factor(40, 100, 10), psi_at(40)
    soft = [0.5 * sum((s - phi * t) ** 2 for s, t in zip(row, targets, strict=True)) / len(row)
            for row, targets in zip(logits.logits.tolist(), logits.teacher_outputs[0]["logits"].tolist(), strict=True)]
    margin = {"open": 0.0, "half": sorted(soft)[1] / phi * 1.0001, "closed": 2 * max(soft) / phi}[gate]
    output = step(tiny_context(*TASK, *rates, f"--continuation_kd_margin={margin!r}", run=run))
    kept = [value if value > margin * phi else 0.0 for value in soft]
    assert sum(map(bool, kept)) == {"open": 3, "half": 1, "closed": 0}[gate]
    hard = 0.25 * output.hard_loss.item()
    assert output.loss.item() == pytest.approx(psi * hard + (1 - psi) * sum(kept) / 3, rel=1e-9)
    parts = {name: value.item() for name, value in output.parts.items()}
    assert parts["pre_loss/fai_t_t0"] == pytest.approx(phi) and parts["pre_loss/psi_t0"] == pytest.approx(psi)
    assert parts["pre_loss/ft_soft_t0"] == pytest.approx(sum(soft) / 3)  # before gate and weight
    assert parts["pre_loss/ft_hard_t0"] == pytest.approx(hard)


def test_only_labels_in_the_end() -> None:
    output = step(tiny_context(*TASK, run=RunState(iteration=70, train_iters=100)))
    assert output.loss.item() == pytest.approx(output.hard_loss.item())


def test_text_is_masked() -> None:
    batch, run = tiny_lm_batch(), RunState(iteration=20, train_iters=100)
    output = step(tiny_context(*TEXT, "--continuation_kd_margin=0", run=run), batch)
    difference = output.logits - annealing_factor(20, 100, 10) * output.teacher_outputs[0]["logits"]
    soft = (difference.square() * batch["loss_mask"][..., None]).mean()
    expected = psi_at(20) * output.hard_loss + (1 - psi_at(20)) * soft
    assert output.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("keep_batch", [False, True])
def test_terms_by_name(keep_batch: bool) -> None:
    student = student_of(*TASK, "--continuation_kd_margin=0", run=RunState(iteration=20, train_iters=100))
    s, t, hard = torch.randn(3, 2), torch.randn(3, 2), torch.rand(3)
    parts = student.pre_loss(s, t, hard, return_dict=True, keep_batch=keep_batch)
    soft = (s - annealing_factor(20, 100, 10) * t).square().mean(1)
    expected = {"soft": (1 - psi_at(20)) * soft, "hard": psi_at(20) * hard}
    expected["loss"] = expected["soft"] + expected["hard"]
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value if keep_batch else value.mean())


def test_no_soft_rate_leaves_the_weighted_labels() -> None:
    output = step(tiny_context(*TASK, "--distill_soft_rate=0", run=RunState(iteration=40, train_iters=100)))
    assert output.loss.item() == pytest.approx(psi_at(40) * output.hard_loss.item())


def test_nothing_is_tapped_and_everything_learns() -> None:
    assert student_of(*TASK).student_taps() == {} and student_of(*TASK).teacher_taps(0) == {}
    contract.assert_learns(*TASK)


def test_reductions_and_splits() -> None:
    contract.assert_reductions_agree(*CONTINUATION, *CB, *ON)
    contract.assert_split_changes_nothing(*TASK)


@pytest.mark.parametrize("flags", [TASK, TEXT], ids=["copa", "text"])
def test_half_precision_and_padding(flags: tuple[str, ...]) -> None:
    contract.assert_finite(*flags)


@pytest.mark.parametrize(("flags", "message"), [
    ((*COPA, "--distill_ft_soft", "--distill_ft_hard"), "add --distill_ft_soft and --distill_ft_soft_mse"),
    ((*COPA, "--distill_ft_soft", "--distill_ft_soft_mse"), "add --distill_ft_hard with a --distill_hard_rate above 0"),
    ((*TASK, "--distill_hard_rate=0"), "add --distill_ft_hard with a --distill_hard_rate above 0"),
    (("--distill_pt_soft", "--distill_pt_soft_mse"), "add --distill_pt_hard"),
    ((*TASK, "--continuation_kd_max_t=-1"), "--continuation_kd_max_t=-1.0 must be above 0"),
    ((*TASK, "--continuation_kd_psi_denominator=0"), "--continuation_kd_psi_denominator=0.0 must be above 0"),
    ((*TASK, "--continuation_kd_psi_denominator=0.5"), "gives the soft loss a negative weight"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *CONTINUATION, *flags)


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([TASK, TEXT])
