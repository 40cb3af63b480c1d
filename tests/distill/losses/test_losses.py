"""Loss functions against plain loops over a handful of positions, with masks, keep_batch and several ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from distill.losses import (
    cosine_distance,
    information_entropy,
    kl_divergence,
    mse,
    position_pad_mask,
    soft_cross_entropy,
)
from model.parallel.groups import parallel_state
from tests.helpers.distributed import run_distributed

Loss = Callable[..., torch.Tensor]
B, S, V = 3, 4, 8


def tensors(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher.requires_grad_()


def some_mask() -> torch.Tensor:
    return torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0.5, 1]])


def softmax(values: list[float], tau: float) -> list[float]:
    highest = max(values)
    exponentials = [math.exp((value - highest) / tau) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def position_value(name: str, s: list[float], t: list[float], tau: float) -> float:
    """The loss of one position, in plain Python."""
    p, q = softmax(s, tau), softmax(t, tau)
    if name == "kl":
        return sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))
    if name == "ce":
        return -sum(b * math.log(a) for a, b in zip(p, q, strict=True))
    if name == "entropy":
        return -sum(a * math.log(a) for a in p)
    if name == "mse":
        return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
    dot, s_norm, t_norm = (sum(a * b for a, b in zip(x, y, strict=True)) for x, y in ((s, t), (s, s), (t, t)))
    return 1 - dot / math.sqrt((s_norm + 1e-12) * (t_norm + 1e-12))


def loop_oracle(name: str, tau: float, mask: torch.Tensor | None, wo_constant: bool) -> list[float]:
    """The loss of each sample: masked positions count in the mean, with the constant of their kind."""
    student, teacher = (x.detach().tolist() for x in tensors(B, S, V))
    constant = {"ce": math.log(V), "cos": 1.0}.get(name, 0.0) if not wo_constant else 0.0
    samples = []
    for b in range(B):
        total = 0.0
        for s in range(S):
            weight = 1.0 if mask is None else float(mask[b, s])
            total += weight * position_value(name, student[b][s], teacher[b][s], tau) + (1 - weight) * constant
        samples.append(total / S)
    return samples


LOSSES: dict[str, Loss] = {
    "kl": kl_divergence, "ce": soft_cross_entropy, "mse": mse, "cos": cosine_distance,
    "entropy": lambda student, teacher, **options: information_entropy(student, **options)}
WITH_TAU = ("kl", "ce", "entropy")
WITH_CONSTANT = ("ce", "cos")


@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("name", "wo_constant"), [
    *((name, False) for name in LOSSES), *((name, True) for name in WITH_CONSTANT)])
def test_loops(name: str, is_masked: bool, wo_constant: bool) -> None:
    options = {"temperature": 2.5} if name in WITH_TAU else {}
    if wo_constant:
        options["wo_constant"] = True
    mask = some_mask() if is_masked else None
    student, teacher = tensors(B, S, V)
    expected = loop_oracle(name, 2.5 if name in WITH_TAU else 1.0, mask, wo_constant)
    per_sample = LOSSES[name](student, teacher, mask=mask, keep_batch=True, **options)
    scalar = LOSSES[name](student, teacher, mask=mask, **options)
    assert per_sample.shape == (B,)
    assert per_sample.tolist() == pytest.approx(expected, rel=1e-12)
    assert scalar.item() == pytest.approx(sum(expected) / B, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_positions_get_no_gradient(name: str) -> None:
    student, teacher = tensors(B, S, V)
    LOSSES[name](student, teacher, mask=some_mask()).backward()
    masked = some_mask() == 0
    assert (student.grad[masked] == 0).all()
    assert (student.grad[~masked].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", WITH_CONSTANT)
def test_the_constant_has_no_gradient(name: str) -> None:
    gradients = []
    for wo_constant in (False, True):
        student, teacher = tensors(B, S, V)
        LOSSES[name](student, teacher, mask=some_mask(), wo_constant=wo_constant).backward()
        gradients.append(student.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_mask_does_not_let_infinities_through(name: str) -> None:
    student, teacher = (x.detach().clone() for x in tensors(B, S, V))
    student[0, 3] = float("nan")
    assert LOSSES[name](student, teacher, mask=some_mask()).isfinite()


def test_mse_weighs_the_teacher() -> None:
    student, teacher = tensors(B, S, V)
    assert mse(student, teacher, teacher_weight=0.3).item() == pytest.approx(
        ((student - 0.3 * teacher) ** 2).mean().item())


def test_masks_as_release_input_masks() -> None:
    """Multiplying both logits by the mask before the softmax gives the same values (masks of 0 and 1)."""
    mask = (some_mask() == 1).double()
    student, teacher = tensors(B, S, V)
    zeroed = student * mask.unsqueeze(-1), teacher * mask.unsqueeze(-1)
    for loss in (kl_divergence, soft_cross_entropy):
        torch.testing.assert_close(loss(student, teacher, mask=mask), loss(*zeroed))


def test_classes_need_no_sequence_axis() -> None:
    student, teacher = tensors(B, V)
    assert kl_divergence(student, teacher, keep_batch=True).shape == (B,)


def test_a_mask_with_a_trailing_axis_fits() -> None:
    student, teacher = tensors(B, S, V)
    torch.testing.assert_close(mse(student, teacher, mask=some_mask().unsqueeze(-1)),
                               mse(student, teacher, mask=some_mask()))


def test_a_mask_that_does_not_fit_is_named() -> None:
    student, teacher = tensors(B, S, V)
    with pytest.raises(ValueError, match=r"mask of shape \(3, 4, 8\).*\(3, 4\)"):
        mse(student, teacher, mask=torch.ones(B, S, V))


def test_misspelt_options_are_errors() -> None:
    student, teacher = tensors(B, S, V)
    with pytest.raises(TypeError, match="maks"):
        mse(student, teacher, maks=some_mask())
    with pytest.raises(ValueError, match="partition must be one of"):
        mse(student, teacher, partition="vocabulary")


def test_position_pad_mask() -> None:
    positions = torch.tensor([[[0, 1, 2, 2, 0, 0], [0, 0, 0, 1, 0, 0]]])
    before = positions.clone()
    assert position_pad_mask(positions).tolist() == [[1, 1, 1, 1, 0, 0]]
    assert torch.equal(positions, before)


# ---- several ranks ----------------------------------------------------------------------------------------------

def rank_loss(name: str, partition: str, keep_batch: bool, is_masked: bool) -> list[torch.Tensor]:
    """Loss and student gradient of this rank's slice: of the last axis, or of axis 1 for heads."""
    shape = (B, S, V) if partition == "vocab" else (B, 4, S, V)
    axis = -1 if partition == "vocab" else 1
    state = parallel_state()
    student, teacher = (x.detach().chunk(state.model_size, axis)[state.model_rank].clone().requires_grad_()
                        for x in tensors(*shape))
    mask = None
    if is_masked:
        mask = some_mask() if partition == "vocab" else some_mask().unsqueeze(1)
    loss = LOSSES[name](student, teacher, mask=mask, keep_batch=keep_batch, partition=partition)
    weights = torch.arange(1.0, 1.0 + loss.numel(), dtype=loss.dtype).view(loss.shape)
    (loss * weights).sum().backward()
    return [loss.detach(), student.grad]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("partition", ["vocab", "heads"])
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_agree_with_one(name: str, partition: str, size: int) -> None:
    for keep_batch, is_masked in ((False, True), (True, False)):
        whole = rank_loss(name, partition, keep_batch, is_masked)
        results = run_distributed(rank_loss, size, name, partition, keep_batch, is_masked, model_parallel_size=size)
        axis = -1 if partition == "vocab" else 1
        for loss, _ in results:
            torch.testing.assert_close(loss, whole[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(torch.cat([gradient for _, gradient in results], dim=axis), whole[1],
                                   rtol=1e-11, atol=1e-12)
