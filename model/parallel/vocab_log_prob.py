"""``log p`` over a vocabulary that may be cut over the model-parallel ranks, and every divergence built on it.

With ``z`` this rank's slice of a row of logits and ``tau`` the temperature:

    log Z = log sum exp(z / tau)  over all ranks,     log p = z / tau - log Z

One number per row, ``log Z``, is all that the backward pass needs; it recomputes the probabilities from the logits,
chunk by chunk. So nothing of the size of the logits is kept or built, except the gradient itself; the inputs are never
edited; a second backward pass gives the same values; and unequal slices are as good as equal ones.

Gradients of the local slices (``p`` student, ``q`` teacher probabilities, ``g`` gradient of the row's loss):

    ========================  =====================  =====================================
    row loss                  student                teacher (only if it requires grad)
    ========================  =====================  =====================================
    KL  = sum q (log q-log p)  g (p - q) / tau        g q ((log q - log p) - KL) / tau
    CE  = - sum q log p        g (p - q) / tau        g q (- log p - CE) / tau
    Ent = - sum p log p        g p (- log p - Ent) / tau
    CE with a hard label       g (p - onehot) / tau
    ========================  =====================  =====================================

Where a teacher probability is exactly zero it contributes nothing, even if the student's is zero as well.

Legend: ``n`` rows (all axes but the last), ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from model.parallel.gradient_memory import gradient_like
from model.parallel.groups import parallel_state
from model.parallel.mappings import all_reduce
from model.parallel.row_chunks import as_rows, compute_dtype, given, scratch_chunks
from model.parallel.softmax_sums import (
    HardLabelSums,
    SoftLabelSums,
    SoftmaxSums,
    centre,
    centred,
    difference,
    expected,
    label_gradient,
    soft_label_gradient,
    summed,
    weighted_sum,
    without_undefined,
)


def global_width(local_width: int, parallel: bool, device: torch.device | str = "cpu") -> int:
    """Number of entries of a row over all ranks."""
    if not parallel or parallel_state().model_size == 1:
        return local_width
    return int(all_reduce(torch.tensor([local_width], device=device)).item())


def _is_cut(parallel: bool) -> bool:
    return parallel and parallel_state().model_size > 1


def _undefined_like(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weights of rows [n, 1], NaN where the loss is: so is then the row's gradient."""
    return weight.masked_fill(loss.isnan(), math.nan)


