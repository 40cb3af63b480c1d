"""Self-attention with the GLM prefix mask.

Axes: b batch, s sequence, h hidden, n heads, d head size, p model-parallel ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from model.config import INIT_STD, ModelConfig
from model.dropout_attention import dropout_attention
from model.parallel.groups import get_model_parallel_world_size
from model.parallel.layers import ColumnParallelLinear, RowParallelLinear, divide, normal_init
from model.parallel.random import model_parallel_rng
from model.parallel.sharding import QKV_ROWS

#: What stands at masked places of the attention scores: exactly this number, in fp32, in every model dtype.
MASKED_SCORE = -65504.0

#: Tensors that only the explicit computation of scores can give.
_EXPLICIT_TAPS = frozenset({"attention_scores", "attention_probs"})

Record = Callable[[str, torch.Tensor], None]


def prefix_mask(attention_mask: torch.Tensor, batch_size: int, length: int) -> torch.Tensor:
    """Who may see whom: True = visible.

    Args:
        attention_mask: [b] or one number: ``sep``, the length of the part that all positions see; the rest is causal
            (query i sees key j iff j <= i or j < sep). Or a ready 0/1 mask [b or 1, 1 or n, s, s].
        batch_size: b, length: s.

    Returns:
        bool [1 or b, 1 or n, s, s]. Padding needs no mask: it stands after everything that a real query sees.
    """
    if attention_mask.dim() > 2:
        return attention_mask[..., -length:].to(torch.bool)
    sep = attention_mask.reshape(-1)
    if sep.numel() not in (1, batch_size):
        raise ValueError(f"attention_mask has {sep.numel()} entries for a batch of {batch_size}")
    position = torch.arange(length, device=sep.device)
    causal = position[None, :] <= position[:, None]  # [s, s]
    prefix = position[None, :] < sep[:, None]  # [b, s]
    return (causal[None] | prefix[:, None, :]).unsqueeze(1)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where ``visible`` (bool), minus infinity elsewhere. Made once a pass: the fused attention of each layer would
    make one of its own from a bool mask, and keep it for the backward pass."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


class ParallelSelfAttention(nn.Module):
    """Each rank computes n/p heads.

    Scores and probabilities are formed explicitly only where they are tapped; otherwise torch's fused
    ``scaled_dot_product_attention`` runs and nothing of size s x s is kept.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        parallel_size = get_model_parallel_world_size()
        self.num_heads_per_partition = divide(config.num_attention_heads, parallel_size, "number of attention heads")
        self.head_size = divide(config.attention_size, config.num_attention_heads, "attention width")
        self.attention_scale = config.attention_scale
        self.dropout_p = config.attention_dropout
        # The three thirds of the output are Q, K and V; inside a third, head i owns rows i d ... (i + 1) d.
        self.query_key_value = ColumnParallelLinear(
            config.hidden_size, 3 * config.attention_size, init=normal_init(INIT_STD), spec=QKV_ROWS)
        output_init = normal_init(INIT_STD / math.sqrt(2.0 * config.num_layers))
        self.dense = RowParallelLinear(config.attention_size, config.attention_size, init=output_init)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, wanted: tuple[str, ...], record: Record) -> torch.Tensor:
        """x [b, s, h], mask [b or 1, 1 or n, s, s], bool or additive (see :func:`additive_mask`) -> [b, s, h] (width i
        in a bottleneck).

        Tensors named in ``wanted`` go to ``record``.
        """
        if mask.dtype == torch.bool:
            mask = additive_mask(mask, x.dtype)
        mixed = self.query_key_value(x).chunk(3, dim=-1)  # 3 x [b, s, h/p]
        query, key, value = (self._split_heads(part) for part in mixed)  # [b, n/p, s, d]
        for name, whole, heads in zip(("query", "key", "value"), mixed, (query, key, value), strict=True):
            record(f"mixed_{name}_layer", whole)
            record(f"{name}_layer", heads)
        explicit = self.attention_scale > 1.0 or not _EXPLICIT_TAPS.isdisjoint(wanted)
        context = (self._explicit(query, key, value, mask, record) if explicit
                   else self._fused(query, key, value, mask))  # [b, n/p, s, d]
        context = context.transpose(1, 2).flatten(2)  # [b, s, h/p]
        record("context_layer", context)
        return self.output_dropout(self.dense(context))

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads_per_partition, self.head_size)).transpose(1, 2)

    def _fused(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # A query always sees itself, so -inf at masked places gives what -65504 gives: both round to probability 0.
        mask = mask.to(query.dtype)
        if not self.training or self.dropout_p == 0.0:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        with model_parallel_rng():
            if query.device.type == "cpu":
                return dropout_attention(query, key, value, mask, self.dropout_p)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=self.dropout_p)

    def _explicit(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor,
                  record: Record) -> torch.Tensor:
        scores = self._scores(query, key, mask)
        record("attention_scores", scores)
        probs = torch.softmax(scores, dim=-1)
        record("attention_probs", probs)
        probs = probs.to(value.dtype)
        if self.training and self.dropout_p > 0.0:
            with model_parallel_rng():
                probs = F.dropout(probs, self.dropout_p)
        return torch.matmul(probs, value)

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[b, n/p, s, s] in at least fp32: -65504 is not exact in bf16 and would add 1024 a masked score to an MSE."""
        scale, visible = self.attention_scale, mask == 0
        if scale <= 1.0:
            scores = torch.matmul(query, key.transpose(-1, -2) / math.sqrt(self.head_size))
            scores = _at_least_float32(scores)
        else:
            scores = torch.matmul(query / math.sqrt(scale), key.transpose(-1, -2) / math.sqrt(self.head_size * scale))
            scores = _at_least_float32(scores) * visible
            scores = (scores - scores.amax(dim=-1, keepdim=True)) * scale
        return scores.masked_fill(~visible, MASKED_SCORE)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
