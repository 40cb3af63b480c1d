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
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from model.parallel.groups import parallel_state
from model.parallel.mappings import all_reduce

#: Elements of one chunk of rows: for each CPU thread 512 KiB in float32, so that a chunk stays in the core's cache
#: through all its passes (a fifth to a half less time than 4 MiB); 64 MiB on an accelerator, where a small kernel
#: costs its launch.
CPU_CHUNK_ELEMENTS = 1 << 17
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype losses compute in: at least float32; float64 stays float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def row_chunks(x: torch.Tensor) -> Iterator[slice]:
    """Slices over the rows of [n, v] so that one chunk has at most so many elements (or one row)."""
    rows, step = x.shape[0], _chunk_rows(x)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _chunk_rows(x: torch.Tensor) -> int:
    elements = (CPU_CHUNK_ELEMENTS * torch.get_num_threads() if x.device.type == "cpu"
                else ACCELERATOR_CHUNK_ELEMENTS)
    return max(1, elements // max(1, x.shape[-1]))


def scratch_chunks(x: torch.Tensor, count: int,
                   dtype: torch.dtype) -> Iterator[tuple[slice, *tuple[torch.Tensor, ...]]]:
    """:func:`row_chunks`, each with ``count`` tensors of its size to work in: the same memory every time."""
    step = min(x.shape[0], _chunk_rows(x))
    buffers = torch.empty((count, step, x.shape[-1]), dtype=dtype, device=x.device).unbind()
    for rows in row_chunks(x):
        yield rows, *(buffers if rows.stop - rows.start == step else (
            buffer[:rows.stop - rows.start] for buffer in buffers))


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., v] -> [n, v], a view where the layout allows it."""
    return x.reshape(-1, x.shape[-1])


def global_width(local_width: int, parallel: bool, device: torch.device | str = "cpu") -> int:
    """Number of entries of a row over all ranks."""
    if not parallel or parallel_state().model_size == 1:
        return local_width
    return int(all_reduce(torch.tensor([local_width], device=device)).item())


class SoftmaxSums:
    """What a softmax over a cut vocabulary needs to know of each row on this rank, collected chunk by chunk.

    Attributes:
        shift: [n], the largest ``z / tau`` of the slice.
        total: [n], ``sum exp(z / tau - shift)``.
        factor: [n], ``exp(shift) / Z``: the probabilities are ``factor exp(z / tau - shift)``. None before
            :meth:`finish`.
    """

    def __init__(self, logits: torch.Tensor, temperature: float, dtype: torch.dtype) -> None:
        self.temperature = temperature
        self.shift = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
        self.total = torch.empty_like(self.shift)
        self.factor: torch.Tensor | None = None

    def centre(self, logits: torch.Tensor, rows: slice, out: torch.Tensor) -> None:
        """Put ``z / tau - shift`` of a chunk into ``out``, which may be the chunk itself."""
        if logits.dtype != out.dtype:
            logits = out.copy_(logits)
        shift = torch.amax(logits, dim=-1, out=self.shift[rows]).mul_(1.0 / self.temperature)
        shift.nan_to_num_(nan=float("nan"), neginf=0.0)  # a slice may hold nothing but minus infinity
        centred(logits, shift, self.temperature, out)

    def finish(self, parallel: bool) -> torch.Tensor:
        """Set ``factor``; returns ``log Z`` of each row over all ranks, [n] float64."""
        shift = self.shift.double()
        highest = all_reduce(shift, dist.ReduceOp.MAX) if parallel else shift
        log_z = highest + summed(self.total * torch.exp(shift - highest), parallel).log()
        self.factor = torch.exp(shift - log_z).to(self.shift.dtype)
        return log_z


def centred(logits: torch.Tensor, shift: torch.Tensor, temperature: float, out: torch.Tensor) -> torch.Tensor:
    """``z / tau - shift`` of a chunk, in ``out``."""
    if logits.dtype != out.dtype:
        logits = out.copy_(logits)
    return torch.add(-shift.unsqueeze(-1), logits, alpha=1.0 / temperature, out=out)


def summed(rows: torch.Tensor, parallel: bool) -> torch.Tensor:
    """Sums of this rank, added up over the ranks of a cut vocabulary."""
    return all_reduce(rows) if parallel else rows


def _weighted(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``q x`` in ``x``, zero where ``q`` is zero and ``x`` infinite: what has no probability adds nothing."""
    return x.mul_(q).nan_to_num_(nan=0.0, posinf=float("inf"), neginf=float("-inf"))


