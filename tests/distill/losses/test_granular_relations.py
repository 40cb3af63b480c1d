"""MGSKD's relations in plain loops: pairs, the teacher's choice of triplets, samples, spans."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses.granular_relations import sample_relations, span_means, token_relations

B, S, HEADS = 3, 5, 2
REAL = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
Vector = list[float]


def states(width: int, seed: int, length: int = S) -> torch.Tensor:
    return torch.randn(B, length, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_l1(a: float, b: float) -> float:
    return (a - b) ** 2 / 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def angle(v: Vector, x: Vector, y: Vector) -> float:
    first, second = ([a - b for a, b in zip(v, other, strict=True)] for other in (x, y))
    if not any(first) or not any(second):
        return 0.0
    return sum(a * b for a, b in zip(first, second, strict=True)) / math.hypot(*first) / math.hypot(*second)


def heads_of(x: Vector) -> list[Vector]:
    width = len(x) // HEADS
    return [x[a * width:(a + 1) * width] for a in range(HEADS)]


def products(rows: list[Vector]) -> list[list[list[float]]]:
    """By head, i, j."""
    cut = [heads_of(row) for row in rows]
    scale = math.sqrt(len(cut[0][0]))
    return [[[sum(p * q for p, q in zip(x[a], y[a], strict=True)) / scale for y in cut] for x in cut]
            for a in range(HEADS)]


def best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda i: -scores[i])[:count]


def triplets(rows: list[Vector], real: list[int], k1: int, k2: int) -> list[tuple[int, int, int]]:
    """The teacher's (vertex, neighbour, neighbour)."""
    score = {(i, j): 0.0 for i in real for j in real}
    for head in products(rows):
        for i in real:
            total = sum(math.exp(head[i][j]) for j in real)
            for j in real:
                score[i, j] += math.exp(head[i][j]) / total
    vertices = best({j: sum(score[i, j] for i in real) for j in real}, k1)
    near = {i: best({j: score[i, j] for j in real if j != i}, k2) for i in vertices}
    return [(i, j, k) for i in vertices for j in near[i] for k in near[i] if j != k]


@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (3, 3), (20, 20)])
def test_tokens_in_loops(k1: int, k2: int) -> None:
    student, teacher = states(4, 1), states(6, 2)
    pairs, pair_count, corners, valid = [0.0] * B, 0.0, [0.0] * B, 0
    for b in range(B):
        s, t = student[b].tolist(), teacher[b].tolist()
        real = [i for i in range(S) if REAL[b, i]]
        pair_count += HEADS * len(real) ** 2
        for x, y in zip(products(s), products(t), strict=True):
            pairs[b] += sum((x[i][j] - y[i][j]) ** 2 for i in real for j in real)
        chosen = triplets(t, real, k1, k2)
        corners[b] = sum(smooth_l1(angle(*(s[i] for i in c)), angle(*(t[i] for i in c))) for c in chosen)
        valid += len(chosen)
    expected = [B * (p / pair_count + c / max(1, valid)) for p, c in zip(pairs, corners, strict=True)]
    found = token_relations(student, teacher, REAL, num_heads=HEADS, num_vertices=k1, num_neighbours=k2)
    assert found.tolist() == pytest.approx(expected)


def test_samples_in_loops() -> None:
    student, teacher = states(4, 3), states(6, 4)
    means = []
    for x in (student, teacher):
        means.append([])
        for b in range(B):
            real = [x[b, i].tolist() for i in range(S) if REAL[b, i]]
            means[-1].append(heads_of([sum(column) / len(real) for column in zip(*real, strict=True)]))
    s, t = means
    expected = [sum(smooth_l1(angle(s[i][a], s[j][a], s[k][a]), angle(t[i][a], t[j][a], t[k][a]))
                    for a in range(HEADS) for j in range(B) for k in range(B)) / (HEADS * B ** 2) for i in range(B)]
    assert sample_relations(student, teacher, REAL, num_heads=HEADS).tolist() == pytest.approx(expected)
    alone = sample_relations(student[:1], teacher[:1], REAL[:1], num_heads=HEADS)
    assert alone.tolist() == [0.0]


def test_nothing_valid_is_zero_not_a_division_by_zero() -> None:
    real = torch.zeros(B, S)
    real[:, 0] = 1
    student = states(4, 1).requires_grad_()
    loss = token_relations(student, student.detach() * 2, real, num_heads=HEADS, num_vertices=3, num_neighbours=3)
    loss.sum().backward()
    assert loss.isfinite().all() and student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_duplicates_and_half_precision(dtype: torch.dtype) -> None:
    student, teacher = states(4, 1).to(dtype), states(6, 2).to(dtype)
    student[0, 1], student[1] = student[0, 0], student[0]
    student.requires_grad_()
    total = (token_relations(student, teacher, REAL, num_heads=HEADS, num_vertices=20, num_neighbours=20)
             + sample_relations(student, teacher, REAL, num_heads=HEADS)).sum()
    total.backward()
    assert total.dtype == torch.float32 and total.isfinite() and student.grad.isfinite().all()


def test_the_inputs_are_left_alone() -> None:
    student, teacher = states(4, 1), states(6, 2)
    copies = student.clone(), teacher.clone()
    token_relations(student, teacher, REAL, num_heads=HEADS, num_vertices=2, num_neighbours=2)
    sample_relations(student, teacher, REAL, num_heads=HEADS)
    assert torch.equal(student, copies[0]) and torch.equal(teacher, copies[1])


def test_derivatives() -> None:
    teacher = states(4, 2)

    def total(x: torch.Tensor) -> torch.Tensor:
        return (token_relations(x, teacher, REAL, num_heads=HEADS, num_vertices=3, num_neighbours=3)
                + sample_relations(x, teacher, REAL, num_heads=HEADS)).sum()

    assert torch.autograd.gradcheck(total, (states(2, 1).requires_grad_(),))


def test_spans() -> None:
    x = states(2, 1)
    spans = span_means(x, [2, 1, 2])
    torch.testing.assert_close(spans[:, 0], (x[:, 0] + x[:, 1]) / 2)
    torch.testing.assert_close(spans[:, 1], x[:, 2])
    torch.testing.assert_close(spans[:, 2], (x[:, 3] + x[:, 4]) / 2)
    with pytest.raises(ValueError, match="spans of 4 tokens in all do not cut a sequence of 5"):
        span_means(x, [2, 2])
