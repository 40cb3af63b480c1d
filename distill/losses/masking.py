"""Masks, and the step from one loss per position to the loss that is trained on.

Conventions that every loss here follows (R1 and R4 of the method rules):

* A mask weighs positions, but **the mean counts all of them**, masked ones too.
* ``keep_batch`` gives a vector over the first axis whose mean is the scalar.
* ``partition`` says how the tensors lie on the model-parallel ranks: ``"vocab"`` the last axis is cut, ``"heads"``
  axis 1 is cut evenly, ``None`` every rank holds them whole.

Legend: ``b`` batch, ``s`` sequence, ``n`` heads, ``p`` model-parallel ranks.
"""

from __future__ import annotations

import torch

from model.parallel.groups import parallel_state
from model.parallel.mappings import reduce_from_model_parallel_region

PARTITIONS = (None, "vocab", "heads")


def check_partition(partition: str | None) -> None:
    if partition not in PARTITIONS:
        raise ValueError(f"partition must be one of {PARTITIONS}, not {partition!r}")


def position_pad_mask(position_ids: torch.Tensor) -> torch.Tensor:
    """1 for a real token, 0 for padding: [b, 2, s] (or [b, s]) -> [b, s] float.

    Pads carry position 0, and so does the class token at the start; a span predicted at position 0 would be taken for
    padding.
    """
    positions = position_ids[:, 0] if position_ids.dim() == 3 else position_ids
    mask = positions > 0
    mask[:, 0] = True
    return mask.to(torch.float32)


def fit_mask(mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``mask`` in the dtype of ``rows`` and broadcastable to it. Raises ValueError where it does not fit."""
    if mask.dim() == rows.dim() + 1 and mask.shape[-1] == 1:
        mask = mask.squeeze(-1)
    sizes = zip(reversed(mask.shape), reversed(rows.shape), strict=False)
    if mask.dim() > rows.dim() or any(own not in (1, wanted) for own, wanted in sizes):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit losses of shape {tuple(rows.shape)}")
    return mask.to(rows.dtype)


def reduce_rows(rows: torch.Tensor, *, mask: torch.Tensor | None = None, masked_value: float = 0.0,
                keep_batch: bool = False, partition: str | None = None) -> torch.Tensor:
    """Mean over all positions of ``mask * rows + (1 - mask) * masked_value``.

    Args:
        rows: [b, ...] one loss per position.
        mask: broadcastable to ``rows``; None keeps everything.
        masked_value: the constant that a masked position adds (it has no gradient).
        keep_batch: mean over all axes but the first, [b].
        partition: with ``"heads"`` the local means are averaged over the ranks; ``"vocab"`` rows are whole already.
    """
    check_partition(partition)
    if mask is not None:
        mask = fit_mask(mask, rows)
        # where, not a product: a masked row may be infinite
        rows = torch.where(mask != 0, mask * rows, 0.0)
        if masked_value:
            rows = rows + (1.0 - mask) * masked_value
    mean = rows.flatten(1).mean(dim=1) if keep_batch and rows.dim() > 1 else rows if keep_batch else rows.mean()
    if partition == "heads":
        mean = reduce_from_model_parallel_region(mean) / parallel_state().model_size
    return mean
