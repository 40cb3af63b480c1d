"""Vanilla distillation: a whole step against plain loops, gradients, ranks, several teachers."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, step, step_result, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

KD = (*TEACHER, "--student_model=kd")
TEXT = (*KD, "--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=5", "--distill_hard_rate=0.5")
TASK = (*KD, "--distill_ft_soft", "--distill_ft_hard", "--distill_temperature=5")


def test_pretraining_step_in_loops() -> None:
    context = tiny_context(*TEXT)
    output = step(context)
    from_teacher = output.teacher_outputs[0]["logits"].tolist()
    tau, soft, hard, tokens = 5.0, 0.0, 0.0, 0.0
    batch = tiny_lm_batch()
    for b, sample in enumerate(output.logits.tolist()):
        for s, row in enumerate(sample):
            mask = float(batch["loss_mask"][b, s])
            p, q = ([math.exp(z / tau) for z in logits] for logits in (row, from_teacher[b][s]))
            p, q = ([x / sum(values) for x in values] for values in (p, q))
            soft += mask * sum(y * (math.log(y) - math.log(x)) for x, y in zip(p, q, strict=True))
            hard += mask * (math.log(sum(math.exp(z) for z in row)) - row[int(batch["labels"][b, s])])
            tokens += mask
    expected = tau ** 2 * soft / batch["tokens"].numel() + 0.5 * hard / tokens
    assert output.loss.item() == pytest.approx(expected, rel=1e-9)
    assert output.hard_loss.item() == pytest.approx(hard / tokens, rel=1e-9)
    assert output.parts["pre_loss/pt_hard_t0"].item() == pytest.approx(0.5 * hard / tokens, rel=1e-9)


@pytest.mark.parametrize("task", [COPA, CB], ids=["multi token", "single token"])
def test_fine_tuning_step_in_loops(task: tuple[str, ...]) -> None:
    output = step(tiny_context(*TASK, *task))
    scores, targets, soft = output.logits.tolist(), output.teacher_outputs[0]["logits"].tolist(), 0.0
    for row, target in zip(scores, targets, strict=True):
        p, q = ([math.exp((z - max(values)) / 5) for z in values] for values in (row, target))
        soft -= sum(y / sum(q) * math.log(x / sum(p)) for x, y in zip(p, q, strict=True))
    assert output.loss.item() == pytest.approx(soft / len(scores) + output.hard_loss.item(), rel=1e-9)


@pytest.mark.parametrize("flags", [TEXT, (*TASK, *COPA), (*TASK, *CB)], ids=["text", "copa", "cb"])
def test_every_parameter_learns_and_the_teacher_does_not(flags: tuple[str, ...]) -> None:
    context = tiny_context(*flags)
    step(context)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in context.model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in context.teachers[0].parameters())


def test_evaluation_leaves_the_teachers_alone() -> None:
    context = tiny_context(*TEXT)
    trained = step(context)
    context.run.is_training = False
    context.teachers[0].forward = None  # would fail if it were called
    output = step(context)
    assert torch.equal(output.loss, output.hard_loss) and output.parts == {}
    torch.testing.assert_close(output.hard_loss, trained.hard_loss)


def test_teachers_own_loss_on_request() -> None:
    output = step(tiny_context(*TEXT, "--mt_has_loss")).teacher_outputs[0]
    assert output["loss"].item() > 0 and output["loss_batch"].shape == (3,)
    assert "loss" not in step(tiny_context(*TEXT)).teacher_outputs[0]


@pytest.mark.distributed
@pytest.mark.parametrize("flags", [TEXT, (*TASK, *COPA)], ids=["text", "copa"])
def test_ranks_agree_with_one(flags: tuple[str, ...]) -> None:
    loss, gradients = step_result(*flags)
    for other, other_gradients in run_distributed(step_result, 2, *flags, model_parallel_size=2):
        assert other == pytest.approx(loss, rel=1e-11)
        assert other_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-9, atol=1e-11)
