"""Divergences between softmaxes over the last axis: KL, soft cross entropy, entropy.

Inputs are logits in any float dtype; the computation is in at least float32, in chunks of rows, and edits nothing (see
``model/parallel/vocab_log_prob.py`` for the formulas and gradients). Values and gradients do not depend on the
model-parallel size.
"""

from __future__ import annotations

import math

import torch

from distill.losses.masking import check_partition, reduce_rows
from model.parallel.vocab_log_prob import entropy_rows, global_width, soft_label_rows


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor, *, mask: torch.Tensor | None = None,
                  keep_batch: bool = False, temperature: float = 1.0, partition: str | None = None) -> torch.Tensor:
    """KL(softmax(teacher / tau) || softmax(student / tau)), sum over the last axis, mean over all positions.

    Not multiplied by tau^2 (Hinton et al. 2015, section 2, recommend it): the caller decides.

    Args:
        student, teacher: logits of equal shape [b, ..., v] (a slice of the last axis with ``partition="vocab"``).
        mask: weight of each position, broadcastable to [b, ...]; a masked position contributes 0 and is counted.
        keep_batch: return [b], whose mean is the scalar.
    """
    check_partition(partition)
    rows = soft_label_rows(student, teacher, kind="kl", temperature=temperature, parallel=partition == "vocab")
    return reduce_rows(rows, mask=mask, keep_batch=keep_batch, partition=partition)


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, *, mask: torch.Tensor | None = None,
                       keep_batch: bool = False, temperature: float = 1.0, partition: str | None = None,
                       wo_constant: bool = False) -> torch.Tensor:
    """``- sum softmax(teacher / tau) log softmax(student / tau)``, arguments as in :func:`kl_divergence`.

    A masked position adds the constant ``log(size of the softmax)``, as if both its distributions were uniform;
    ``wo_constant`` leaves it out. The gradient is the same.
    """
    check_partition(partition)
    parallel = partition == "vocab"
    rows = soft_label_rows(student, teacher, kind="ce", temperature=temperature, parallel=parallel)
    constant = 0.0
    if mask is not None and not wo_constant:
        constant = math.log(global_width(student.shape[-1], parallel, student.device))
    return reduce_rows(rows, mask=mask, masked_value=constant, keep_batch=keep_batch, partition=partition)


def information_entropy(logits: torch.Tensor, *, mask: torch.Tensor | None = None, keep_batch: bool = False,
                        temperature: float = 1.0, partition: str | None = None) -> torch.Tensor:
    """Entropy (nats) of softmax(logits / tau), mean over all positions; arguments as in :func:`kl_divergence`."""
    check_partition(partition)
    rows = entropy_rows(logits, temperature=temperature, parallel=partition == "vocab")
    return reduce_rows(rows, mask=mask, keep_batch=keep_batch, partition=partition)
