"""Losses on the ``n`` best vocabulary entries of the teacher (GLMD, Tan et al. 2023, arXiv:2306.06625).

``n`` counts over the whole vocabulary, whatever the model-parallel size: each rank offers its own best candidates, the
candidates of all ranks are gathered, and the ``n`` best of them are the same everywhere.

Legend: ``b`` batch, ``s`` sequence, ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from distill.losses.masking import fit_mask
from model.parallel.groups import parallel_state
from model.parallel.mappings import (
    all_gather_last,
    all_reduce,
    copy_to_model_parallel_region,
    reduce_from_model_parallel_region,
)
from model.parallel.vocab_log_prob import as_rows, compute_dtype, global_width, row_chunks


class TopEntries(NamedTuple):
    """The teacher's ``n`` best entries of each position.

    Attributes:
        values: [..., n] teacher logits, best first, equal on all ranks.
        columns: [..., n] int64 column in this rank's slice; where the entry lies on another rank, the slice's width.
    """

    values: torch.Tensor
    columns: torch.Tensor


def resolve_top_n(top_n: float, vocab_size: int) -> int:
    """``--logitsdistil_top_n``: a number of entries, or a fraction of the vocabulary if below 1."""
    count = int(top_n * vocab_size) if 0 < top_n < 1 else int(top_n)
    if not 1 <= count <= vocab_size:
        raise ValueError(f"--logitsdistil_top_n={top_n} selects {count} of {vocab_size} vocabulary entries; "
                         "give a fraction in (0, 1) or a number from 1 to the vocabulary size")
    return count


def top_entries(teacher: torch.Tensor, n: int) -> TopEntries:
    """The ``n`` best of [..., v/p] over all ranks. Of equal logits at the border, those of the lower rank win."""
    width, state = teacher.shape[-1], parallel_state()
    values, columns = teacher.topk(min(n, width), dim=-1)
    if state.model_size == 1:
        return TopEntries(values, columns)
    if n > width:  # ranks may hold fewer entries than n: fill up with candidates that never win
        fill = (*values.shape[:-1], n - width)
        values = torch.cat([values, values.new_full(fill, float("-inf"))], dim=-1)
        columns = torch.cat([columns, columns.new_full(fill, width)], dim=-1)
    owner = torch.full_like(columns, state.model_rank)
    with torch.no_grad():
        _, best = torch.sort(all_gather_last(values.detach()), dim=-1, descending=True, stable=True)
        best = best[..., :n]
        gathered = all_gather_last(columns).gather(-1, best)
        own = all_gather_last(owner).gather(-1, best) == state.model_rank
        columns = gathered.masked_fill(~own, width)
    return TopEntries(pick_entries(teacher, columns), columns)


def pick_entries(logits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The entries ``columns`` (see :class:`TopEntries`) of [..., v/p] -> [..., n], equal on all ranks; the gradient
    goes to the rank that owns the entry."""
    if parallel_state().model_size == 1:
        return logits.gather(-1, columns)
    foreign = columns == logits.shape[-1]
    picked = logits.gather(-1, columns.masked_fill(foreign, 0)).to(compute_dtype(logits))
    return reduce_from_model_parallel_region(picked.masked_fill(foreign, 0.0))


def raise_to_minimum(teacher: torch.Tensor, n: int) -> torch.Tensor:
    """A copy in which everything below the ``n``-th best entry is the position's minimum: [..., v/p] -> [..., v/p]."""
    threshold = top_entries(teacher, n).values[..., -1:]
    minimum = all_reduce(teacher.detach().amin(dim=-1, keepdim=True), dist.ReduceOp.MIN)
    return torch.where(teacher < threshold, minimum, teacher)


class _ExcessRows(torch.autograd.Function):
    """``sum max(0, s_j - theta)`` and the number of positive terms over a row's entries outside ``columns``."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, theta: torch.Tensor,
                columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, count = torch.empty_like(theta), torch.empty_like(theta)
        for rows in row_chunks(student):
            excess = _excess(student, theta, columns, rows).clamp_(min=0)
            total[rows] = excess.sum(dim=-1)
            count[rows] = excess.sign_().sum(dim=-1)  # comparisons are five times slower on a CPU
        ctx.save_for_backward(student, theta, columns, count)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, theta, columns, count = ctx.saved_tensors
        gradient = torch.empty_like(student, memory_format=torch.contiguous_format)
        for rows in row_chunks(student):
            positive = _excess(student, theta, columns, rows).clamp_(min=0).sign_()
            torch.mul(positive, grad[rows].unsqueeze(-1), out=gradient[rows])
        return gradient, -grad * count, None


def _excess(student: torch.Tensor, theta: torch.Tensor, columns: torch.Tensor, rows: slice) -> torch.Tensor:
    chunk = student[rows]
    excess = theta.new_zeros(chunk.shape[0], chunk.shape[1] + 1)  # the last column takes the entries of other ranks
    torch.sub(chunk.to(theta.dtype), theta[rows].unsqueeze(-1), out=excess[:, :-1])
    return excess.scatter_(-1, columns[rows], 0.0)[:, :-1]


def threshold_hinge(student: torch.Tensor, top: TopEntries, *, mask: torch.Tensor | None = None,
                    keep_batch: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Push the student's other entries below the smallest of its entries that the teacher ranks best.

    ``sum_{j not in top} max(0, s_j - theta) / number of positive terms``, theta = min over the top entries of the
    student's logits (with gradient); sum and number run over all positions where the mask is on, and over all ranks.

    Args:
        student: [b, s, v/p] raw logits (no temperature).
        mask: [b, s], 0 leaves a position out of sum and number.
        keep_batch: return [b], whose mean is the scalar.

    Returns:
        The hinge, and the number of positive terms (0-dimensional, no gradient). Zero where nothing is positive.
    """
    theta = pick_entries(student, top.columns).to(compute_dtype(student)).amin(dim=-1)
    total, count = _ExcessRows.apply(as_rows(student), copy_to_model_parallel_region(theta.reshape(-1)),
                                     top.columns.reshape(-1, top.columns.shape[-1]))
    total, count = total.view(theta.shape), count.view(theta.shape)
    if mask is not None:
        mask = fit_mask(mask, total)
        total, count = total * mask, count * mask
    number = all_reduce(count.sum())
    total = reduce_from_model_parallel_region(total) / number.clamp(min=1.0)
    if keep_batch:
        return total.flatten(1).sum(dim=1) * total.shape[0], number
    return total.sum(), number


def vocabulary_size(logits: torch.Tensor) -> int:
    """Entries of the whole vocabulary of [..., v/p]."""
    return global_width(logits.shape[-1], True, logits.device)
