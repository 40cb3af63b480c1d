"""A small model of every architecture form, its checkpoint and its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.checkpoint.save import module_payload, save_checkpoint
from model.config import ModelConfig
from model.glm import GLMModel
from tests.helpers.tiny_model import tiny_config, tiny_glm, tiny_lm_batch
from tests.model.test_compressed import example_map

_BOTTLENECK = dict(inverted_bottleneck_mode=True, ib_hidden_size=16, ib_ffn_num=3)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "erf": dict(gelu="erf"),
    "bottleneck": _BOTTLENECK,
    "three-token": dict(ib_word_emb=8),
    "factorised": dict(compress_word_emb=8),
    "shared": dict(num_layers=3, cross_layer_parameter_sharing=True),
    "compact": dict(map_vocab_size=32),
    "compact, rows as output": dict(map_vocab_size=32, unmap_vocab_output=True),
    "factorised and shared": dict(num_layers=3, compress_word_emb=8, cross_layer_parameter_sharing=True),
    "bottleneck, three tokens, factorised, compact": dict(
        **_BOTTLENECK, ib_word_emb=8, compress_word_emb=16, map_vocab_size=32),
}


def form_model(form: str, seed: int = 0) -> GLMModel:
    """A seeded model with whole logits; a compact one has its map."""
    model = tiny_glm(seed, parallel_output=False, **FORMS[form]).eval()
    if model.vocab_map is not None:
        model.vocab_map.set(example_map())
    return model


def fresh_model(config: ModelConfig | None = None, **overrides: Any) -> GLMModel:
    """A model with other weights, and without a map, for loading into."""
    torch.manual_seed(99)
    return GLMModel(config or tiny_config(**overrides), parallel_output=False).eval()


def save_model(model: torch.nn.Module, run: Path, **entries: Any) -> Path:
    """Our checkpoint at model-parallel size 1."""
    save_checkpoint(run, "10", {**module_payload(model), "iteration": 10, **entries}, mp_rank=0, mp_size=1,
                    is_first_rank=True, agree=lambda problem: problem)
    return run


@torch.no_grad()
def logits_of(model: GLMModel) -> torch.Tensor:
    """[b, s, v]."""
    batch = tiny_lm_batch()
    return model(batch["tokens"], batch["position_ids"], batch["attention_mask"])[0]
