"""Losses between relations: how the tokens of a sample relate to each other, or to all words of the vocabulary.

The maps that are compared ([s, s] for each head, or [s, v]) are much larger than the vectors they come from. They are
formed block by block and formed again in the backward pass, so that no more than one block of them is held at a time.

Legend: ``b`` rows of the batch, ``s`` sequence, ``n`` heads, ``d`` head size, ``h`` width, ``v`` vocabulary, ``p``
model-parallel ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from distill.losses.masking import check_partition, reduce_rows
from model.parallel.mappings import copy_to_model_parallel_region
from model.parallel.vocab_log_prob import global_width, soft_label_rows, squared_error_rows

#: Elements of one block of maps: 16 MiB in float32 on a CPU, 128 MiB on an accelerator.
CPU_BLOCK_ELEMENTS = 1 << 22
ACCELERATOR_BLOCK_ELEMENTS = 1 << 25


def relation_loss(student: torch.Tensor, teacher: torch.Tensor, *, kind: str = "kl", scale: float | None = None,
                  keep_batch: bool = False, partition: str | None = None) -> torch.Tensor:
    """Distance between the self-relations ``X X^T`` of student and teacher, mean over samples, heads and queries.

    ``kl``: KL(softmax of the teacher's row || softmax of the student's); ``mse``: squared error, mean over keys too.

    Args:
        student, teacher: [b, n, s, d] with equal b, n, s; the widths may differ.
        kind: ``"kl"`` or ``"mse"``.
        scale: factor on both relations; None: ``1 / sqrt(d)``, each with its own d.
        keep_batch: return [b], whose mean is the scalar.
        partition: ``"heads"`` where axis 1 is cut over the ranks.
    """
    check_partition(partition)
    if student.shape[:3] != teacher.shape[:3]:
        raise ValueError(f"relations of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} need equal "
                         "batches, heads and lengths")
    batch, heads, length, _ = student.shape

    def block(s_heads: torch.Tensor, t_heads: torch.Tensor) -> torch.Tensor:
        return _distance_rows(_relation(s_heads, scale), _relation(t_heads, scale), kind).sum(dim=(1, 2))

    step = max(1, _block_elements(student) // max(1, batch * length * length))
    parts = [checkpoint(block, student[:, start:start + step], teacher[:, start:start + step], use_reentrant=False,
                        preserve_rng_state=False)
             for start in range(0, heads, step)]
    rows = torch.stack(parts).sum(dim=0) / (heads * length)
    return reduce_rows(rows, keep_batch=keep_batch, partition=partition)


def _relation(x: torch.Tensor, scale: float | None) -> torch.Tensor:
    factor = x.shape[-1] ** -0.5 if scale is None else scale
    return torch.matmul(x * factor, x.transpose(-1, -2))


def projection_loss(student: torch.Tensor, student_table: torch.Tensor, teacher: torch.Tensor,
                    teacher_table: torch.Tensor, *, kind: str = "kl", keep_batch: bool = False) -> torch.Tensor:
    """Distance between what two models say about the vocabulary, ``X E^T`` with the word table E, mean over b and s.

    Args:
        student, teacher: [b, s, h], replicated; the widths may differ.
        student_table, teacher_table: this rank's rows [v/p, h]. The product is formed in the table's dtype.
        kind: ``"kl"`` or ``"mse"`` (mean over the vocabulary too).
        keep_batch: return [b], whose mean is the scalar.
    """
    shape = student.shape[:-1]
    student = copy_to_model_parallel_region(student).flatten(0, -2)
    teacher = copy_to_model_parallel_region(teacher).flatten(0, -2)
    width = global_width(student_table.shape[0], True, student.device)

    def block(s_rows: torch.Tensor, t_rows: torch.Tensor) -> torch.Tensor:
        return _distance_rows(_words(s_rows, student_table), _words(t_rows, teacher_table), kind, width)

    step = max(1, _block_elements(student) // max(1, student_table.shape[0]))
    parts = [checkpoint(block, student[start:start + step], teacher[start:start + step], use_reentrant=False,
                        preserve_rng_state=False)
             for start in range(0, len(student), step)]
    return reduce_rows(torch.cat(parts).view(shape), keep_batch=keep_batch)


def _words(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return F.linear(rows.to(table.dtype), table)


def _distance_rows(student: torch.Tensor, teacher: torch.Tensor, kind: str, global_size: int = 0) -> torch.Tensor:
    """KL or mean squared error over the last axis, [..., v] -> [...].

    ``global_size``: the length of the axis over all ranks, where it is cut; 0 where it is not.
    """
    if kind == "mse":
        rows = squared_error_rows(student, teacher, parallel=global_size > 0)
        return rows / (global_size or student.shape[-1])
    return soft_label_rows(student, teacher, kind=kind, parallel=global_size > 0)


def _block_elements(x: torch.Tensor) -> int:
    return CPU_BLOCK_ELEMENTS if x.device.type == "cpu" else ACCELERATOR_BLOCK_ELEMENTS
