"""Cross entropy with hard labels over a vocabulary that is cut over the model-parallel ranks."""

from __future__ import annotations

import torch

from model.parallel.vocab_log_prob import hard_label_rows


def vocab_parallel_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of each token: ``log Z - z_target``.

    Args:
        logits: [..., v/p] this rank's slice, contiguous ranges of equal width; not edited.
        target: [...] int64 ids in the whole vocabulary.

    Returns:
        [...] in at least float32, equal on all ranks of the group. Nothing is masked here.
    """
    return hard_label_rows(logits, target, parallel=True)
