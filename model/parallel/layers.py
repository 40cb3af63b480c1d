"""Layers whose weights are cut over the model-parallel ranks.

Every rank draws the whole matrix from the common generator and keeps its own part, so a model starts from the same
values at every model-parallel size. Weights are (out, in), as in ``torch.nn.Linear``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from model.parallel.groups import parallel_state
from model.parallel.mappings import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
    scatter_to_model_parallel_region,
)
from model.parallel.sharding import COLUMNS, REPLICATED, ROWS, ShardSpec, set_shard_spec

Init = Callable[[torch.Tensor], object]


def normal_init(std: float) -> Init:
    """Draws from N(0, std^2)."""
    return lambda tensor: nn.init.normal_(tensor, mean=0.0, std=std)


def divide(value: int, parts: int, what: str) -> int:
    """``value / parts``; ValueError with both numbers if it is not whole."""
    if value % parts != 0:
        raise ValueError(f"{what} {value} is not divisible by {parts}")
    return value // parts


def _cut_parameter(shape: tuple[int, ...], spec: ShardSpec, init: Init) -> nn.Parameter:
    whole = torch.empty(shape)
    init(whole)
    state = parallel_state()
    return set_shard_spec(nn.Parameter(spec.shard(whole, state.model_rank, state.model_size).clone()), spec)


class VocabParallelEmbedding(nn.Module):
    """Embedding table cut by rows: rank r holds ids [r v/p, (r+1) v/p).

    Each rank looks up the ids it owns, puts zero elsewhere, and the sum over the group is the result.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, init: Init = nn.init.xavier_normal_) -> None:
        super().__init__()
        state = parallel_state()
        self.num_embeddings = num_embeddings
        rows = divide(num_embeddings, state.model_size, "padded vocabulary size")
        self.first_id = state.model_rank * rows
        self.weight = _cut_parameter((num_embeddings, embedding_dim), ROWS, init)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [...] -> vectors [..., h], replicated."""
        if parallel_state().model_size == 1:
            return F.embedding(ids, self.weight)
        local = ids - self.first_id
        foreign = (local < 0) | (local >= self.weight.shape[0])
        vectors = F.embedding(local.masked_fill(foreign, 0), self.weight)
        return reduce_from_model_parallel_region(vectors.masked_fill(foreign.unsqueeze(-1), 0.0))


class ColumnParallelLinear(nn.Module):
    """``Y = X A^T + b`` with A cut by rows (the columns of A^T): ``Y = [X A_1^T + b_1, ..., X A_p^T + b_p]``.

    The input is replicated. The output is this rank's slice, or the whole with ``gather_output``.
    ``spec`` other than plain rows cuts a fused projection block by block.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, gather_output: bool = False,
                 init: Init = nn.init.xavier_normal_, spec: ShardSpec = ROWS) -> None:
        super().__init__()
        divide(out_features, spec.blocks * parallel_state().model_size, "output width")
        self.gather_output = gather_output
        self.weight = _cut_parameter((out_features, in_features), spec, init)
        self.bias = _cut_parameter((out_features,), spec, nn.init.zeros_) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out/p], or [..., out] if gathered."""
        y = F.linear(copy_to_model_parallel_region(x), self.weight, self.bias)
        return gather_from_model_parallel_region(y) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """``Y = X A^T + b`` with A cut by columns and X by its last axis: ``Y = sum_i X_i A_i^T + b``.

    The bias is replicated and added once, after the sum. The output is replicated. ``spec`` other than plain columns is
    for a parallel input of several tensors joined, each cut by itself.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, input_is_parallel: bool = True,
                 init: Init = nn.init.xavier_normal_, spec: ShardSpec = COLUMNS) -> None:
        super().__init__()
        divide(in_features, spec.blocks * parallel_state().model_size, "input width")
        self.input_is_parallel = input_is_parallel
        self.weight = _cut_parameter((out_features, in_features), spec, init)
        self.bias = _cut_parameter((out_features,), REPLICATED, nn.init.zeros_) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in/p] (or [..., in], cut here) -> [..., out]."""
        if not self.input_is_parallel:
            x = scatter_to_model_parallel_region(x)
        if parallel_state().model_size == 1:
            return F.linear(x, self.weight, self.bias)
        y = reduce_from_model_parallel_region(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias
