"""The pre-LN transformer of GLM: layers, position tables, activation checkpointing.

Axes: b batch, s sequence, h hidden, n heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.attention import ParallelSelfAttention
from model.bottleneck import BottleneckLayer
from model.config import INIT_STD, LAYERNORM_EPSILON, ModelConfig
from model.mlp import ParallelMLP
from model.parallel.random import checkpoint_contexts
from model.taps import TapRequest, operate

Operation = Callable[..., Any]


class TransformerLayer(nn.Module):
    """``x1 = x + attention(norm(x)); out = x1 + mlp(norm(x1))``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYERNORM_EPSILON)
        self.attention = ParallelSelfAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYERNORM_EPSILON)
        self.mlp = ParallelMLP(config.hidden_size, config.num_layers, config.hidden_dropout, config.gelu)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, wanted: tuple[str, ...] = (),
                operations: Mapping[str, Operation] | None = None) -> tuple[torch.Tensor, ...]:
        """Output [b, s, h], followed by the tensors named in ``wanted`` in that order.

        ``operations["layernorm_output"]`` may replace what the attention sees; the residual keeps the original input.
        """
        taps: dict[str, torch.Tensor] = {}

        def record(name: str, tensor: torch.Tensor) -> None:
            if name in wanted:
                taps[name] = tensor

        normed = operate(operations, "layernorm_output", self.input_layernorm(x))
        record("layernorm_output", normed)
        x = x + self.attention(normed, mask, wanted, record)
        normed = self.post_attention_layernorm(x)
        record("post_attention_layernorm", normed)
        x = x + self.mlp(normed)
        record("tf_output", x)
        return x, *(taps[name] for name in wanted)


class Transformer(nn.Module):
    """Adds the positions, runs the layers, normalises the result."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.position_embeddings = nn.Embedding(config.num_position_rows, config.hidden_size)
        nn.init.normal_(self.position_embeddings.weight, std=INIT_STD)
        if config.block_position_encoding:
            self.block_position_embeddings = nn.Embedding(config.num_position_rows, config.hidden_size)
            nn.init.normal_(self.block_position_embeddings.weight, std=INIT_STD)
        self.embedding_dropout = nn.Dropout(config.hidden_dropout)
        layer = BottleneckLayer if config.inverted_bottleneck_mode else TransformerLayer
        # With shared parameters there is one layer, which runs num_layers times.
        num_modules = 1 if config.cross_layer_parameter_sharing else config.num_layers
        self.layers = nn.ModuleList(layer(config) for _ in range(num_modules))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=LAYERNORM_EPSILON)

    def forward(self, words: torch.Tensor, position_ids: torch.Tensor, mask: torch.Tensor, request: TapRequest,
                operations: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Word vectors [b, s, h] -> (normalised output [b, s, h], tapped tensors by dotted name)."""
        taps: dict[str, torch.Tensor] = {}
        x = self._embed(words, position_ids)
        if callable(operations.get("embeddings")):
            x = operations["embeddings"](this=self, hidden_states=x)
        if "transformer.embeddings" in request:
            taps["transformer.embeddings"] = x
        x = self.embedding_dropout(x)
        layers: Sequence[nn.Module] = list(self.layers) * (self.config.num_layers // len(self.layers))
        if callable(operations.get("self_layers")):
            layers = operations["self_layers"](self_layers=layers)
        x = self._run_layers(layers, x, mask, request, operations.get("layers") or {}, taps)
        output = operate(operations, "output", self.final_layernorm(x))
        if "transformer.output" in request:
            taps["transformer.output"] = output
        return output, taps

    def _embed(self, words: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if not self.config.block_position_encoding:
            return words + self.position_embeddings(position_ids)
        return (words + self.position_embeddings(position_ids[:, 0])
                + self.block_position_embeddings(position_ids[:, 1]))

    def _run_layers(self, layers: Sequence[nn.Module], x: torch.Tensor, mask: torch.Tensor, request: TapRequest,
                    operations: Mapping[int, Mapping[str, Operation]], taps: dict[str, torch.Tensor]) -> torch.Tensor:
        recompute = self.config.checkpoint_activations and self.training and torch.is_grad_enabled()
        chunk = self.config.checkpoint_num_layers if recompute else len(layers)
        for start in range(0, len(layers), chunk):
            numbers = range(start, min(start + chunk, len(layers)))

            def run(x: torch.Tensor, numbers: range = numbers) -> tuple[torch.Tensor, ...]:
                extras: list[torch.Tensor] = []
                for number in numbers:
                    x, *tapped = layers[number](x, mask, request.layer_names(number), operations.get(number))
                    extras.extend(tapped)
                return x, *extras

            # Non-reentrant: tapped tensors are ordinary outputs with gradient; the second argument restores the
            # model-parallel random state, which torch does not know of.
            x, *extras = (checkpoint(run, x, use_reentrant=False, context_fn=checkpoint_contexts)
                          if recompute else run(x))
            names = [f"transformer.layers.{number}.{name}"
                     for number in numbers for name in request.layer_names(number)]
            taps.update(zip(names, extras, strict=True))
        return x
