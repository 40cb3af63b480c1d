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
from model.parallel.vocab_log_prob import (
    SoftLabelSums,
    SoftmaxSums,
    centred,
    compute_dtype,
    own_columns,
    probability_difference,
    scratch_chunks,
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
        label_weight = self.label_weight[rows]
        soft_weight = self.soft_weight[rows] if soft is not None else None
        for part, total, first, second in scratch_chunks(z, 3, self.dtype):
            total.zero_()
            if labels is not None:
                total.add_(labels.gradient(part, z[part], first).mul_(label_weight[part].unsqueeze(-1)))
            if soft is not None:
                total.add_(soft.gradient(part, z[part], t[part], first, second).mul_(soft_weight[part].unsqueeze(-1)))
            z[part] = total


class _LabelTerm:
    """Cross entropy with labels of a block of logits."""

    def __init__(self, z: torch.Tensor, labels: torch.Tensor, parallel: bool, dtype: torch.dtype) -> None:
        self.sums = SoftmaxSums(z, 1.0, dtype)
        for part, x in scratch_chunks(z, 1, dtype):
            self.sums.centre(z[part], part, x)
            torch.sum(x.exp_(), dim=-1, out=self.sums.total[part])
        log_z = self.sums.finish(parallel)
        self.column, self.owned = own_columns(labels, z.shape[-1], parallel)
        picked = z.gather(-1, self.column.unsqueeze(-1)).squeeze(-1).double().masked_fill(~self.owned, 0.0)
        self.rows = (log_z - summed(picked, parallel)).to(dtype)

    def gradient(self, part: slice, z: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        centred(z, self.sums.shift[part], 1.0, out).exp_().mul_(self.sums.factor[part].unsqueeze(-1))
        return out.scatter_add_(-1, self.column[part].unsqueeze(-1), -self.owned[part].to(out.dtype).unsqueeze(-1))


class _SoftmaxTerm:
    """KL or soft cross entropy of a block of logits of both sides."""

    def __init__(self, z: torch.Tensor, t: torch.Tensor, soft: SoftTarget, parallel: bool, dtype: torch.dtype) -> None:
        self.temperature = soft.temperature
        self.sums = SoftLabelSums(z, t, soft.temperature, soft.kind == "kl")
        for part, *scratch in scratch_chunks(z, 3, dtype):
            self.sums.add(z[part], t[part], part, *scratch)
        self.rows = self.sums.finish(parallel).to(dtype)

    def gradient(self, part: slice, z: torch.Tensor, t: torch.Tensor, out: torch.Tensor,
                 q: torch.Tensor) -> torch.Tensor:
        p_sums, q_sums = self.sums.student, self.sums.teacher
        centred(z, p_sums.shift[part], self.temperature, out).exp_()
        centred(t, q_sums.shift[part], self.temperature, q).exp_()
        difference = probability_difference(out, q, p_sums.factor[part], q_sums.factor[part], out)
        return difference.div_(self.temperature)


class _SquareTerm:
    """Sum of squared differences of a block of logits of both sides."""

    def __init__(self, z: torch.Tensor, t: torch.Tensor, parallel: bool, dtype: torch.dtype) -> None:
        self.rows = torch.empty(len(z), dtype=dtype, device=z.device)
        for part, x in scratch_chunks(z, 1, dtype):
            torch.sum(x.copy_(z[part]).sub_(t[part]).square_(), dim=-1, out=self.rows[part])
        self.rows = summed(self.rows, parallel)

    def gradient(self, part: slice, z: torch.Tensor, t: torch.Tensor, out: torch.Tensor,
                 _: torch.Tensor) -> torch.Tensor:
        return out.copy_(z).sub_(t).mul_(2.0)


def _soft_term(z: torch.Tensor, t: torch.Tensor, soft: SoftTarget, parallel: bool,
               dtype: torch.dtype) -> _SoftmaxTerm | _SquareTerm:
    return _SquareTerm(z, t, parallel, dtype) if soft.kind == "mse" else _SoftmaxTerm(z, t, soft, parallel, dtype)
