"""CKD's four relations in plain loops; gradients of half precision, padding and duplicates are finite."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses.context_relations import layer_angles, layer_pairs, word_angles, word_pairs

B, S, K = 2, 4, 3
REAL = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
Vector = list[float]


def states(width: int, seed: int) -> torch.Tensor:
    """[b, s, k, h]"""
    return torch.randn(B, S, K, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(x: Vector, y: Vector) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


def angle(v: Vector, x: Vector, y: Vector) -> float:
    first, second = ([a - b for a, b in zip(v, other, strict=True)] for other in (x, y))
    return cosine(first, second) if any(first) and any(second) else 0.0


def kl(student: list[float], teacher: list[float]) -> float:
    p, q = ([math.exp(v) / sum(math.exp(u) for u in values) for v in values] for values in (student, teacher))
    return sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


def pair_loss(s: list[Vector], t: list[Vector], i: int, among: list[int]) -> float:
    others = [j for j in among if j != i]
    return kl(*([cosine(x[i], x[j]) for j in others] for x in (s, t))) if others else 0.0


def angle_loss(s: list[Vector], t: list[Vector], i: int, among: list[int]) -> float:
    return sum((angle(s[i], s[j], s[k]) - angle(t[i], t[j], t[k])) ** 2 for j in among for k in among)


def test_relations_in_loops() -> None:
    student, teacher = states(5, 1), states(3, 2)
    for layer in range(K):
        s, t = student[:, :, layer], teacher[:, :, layer]
        pairs, corners = word_pairs(s, t, REAL).tolist(), word_angles(s, t, REAL, window=3).tolist()
        for b in range(B):
            x, y = s[b].tolist(), t[b].tolist()
            real = [i for i in range(S) if REAL[b, i]]
            window = {i: [min(max(i + offset, 0), S - 1) for offset in (-1, 0, 1)] for i in real}
            assert pairs[b] == pytest.approx(sum(pair_loss(x, y, i, real) for i in real))
            assert corners[b] == pytest.approx(sum(angle_loss(x, y, i, window[i]) for i in real))
    pairs, corners = layer_pairs(student, teacher, REAL).tolist(), layer_angles(student, teacher, REAL).tolist()
    for b in range(B):
        words = [(student[b, i].tolist(), teacher[b, i].tolist()) for i in range(S) if REAL[b, i]]
        every = list(range(K))
        assert pairs[b] == pytest.approx(sum(pair_loss(*word, k, every) for word in words for k in every))
        assert corners[b] == pytest.approx(sum(angle_loss(*word, k, every) for word in words for k in every))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_are_right_and_finite(dtype: torch.dtype) -> None:
    student = states(5, 1).to(dtype)
    student[0, 1] = student[0, 0]  # the same word twice
    student.requires_grad_()
    teacher, window = states(3, 2).to(dtype), 5
    losses = [*(relation(student[:, :, 0], teacher[:, :, 0], REAL) for relation in (word_pairs, layer_pairs_of_one)),
              word_angles(student[:, :, 0], teacher[:, :, 0], REAL, window=window),
              layer_pairs(student, teacher, REAL), layer_angles(student, teacher, REAL)]
    total = sum(loss.sum() for loss in losses)
    assert total.dtype == torch.promote_types(dtype, torch.float32)
    total.backward()
    assert student.grad.isfinite().all() and student.grad[0, :3].any()
    assert not student.grad[1, 1:, 1].any()  # words of no real token, in a layer that no window reaches


def layer_pairs_of_one(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A single layer has no other one to relate to."""
    loss = layer_pairs(student.unsqueeze(2), teacher.unsqueeze(2), mask)
    assert not loss.any()
    return loss


def test_derivatives() -> None:
    teacher = states(3, 2)

    def total(x: torch.Tensor) -> torch.Tensor:
        return (word_pairs(x[:, :, 0], teacher[:, :, 0], REAL) + layer_pairs(x, teacher, REAL)
                + word_angles(x[:, :, 1], teacher[:, :, 1], REAL, window=3) + layer_angles(x, teacher, REAL)).sum()

    assert torch.autograd.gradcheck(total, (states(2, 1).requires_grad_(),))