def _weighted_sum(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sums of ``q x`` over the last axis, [..., v] -> [...]; ``x`` may be edited. On a CPU a dot product reads both
    once, and the careful way is taken only where an infinity came up; on an accelerator to ask would be to wait."""
    if q.device.type == "cpu":
        total = torch.linalg.vecdot(q, x)
        if math.isfinite(total.sum().item()):
            return total
    return _weighted(q, x).sum(dim=-1)


def _is_cut(parallel: bool) -> bool:
    return parallel and parallel_state().model_size > 1


class EarlyGradient:
    """The gradient of the logits, formed in the forward pass while a chunk and its exponentials are in the cache.

    It lacks the weight of each row, which the backward pass knows. It goes through ``save_for_backward``, so that
    activation checkpointing drops it; the first backward pass multiplies it in place and hands it over, a further one
    forms the gradient anew. In half precision it is not kept, because it would be rounded twice; nor over a cut
    vocabulary, where the sums of the other ranks are needed first.
    """

    @staticmethod
    def of(ctx: Any, logits: torch.Tensor, dtype: torch.dtype, *, wanted: bool, parallel: bool) -> torch.Tensor | None:
        ctx.early_is_left = wanted and ctx.needs_input_grad[0] and logits.dtype == dtype and not _is_cut(parallel)
        return torch.empty_like(logits, memory_format=torch.contiguous_format) if ctx.early_is_left else None

    @staticmethod
    def take(ctx: Any, early: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor | None:
        """The gradient, or None where it has to be formed now."""
        if early is None or not ctx.early_is_left:
            return None
        ctx.early_is_left = False
        return early.data.mul_(weight.unsqueeze(-1))  # not detach(): a further pass may still unpack it


def _fill_gradient(like: torch.Tensor, weight: torch.Tensor, count: int,
                   chunk_gradient: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The gradient of a [n, v/p] tensor, computed chunk by chunk straight into a tensor of its own dtype.

    ``chunk_gradient(rows, *scratch)`` gets ``count`` tensors to work in, and returns a chunk of the gradient that
    still has to be multiplied by the ``weight`` [n] of its rows.
    """
    gradient = torch.empty_like(like, memory_format=torch.contiguous_format)
    weight = weight.unsqueeze(-1)
    for rows, *scratch in scratch_chunks(like, count, weight.dtype):
        torch.mul(chunk_gradient(rows, *scratch), weight[rows], out=gradient[rows])
    return gradient


class SoftLabelSums:
    """Collects, chunk by chunk, what a loss between two softmaxes needs of each row.

    With ``s' = s / tau - shift_s`` and ``t'`` likewise, ``e = exp(t')``: the sums of ``exp(s')``, of ``e``, and of
    ``e (t' - s')`` (KL) or ``- e s'`` (CE). One pass over the logits gives value and normalisers.
    """

    def __init__(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float, is_kl: bool) -> None:
        dtype = compute_dtype(student, teacher)
        self.student = SoftmaxSums(student, temperature, dtype)
        self.teacher = SoftmaxSums(teacher, temperature, dtype)
        self.is_kl = is_kl
        self.product = torch.empty_like(self.student.shift)

    def add(self, student: torch.Tensor, teacher: torch.Tensor, rows: slice, s: torch.Tensor, t: torch.Tensor,
            e: torch.Tensor) -> None:
        """Read a chunk of both logits; ``s, t, e`` are tensors of its size to work in. At the end ``s`` holds
        ``exp(s')`` and ``e`` holds ``exp(t')``."""
        self.student.centre(student, rows, s)
        self.teacher.centre(teacher, rows, t)
        torch.exp(t, out=e)
        torch.sum(e, dim=-1, out=self.teacher.total[rows])
        difference = t.sub_(s) if self.is_kl else torch.neg(s, out=t)
        self.product[rows] = _weighted_sum(e, difference)
        torch.sum(s.exp_(), dim=-1, out=self.student.total[rows])

    def finish(self, parallel: bool) -> torch.Tensor:
        """The loss, [n] float64, equal on all ranks; the factors of both softmaxes are set."""
        s, t = self.student, self.teacher
        log_zs, log_zt = s.finish(parallel), t.finish(parallel)
        shift = t.shift.double() - s.shift if self.is_kl else -s.shift.double()
        loss = summed(torch.exp(t.shift - log_zt) * (self.product + t.total * shift), parallel) + log_zs
        return loss - log_zt if self.is_kl else loss


def probability_difference(p: torch.Tensor, q: torch.Tensor, p_factor: torch.Tensor, q_factor: torch.Tensor,
                            out: torch.Tensor) -> torch.Tensor:
    """Student minus teacher probabilities of a chunk, from exponentials and their factors, in ``out``."""
    return torch.mul(p, p_factor.unsqueeze(-1), out=out).addcmul_(q, q_factor.unsqueeze(-1), value=-1.0)


class _SoftLabels(torch.autograd.Function):
    """Row losses between student and teacher logits, [n, v/p] x 2 -> [n]: KL, or cross entropy."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float, is_kl: bool,
                parallel: bool, with_grad: bool) -> torch.Tensor:
        dtype = compute_dtype(student, teacher)
        early = EarlyGradient.of(ctx, student, dtype, wanted=with_grad, parallel=parallel)
        sums = SoftLabelSums(student, teacher, temperature, is_kl)
        for rows, s, t, e in scratch_chunks(student, 3, dtype):
            sums.add(student[rows], teacher[rows], rows, s, t, e)
            if early is not None:
                probability_difference(s, e, sums.student.total[rows].reciprocal(),
                                        sums.teacher.total[rows].reciprocal(), early[rows])
        loss = sums.finish(parallel).to(dtype)
        if early is not None:  # what a further backward pass has to repeat
            sums.student.factor, sums.teacher.factor = sums.student.total.reciprocal(), sums.teacher.total.reciprocal()
        ctx.save_for_backward(student, teacher, sums.student.shift, sums.student.factor, sums.teacher.shift,
                              sums.teacher.factor, loss, early)
        ctx.temperature, ctx.is_kl = temperature, is_kl
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher, s_shift, s_factor, t_shift, t_factor, loss, early = ctx.saved_tensors
        weight = grad / ctx.temperature

        def student_chunk(rows: slice, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            centred(student[rows], s_shift[rows], ctx.temperature, s).exp_()
            centred(teacher[rows], t_shift[rows], ctx.temperature, t).exp_()
            return probability_difference(s, t, s_factor[rows], t_factor[rows], s)

        def teacher_chunk(rows: slice, s: torch.Tensor, t: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
            log_p = centred(student[rows], s_shift[rows], ctx.temperature, s).add_(s_factor[rows].log().unsqueeze(-1))
            log_q = centred(teacher[rows], t_shift[rows], ctx.temperature, t).add_(t_factor[rows].log().unsqueeze(-1))
            torch.exp(log_q, out=q)
            surprise = log_q.sub_(log_p) if ctx.is_kl else torch.neg(log_p, out=t)
            return _weighted(q, surprise.sub_(loss[rows].unsqueeze(-1)))

        s_grad = t_grad = None
        if ctx.needs_input_grad[0]:
            s_grad = EarlyGradient.take(ctx, early, weight)
            s_grad = _fill_gradient(student, weight, 2, student_chunk) if s_grad is None else s_grad
        if ctx.needs_input_grad[1]:
            t_grad = _fill_gradient(teacher, weight, 3, teacher_chunk)
        return s_grad, t_grad, None, None, None, None


class _HardLabels(torch.autograd.Function):
    """Cross entropy with the id of the right token, [n, v/p], [n] -> [n]."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, parallel: bool, with_grad: bool) -> torch.Tensor:
        dtype = compute_dtype(logits)
        early = EarlyGradient.of(ctx, logits, dtype, wanted=with_grad, parallel=parallel)
        sums = SoftmaxSums(logits, 1.0, dtype)
        column, owned = own_columns(target, logits.shape[-1], parallel)
        for rows, z in scratch_chunks(logits, 1, dtype):
            sums.centre(logits[rows], rows, z)
            torch.sum(z.exp_(), dim=-1, out=sums.total[rows])
            if early is not None:
                torch.mul(z, sums.total[rows].reciprocal().unsqueeze(-1), out=early[rows])
                _subtract_label(early[rows], column[rows], owned[rows])
        log_z = sums.finish(parallel)
        if early is not None:
            sums.factor = sums.total.reciprocal()
        picked = logits.gather(-1, column.unsqueeze(-1)).squeeze(-1).double().masked_fill(~owned, 0.0)
        ctx.save_for_backward(logits, sums.shift, sums.factor, column, owned, early)
        return (log_z - summed(picked, parallel)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, shift, factor, column, owned, early = ctx.saved_tensors

        def chunk(rows: slice, p: torch.Tensor) -> torch.Tensor:
            centred(logits[rows], shift[rows], 1.0, p).exp_().mul_(factor[rows].unsqueeze(-1))
            return _subtract_label(p, column[rows], owned[rows])

        gradient = EarlyGradient.take(ctx, early, grad)
        return _fill_gradient(logits, grad, 1, chunk) if gradient is None else gradient, None, None, None


def own_columns(target: torch.Tensor, width: int, parallel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of the labels [n] in this rank's slice of equal width, and whether they lie in it (0 where not)."""
    first = parallel_state().model_rank * width if parallel else 0
    owned = (target >= first) & (target < first + width)
    return (target - first).masked_fill(~owned, 0), owned


def _subtract_label(p: torch.Tensor, column: torch.Tensor, owned: torch.Tensor) -> torch.Tensor:
    return p.scatter_add_(-1, column.unsqueeze(-1), -owned.to(p.dtype).unsqueeze(-1))


class _Entropy(torch.autograd.Function):
    """Entropy of the softmax of each row, [n, v/p] -> [n]."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, temperature: float, parallel: bool) -> torch.Tensor:
        dtype = compute_dtype(logits)
        sums = SoftmaxSums(logits, temperature, dtype)
        product = torch.empty_like(sums.shift)
        for rows, z, e in scratch_chunks(logits, 2, dtype):
            sums.centre(logits[rows], rows, z)
            torch.sum(torch.exp(z, out=e), dim=-1, out=sums.total[rows])
            product[rows] = _weighted_sum(e, z)
        log_z = sums.finish(parallel)
        shift = sums.shift.double()
        entropy = (log_z - summed(torch.exp(shift - log_z) * (product + sums.total * shift), parallel)).to(dtype)
        ctx.save_for_backward(logits, sums.shift, sums.factor, entropy)
        ctx.temperature = temperature
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, shift, factor, entropy = ctx.saved_tensors

        def chunk(rows: slice, z: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            log_p = centred(logits[rows], shift[rows], ctx.temperature, z).add_(factor[rows].log().unsqueeze(-1))
            torch.exp(log_p, out=p)
            return _weighted(p, log_p.add_(entropy[rows].unsqueeze(-1)))

        return _fill_gradient(logits, -grad / ctx.temperature, 2, chunk), None, None


class _SquaredError(torch.autograd.Function):
    """Sum of squared differences of each row, ``sum (s - w t)^2``, [n, v/p] x 2 -> [n]."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, teacher_weight: float,
                parallel: bool, with_grad: bool) -> torch.Tensor:
        dtype, ctx.teacher_weight = compute_dtype(student, teacher), teacher_weight
        early = EarlyGradient.of(ctx, student, dtype, wanted=with_grad, parallel=False)  # no other rank is needed
        loss = torch.empty(student.shape[0], dtype=dtype, device=student.device)
        for rows, d in scratch_chunks(student, 1, dtype):
            difference = _difference(student[rows], teacher[rows], teacher_weight, d if early is None else early[rows])
            loss[rows] = torch.linalg.vecdot(difference, difference)
        ctx.save_for_backward(student, teacher, early)
        return summed(loss, parallel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher, early = ctx.saved_tensors

        def difference(rows: slice, d: torch.Tensor) -> torch.Tensor:
            return _difference(student[rows], teacher[rows], ctx.teacher_weight, d)

        s_grad = t_grad = None
        if ctx.needs_input_grad[0]:
            s_grad = EarlyGradient.take(ctx, early, 2.0 * grad)
            s_grad = _fill_gradient(student, 2.0 * grad, 1, difference) if s_grad is None else s_grad
        if ctx.needs_input_grad[1]:
            t_grad = _fill_gradient(teacher, -2.0 * ctx.teacher_weight * grad, 1, difference)
        return s_grad, t_grad, None, None, None


def _difference(student: torch.Tensor, teacher: torch.Tensor, teacher_weight: float, out: torch.Tensor) -> torch.Tensor:
    """``s - w t`` of a chunk, in ``out``."""
    if student.dtype != out.dtype:
        student = out.copy_(student)
    return torch.sub(student, teacher, alpha=teacher_weight, out=out)


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
