"""Output layer and vocabulary loss in one operation that never holds the logits.

With hidden states ``H`` [n, h] and this rank's rows of the word table ``E`` [v/p, h], logits ``z = H E^T``:

    loss = sum_r  a_r CE(z_r, label_r)  +  c_r D(z_r, z'_r)

where ``D`` is KL(teacher || student) or soft cross entropy at temperature tau, or the squared error of the logits, and
``z' = H' E'^T`` are a teacher's logits. The weights are known, so one pass over the rows gives value and gradient:
a block of logits is formed, becomes its own gradient in place, and is multiplied into the gradients of ``H`` and ``E``.
That costs the same matrix products as the plain way. Rows without any weight are left out altogether.

Legend: ``n`` rows, ``h`` width, ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from model.parallel.groups import parallel_state
from model.parallel.mappings import copy_to_model_parallel_region
from model.parallel.row_chunks import compute_dtype, scratch_chunks
from model.parallel.softmax_sums import (
    HardLabelSums,
    SoftLabelSums,
    difference,
    label_gradient,
    soft_label_gradient,
    summed,
)

#: Bytes of the blocks of logits, the teacher's included. Each block reads both tables and reads and writes the gradient
#: of one, so few large blocks are faster.
CPU_BLOCK_BYTES = 1 << 26
ACCELERATOR_BLOCK_BYTES = 1 << 28

SOFT_KINDS = ("kl", "ce", "mse")


@dataclass(frozen=True)
class SoftTarget:
    """What the student's logits are compared with.

    Attributes:
        hidden, table: of the teacher, [n, h'] and [v/p, h'], without gradient.
        weight: [n], ``c``.
        kind: ``kl``, ``ce`` or ``mse`` (the sum of squares over the vocabulary).
        temperature: of ``kl`` and ``ce``; the result is not multiplied by its square.
    """

    hidden: torch.Tensor
    table: torch.Tensor
    weight: torch.Tensor
    kind: str = "kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SOFT_KINDS:
            raise ValueError(f"kind must be one of {SOFT_KINDS}, not {self.kind!r}")
        if self.hidden.requires_grad or self.table.requires_grad:
            raise ValueError("the fused loss has no gradient for the teacher: detach its hidden states and table")


class FusedLoss(NamedTuple):
    """``loss`` is the weighted sum (with gradient); the rows [n] have none and are 0 where a row has no weight."""

    loss: torch.Tensor
    label_rows: torch.Tensor
    soft_rows: torch.Tensor


def fused_vocab_loss(hidden: torch.Tensor, table: torch.Tensor, labels: torch.Tensor, label_weight: torch.Tensor, *,
                     label_mask: torch.Tensor | None = None, soft: SoftTarget | None = None) -> FusedLoss:
    """The loss of the module's head line.

    Args:
        hidden: [n, h], replicated over the model-parallel ranks.
        table: this rank's rows [v/p, h], equal slices.
        labels: [n] int64, columns in the whole vocabulary.
        label_weight: [n], ``a``; with zeros only, there is no label loss.
        label_mask: [n], the rows whose label loss is wanted in ``label_rows``; default: those with a weight.
        soft: the teacher's side.

    Returns:
        In at least float32, equal on all ranks. Gradients reach ``hidden`` and ``table``.
    """
    if soft is not None and soft.table.shape[0] != table.shape[0]:
        raise ValueError(f"student and teacher vocabularies differ: {table.shape[0]} and {soft.table.shape[0]} rows")
    return FusedLoss(*_FusedVocabLoss.apply(copy_to_model_parallel_region(hidden), table, labels, label_weight,
                                            label_weight != 0 if label_mask is None else label_mask != 0, soft,
                                            torch.is_grad_enabled()))


class _FusedVocabLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, table: torch.Tensor, labels: torch.Tensor, label_weight: torch.Tensor,
                label_mask: torch.Tensor, soft: SoftTarget | None,
                with_grad: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.soft, ctx.is_fresh = soft, True
        wanted = with_grad and any(ctx.needs_input_grad[:2])
        work = _Work(hidden, table, labels, label_weight, label_mask, soft, with_grad=wanted)
        work.run()
        gradients = work.gradients() if wanted else ()
        ctx.save_for_backward(hidden, table, labels, label_weight, label_mask, *gradients)
        ctx.mark_non_differentiable(work.label_rows, work.soft_rows)
        return work.loss, work.label_rows, work.soft_rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, table, labels, label_weight, label_mask, *gradients = ctx.saved_tensors
        if not ctx.is_fresh:  # the first backward pass has used them up
            work = _Work(hidden, table, labels, label_weight, label_mask, ctx.soft, with_grad=True)
            work.run()
            gradients = work.gradients()
        ctx.is_fresh = False
        # .data: scaled in place and handed over, without telling a further pass, which does not read them.
        return *(gradient.data.mul_(grad) for gradient in gradients), None, None, None, None, None


class _Work:
    """One pass over the rows that have a weight."""

    def __init__(self, hidden: torch.Tensor, table: torch.Tensor, labels: torch.Tensor, label_weight: torch.Tensor,
                 label_mask: torch.Tensor, soft: SoftTarget | None, *, with_grad: bool) -> None:
        self.table, self.soft, self.with_grad = table, soft, with_grad
        self.parallel = parallel_state().model_size > 1
        self.dtype = compute_dtype(hidden, table, *((soft.hidden,) if soft else ()))
        wanted = label_mask if soft is None else label_mask | (soft.weight != 0)
        self.kept = wanted.nonzero().squeeze(-1)
        self.all_kept = len(self.kept) == len(hidden)
        self.hidden, self.labels = self._pick(hidden), self._pick(labels)
        self.label_weight, self.label_mask = self._pick(label_weight).to(self.dtype), self._pick(label_mask)
        self.has_labels, self.learns_labels = bool(label_mask.any()), bool((label_weight != 0).any())
        if soft is not None:
            self.teacher_hidden, self.soft_weight = self._pick(soft.hidden), self._pick(soft.weight).to(self.dtype)
        self.label_rows = torch.zeros(len(hidden), dtype=self.dtype, device=hidden.device)
        self.soft_rows = torch.zeros_like(self.label_rows)
        self.loss = self.label_rows.new_zeros(())
        if with_grad:
            self.hidden_gradient = torch.zeros_like(hidden)
            # Many blocks are added up: in at least fp32.
            self.table_gradient = torch.zeros_like(table, dtype=self.dtype)

    def _pick(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.all_kept else x[self.kept]

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of ``hidden`` and ``table``, for a gradient of 1."""
        return self.hidden_gradient, self.table_gradient.to(self.table.dtype)

    def run(self) -> None:
        width = self.table.shape[0]
        size = CPU_BLOCK_BYTES if self.table.device.type == "cpu" else ACCELERATOR_BLOCK_BYTES
        row_bytes = width * (self.hidden.element_size() + (self.soft.hidden.element_size() if self.soft else 0))
        blocks = -(-len(self.hidden) // max(1, size // max(1, row_bytes)))
        step = -(-len(self.hidden) // max(1, blocks))  # blocks of equal size
        logits = self.hidden.new_empty(step, width)
        teacher = self.soft.hidden.new_empty(step, width) if self.soft is not None else None
        for start in range(0, len(self.hidden), max(1, step)):
            rows = slice(start, min(start + step, len(self.hidden)))
            count = rows.stop - start
            self._block(rows, logits[:count], teacher[:count] if teacher is not None else None)

    def _block(self, rows: slice, z: torch.Tensor, t: torch.Tensor | None) -> None:
        torch.mm(self.hidden[rows], self.table.t(), out=z)
        places = rows if self.all_kept else self.kept[rows]
        labels = _LabelTerm(z, self.labels[rows], self.parallel, self.dtype) if self.has_labels else None
        if labels is not None:
            losses = labels.rows.where(self.label_mask[rows], 0.0)
            self.label_rows[places] = losses
            self.loss += torch.dot(losses, self.label_weight[rows])
        soft = None
        if t is not None:
            torch.mm(self.teacher_hidden[rows], self.soft.table.t(), out=t)
            soft = _soft_term(z, t, self.soft, self.parallel, self.dtype)
            losses = soft.rows.where(self.soft_weight[rows] != 0, 0.0)
            self.soft_rows[places] = losses
            self.loss += torch.dot(losses, self.soft_weight[rows])
        if not self.with_grad:
            return
        self._to_gradient(rows, z, t, labels if self.learns_labels else None, soft)
        self.hidden_gradient[places] = torch.mm(z, self.table)
        if z.dtype == self.dtype:
            self.table_gradient.addmm_(z.t(), self.hidden[rows])
        else:
            self.table_gradient += torch.mm(z.t(), self.hidden[rows])

    def _to_gradient(self, rows: slice, z: torch.Tensor, t: torch.Tensor | None, labels: _LabelTerm | None,
                     soft: _SoftmaxTerm | _SquareTerm | None) -> None:
        """The block of logits becomes the gradient of the loss with respect to it."""
        weighted = [] if labels is None else [(labels, labels.weighted(self.label_weight[rows].unsqueeze(-1)))]
        if soft is not None:
            weighted.append((soft, soft.weighted(t, self.soft_weight[rows].unsqueeze(-1))))
        is_direct = z.dtype == self.dtype
        for (first, second, scratch), z_rows, *chunks in scratch_chunks(
                3, self.dtype, z, *(tensor for _, tensors in weighted for tensor in tensors)):
            total = None
            for term, tensors in weighted:
                own, chunks = chunks[:len(tensors)], chunks[len(tensors):]
                if is_direct and not chunks:  # the last term: nothing reads the logits after it
                    out = z_rows
                else:
                    out = first if total is None else second
                gradient = term.gradient(out, scratch, z_rows, *own)
                total = gradient if total is None else gradient.add_(total)
            if not is_direct:
                z_rows.copy_(total)


class _LabelTerm:
    """Cross entropy with labels of a block of logits."""

    def __init__(self, z: torch.Tensor, labels: torch.Tensor, parallel: bool, dtype: torch.dtype) -> None:
        self.sums = HardLabelSums(z, labels, parallel)
        self.sums.read(z)
        self.rows = self.sums.finish(z).to(dtype)

    def weighted(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What :meth:`gradient` needs of each row; ``weight`` is [n, 1]."""
        softmax = self.sums.softmax
        return softmax.offset, softmax.factor * weight, self.sums.column, -weight * self.sums.owned

    def gradient(self, out: torch.Tensor, _: torch.Tensor, z: torch.Tensor, *of_rows: torch.Tensor) -> torch.Tensor:
        return label_gradient(out, z, *of_rows)


class _SoftmaxTerm:
    """KL or soft cross entropy of a block of logits of both sides."""

    def __init__(self, z: torch.Tensor, t: torch.Tensor, soft: SoftTarget, parallel: bool, dtype: torch.dtype) -> None:
        self.temperature = soft.temperature
        self.sums = SoftLabelSums(z, t, soft.temperature, soft.kind == "kl")
        self.sums.read(z, t)
        self.rows = self.sums.finish(parallel).squeeze(-1).to(dtype)

    def weighted(self, t: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        p, q, weight = self.sums.student, self.sums.teacher, weight / self.temperature
        return t, p.offset, p.factor * weight, q.offset, q.factor * weight

    def gradient(self, out: torch.Tensor, q: torch.Tensor, z: torch.Tensor, t: torch.Tensor, p_offset: torch.Tensor,
                 p_factor: torch.Tensor, q_offset: torch.Tensor, q_factor: torch.Tensor) -> torch.Tensor:
        return soft_label_gradient(out, q, z, t, self.temperature, p_offset, p_factor, q_offset, q_factor)


class _SquareTerm:
    """Sum of squared differences of a block of logits of both sides."""

    def __init__(self, z: torch.Tensor, t: torch.Tensor, parallel: bool, dtype: torch.dtype) -> None:
        self.rows = torch.empty(len(z), dtype=dtype, device=z.device)
        for (x,), z_rows, t_rows, rows in scratch_chunks(1, dtype, z, t, self.rows):
            torch.linalg.vector_norm(difference(z_rows, t_rows, 1.0, x), dim=-1, out=rows)
        self.rows = summed(self.rows.square_(), parallel)

    def weighted(self, t: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return t, 2.0 * weight

    def gradient(self, out: torch.Tensor, _: torch.Tensor, z: torch.Tensor, t: torch.Tensor,
                 weight: torch.Tensor) -> torch.Tensor:
        return difference(z, t, 1.0, out).mul_(weight)


def _soft_term(z: torch.Tensor, t: torch.Tensor, soft: SoftTarget, parallel: bool,
               dtype: torch.dtype) -> _SoftmaxTerm | _SquareTerm:
    return _SquareTerm(z, t, parallel, dtype) if soft.kind == "mse" else _SoftmaxTerm(z, t, soft, parallel, dtype)
