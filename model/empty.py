"""A stand-in where a GLM is expected but none should be trained: its logits are all ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from model.glm import GLMModel
from model.parallel.groups import get_model_parallel_world_size
from model.taps import Hook


class EmptyGLM(nn.Module):
    """Same sizes and outputs as a GLM, no parameters, no inner tensors.

    Args:
        like: the GLM in whose place it stands; nothing of it is kept but its sizes.
    """

    def __init__(self, like: GLMModel) -> None:
        super().__init__()
        self.config = like.config
        self.parallel_output, self.output_predict = like.parallel_output, like.output_predict
        self.register_buffer("one", torch.ones(()), persistent=False)  # knows device and dtype

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor, *,
                hook: Hook | None = None, hook_op: Mapping[str, Any] | None = None,
                output_positions: torch.Tensor | None = None, prompt_pos: torch.Tensor | None = None,
                ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """(ones in the shape that the GLM's output has, no tensors)."""
        shape = input_ids.shape if output_positions is None else (int(output_positions.sum()),)
        return self.one.expand(*shape, self._width()), ()

    def map_input_to_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids are the columns of the logits."""
        return ids

    def _width(self) -> int:
        if not self.output_predict:
            return self.config.hidden_size
        return self.config.vocab_size // (get_model_parallel_world_size() if self.parallel_output else 1)
