"""One row for a text and all its answers (``--fast-decode``): the text is encoded once, and every answer sees it.

The answers stand behind the text, one after the other. An answer sees the text and its own tokens before, not the other
answers: each gets what a row of its own would give it. Nothing has to be remembered between two passes, so taps,
activation checkpointing and distillation work as for any other row.

Legend: b samples, c answers, d places of an answer, s text with its padding, t = s + c d.
"""

from __future__ import annotations

import torch


def pack_answers(text: torch.Tensor, position: torch.Tensor, sep: torch.Tensor, dec_text: torch.Tensor,
                 dec_position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [b, s] and [b, c, d], positions [b, 2, s] and [b, c, 2, d] (or without the 2), ``sep`` [b] ->
    ids [b, t], positions [b, 2, t] (or [b, t]), mask [b, 1, t, t]: the model's three inputs."""
    ids = torch.cat([text, dec_text.flatten(1)], dim=1)
    positions = torch.cat([position, dec_position.movedim(1, -2).flatten(-2)], dim=-1)
    return ids, positions, answers_mask(sep, text.shape[1], *dec_text.shape[1:])


def answers_mask(sep: torch.Tensor, length: int, num_answers: int, places: int) -> torch.Tensor:
    """Who sees whom, bool [b, 1, t, t]: everyone the first ``sep`` tokens, and those before it in its own part."""
    index = torch.arange(length + num_answers * places, device=sep.device)
    part = (index - length).div(places, rounding_mode="floor").clamp(min=-1)  # -1: the text
    own = (part[:, None] == part[None, :]) & (index[None, :] <= index[:, None])
    return (own[None] | (index[None, :] < sep[:, None])[:, None, :]).unsqueeze(1)


def pack_mask(text: torch.Tensor, dec_mask: torch.Tensor) -> torch.Tensor:
    """A mask of the answers' tokens [b, c, d] as one of the whole row, [b, t]: 0 in the text [b, s]."""
    return torch.cat([torch.zeros_like(text, dtype=dec_mask.dtype), dec_mask.flatten(1)], dim=1)
