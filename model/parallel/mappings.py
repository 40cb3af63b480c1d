"""The four ways in and out of a model-parallel region, as pairs of forward and backward.

=========== ===================================== =====================================
name        forward                               backward
=========== ===================================== =====================================
copy to     identity                              sum over the group
reduce from sum over the group                    identity
scatter to  keep this rank's slice (last axis)    join the slices (last axis)
gather from join the slices (last axis)           keep this rank's slice (last axis)
=========== ===================================== =====================================

All are identities at group size 1. No input is changed in place. The backward of *gather* does not sum: every rank
computes the identical loss from the gathered tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from model.parallel.groups import parallel_state


def all_reduce(x: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
    """A copy of ``x`` reduced over the model-parallel group (no gradient)."""
    if parallel_state().model_size == 1:
        return x
    result = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, op=op, group=parallel_state().model_group)
    return result


def all_gather_last(x: torch.Tensor) -> torch.Tensor:
    """The slices of all ranks joined on the last axis (no gradient)."""
    state = parallel_state()
    if state.model_size == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(state.model_size)]
    dist.all_gather(parts, x, group=state.model_group)
    return torch.cat(parts, dim=-1)


def own_slice_last(x: torch.Tensor) -> torch.Tensor:
    """This rank's slice of the last axis."""
    state = parallel_state()
    if state.model_size == 1:
        return x
    return x.chunk(state.model_size, dim=-1)[state.model_rank].contiguous()


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return all_reduce(grad)


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return own_slice_last(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return all_gather_last(grad)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return all_gather_last(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return own_slice_last(grad)


def copy_to_model_parallel_region(x: torch.Tensor) -> torch.Tensor:
    """A replicated tensor enters a region where each rank does its own part."""
    return x if parallel_state().model_size == 1 else _Copy.apply(x)


def reduce_from_model_parallel_region(x: torch.Tensor) -> torch.Tensor:
    """Partial sums of all ranks become one replicated tensor."""
    return x if parallel_state().model_size == 1 else _Reduce.apply(x)


def scatter_to_model_parallel_region(x: torch.Tensor) -> torch.Tensor:
    """A replicated tensor is cut on its last axis."""
    return x if parallel_state().model_size == 1 else _Scatter.apply(x)


def gather_from_model_parallel_region(x: torch.Tensor) -> torch.Tensor:
    """Slices on the last axis become one replicated tensor."""
    return x if parallel_state().model_size == 1 else _Gather.apply(x)
