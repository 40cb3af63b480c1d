"""Relation losses against plain loops; blocks, masks of memory, gradients and ranks."""

from __future__ import annotations

import math

import pytest
import torch

import distill.losses.relations as relations
from distill.losses.relations import projection_loss, relation_loss
from model.parallel.groups import parallel_state
from model.parallel.sharding import ROWS
from tests.distill.methods.loops import dot, kl, mean, mean_square, relation
from tests.helpers.distributed import run_distributed

B, N, S, V = 2, 4, 3, 8


def states(*widths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, N, S, width, generator=generator, dtype=torch.float64).requires_grad_() for width in widths]


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_relation_loops(kind: str, scale: float | None) -> None:
    student, teacher = states(3, 5)
    expected = [mean([(kl if kind == "kl" else mean_square)(s_row, t_row)
                      for n in range(N)
                      for s_row, t_row in zip(relation(student[b, n].tolist(), scale or 1 / math.sqrt(3)),
                                              relation(teacher[b, n].tolist(), scale or 1 / math.sqrt(5)),
                                              strict=True)])
                for b in range(B)]
    loss = relation_loss(student, teacher, kind=kind, scale=scale)
    vector = relation_loss(student, teacher, kind=kind, scale=scale, keep_batch=True)
    assert loss.item() == pytest.approx(mean(expected), rel=1e-10) and vector.tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda s, t: relation_loss(s, t, kind=kind, scale=scale), (student, teacher))


def tables() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(V, width, generator=generator, dtype=torch.float64).requires_grad_() for width in (3, 5)]


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_projection_loops(kind: str) -> None:
    (student, teacher), (s_table, t_table) = (x[:, 0] for x in states(3, 5)), tables()
    expected = [mean([(kl if kind == "kl" else mean_square)([dot(s, e) for e in s_table.tolist()],
                                                            [dot(t, e) for e in t_table.tolist()])
                      for s, t in zip(student[b].tolist(), teacher[b].tolist(), strict=True)]) for b in range(B)]
    loss = projection_loss(student, s_table, teacher, t_table, kind=kind)
    vector = projection_loss(student, s_table, teacher, t_table, kind=kind, keep_batch=True)
    assert loss.item() == pytest.approx(mean(expected), rel=1e-10) and vector.tolist() == pytest.approx(expected)
    inputs = (student.detach().requires_grad_(), s_table)
    assert torch.autograd.gradcheck(lambda s, e: projection_loss(s, e, teacher, t_table, kind=kind), inputs)


def outcome() -> tuple[torch.Tensor, ...]:
    (student, teacher), (s_table, t_table) = states(3, 5), tables()
    loss = relation_loss(student, teacher) + projection_loss(student[:, 0], s_table, teacher[:, 0], t_table)
    return loss, *torch.autograd.grad(loss, (student, s_table))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcome()
    for elements in (1, 2 * B * S * S, 3 * V):
        monkeypatch.setattr(relations, "CPU_BLOCK_ELEMENTS", elements)
        for value, expected in zip(outcome(), whole, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)


def test_no_map_outlives_its_block() -> None:
    """What autograd keeps are the vectors, not the [s, s] maps."""
    student, teacher = torch.randn(1, 4, 200, 2, requires_grad=True), torch.randn(1, 4, 200, 2)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        relation_loss(student, teacher)
    assert kept == [] or max(kept) < 200 * 200


def test_shapes_have_to_match() -> None:
    with pytest.raises(ValueError, match=r"student \(2, 4, 3, 3\) and teacher \(2, 2, 3, 3\)"):
        relation_loss(torch.ones(2, 4, 3, 3), torch.ones(2, 2, 3, 3))


def ranks() -> list[torch.Tensor]:
    """The loss, the gradient of all heads and of the whole table, put together from this rank's part."""
    state = parallel_state()
    student, teacher = states(3, 5)
    heads = [x.detach().chunk(state.model_size, dim=1)[state.model_rank].requires_grad_() for x in (student, teacher)]
    rows = [ROWS.shard(x.detach(), state.model_rank, state.model_size).requires_grad_() for x in tables()]
    shared = student.detach()[:, 0].requires_grad_()
    loss = relation_loss(*heads, partition="heads")
    words = [projection_loss(shared, rows[0], teacher.detach()[:, 0], rows[1], kind=kind) for kind in ("kl", "mse")]
    (loss + sum(words)).backward()
    return [x.detach() for x in (loss, *words, heads[0].grad, rows[0].grad, shared.grad)]


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_agree_with_one(size: int) -> None:
    expected = ranks()
    results = run_distributed(ranks, size, model_parallel_size=size)
    for result in results:
        for index in (0, 1, 2, 5):
            torch.testing.assert_close(result[index], expected[index], rtol=1e-11, atol=1e-13)
    # A rank's share of the mean over heads has weight 1 / size already.
    torch.testing.assert_close(torch.cat([result[3] for result in results], dim=1), expected[3])
    torch.testing.assert_close(torch.cat([result[4] for result in results]), expected[4])
