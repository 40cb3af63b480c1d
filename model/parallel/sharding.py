"""How a parameter is cut over the model-parallel ranks: a fact that travels with the parameter.

Gradient norms, resharding, export, truncation and checks read this one fact; nothing guesses the cut from a name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ShardSpec:
    """The cut of one tensor.

    Attributes:
        dim: the axis that is cut, or ``None`` for a tensor that every rank holds whole (replicated).
        blocks: number of equal consecutive blocks along ``dim`` that are cut one by one. 1 for an ordinary cut; 3 for
            the fused projection, whose rows are all Q, then all K, then all V: rank ``r`` holds [Q_r; K_r; V_r].
    """

    dim: int | None = None
    blocks: int = 1

    @property
    def is_sharded(self) -> bool:
        return self.dim is not None

    def split(self, full: torch.Tensor, size: int) -> list[torch.Tensor]:
        """Cut a whole tensor in ``size`` shards. Raises ValueError if the axis does not divide."""
        if self.dim is None or size == 1:
            return [full] * size
        length = full.shape[self.dim]
        if length % (self.blocks * size) != 0:
            raise ValueError(
                f"cannot cut axis {self.dim} of length {length} in {self.blocks} x {size} equal parts "
                f"(model-parallel size {size})")
        pieces = [block.chunk(size, dim=self.dim) for block in full.chunk(self.blocks, dim=self.dim)]
        return [torch.cat([block[rank] for block in pieces], dim=self.dim).contiguous() for rank in range(size)]

    def merge(self, shards: list[torch.Tensor]) -> torch.Tensor:
        """The whole tensor from all its shards in rank order; the inverse of :meth:`split`."""
        if self.dim is None or len(shards) == 1:
            return shards[0]
        pieces = [shard.chunk(self.blocks, dim=self.dim) for shard in shards]
        return torch.cat([piece[block] for block in range(self.blocks) for piece in pieces], dim=self.dim).contiguous()

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        """The part of a whole tensor that ``rank`` of ``size`` holds."""
        return self.split(full, size)[rank]


REPLICATED = ShardSpec()
ROWS = ShardSpec(dim=0)
COLUMNS = ShardSpec(dim=1)
QKV_ROWS = ShardSpec(dim=0, blocks=3)


def set_shard_spec(parameter: nn.Parameter, spec: ShardSpec) -> nn.Parameter:
    """Attach the cut. ``model_parallel`` is what DeepSpeed's gradient norm reads: it must be on every cut parameter
    before the engine is built, or the norm (and clipping) is silently wrong."""
    parameter.shard_spec = spec
    parameter.model_parallel = spec.is_sharded
    return parameter


def shard_spec_of(parameter: torch.Tensor) -> ShardSpec:
    """The cut of a parameter; one that was never declared is replicated."""
    return getattr(parameter, "shard_spec", REPLICATED)


def mark_replicated_parameters(module: nn.Module) -> None:
    """Declare every parameter without a cut as replicated (DeepSpeed wants the attribute on all of them)."""
    for parameter in module.parameters():
        if not hasattr(parameter, "shard_spec"):
            set_shard_spec(parameter, REPLICATED)


def shard_specs(module: nn.Module) -> dict[str, ShardSpec]:
    """Name in ``named_parameters`` -> cut."""
    return {name: shard_spec_of(parameter) for name, parameter in module.named_parameters()}