class EarlyGradient:
    """The gradient of the logits, formed in the forward pass while a chunk and its exponentials are in the cache.

    It lacks the weight of each row, which the backward pass knows. It goes through ``save_for_backward``, so that
    activation checkpointing drops it; the first backward pass multiplies it in place and hands it over, a further one
    forms the gradient anew. A gradient that would be rounded twice in half precision is not kept; nor one over a cut
    vocabulary that needs the sums of the other ranks first.
    """

    @staticmethod
    def of(ctx: Any, logits: torch.Tensor, dtype: torch.dtype, *, wanted: bool, parallel: bool) -> torch.Tensor | None:
        ctx.early_is_left = wanted and ctx.needs_input_grad[0] and logits.dtype == dtype and not _is_cut(parallel)
        return gradient_like(logits) if ctx.early_is_left else None

    @staticmethod
    def take(ctx: Any, early: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor | None:
        """The gradient times ``weight`` [n, 1], or None where it has to be formed now."""
        if early is None or not ctx.early_is_left:
            return None
        ctx.early_is_left = False
        return early.data.mul_(weight)  # not detach(): a further pass may still unpack it


def _fill_gradient(like: torch.Tensor, dtype: torch.dtype, count: int, chunk_gradient: Callable[..., torch.Tensor],
                   *tensors: torch.Tensor) -> torch.Tensor:
    """The gradient of a [n, v/p] tensor, computed chunk by chunk in ``dtype``, straight into a tensor of its own dtype.

    ``chunk_gradient(out, *scratch, *chunks)`` fills and returns ``out``; it gets ``count`` tensors to work in, and the
    chunk's rows of the ``tensors``.
    """
    gradient = gradient_like(like)
    is_direct = gradient.dtype == dtype
    for scratch, out, *chunks in scratch_chunks(count if is_direct else count + 1, dtype, gradient, *tensors):
        if is_direct:
            chunk_gradient(out, *scratch, *chunks)
        else:
            out.copy_(chunk_gradient(*scratch, *chunks))
    return gradient


class _SoftLabels(torch.autograd.Function):
    """Row losses between student and teacher logits, [n, v/p] x 2 -> [n]: KL, or cross entropy."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float, is_kl: bool,
                parallel: bool, with_grad: bool) -> torch.Tensor:
        sums = SoftLabelSums(student, teacher, temperature, is_kl)
        early = EarlyGradient.of(ctx, student, sums.dtype, wanted=with_grad, parallel=parallel)
        sums.read(student, teacher, early)
        loss = sums.finish(parallel).to(sums.dtype)
        p, q = sums.student, sums.teacher
        if early is not None:  # what a further backward pass has to repeat
            p.factor, q.factor = p.total.reciprocal(), q.total.reciprocal()
        ctx.save_for_backward(student, teacher, p.offset, p.factor, p.log_factor.to(sums.dtype), q.offset, q.factor,
                              q.log_factor.to(sums.dtype), loss, early)
        ctx.temperature, ctx.is_kl = temperature, is_kl
        return loss.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher, s_offset, s_factor, s_log, t_offset, t_factor, t_log, loss, early = ctx.saved_tensors
        weight, tau = _undefined_like(loss, grad.unsqueeze(-1) / ctx.temperature), ctx.temperature

        def student_chunk(out: torch.Tensor, q: torch.Tensor, s: torch.Tensor, t: torch.Tensor, s_offset: torch.Tensor,
                          s_factor: torch.Tensor, t_offset: torch.Tensor, t_factor: torch.Tensor,
                          weight: torch.Tensor) -> torch.Tensor:
            # Multiplied at the end, as an early gradient is: a further backward pass gives the same bits.
            return soft_label_gradient(out, q, s, t, tau, s_offset, s_factor, t_offset, t_factor).mul_(weight)

        def teacher_chunk(out: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor, s: torch.Tensor, t: torch.Tensor,
                          s_offset: torch.Tensor, s_log: torch.Tensor, t_offset: torch.Tensor, t_log: torch.Tensor,
                          loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            centred(s, s_offset, tau, log_p).add_(s_log)
            torch.exp(centred(t, t_offset, tau, log_q).add_(t_log), out=out)
            surprise = log_q.sub_(log_p) if ctx.is_kl else log_p.neg_()
            return without_undefined(out.mul_(surprise.sub_(loss))).mul_(weight)

        s_grad = t_grad = None
        if ctx.needs_input_grad[0]:
            s_grad = EarlyGradient.take(ctx, early, weight)
            if s_grad is None:
                s_grad = _fill_gradient(student, weight.dtype, 1, student_chunk, student, teacher, s_offset,
                                        s_factor, t_offset, t_factor, weight)
        if ctx.needs_input_grad[1]:
            t_grad = _fill_gradient(teacher, weight.dtype, 2, teacher_chunk, student, teacher, s_offset, s_log,
                                    t_offset, t_log, loss, weight)
        return s_grad, t_grad, None, None, None, None


class _HardLabels(torch.autograd.Function):
    """Cross entropy with the id of the right token, [n, v/p], [n] -> [n]."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, parallel: bool, with_grad: bool) -> torch.Tensor:
        sums = HardLabelSums(logits, target, parallel)
        # Exponentials only: their factor is multiplied with the weight of the row in the backward pass.
        early = EarlyGradient.of(ctx, logits, sums.dtype, wanted=with_grad, parallel=parallel)
        sums.read(logits, early)
        loss = sums.finish(logits).to(sums.dtype)
        ctx.save_for_backward(logits, sums.softmax.offset, sums.softmax.factor, sums.column, sums.owned, early)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, offset, factor, column, owned, early = ctx.saved_tensors
        weight = grad.unsqueeze(-1)
        of_label = -weight * owned
        gradient = EarlyGradient.take(ctx, early, factor * weight)
        if gradient is not None:
            gradient.scatter_add_(-1, column, of_label)
        else:
            gradient = _fill_gradient(logits, weight.dtype, 0, label_gradient, logits, offset, factor * weight, column,
                                      of_label)
        return gradient, None, None, None


class _Entropy(torch.autograd.Function):
    """Entropy of the softmax of each row, [n, v/p] -> [n]."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, temperature: float, parallel: bool) -> torch.Tensor:
        dtype = compute_dtype(logits)
        sums = SoftmaxSums(logits, dtype)
        product = torch.empty_like(sums.offset)
        for (x, e), z, offset, total, weighted in scratch_chunks(2, dtype, logits, sums.offset, sums.total, product):
            centre(z, temperature, offset, x)
            torch.sum(torch.exp(x, out=e), dim=-1, keepdim=True, out=total)
            weighted_sum(e, x, weighted)
        sums.finish(parallel)
        entropy = -expected(sums.log_factor, product + sums.total * sums.log_factor, parallel).to(dtype)
        ctx.save_for_backward(logits, sums.offset, sums.log_factor.to(dtype), entropy)
        ctx.temperature = temperature
        return entropy.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, offset, log_factor, entropy = ctx.saved_tensors
        weight = _undefined_like(entropy, -grad.unsqueeze(-1) / ctx.temperature)

        def chunk(out: torch.Tensor, log_p: torch.Tensor, z: torch.Tensor, offset: torch.Tensor,
                  log_factor: torch.Tensor, entropy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            torch.exp(centred(z, offset, ctx.temperature, log_p).add_(log_factor), out=out)
            return without_undefined(out.mul_(log_p.add_(entropy))).mul_(weight)

        gradient = _fill_gradient(logits, weight.dtype, 1, chunk, logits, offset, log_factor, entropy, weight)
        return gradient, None, None


class _SquaredError(torch.autograd.Function):
    """Sum of squared differences of each row, ``sum (s - w t)^2``, [n, v/p] x 2 -> [n]."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, teacher_weight: float,
                parallel: bool, with_grad: bool) -> torch.Tensor:
        dtype, ctx.teacher_weight = compute_dtype(student, teacher), teacher_weight
        early = EarlyGradient.of(ctx, student, dtype, wanted=with_grad, parallel=False)  # no other rank is needed
        loss = torch.empty(student.shape[0], dtype=dtype, device=student.device)
        for scratch, s, t, norm, *out in scratch_chunks(int(early is None), dtype, student, teacher, loss,
                                                        *given(early)):
            # A norm reads its argument once, where products are written down first.
            torch.linalg.vector_norm(difference(s, t, teacher_weight, *(out or scratch)), dim=-1, out=norm)
        ctx.save_for_backward(student, teacher, early)
        return summed(loss.square_(), parallel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher, early = ctx.saved_tensors
        weight = 2.0 * grad.unsqueeze(-1)

        def chunk(out: torch.Tensor, s: torch.Tensor, t: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return difference(s, t, ctx.teacher_weight, out).mul_(weight)

        s_grad = t_grad = None
        if ctx.needs_input_grad[0]:
            s_grad = EarlyGradient.take(ctx, early, weight)
            if s_grad is None:
                s_grad = _fill_gradient(student, weight.dtype, 0, chunk, student, teacher, weight)
        if ctx.needs_input_grad[1]:
            t_grad = _fill_gradient(teacher, weight.dtype, 0, chunk, student, teacher, -ctx.teacher_weight * weight)
        return s_grad, t_grad, None, None, None


def _check_shapes(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} tensors differ in shape; "
                         "a loss between them needs equal vocabularies, classes, heads or widths")


def soft_label_rows(student: torch.Tensor, teacher: torch.Tensor, *, kind: str, temperature: float = 1.0,
                    parallel: bool = False) -> torch.Tensor:
    """KL(teacher || student) (``kind="kl"``) or cross entropy (``kind="ce"``) of the softmaxes over the last axis.

    Args:
        student, teacher: logits of equal shape [..., v], or this rank's slices [..., v/p] with ``parallel``.
        temperature: divides both logits; the result is not multiplied by its square.
        parallel: the last axis is cut over the model-parallel ranks.

    Returns:
        [...] one loss per row in at least float32, equal on all ranks. Raises ValueError for unequal shapes.
    """
    _check_shapes(student, teacher)
    if kind not in ("kl", "ce"):
        raise ValueError(f"kind must be 'kl' or 'ce', not {kind!r}")
    rows = _SoftLabels.apply(as_rows(student), as_rows(teacher), float(temperature), kind == "kl", parallel,
                             torch.is_grad_enabled())
    return rows.view(student.shape[:-1])


def hard_label_rows(logits: torch.Tensor, target: torch.Tensor, *, parallel: bool = False) -> torch.Tensor:
    """Cross entropy of each row with the right id: [..., v/p] and [...] int64 (global ids) -> [...]."""
    return _HardLabels.apply(as_rows(logits), target.reshape(-1), parallel, torch.is_grad_enabled()).view(target.shape)


def entropy_rows(logits: torch.Tensor, *, temperature: float = 1.0, parallel: bool = False) -> torch.Tensor:
    """Entropy (nats) of the softmax over the last axis: [..., v/p] -> [...]."""
    return _Entropy.apply(as_rows(logits), float(temperature), parallel).view(logits.shape[:-1])


def squared_error_rows(student: torch.Tensor, teacher: torch.Tensor, *, teacher_weight: float = 1.0,
                       parallel: bool = False) -> torch.Tensor:
    """``sum (student - teacher_weight * teacher)^2`` over the last axis: [..., v/p] x 2 -> [...]."""
    _check_shapes(student, teacher)
    rows = _SquaredError.apply(as_rows(student), as_rows(teacher), float(teacher_weight), parallel,
                               torch.is_grad_enabled())
    return rows.view(student.shape[:-1])
