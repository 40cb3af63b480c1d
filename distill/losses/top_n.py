"""Losses on the ``n`` best vocabulary entries of the teacher (GLMD, Tan et al. 2023, arXiv:2306.06625).

``n`` counts over the whole vocabulary, whatever the model-parallel size: each rank offers its own best candidates, the
candidates of all ranks are gathered, and the ``n`` best of them are the same everywhere.

Legend: ``b`` batch, ``s`` sequence, ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from distill.losses.masking import fit_mask
from model.parallel.gradient_memory import gradient_like
from model.parallel.groups import parallel_state
from model.parallel.mappings import (
    all_gather_last,
    all_reduce,
    reduce_from_model_parallel_region,
)
from model.parallel.row_chunks import as_rows, compute_dtype, row_chunks
from model.parallel.vocab_log_prob import EarlyGradient, global_width


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


class _PickAndExcess(torch.autograd.Function):
    """The picked entries and, of the other entries of each row, ``sum max(0, s_j - theta)`` and the number of positive
    terms, with theta the smallest of the picked ones: [n, v/p], [n, k] -> [n, k], [n], [n].

    One function, so that there is one gradient of the size of the logits. The picked entries are whole, sum and number
    are this rank's. Over several smallest entries the gradient of theta is spread evenly.
    """

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, columns: torch.Tensor,
                with_grad: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        picked = pick_entries(student, columns).to(compute_dtype(student))
        theta = picked.amin(dim=-1, keepdim=True)
        total, count = torch.empty_like(theta), torch.empty_like(theta)
        # Where the excess is positive, 1: exact in every dtype, and a matter of this rank alone.
        positive = EarlyGradient.of(ctx, student, student.dtype, wanted=with_grad, parallel=False)
        of_rows = (total, count, *(() if positive is None else (positive,)))
        for excess, total_rows, count_rows, *positive_rows in _excess_chunks(student, theta, columns, *of_rows):
            torch.sum(excess, dim=-1, keepdim=True, out=total_rows)
            # comparisons are five times slower on a CPU
            torch.sum(excess.sign_(), dim=-1, keepdim=True, out=count_rows)
            if positive_rows:
                positive_rows[0].copy_(excess)
        count = count.squeeze(-1)
        ctx.save_for_backward(student, picked, columns, count, positive)
        ctx.mark_non_differentiable(count)
        return picked, total.squeeze(-1), count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, picked_grad: torch.Tensor, total_grad: torch.Tensor,
                 _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, picked, columns, count, positive = ctx.saved_tensors
        theta = picked.amin(dim=-1, keepdim=True)
        smallest = (picked == theta).to(picked.dtype)
        theta_grad = all_reduce(-total_grad * count) / smallest.sum(dim=-1)
        picked_grad = torch.addcmul(picked_grad, smallest, theta_grad.unsqueeze(-1))
        weight = total_grad.to(student.dtype).unsqueeze(-1)
        gradient = EarlyGradient.take(ctx, positive, weight)
        if gradient is None:  # an earlier pass has used it up
            gradient = gradient_like(student)
            for excess, rows, row_weight in _excess_chunks(student, theta, columns, gradient, weight):
                torch.mul(excess.sign_(), row_weight, out=rows)
        if parallel_state().model_size > 1:
            foreign = columns == student.shape[-1]
            columns, picked_grad = columns.masked_fill(foreign, 0), picked_grad.masked_fill(foreign, 0.0)
        return gradient.scatter_add_(-1, columns, picked_grad.to(gradient.dtype)), None, None


def _excess_chunks(student: torch.Tensor, theta: torch.Tensor, columns: torch.Tensor,
                   *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """``max(0, s - theta)``, zero at ``columns``, in chunks of rows, with the same rows of the others; the next chunk
    takes the same memory."""
    width = student.shape[-1]
    padded = None
    for chunk, theta_rows, column_rows, *rest in row_chunks(student, theta, columns, *others):
        if padded is None:  # the last column takes the entries of other ranks
            padded = theta.new_empty(chunk.shape[0], width + 1)
        excess = padded[:chunk.shape[0]]
        torch.sub(chunk.to(theta.dtype), theta_rows, out=excess[:, :-1])
        yield excess.scatter_(-1, column_rows, 0.0)[:, :-1].clamp_(min=0), *rest


class TopLoss(NamedTuple):
    """What :func:`threshold_hinge` returns.

    Attributes:
        hinge: the loss, a scalar, or [b] with ``keep_batch``.
        number: of positive terms, a scalar without gradient.
        picked: [..., n], the student's entries in the teacher's order, equal on all ranks, with gradient.
    """

    hinge: torch.Tensor
    number: torch.Tensor
    picked: torch.Tensor


def threshold_hinge(student: torch.Tensor, top: TopEntries, *, mask: torch.Tensor | None = None,
                    keep_batch: bool = False) -> TopLoss:
    """Push the student's other entries below the smallest of its entries that the teacher ranks best.

    ``sum_{j not in top} max(0, s_j - theta) / number of positive terms``, theta = min over the top entries of the
    student's logits (with gradient); sum and number run over all positions where the mask is on, and over all ranks.
    Zero where nothing is positive. It hands out the picked entries too: a loss on them then shares its gradient.

    Args:
        student: [b, s, v/p] raw logits (no temperature).
        mask: [b, s], 0 leaves a position out of sum and number.
        keep_batch: return [b], whose mean is the scalar.
    """
    picked, total, count = _PickAndExcess.apply(
        as_rows(student), top.columns.reshape(-1, top.columns.shape[-1]), torch.is_grad_enabled())
    shape = student.shape[:-1]
    picked, total, count = picked.view(*shape, -1), total.view(shape), count.view(shape)
    if mask is not None:
        mask = fit_mask(mask, total)
        total, count = total * mask, count * mask
    number = all_reduce(count.sum())
    total = reduce_from_model_parallel_region(total) / number.clamp(min=1.0)
    if keep_batch:
        return TopLoss(total.flatten(1).sum(dim=1) * total.shape[0], number, picked)
    return TopLoss(total.sum(), number, picked)


def vocabulary_size(logits: torch.Tensor) -> int:
    """Entries of the whole vocabulary of [..., v/p]."""
    return global_width(logits.shape[-1], True, logits.device)
