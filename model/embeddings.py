"""From token ids to word vectors, and back to the width of the word table.

Legend: b batch, s sequence, h hidden, e width of the word table, w slice of the three-token embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from model.config import INIT_STD, ModelConfig
from model.parallel.layers import ColumnParallelLinear, normal_init
from model.parallel.sharding import ROWS


def width_map(in_features: int, out_features: int) -> ColumnParallelLinear:
    """A linear map between widths, cut by rows and gathered, drawn from N(0, 0.02^2)."""
    return ColumnParallelLinear(in_features, out_features, gather_output=True, init=normal_init(INIT_STD), spec=ROWS)


def three_token_vectors(vectors: torch.Tensor, sep: torch.Tensor) -> torch.Tensor:
    """Join each word vector with those of its neighbours (MobileBERT, arXiv:2004.02984, section 3.1).

    The third vector is that of the next token where ``t < sep - 1``, else that of the token two before: nothing looks
    ahead at or after the last token of part A. Neighbours outside the sequence are zero.

    Args:
        vectors: [b, s, w]; sep: [b] or [1], length of part A.

    Returns:
        [b, s, 3 w]: third, current, previous.
    """
    length = vectors.shape[1]
    padded = nn.functional.pad(vectors, (0, 0, 2, 1))  # position t stands at t + 2
    two_before, previous, following = padded[:, :length], padded[:, 1:length + 1], padded[:, 3:]
    looks_ahead = torch.arange(length, device=sep.device)[None, :] < sep.reshape(-1, 1) - 1  # [b, s]
    third = torch.where(looks_ahead.unsqueeze(-1), following, two_before)
    return torch.cat([third, vectors, previous], dim=-1)


def add_width_maps(model: nn.Module, config: ModelConfig) -> None:
    """Give ``model`` the maps that its configuration asks for, under their checkpoint names."""
    if config.compress_word_emb:
        model.compress_emb_mlp = width_map(config.compress_word_emb, config.hidden_size)
        model.decompress_emb_mlp = width_map(config.hidden_size, config.compress_word_emb)
    if config.ib_word_emb:
        model.ib_emb_mlp = width_map(3 * config.ib_word_emb, config.hidden_size)


def widen(model: nn.Module, config: ModelConfig, vectors: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Rows of the word table [b, s, e] -> word vectors [b, s, h].

    Raises ValueError for the three-token embedding with anything but one ``sep`` a sample.
    """
    if config.compress_word_emb:
        vectors = model.compress_emb_mlp(vectors)
    if config.ib_word_emb:
        if attention_mask.dim() > 2 or attention_mask.numel() not in (1, len(vectors)):
            raise ValueError("--ib_word_emb needs the attention mask as one length of part A per sample")
        vectors = model.ib_emb_mlp(three_token_vectors(vectors[..., :config.ib_word_emb], attention_mask))
    return vectors
