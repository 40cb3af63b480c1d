"""Unit vectors, angles, recomputation by sample."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses import angles as module
from distill.losses.angles import angles, cosines, recomputed_by_sample, unit


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_zero_vector_stays_zero_without_gradient() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    y = unit(x)
    assert y.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    (y * torch.tensor([1.0, 2.0])).sum().backward()
    assert x.grad.isfinite().all() and x.grad[1].tolist() == [0.0, 0.0] and x.grad[0].any()
    assert torch.autograd.gradcheck(unit, (points(2, 3).requires_grad_(),))


def test_angles_in_loops() -> None:
    x = points(4, 3)
    found, pairs = angles(x, x), cosines(x)  # [4, 4, 4]
    rows = x.tolist()
    for i, vertex in enumerate(rows):
        edges = [[a - b for a, b in zip(vertex, other, strict=True)] for other in rows]
        lengths = [math.hypot(*edge) for edge in edges]
        for j in range(4):
            dot = sum(a * b for a, b in zip(vertex, rows[j], strict=True))
            assert pairs[i, j].item() == pytest.approx(dot / math.hypot(*vertex) / math.hypot(*rows[j]))
            for k in range(4):
                dot = sum(a * b for a, b in zip(edges[j], edges[k], strict=True))
                expected = 0.0 if i in (j, k) else dot / lengths[j] / lengths[k]
                assert found[i, j, k].item() == pytest.approx(expected)


def test_recomputation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(len(a))
        return (a * b).tanh().sum(dim=-1)

    results = []
    for limit in (1 << 20, 10):
        monkeypatch.setattr(module, "CPU_CHUNK_ELEMENTS", limit)
        seen: list[int] = []
        a, b = points(5, 4).requires_grad_(), points(5, 4, seed=1)
        value = recomputed_by_sample(function, a, b, elements=4)
        value.square().sum().backward()
        results.append((value, a.grad, sorted(set(seen))))
    assert results[0][2] == [5] and results[1][2] == [1, 2]
    for first, second in zip(results[0][:2], results[1][:2], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
