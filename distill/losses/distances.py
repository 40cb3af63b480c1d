"""Distances between tensors: mean squared error and cosine distance."""

from __future__ import annotations

import torch

from distill.losses.masking import check_partition, reduce_rows
from model.parallel.mappings import reduce_from_model_parallel_region
from model.parallel.row_chunks import compute_dtype
from model.parallel.vocab_log_prob import global_width, squared_error_rows

COSINE_EPSILON = 1e-12


def mse(student: torch.Tensor, teacher: torch.Tensor, *, mask: torch.Tensor | None = None, keep_batch: bool = False,
        partition: str | None = None, teacher_weight: float = 1.0) -> torch.Tensor:
    """``(student - teacher_weight * teacher)^2``, mean over **all** elements, the last axis included.

    Args:
        student, teacher: equal shapes [b, ..., h] (a slice of the last axis with ``partition="vocab"``).
        mask: weight of each position, broadcastable to [b, ...]; masked positions are counted in the mean.
        keep_batch: return [b], whose mean is the scalar.
    """
    check_partition(partition)
    parallel = partition == "vocab"
    rows = squared_error_rows(student, teacher, teacher_weight=teacher_weight, parallel=parallel)
    width = global_width(student.shape[-1], parallel, student.device)
    return reduce_rows(rows, mask=mask, keep_batch=keep_batch, partition=partition) / width


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor, *, mask: torch.Tensor | None = None,
                    keep_batch: bool = False, partition: str | None = None, wo_constant: bool = False) -> torch.Tensor:
    """``1 - cos`` over the last axis, ``cos = s.t / sqrt((|s|^2 + 1e-12)(|t|^2 + 1e-12))``, mean over all positions.

    A masked position adds the constant 1, as if its vectors were zero; ``wo_constant`` leaves it out. With
    ``partition="vocab"`` the feature axis is cut and the three products are summed over the ranks.
    """
    check_partition(partition)
    dtype = compute_dtype(student, teacher)
    s, t = student.to(dtype), teacher.to(dtype)
    products = torch.stack([(s * t).sum(-1), (s * s).sum(-1), (t * t).sum(-1)])
    if partition == "vocab":
        products = reduce_from_model_parallel_region(products)
    dot, s_norm, t_norm = products
    rows = 1.0 - dot / torch.sqrt((s_norm + COSINE_EPSILON) * (t_norm + COSINE_EPSILON))
    return reduce_rows(rows, mask=mask, masked_value=0.0 if wo_constant else 1.0, keep_batch=keep_batch,
                       partition=partition)
