"""ALP-KD: the mixture of layers in plain loops, its gradient, lambda, and the contract of every method."""

from __future__ import annotations

import pytest
import torch

from tests.distill.methods import contract
from tests.distill.methods.loops import dot, mean, mean_square, softmax
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, choice_batch, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

ALP_KD = (*TEACHER, "--teacher_hidden_size=16", "--student_model=alp_kd")
TASK = (*ALP_KD, *COPA, "--distill_ft_soft", "--distill_ft_hard", "--distill_temperature=20",
        "--distill_soft_rate=0.7", "--distill_hard_rate=0.1")


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_all_layers_of_both_are_used(sizes: tuple[int, int]) -> None:
    student = student_of(*ALP_KD, f"--num-layers={sizes[0]}", f"--teacher_num_layers={sizes[1]}")
    for hook, depth in zip((student.student_taps(), student.teacher_taps(0)), sizes, strict=True):
        assert list(hook["transformer"].get("layers", {})) == list(range(1, depth)) and "output" in hook["transformer"]


@pytest.mark.parametrize("stage", ["text", "copa"])
def test_loss_loops(stage: str) -> None:
    flags, batch = ((*ALP_KD, "--alp_kd_lambda=0.5"), tiny_lm_batch()) if stage == "text" else (TASK, choice_batch())
    output, student, teacher = contract.watched_step(tiny_context(*flags), batch)
    total = 0.0
    for k in (1, 2):
        values = []
        for b, state in enumerate(student[contract.state_name(k, 2)]):
            s, layers = state[0].tolist(), [teacher[contract.state_name(j, 3)][b, 0].tolist() for j in (1, 2, 3)]
            alpha = softmax([dot(s, t) for t in layers])
            mixture = [dot(alpha, column) for column in zip(*layers, strict=True)]
            values.append(mean_square(s, mixture))
        assert output.parts[f"inter_loss/hidden_states.{k - 1}_t0"].item() == pytest.approx(mean(values), rel=1e-9)
        total += mean(values)
    before = sum(value.item() for name, value in output.parts.items() if name.startswith("pre_loss"))
    weight = 0.5 if stage == "text" else 0.2
    assert output.loss.item() == pytest.approx(before + weight * total, rel=1e-9)


def test_the_gradient_flows_through_the_scores() -> None:
    """The whole derivative with respect to the student's class tokens, the weights alpha included."""
    student = student_of(*ALP_KD)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 3, 16, generator=generator, dtype=torch.float64) for _ in range(5)]
    hooks = [{"transformer": {"layers": {k: {"layernorm_output": k - 1} for k in range(1, depth)}, "output": depth - 1}}
             for depth in (2, 3)]

    def loss(*own: torch.Tensor) -> torch.Tensor:
        return student.intermediate_loss(own, states[2:], *hooks)

    assert torch.autograd.gradcheck(loss, tuple(state.requires_grad_() for state in states[:2]))


def test_lambda_of_one_reproduces_runs_without_lambda() -> None:
    zero, one, half = (step(tiny_context(*TASK, f"--alp_kd_lambda={value}")).loss.item() for value in (0, 1, 0.5))
    assert half == pytest.approx((zero + one) / 2) and one > zero


def test_lambda_of_zero_taps_nothing() -> None:
    contract.assert_term_is_off(*TASK, "--alp_kd_lambda=0")


@pytest.mark.parametrize("flags", [ALP_KD, TASK], ids=["text", "copa"])
def test_contract(flags: tuple[str, ...]) -> None:
    contract.assert_learns(*flags)
    contract.assert_reductions_agree(*flags)


def test_numbers_stay_finite() -> None:
    contract.assert_finite(*TASK)


def test_splits_of_a_batch() -> None:
    contract.assert_split_changes_nothing(*TASK)


def test_widths_have_to_be_equal() -> None:
    wide = (*TASK, "--teacher_hidden_size=24")
    contract.assert_refused(r"ALPKD needs equal hidden sizes: student 16 \(--hidden-size\) vs teacher 24", *wide)
    student_of(*wide, "--alp_kd_lambda=0")


@pytest.mark.distributed
def test_ranks_and_checkpointing_change_nothing() -> None:
    two = (*TWO_TEACHERS, "--mt_hidden_size=16:16", *TASK[len(TEACHER) + 1:])
    contract.assert_ranks_agree([ALP_KD, TASK, two])
