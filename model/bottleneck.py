"""The inverted bottleneck of MobileBERT (Sun et al. 2020, arXiv:2004.02984, section 3.1) in pre-LN form.

Between layers the width is h (``--hidden-size``); inside, attention and feed-forward run at i (``--ib_hidden_size``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from model.attention import ParallelSelfAttention
from model.config import LAYERNORM_EPSILON, ModelConfig
from model.embeddings import width_map
from model.mlp import ParallelMLP
from model.taps import operate


class BottleneckLayer(nn.Module):
    """``u = in(x) + attention(norm(x)); u = u + mlp(norm(u)), F times; out = x + out(norm(u))``.

    The residual into the bottleneck is the projection of the un-normalised input.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.ib_hidden_size
        self.input_layernorm = nn.LayerNorm(width, eps=LAYERNORM_EPSILON)
        self.attention = ParallelSelfAttention(config)
        self.ib_linear_in = width_map(width, inner)
        self.post_attention_layernorm = nn.LayerNorm(inner, eps=LAYERNORM_EPSILON)
        self.mlp = ParallelMLP(inner, config.num_layers, config.hidden_dropout, config.gelu)
        extra = config.ib_ffn_num - 1
        self.ib_mlp = nn.ModuleList(
            ParallelMLP(inner, config.num_layers, config.hidden_dropout, config.gelu) for _ in range(extra))
        self.ib_mlp_layernorm = nn.ModuleList(nn.LayerNorm(inner, eps=LAYERNORM_EPSILON) for _ in range(extra))
        self.ib_linear_out_layernorm = nn.LayerNorm(inner, eps=LAYERNORM_EPSILON)
        self.ib_linear_out = width_map(inner, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, wanted: tuple[str, ...] = (),
                operations: Mapping[str, Callable[..., torch.Tensor]] | None = None) -> tuple[torch.Tensor, ...]:
        """As :class:`model.transformer.TransformerLayer`; ``post_attention_layernorm`` has width i."""
        taps: dict[str, torch.Tensor] = {}

        def record(name: str, tensor: torch.Tensor) -> None:
            if name in wanted:
                taps[name] = tensor

        normed = operate(operations, "layernorm_output", self.input_layernorm(x))
        record("layernorm_output", normed)
        inner = self.ib_linear_in(x) + self.attention(normed, mask, wanted, record)
        normed = self.post_attention_layernorm(inner)
        record("post_attention_layernorm", normed)
        inner = inner + self.mlp(normed)
        for norm, mlp in zip(self.ib_mlp_layernorm, self.ib_mlp, strict=True):
            inner = inner + mlp(norm(inner))
        x = x + self.ib_linear_out(self.ib_linear_out_layernorm(inner))
        record("tf_output", x)
        return x, *(taps[name] for name in wanted)
