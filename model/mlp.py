"""The feed-forward block. Axes: b batch, s sequence, h its width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from model.config import INIT_STD
from model.parallel.layers import ColumnParallelLinear, RowParallelLinear, normal_init


class ParallelMLP(nn.Module):
    """h -> 4h -> h with GELU in its ``tanh`` or ``erf`` form.

    ``num_layers`` scales the initial output map by 1/sqrt(2 layers).
    """

    def __init__(self, width: int, num_layers: int, dropout: float, gelu: str = "tanh") -> None:
        super().__init__()
        self.approximate = "tanh" if gelu == "tanh" else "none"
        self.dense_h_to_4h = ColumnParallelLinear(width, 4 * width, init=normal_init(INIT_STD))
        self.dense_4h_to_h = RowParallelLinear(
            4 * width, width, init=normal_init(INIT_STD / math.sqrt(2.0 * num_layers)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, s, h] -> [b, s, h]."""
        return self.dropout(self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate=self.approximate)))
