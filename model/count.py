"""Numbers of parameters, from the sizes alone: no model is built, so 10B cost no more than 10M.

Counted is a GLM with its tied decoder; heads of tasks, prompts and the projections of distillation methods are not.
``tests/model/test_count.py`` compares with models that were built.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part, over all model-parallel ranks.

    Attributes:
        embeddings: word table with its projections. layer: one layer. layers: all that are stored.
        positions: both position tables. final_norm: the last layer norm.
    """

    embeddings: int
    layer: int
    layers: int
    positions: int
    final_norm: int

    @property
    def total(self) -> int:
        return self.embeddings + self.layers + self.positions + self.final_norm


def count_parameters(config: ModelConfig) -> ParameterCount:
    """The parameters of the model that ``config`` describes."""
    width, layer = config.hidden_size, _layer(config)
    tables = 2 if config.block_position_encoding else 1
    return ParameterCount(_embeddings(config), layer, layer * (1 if config.cross_layer_parameter_sharing
                                                               else config.num_layers),
                          tables * config.num_position_rows * width, _norm(width))


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _norm(width: int) -> int:
    return 2 * width


def _feed_forward(width: int) -> int:
    return _linear(width, 4 * width) + _linear(4 * width, width)


def _layer(config: ModelConfig) -> int:
    outer, inner = config.hidden_size, config.attention_size
    total = (_norm(outer) + _linear(outer, 3 * inner) + _linear(inner, inner) + _norm(inner) + _feed_forward(inner))
    if config.inverted_bottleneck_mode:
        total += _linear(outer, inner) + _linear(inner, outer) + _norm(inner)
        total += (config.ib_ffn_num - 1) * (_feed_forward(inner) + _norm(inner))
    return total


def _embeddings(config: ModelConfig) -> int:
    width, word_width = config.hidden_size, config.word_embedding_size
    total = config.num_word_rows * word_width
    if config.compress_word_emb:
        total += _linear(word_width, width) + _linear(width, word_width)
    if config.ib_word_emb:
        total += _linear(3 * config.ib_word_emb, width)
    return total
