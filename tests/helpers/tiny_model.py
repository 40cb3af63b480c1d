"""A GLM small enough that a test of it takes milliseconds, and a batch for it."""

from __future__ import annotations

from typing import Any

import torch

from model.config import ModelConfig
from model.glm import GLMModel


def tiny_config(**overrides: Any) -> ModelConfig:
    """2 layers of width 32 with 4 heads, 64 words, no dropout."""
    values: dict[str, Any] = dict(num_layers=2, hidden_size=32, num_attention_heads=4, max_position_embeddings=32,
                                  vocab_size=64, attention_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0)
    return ModelConfig(**{**values, **overrides})


def tiny_glm(seed: int = 0, parallel_output: bool = True, output_predict: bool = True, **overrides: Any) -> GLMModel:
    """A seeded model whose weights are larger than at initialisation, so that attention is not uniform."""
    torch.manual_seed(seed)
    model = GLMModel(tiny_config(**overrides), parallel_output=parallel_output, output_predict=output_predict)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model


def tiny_lm_batch(batch_size: int = 3, length: int = 16, vocab_size: int = 64,
                  seed: int = 0) -> dict[str, torch.Tensor]:
    """A block-LM batch: part A, one span of part B, padding at the end; names as in the golden batches."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, vocab_size, (batch_size, length), generator=generator)
    labels = torch.randint(7, vocab_size, (batch_size, length), generator=generator)
    sep = torch.randint(4, length // 2, (batch_size,), generator=generator)
    end = torch.randint(length // 2 + 2, length + 1, (batch_size,), generator=generator)
    index = torch.arange(length).expand(batch_size, length)
    in_part_b = (index >= sep[:, None]) & (index < end[:, None])
    real = index < end[:, None]
    position = torch.where(in_part_b, 2, index) * real
    block = torch.where(in_part_b, index - sep[:, None] + 1, 0)
    return {"tokens": tokens * real, "labels": labels * real, "loss_mask": in_part_b.float(), "attention_mask": sep,
            "position_ids": torch.stack([position, block], dim=1)}
