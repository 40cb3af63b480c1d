"""Cross entropy with hard labels over a vocabulary that is cut over the model-parallel ranks."""

from __future__ import annotations

import torch

from model.parallel.groups import parallel_state
from model.parallel.mappings import all_gather_last
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


def vocab_parallel_argmax(logits: torch.Tensor) -> torch.Tensor:
    """The id of the largest of all v logits, from this rank's slice [..., v/p] -> int64 [...]; no gradient."""
    values, ids = logits.detach().max(dim=-1, keepdim=True)
    values, ids = all_gather_last(values), all_gather_last(ids + parallel_state().model_rank * logits.shape[-1])
    return ids.gather(-1, values.argmax(dim=-1, keepdim=True)).squeeze(-1)
