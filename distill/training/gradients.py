"""What happens to gradients between the backward pass and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from model.parallel.groups import parallel_state

#: Elements per all-reduce: large enough to be few calls, small enough not to double the memory.
BUCKET_ELEMENTS = 25_000_000


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Two optimizer groups: weight decay for everything but biases and layer norms, which get none.

    Only parameters that require gradients; a shared one appears once. Every parameter gets a ``model_parallel``
    attribute if it has none: DeepSpeed and :func:`gradient_norm` count replicated ones once.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    seen: set[int] = set()
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if not hasattr(parameter, "model_parallel"):
                parameter.model_parallel = False
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            (no_decay if name == "bias" or isinstance(child, nn.LayerNorm) else decay).append(parameter)
    groups = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def fill_missing(parameters: Iterable[torch.Tensor]) -> None:
    """A missing gradient is zero, on every engine; Adam would otherwise skip the parameter's decay and moments."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


@torch.no_grad()
def broadcast_over_data_parallel(parameters: Sequence[torch.Tensor]) -> None:
    """Give every data-parallel rank the weights of the first one, from which they must not differ."""
    state = parallel_state()
    if state.data_size == 1:
        return
    source = dist.get_global_rank(state.data_group, 0)
    for bucket in _buckets(parameters):
        flat = torch.cat([parameter.reshape(-1) for parameter in bucket])
        dist.broadcast(flat, src=source, group=state.data_group)
        _scatter(flat, bucket)


def average_over_data_parallel(gradients: Sequence[torch.Tensor]) -> None:
    """All-reduce the gradients, in place, in buckets, over the data-parallel group; the result is the mean."""
    state = parallel_state()
    if state.data_size == 1:
        return
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat, group=state.data_group)
        _scatter(flat.div_(state.data_size), bucket)


def _scatter(flat: torch.Tensor, bucket: Sequence[torch.Tensor]) -> None:
    for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
        tensor.copy_(values.view_as(tensor))


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET_ELEMENTS or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def gradient_norm(parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> float:
    """The L2 norm of all gradients of one model, over its model-parallel ranks.

    A cut parameter counts on every rank, a replicated one (``model_parallel`` not True) on the first rank only.
    """
    state = parallel_state()
    counted = [
        gradient for parameter, gradient in zip(parameters, gradients)
        if state.model_rank == 0 or getattr(parameter, "model_parallel", False)]
    device = gradients[0].device if gradients else None
    total = torch.zeros((), dtype=torch.float32, device=device)
    if counted:
        norms = torch._foreach_norm([gradient.float() for gradient in counted])
        total = torch.stack(norms).square().sum()
    if state.model_size > 1:
        dist.all_reduce(total, group=state.model_group)
    return float(total.sqrt())


def clip(gradients: Sequence[torch.Tensor], norm: float, max_norm: float) -> None:
    """Scale the gradients, in place, so that their norm is at most ``max_norm`` (0: leave them)."""
    coefficient = max_norm / (norm + 1e-6)
    if 0 < max_norm and coefficient < 1:
        torch._foreach_mul_(list(gradients), coefficient)
