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

from model.parallel.gradient_memory import gradient_like
from model.parallel.groups import parallel_state
from model.parallel.mappings import all_reduce

#: Elements of one chunk of rows: for each CPU thread 512 KiB in float32, so that a chunk stays in the core's cache
#: through all its passes (a fifth to a half less time than 4 MiB); 64 MiB on an accelerator, where a small kernel
#: costs its launch.
CPU_CHUNK_ELEMENTS = 1 << 17
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24
#: Sums of exponentials between these need no offset: nothing in them overflows, what underflows is below 1e-26 of the
#: largest, and their inverse times the weight of a row stays a normal number.
SMALLEST_SUM, LARGEST_SUM = 2.0 ** -20, 2.0 ** 60


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype losses compute in: at least float32; float64 stays float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def row_chunks(x: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same rows of ``x`` [n, v] and of the others [n, ...], as views, so that a chunk of ``x`` has at most so many
    elements (or one row). Cut up beforehand: an index at each use would cost as much as the arithmetic."""
    if x.shape[0] == 0:  # which split() makes one chunk of
        return iter(())
    step = _chunk_rows(x)
    return zip(*(tensor.split(step) for tensor in (x, *others)))


def _chunk_rows(x: torch.Tensor) -> int:
    elements = (CPU_CHUNK_ELEMENTS * torch.get_num_threads() if x.device.type == "cpu"
                else ACCELERATOR_CHUNK_ELEMENTS)
    return max(1, elements // max(1, x.shape[-1]))


def scratch_chunks(count: int, dtype: torch.dtype, x: torch.Tensor,
                   *others: torch.Tensor) -> Iterator[tuple[list[torch.Tensor], *tuple[torch.Tensor, ...]]]:
    """:func:`row_chunks`, each after ``count`` tensors of its size to work in: the same memory every time."""
    step = min(x.shape[0], _chunk_rows(x))
    buffers = list(torch.empty((count, step, x.shape[-1]), dtype=dtype, device=x.device).unbind())
    for chunks in row_chunks(x, *others):
        rows = chunks[0].shape[0]
        yield buffers if rows == step else [buffer[:rows] for buffer in buffers], *chunks


def _given(*tensors: torch.Tensor | None) -> Iterator[torch.Tensor]:
    return (tensor for tensor in tensors if tensor is not None)


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
        offset: [n, 1], what is added to ``z / tau`` so that no exponential overflows.
        total: [n, 1], ``sum exp(z / tau + offset)`` of the slice.
        log_factor, factor: [n, 1], ``- offset - log Z`` in float64, and its exponential: the probabilities are
            ``factor exp(z / tau + offset)``. Set by :meth:`finish`.
    """

    log_factor: torch.Tensor
    factor: torch.Tensor

    def __init__(self, logits: torch.Tensor, dtype: torch.dtype) -> None:
        self.offset = torch.empty((logits.shape[0], 1), dtype=dtype, device=logits.device)
        self.total = torch.empty_like(self.offset)

    def finish(self, parallel: bool) -> torch.Tensor:
        """Set the factors; returns ``log Z`` of each row over all ranks, [n, 1] float64."""
        # A slice of nothing but minus infinity has no say, whatever its offset.
        shift = (-self.offset.double()).masked_fill(self.total == 0, -math.inf)
        highest = all_reduce(shift, dist.ReduceOp.MAX) if parallel else shift
        relative = shift - highest
        log_total = summed(self.total * torch.exp(relative), parallel).log()
        self.log_factor = relative - log_total
        self.factor = torch.exp(self.log_factor).to(self.offset.dtype)
        return highest + log_total


def expected(log_factor: torch.Tensor, rows: torch.Tensor, parallel: bool) -> torch.Tensor:
    """Sums over all ranks of ``exp(log_factor) rows``, [n, 1] float64; 0 where a slice has no probability."""
    factor = torch.exp(log_factor)
    return summed((factor * rows).masked_fill(factor == 0, 0.0), parallel)


def centre(logits: torch.Tensor, temperature: float, offset: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Set the ``offset`` [r, 1] of a chunk [r, v], and return ``z / tau + offset`` in ``out``, which may be the
    chunk itself."""
    if logits.dtype != out.dtype:
        logits = out.copy_(logits)
    torch.amax(logits, dim=-1, keepdim=True, out=offset).mul_(-1.0 / temperature)
    offset.nan_to_num_(nan=math.nan, posinf=0.0)  # where all is minus infinity
    return torch.add(offset, logits, alpha=1.0 / temperature, out=out)


def centred(logits: torch.Tensor, offset: torch.Tensor, temperature: float, out: torch.Tensor) -> torch.Tensor:
    """``z / tau + offset`` of a chunk, in ``out``."""
    if logits.dtype != out.dtype:
        logits = out.copy_(logits)
    return torch.add(offset, logits, alpha=1.0 / temperature, out=out)


def summed(rows: torch.Tensor, parallel: bool) -> torch.Tensor:
    """Sums of this rank, added up over the ranks of a cut vocabulary."""
    return all_reduce(rows) if parallel else rows


def _without_undefined(product: torch.Tensor) -> torch.Tensor:
    """0 where a factor was zero and the other infinite: what has no probability adds nothing. In place. It hides other
    NaNs, too: see :func:`_undefined_like`."""
    return product.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)


def _undefined_like(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weights of rows [n, 1], NaN where the loss is: so is then the row's gradient."""
    return weight.masked_fill(loss.isnan(), math.nan)


def _weighted_sum(q: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    """Sums of ``q x`` over the last axis, [r, v] -> [r, 1]; ``x`` is edited. On a CPU the careful way is taken only
    where an infinity came up; on an accelerator to ask would be to wait."""
    x.mul_(q)
    if q.device.type == "cpu":
        torch.sum(x, dim=-1, keepdim=True, out=out)
        if math.isfinite(out.sum().item()):
            return
    torch.sum(_without_undefined(x), dim=-1, keepdim=True, out=out)


def _is_cut(parallel: bool) -> bool:
    return parallel and parallel_state().model_size > 1


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


class SoftLabelSums:
    """Collects, chunk by chunk, what a loss between two softmaxes needs of each row.

    With ``s' = s / tau + offset_s`` and ``t'`` likewise, ``e = exp(t')``: the sums of ``exp(s')``, of ``e``, and of
    ``e (t' - s')`` (KL) or ``- e s'`` (CE). One pass over the logits gives value and normalisers.
    """

    def __init__(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float, is_kl: bool) -> None:
        self.dtype = compute_dtype(student, teacher)
        self.student, self.teacher = SoftmaxSums(student, self.dtype), SoftmaxSums(teacher, self.dtype)
        self.is_kl, self.temperature = is_kl, temperature
        self.product = torch.empty_like(self.student.offset)

    def read(self, student: torch.Tensor, teacher: torch.Tensor, early: torch.Tensor | None = None) -> None:
        """Read both logits [n, v/p]; ``early`` takes student minus teacher probabilities, if the whole softmax is
        here."""
        of_rows = (teacher, self.student.offset, self.student.total, self.teacher.offset, self.teacher.total,
                   self.product, *_given(early))
        for (s, t, e), s_logits, t_logits, s_offset, s_total, t_offset, t_total, product, *difference in scratch_chunks(
                3, self.dtype, student, *of_rows):
            centre(s_logits, self.temperature, s_offset, s)
            centre(t_logits, self.temperature, t_offset, t)
            torch.sum(torch.exp(t, out=e), dim=-1, keepdim=True, out=t_total)
            _weighted_sum(e, t.sub_(s) if self.is_kl else torch.neg(s, out=t), product)
            torch.sum(s.exp_(), dim=-1, keepdim=True, out=s_total)
            if difference:
                probability_difference(s, e, s_total.reciprocal(), t_total.reciprocal(), *difference)

    def finish(self, parallel: bool) -> torch.Tensor:
        """The loss, [n, 1] float64, equal on all ranks; the factors of both softmaxes are set."""
        s, t = self.student, self.teacher
        s.finish(parallel)
        t.finish(parallel)
        log_ratio = t.log_factor - s.log_factor if self.is_kl else -s.log_factor
        return expected(t.log_factor, self.product + t.total * log_ratio, parallel)


def probability_difference(p: torch.Tensor, q: torch.Tensor, p_factor: torch.Tensor, q_factor: torch.Tensor,
                           out: torch.Tensor) -> torch.Tensor:
    """Student minus teacher probabilities of a chunk, from exponentials and their factors [r, 1], in ``out``."""
    return torch.mul(p, p_factor, out=out).addcmul_(q, q_factor, value=-1.0)


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
            centred(s, s_offset, tau, out).exp_()
            centred(t, t_offset, tau, q).exp_()
            # Multiplied at the end, as an early gradient is: a further backward pass gives the same bits.
            return probability_difference(out, q, s_factor, t_factor, out).mul_(weight)

        def teacher_chunk(out: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor, s: torch.Tensor, t: torch.Tensor,
                          s_offset: torch.Tensor, s_log: torch.Tensor, t_offset: torch.Tensor, t_log: torch.Tensor,
                          loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            centred(s, s_offset, tau, log_p).add_(s_log)
            torch.exp(centred(t, t_offset, tau, log_q).add_(t_log), out=out)
            surprise = log_q.sub_(log_p) if ctx.is_kl else log_p.neg_()
            return _without_undefined(out.mul_(surprise.sub_(loss))).mul_(weight)

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


class HardLabelSums:
    """Collects what cross entropy with labels needs of each row of logits [n, v/p].

    Attributes:
        softmax: its :class:`SoftmaxSums`.
        column, owned: [n, 1], columns of the labels in this rank's slice of equal width, and whether they lie in it
            (column 0 where not).
    """

    def __init__(self, logits: torch.Tensor, target: torch.Tensor, parallel: bool) -> None:
        self.dtype, self.parallel = compute_dtype(logits), parallel
        self.softmax = SoftmaxSums(logits, self.dtype)
        width = logits.shape[-1]
        column = target.unsqueeze(-1) - (parallel_state().model_rank * width if parallel else 0)
        self.owned = (column >= 0) & (column < width)
        self.column = column.masked_fill(~self.owned, 0)

    def read(self, logits: torch.Tensor, early: torch.Tensor | None = None) -> None:
        """``early`` takes the exponentials ``exp(z + offset)``."""
        total = self.softmax.total
        if logits.device.type != "cpu":  # to look at the sums would be to wait for them
            self._read_centred(logits, early, torch.ones_like(total, dtype=torch.bool, device="cpu"))
            return
        self._read_uncentred(logits, early)
        needs_centre = ~((total > SMALLEST_SUM) & (total < LARGEST_SUM))
        if needs_centre.any():
            self._read_centred(logits, early, needs_centre)

    def _read_uncentred(self, logits: torch.Tensor, early: torch.Tensor | None) -> None:
        """With offset 0, which saves two passes, and suits almost always."""
        self.softmax.offset.zero_()
        for (scratch,), z, total, *out in scratch_chunks(1, self.dtype, logits, self.softmax.total, *_given(early)):
            exponentials = out[0] if out else scratch
            torch.exp(z if z.dtype == self.dtype else exponentials.copy_(z), out=exponentials)
            torch.sum(exponentials, dim=-1, keepdim=True, out=total)

    def _read_centred(self, logits: torch.Tensor, early: torch.Tensor | None, wanted: torch.Tensor) -> None:
        """The chunks with rows that are ``wanted`` [n, 1], which lies on the CPU."""
        of_rows = (wanted, self.softmax.offset, self.softmax.total, *_given(early))
        for (scratch,), z, is_wanted, offset, total, *out in scratch_chunks(1, self.dtype, logits, *of_rows):
            if is_wanted.any():
                exponentials = torch.exp(centre(z, 1.0, offset, scratch), out=out[0] if out else scratch)
                torch.sum(exponentials, dim=-1, keepdim=True, out=total)

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """The loss, [n] float64, equal on all ranks; the factor of the softmax is set."""
        log_z = self.softmax.finish(self.parallel)
        picked = logits.gather(-1, self.column).double().masked_fill(~self.owned, 0.0)
        # Where all probability is at the label, the sum may be rounded below its exponential.
        return (log_z - summed(picked, self.parallel)).clamp_(min=0.0).squeeze(-1)


def label_gradient(out: torch.Tensor, logits: torch.Tensor, offset: torch.Tensor, factor: torch.Tensor,
                   column: torch.Tensor, of_label: torch.Tensor) -> torch.Tensor:
    """A chunk of the gradient of cross entropy with labels, in ``out``: probabilities with the weight of their row in
    ``factor``, and minus that weight at the label."""
    return centred(logits, offset, 1.0, out).exp_().mul_(factor).scatter_add_(-1, column, of_label)


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
            _weighted_sum(e, x, weighted)
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
            return _without_undefined(out.mul_(log_p.add_(entropy))).mul_(weight)

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
                                                        *_given(early)):
            # A norm reads its argument once, where products are written down first.
            torch.linalg.vector_norm(_difference(s, t, teacher_weight, *(out or scratch)), dim=-1, out=norm)
        ctx.save_for_backward(student, teacher, early)
        return summed(loss.square_(), parallel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher, early = ctx.saved_tensors
        weight = 2.0 * grad.unsqueeze(-1)

        def chunk(out: torch.Tensor, s: torch.Tensor, t: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return _difference(s, t, ctx.teacher_weight, out).mul_(weight)

        s_grad = t_grad = None
        if ctx.needs_input_grad[0]:
            s_grad = EarlyGradient.take(ctx, early, weight)
            if s_grad is None:
                s_grad = _fill_gradient(student, weight.dtype, 0, chunk, student, teacher, weight)
        if ctx.needs_input_grad[1]:
            t_grad = _fill_gradient(teacher, weight.dtype, 0, chunk, student, teacher, -ctx.teacher_weight * weight)
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
