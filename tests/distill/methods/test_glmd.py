"""GLMD: masks, kinds and top-n against plain loops; gradients; ranks; the two-stage recipe."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, choice_batch, step, step_result, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

GLMD = (*TEACHER, "--student_model=logitsdistil")
TAU = 15.0
B, S, V = 2, 3, 8
POSITIONS = torch.tensor([[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
REAL = [[1, 1, 0], [1, 0, 0]]
PART_B = torch.tensor([[0.0, 1, 1], [1, 1, 0]])


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    student, teacher = (3 * torch.randn(B, S, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


def kl(s: list[float], t: list[float]) -> float:
    p, q = ([math.exp(z / TAU) for z in values] for values in (s, t))
    return sum(y / sum(q) * (math.log(y / sum(q)) - math.log(x / sum(p))) for x, y in zip(p, q, strict=True))


def oracle(masks: list[list[list[float]]], kind: str = "kl", top_n: int | None = None, minimum: bool = False) -> float:
    """The whole term in plain loops."""
    student, teacher = (x.tolist() for x in logits())
    total, hinge, count = 0.0, 0.0, 0
    for b in range(B):
        for s in range(S):
            weight = math.prod(mask[b][s] for mask in masks)
            x, y = student[b][s], teacher[b][s]
            if top_n is not None:
                top = sorted(range(V), key=lambda v, y=y: -y[v])[:top_n]
                if minimum:
                    y = [value if v in top else min(y) for v, value in enumerate(y)]
                else:
                    theta = min(x[v] for v in top)
                    excess = [x[v] - theta for v in range(V) if v not in top and x[v] > theta]
                    hinge, count = hinge + weight * sum(excess), count + int(weight) * len(excess)
                    x, y = [x[v] for v in top], [y[v] for v in top]
            squares = sum((a - c) ** 2 for a, c in zip(x, y, strict=True)) / len(x)
            total += weight * (squares if kind == "mse" else TAU ** 2 * kl(x, y))
    return total / (B * S) + hinge / max(1, count)


CASES = {
    "plain": ((), dict(masks=[])),
    "pad": (("--logitsdistil_mask_pad",), dict(masks=[REAL])),
    "part a": (("--logitsdistil_mask_a",), dict(masks=[PART_B.tolist()])),
    "pad and part a": (("--logitsdistil_mask_a", "--logitsdistil_mask_pad"), dict(masks=[REAL, PART_B.tolist()])),
    "mse": (("--logitsdistil_mse", "--logitsdistil_mask_pad"), dict(masks=[REAL], kind="mse")),
    "top 3": (("--logitsdistil_top_n=3", "--logitsdistil_mask_pad"), dict(masks=[REAL], top_n=3)),
    "top share": (("--logitsdistil_top_n=0.5",), dict(masks=[], top_n=4)),
    "top 3, mse": (("--logitsdistil_top_n=3", "--logitsdistil_mse"), dict(masks=[], top_n=3, kind="mse")),
    "teacher minimum": (("--logitsdistil_top_n=3", "--logitsdistil_teacher_min"),
                        dict(masks=[], top_n=3, minimum=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_loops(name: str) -> None:
    flags, options = CASES[name]
    student = student_of(*GLMD, f"--distill_temperature={TAU}", *flags)
    s, t = logits()
    hooks = {"logits_parallel": 0, "position_ids": 1}, {"logits_parallel": 0}
    given = dict(loss_mask=PART_B, logit_mask=None, labels=None)
    loss = student.intermediate_loss([s, POSITIONS], [t], *hooks, **given)
    vector = student.intermediate_loss([s, POSITIONS], [t], *hooks, keep_batch=True, **given)
    assert loss.item() == pytest.approx(oracle(**options), rel=1e-10)
    assert vector.shape == (B,) and vector.mean().item() == pytest.approx(loss.item(), rel=1e-10)
    assert torch.autograd.gradcheck(
        lambda x: student.intermediate_loss([x, POSITIONS], [t], *hooks, **given), (s,), atol=1e-5)


def test_part_a_of_choices_is_the_answer_mask() -> None:
    """Samples x choices rows: the cloze logit mask is flattened over the choices."""
    context = tiny_context(*GLMD, *COPA, "--logitsdistil_mask_a")
    batch = choice_batch()
    masked = step(context, batch).loss.item()
    batch["logit_mask"] = torch.ones_like(batch["logit_mask"])
    context = tiny_context(*GLMD, *COPA)
    assert masked < step(context, batch).loss.item()


def test_part_a_needs_a_mask() -> None:
    student = student_of(*GLMD, "--logitsdistil_mask_a")
    s, t = logits()
    with pytest.raises(ValueError, match="--logitsdistil_mask_a needs a mask of part B"):
        student.intermediate_loss([s], [t], {"logits_parallel": 0}, {"logits_parallel": 0})


def test_teacher_min_needs_top_n() -> None:
    with pytest.raises(ValueError, match="--logitsdistil_teacher_min needs --logitsdistil_top_n"):
        student_of(*GLMD, "--logitsdistil_teacher_min")


@pytest.mark.parametrize("flags", [(), COPA, CB, ("--logitsdistil_top_n=5",)], ids=["text", "copa", "cb", "top 5"])
def test_every_parameter_learns_and_the_teacher_does_not(flags: tuple[str, ...]) -> None:
    context = tiny_context(*GLMD, *flags)
    step(context)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in context.model.parameters())
    assert all(p.grad is None for p in context.teachers[0].parameters())


def test_no_label_is_needed() -> None:
    """Other labels give the same loss and gradients, to the bit."""
    batch, results = tiny_lm_batch(), []
    for _ in range(2):
        context = tiny_context(*GLMD, "--logitsdistil_mask_pad")
        results.append((step(context, batch).loss, context.student.word_embedding_weight.grad))
        batch = {**batch, "labels": (batch["labels"] + 5) % 64}
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_second_stage_has_no_intermediate_term() -> None:
    context = tiny_context(*GLMD, *COPA, "--distill_ft_soft", "--logitsdistil_wo_inter")
    output = step(context)
    assert context.student.student_taps() == {} and context.student.teacher_taps(0) == {}
    assert not any(name.startswith("inter_loss") for name in output.parts)
    torch.testing.assert_close(output.loss.detach(), output.parts["pre_loss/ft_soft_t0"])


def test_coupling_is_told_only_where_it_exists() -> None:
    assert student_of(*GLMD).batch_coupled == ""
    assert "hinge" in student_of(*GLMD, "--logitsdistil_top_n=4").batch_coupled
    assert student_of(*GLMD, "--logitsdistil_top_n=4", "--logitsdistil_teacher_min").batch_coupled == ""


PARITY = [("--logitsdistil_mask_pad",), ("--logitsdistil_mse",), ("--logitsdistil_top_n=40", "--logitsdistil_mask_pad"),
          ("--logitsdistil_top_n=7", "--logitsdistil_teacher_min")]


def parity_steps() -> list[tuple[float, dict[str, torch.Tensor]]]:
    return [step_result(*GLMD, "--distill_temperature=15", *flags) for flags in PARITY]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_agree_with_one(size: int) -> None:
    expected = parity_steps()
    for results in run_distributed(parity_steps, size, model_parallel_size=size):
        for (loss, gradients), (other, other_gradients) in zip(expected, results, strict=True):
            assert other == pytest.approx(loss, rel=1e-11)
            for name, gradient in gradients.items():
                torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-9, atol=1e-11)
