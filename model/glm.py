"""GLM: a block language model (Du et al. 2022, arXiv:2103.10360) with Megatron-style tensor parallelism.

Axes: b batch, s sequence, h hidden, v padded vocabulary, p model-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import additive_mask, prefix_mask
from model.config import INIT_STD, ModelConfig
from model.embeddings import add_width_maps, widen
from model.parallel.groups import get_model_parallel_world_size
from model.parallel.layers import VocabParallelEmbedding, normal_init
from model.parallel.mappings import copy_to_model_parallel_region, gather_from_model_parallel_region
from model.parallel.sharding import mark_replicated_parameters
from model.prompt import PromptEncoder
from model.taps import Hook, TapRequest
from model.transformer import Transformer
from model.vocab_map import VocabMap


class GLMModel(nn.Module):
    """Word embedding, transformer, tied output layer.

    Args:
        config: sizes.
        parallel_output: return this rank's slice of the logits (v/p columns) instead of all of them.
        output_predict: return logits; False returns the final hidden states.

    Raises:
        ValueError: sizes that do not divide, by flag name.
    """

    def __init__(self, config: ModelConfig, *, parallel_output: bool = True, output_predict: bool = True) -> None:
        super().__init__()
        config.check(get_model_parallel_world_size())
        self.config = config
        self.parallel_output = parallel_output
        self.output_predict = output_predict
        self.word_embeddings = VocabParallelEmbedding(
            config.num_word_rows, config.word_embedding_size, normal_init(INIT_STD))
        self.vocab_map = VocabMap(config.vocab_size, config.map_vocab_size) if config.map_vocab_size else None
        add_width_maps(self, config)
        self.transformer = Transformer(config)
        if config.num_prompt_tokens:
            self.prompt_spell = PromptEncoder(config.num_prompt_tokens, config.hidden_size, config.prompt_func)
        mark_replicated_parameters(self)

    @property
    def word_embedding_weight(self) -> torch.Tensor:
        """This rank's rows of the word table, [v/p, h]."""
        return self.word_embeddings.weight

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor, *,
                hook: Hook | None = None, hook_op: Mapping[str, Any] | None = None,
                output_positions: torch.Tensor | None = None, prompt_pos: torch.Tensor | None = None,
                ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """One pass.

        Args:
            input_ids: int64 [b, s], part A followed by part B.
            position_ids: int64 [b, 2, s] (position, block position), or [b, s] without block positions.
            attention_mask: [b], the length of part A ("sep"), or a ready 0/1 mask [b or 1, 1 or n, s, s].
            hook: nested dict of wanted inner tensors (see :mod:`model.taps`); its leaf values are not read.
            hook_op: nested dict of callables that replace a tensor; they may run again when activations are
                recomputed, so they must be deterministic and free of side effects.
            output_positions: bool [b, s] with m places set: logits are formed there only. A cloze head reads a few
                rows; the others would cost more than the whole body of a small model.
            prompt_pos: [b, n] where the n vectors of the continuous prompt take the place of word vectors.

        Returns:
            (output, inter_vars): output is logits [b, s, v/p] or [b, s, v] ([m, ...] with ``output_positions``, row by
            row), or hidden states [b, s, h]; inter_vars
            are the wanted tensors in the order of ``TapRequest.from_hook(hook, num_layers).names``. Floating taps are
            at least fp32, but for ``logits_parallel``, which keeps the model's dtype: it is the one that is too large
            to copy, and every loss raises it chunk by chunk.
        """
        request = TapRequest.from_hook(hook, self.config.num_layers)
        operations = hook_op or {}
        if callable(operations.get("input_ids")):
            input_ids = operations["input_ids"](input_ids=input_ids)
        words = self.word_vectors(input_ids, attention_mask)
        taps: dict[str, torch.Tensor] = {}
        if "words_embeddings" in request:
            taps["words_embeddings"] = words
        if "position_ids" in request:
            taps["position_ids"] = position_ids
        if prompt_pos is not None:
            words = self.prompt_spell.put(words, prompt_pos)
        mask = additive_mask(prefix_mask(attention_mask, *input_ids.shape), words.dtype)
        hidden, inner = self.transformer(words, position_ids, mask, request, operations.get("transformer") or {})
        taps.update(inner)
        output = hidden
        if "logits_parallel" in request:
            taps["logits_parallel"] = self._logits(hidden)
        if self.output_predict:
            logits = taps.get("logits_parallel")
            if output_positions is None:
                output = self._logits(hidden) if logits is None else logits
            else:
                output = self._logits(hidden[output_positions]) if logits is None else logits[output_positions]
            if not self.parallel_output:
                output = gather_from_model_parallel_region(output)
        return output, tuple(_raise_dtype(name, taps[name]) for name in request.names)

    def word_vectors(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids [b, s] and ``sep`` [b] -> word vectors [b, s, h], without positions."""
        rows = self.vocab_map.rows_of(input_ids) if self.vocab_map is not None else input_ids
        return widen(self, self.config, self.word_embeddings(rows), attention_mask)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., h] -> [..., v/p], or [..., k/p] over the rows of an unmapped compact vocabulary."""
        hidden, table = self.output_layer(hidden)
        return F.linear(copy_to_model_parallel_region(hidden), table)

    def output_layer(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two factors of the logits: [..., h] -> ([..., h'] replicated, this rank's rows of the table [v/p, h']).
        """
        if self.config.compress_word_emb:
            hidden = self.decompress_emb_mlp(hidden)
        table = self.word_embeddings.weight
        if self.vocab_map is not None and not self.config.unmap_vocab_output:
            table = self.vocab_map.expand(table)
        return hidden, table

    def map_input_to_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids -> columns of the logits: labels and answers pass through this. Only an unmapped compact vocabulary
        has other columns than ids."""
        if self.vocab_map is None or not self.config.unmap_vocab_output:
            return ids
        return self.vocab_map.rows_of(ids)

    def ids_of_columns(self, columns: torch.Tensor) -> torch.Tensor:
        """Columns of the logits -> the token ids that are predicted there: predictions pass through this.

        A compact vocabulary predicts kept tokens alone: mapped back, a substitute has the same logit as the tokens that
        it stands for, and the best column is only the first of these.
        """
        if self.vocab_map is None:
            return columns
        if self.config.unmap_vocab_output:
            return self.vocab_map.ids_of_rows()[columns]
        return self.vocab_map.substituted(columns)

    def freeze_transformer(self, tune_prefix_layers: int | None = None) -> None:
        """Train nothing but a continuous prompt and the first ``tune_prefix_layers`` layers, where there are such."""
        self.requires_grad_(False)
        if self.config.num_prompt_tokens:
            self.prompt_spell.requires_grad_(True)
        for layer in list(self.transformer.layers)[:tune_prefix_layers or 0]:
            layer.requires_grad_(True)


def _raise_dtype(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name != "logits_parallel" and tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor
