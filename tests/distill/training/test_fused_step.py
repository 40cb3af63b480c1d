"""``--fused-lm-loss`` against the step that forms the logits."""

from __future__ import annotations

import pytest
import torch

from distill.training.forward_step import StepContext, StepOutput, forward_step
from distill.training.fused_step import use_fused_loss
from tests.golden.replay import whole_gradient
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

KD = ("--student_model=kd", *TEACHER)
GLMD = ("--student_model=logitsdistil", *TEACHER, "--distill_temperature=5")
CASES = {
    "plain": (),
    "hard": (*KD, "--distill_pt_hard", "--distill_hard_rate=0.3"),
    "soft": (*KD, "--distill_pt_soft", "--distill_temperature=5", "--distill_wo_loss_mask"),
    "soft and hard": (*KD, "--distill_pt_soft", "--distill_soft_rate=0.7", "--distill_pt_hard"),
    "soft ce": (*KD, "--distill_pt_soft", "--distill_pt_soft_ce", "--distill_temperature=3"),
    "soft mse": (*KD, "--distill_pt_soft", "--distill_pt_soft_mse", "--distill_only_mask_pad"),
    "glmd": GLMD,
    "glmd masks": (*GLMD, "--logitsdistil_mask_pad", "--logitsdistil_mask_a"),
    "glmd mse and hard": (*GLMD, "--logitsdistil_mse", "--distill_pt_hard"),
    "glmd stage 2": (*GLMD, "--logitsdistil_wo_inter", "--distill_pt_soft"),
}


def step(flags: tuple[str, ...], *, fused: bool, training: bool = True,
         dtype: torch.dtype = torch.float32) -> tuple[StepContext, StepOutput, dict[str, torch.Tensor]]:
    context = tiny_context(*flags, dtype=dtype)
    context.run.is_training = training
    if fused:
        use_fused_loss(context)
    output = forward_step(context, tiny_lm_batch(), token_denominator=7.0)
    output.loss.backward()
    gradients = {name: whole_gradient(parameter) for name, parameter in context.model.named_parameters()}
    return context, output, {name: gradient for name, gradient in gradients.items() if gradient is not None}


def assert_same(flags: tuple[str, ...], training: bool = True) -> None:
    _, plain, expected = step(flags, fused=False, training=training)
    _, fused, gradients = step(flags, fused=True, training=training)
    assert fused.logits is None and [tag for tag, _ in fused.recorded] == [tag for tag, _ in plain.recorded]
    for left, right in [(fused.loss, plain.loss), (fused.hard_loss, plain.hard_loss),
                        (fused.hard_loss_per_sample, plain.hard_loss_per_sample),
                        *((fused.parts[tag], value) for tag, value in plain.parts.items())]:
        torch.testing.assert_close(torch.as_tensor(left), torch.as_tensor(right), rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-6 * max(1.0, largest), msg=name)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_step_with_logits(name: str) -> None:
    assert_same(CASES[name])


def test_evaluation_has_the_label_loss_only() -> None:
    assert_same(CASES["soft and hard"], training=False)


def both_on_this_rank(flags: tuple[str, ...]) -> None:
    assert_same(flags)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["plain", "soft and hard", "glmd masks", "glmd mse and hard"])
def test_equals_it_over_a_cut_vocabulary(name: str) -> None:
    run_distributed(both_on_this_rank, 2, CASES[name], model_parallel_size=2)


@pytest.mark.parametrize(("flags", "reason"), [
    ((*COPA,), "scores choices"),
    ((*KD, "--distill_pt_soft", "--fp16"), "--bf16 needs none"),
    (("--student_model=tinybert", *TEACHER, "--teacher_hidden_size=16", "--teacher_num_layers=2"), "tinybert may read"),
    (("--student_model=kd", *TWO_TEACHERS, "--distill_pt_soft"), "several teachers"),
    ((*KD, "--distill_pt_soft", "--mt_has_loss"), "--mt_has_loss"),
    ((*KD, "--distill_pt_soft", "--forward_repeat_num=1"), "--forward_repeat_num"),
    ((*KD, "--distill_logits_parallel"), "--distill_logits_parallel"),
    ((*GLMD, "--logitsdistil_top_n=0.5"), "--logitsdistil_top_n"),
    ((*GLMD, "--distill_pt_soft"), "second loss"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_needs_the_logits_refuses(flags: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=f"--fused-lm-loss forms no logits, but .*{reason}.*leave --fused-lm-loss out"):
        use_fused_loss(tiny_context(*flags))
