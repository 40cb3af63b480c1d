"""Relations of tokens, spans and samples (MGSKD, Liu et al., ACL 2022, section 3).

The functions return [b], one value per sample whose **mean** is the loss: the normalisers are totals over the batch,
times b.

Legend: ``b`` samples, ``n`` vectors of a sample (tokens or spans), ``h`` hidden (student and teacher may differ), ``a``
heads, ``d`` = h / a. Masks are 1 for real vectors, [b, n].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from distill.losses.angles import angles, recomputed_by_sample
from model.parallel.row_chunks import compute_dtype

_HIDDEN = -10000.0
"""Added to the score of a pair that is not real."""


def token_relations(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, num_heads: int,
                    num_vertices: int, num_neighbours: int) -> torch.Tensor:
    """Pairs and triplets among the vectors of a sample: [b, n, h] x 2 -> [b].

    Pairs: squared differences of ``x_i . x_j / sqrt(d)`` in every head, over real pairs times heads. Triplets: smooth
    L1 of the angles at the vectors that the teacher attends to most, between the vectors that each of them attends to
    most, over the number of valid angles of the student.

    Args:
        num_vertices, num_neighbours: how many vectors the teacher chooses (k1, k2); at most n.
    """
    dtype = compute_dtype(student, teacher)
    count, length = student.shape[:2]
    mask = mask.to(dtype)

    def sums(s: torch.Tensor, t: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        both = real.unsqueeze(-1) * real.unsqueeze(-2)  # [b, n, n]
        s_products, t_products = _head_products(s, num_heads), _head_products(t, num_heads)
        pairs = ((s_products - t_products).square().sum(dim=1) * both).sum(dim=(-1, -2))
        chosen = _choose(t_products.detach(), both, min(num_vertices, length), min(num_neighbours, length))
        return torch.stack([pairs, *_triplets(s, t, real, *chosen)], dim=-1)

    largest = max(num_heads * length ** 2, num_vertices * num_neighbours * max(student.shape[-1], teacher.shape[-1]))
    pairs, triplets, valid = recomputed_by_sample(
        sums, student.to(dtype), teacher.to(dtype), mask, elements=largest).unbind(dim=-1)
    pairs = pairs / (num_heads * mask.sum(dim=-1).square().sum())
    return count * (pairs + triplets / valid.detach().sum().clamp(min=1.0))


def sample_relations(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *,
                     num_heads: int) -> torch.Tensor:
    """Smooth L1 of the angles in all triples of samples, in every head, of the means over real tokens.

    [b, n, h] x 2 -> [b]. One sample alone gives 0, two have no angle but that of equal edges.
    """
    dtype = compute_dtype(student, teacher)
    mask = mask.to(dtype).unsqueeze(-1)
    s_heads, t_heads = (
        ((x.to(dtype) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)).unflatten(-1, (num_heads, -1))
        for x in (student, teacher))  # [b, a, d]
    s_set, t_set = s_heads.transpose(0, 1), t_heads.transpose(0, 1)  # [a, b, d]

    def differences(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.smooth_l1_loss(angles(s, s_set), angles(t, t_set), reduction="none").sum(dim=(-1, -2, -3))

    count = len(s_heads)
    widest = max(s_heads.shape[-1], t_heads.shape[-1], count)
    rows = recomputed_by_sample(differences, s_heads, t_heads, elements=num_heads * count * widest)
    return rows / (num_heads * count ** 2)


def span_means(x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Plain means of consecutive segments: [b, s, h] -> [b, n, h] for n lengths that sum to s."""
    if sum(lengths) != x.shape[1]:
        raise ValueError(f"spans of {sum(lengths)} tokens in all do not cut a sequence of {x.shape[1]}")
    return torch.stack([segment.mean(dim=1) for segment in x.split(list(lengths), dim=1)], dim=1)


def _head_products(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``x_i . x_j / sqrt(d)`` in each head: [b, n, h] -> [b, a, n, n]."""
    heads = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads @ heads.transpose(-1, -2) / math.sqrt(heads.shape[-1])


def _choose(products: torch.Tensor, both: torch.Tensor, num_vertices: int,
            num_neighbours: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices [b, k1] and the neighbours of each [b, k1, k2], by the teacher's attention between real vectors."""
    both = both.unsqueeze(1)
    weights = (torch.softmax(products + (1.0 - both) * _HIDDEN, dim=-1) * both).sum(dim=1)  # [b, n, n]
    vertices = weights.sum(dim=1).topk(num_vertices, dim=-1).indices
    own = torch.eye(weights.shape[-1], dtype=torch.bool, device=weights.device)
    rows = weights.masked_fill(own, 0.0).take_along_dim(vertices.unsqueeze(-1), dim=1)
    return vertices, rows.topk(num_neighbours, dim=-1).indices


def _triplets(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, vertices: torch.Tensor,
              neighbours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of smooth L1 and number of valid angles of the student, both [b]."""
    sample = torch.arange(len(student), device=student.device)
    at_vertex, at_neighbour = (sample[:, None], vertices), (sample[:, None, None], neighbours)
    real = mask > 0
    near = real[at_neighbour]
    possible = real[at_vertex][..., None, None] & near.unsqueeze(-1) & near.unsqueeze(-2)
    possible &= ~torch.eye(neighbours.shape[-1], dtype=torch.bool, device=student.device)
    s_angles, t_angles = (angles(x[at_vertex], x[at_neighbour]) for x in (student, teacher))  # [b, k1, k2, k2]
    # A vector may be its own neighbour where all are chosen; then the angle is exactly 0 and does not count.
    s_valid, t_valid = (possible & (values != 0) for values in (s_angles, t_angles))
    losses = F.smooth_l1_loss(torch.where(s_valid, s_angles, 0.0), torch.where(t_valid, t_angles, 0.0),
                              reduction="none")
    return losses.sum(dim=(-1, -2, -3)), s_valid.sum(dim=(-1, -2, -3)).to(losses.dtype)
