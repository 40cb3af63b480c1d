"""Angles between difference vectors, and recomputation of large intermediate tensors.

The structural methods (CKD, MGSKD) compare how the vectors of a model lie to each other, not the vectors, so student
and teacher may have different widths. A triple (i; j, k) is seen by the cosine of its angle at i.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

#: Elements of the largest tensor of a slice computed again: 4 MiB in float32 on a CPU, 64 MiB on an accelerator.
CPU_CHUNK_ELEMENTS = 1 << 20
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24

#: Vectors no longer than this count as zero.
SHORTEST = 1e-12


def unit(x: torch.Tensor) -> torch.Tensor:
    """``x / |x|`` over the last axis; a zero vector stays zero and has gradient zero."""
    square = x.square().sum(dim=-1, keepdim=True)
    is_zero = square <= SHORTEST ** 2
    return (x * torch.rsqrt(square.masked_fill(is_zero, 1.0))).masked_fill(is_zero, 0.0)


def cosines(x: torch.Tensor) -> torch.Tensor:
    """Cosines between all vectors of a set: [..., n, h] -> [..., n, n]."""
    directions = unit(x)
    return directions @ directions.transpose(-1, -2)


def angles(vertices: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """``<norm(v - x_j), norm(v - x_k)>``: vertices [..., h], others [..., n, h] -> [..., n, n].

    Zero where ``x_j`` or ``x_k`` is the vertex itself.
    """
    edges = unit(vertices.unsqueeze(-2) - others)
    return edges @ edges.transpose(-1, -2)


def recomputed_by_sample(function: Callable[..., torch.Tensor], *tensors: torch.Tensor,
                         elements: int) -> torch.Tensor:
    """``function(*tensors)`` slice by slice of the first axis, computed again in the backward pass.

    Args:
        function: of slices [c, ...] -> [c, ...], where no row depends on another.
        elements: size of the largest tensor that one row needs inside; decides how many rows a slice has.
    """
    limit = CPU_CHUNK_ELEMENTS if tensors[0].device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    step = max(1, limit // max(1, elements))
    return torch.cat([
        checkpoint(function, *(tensor[start:start + step] for tensor in tensors), use_reentrant=False,
                   preserve_rng_state=False)
        for start in range(0, len(tensors[0]), step)])
