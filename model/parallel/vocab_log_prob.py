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

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from model.parallel.groups import parallel_state
from model.parallel.mappings import all_reduce

#: Elements of one chunk of rows: 4 MiB in float32 on a CPU (many small parallel regions collapse on a busy machine),
#: 64 MiB on an accelerator (where a small kernel costs its launch).
CPU_CHUNK_ELEMENTS = 1 << 20
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype losses compute in: at least float32; float64 stays float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def row_chunks(x: torch.Tensor) -> Iterator[slice]:
    """Slices over the rows of [n, v] so that one chunk has at most so many elements (or one row)."""
    rows, width = x.shape
    elements = CPU_CHUNK_ELEMENTS if x.device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    step = max(1, elements // max(1, width))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., v] -> [n, v], a view where the layout allows it."""
    return x.reshape(-1, x.shape[-1])


def global_width(local_width: int, parallel: bool, device: torch.device | str = "cpu") -> int:
    """Number of entries of a row over all ranks."""
    if not parallel or parallel_state().model_size == 1:
        return local_width
    return int(all_reduce(torch.tensor([local_width], device=device)).item())


def log_normalizer(logits: torch.Tensor, temperature: float, parallel: bool) -> torch.Tensor:
    """``log Z`` of each row: [n, v/p] -> [n] in :func:`compute_dtype`, equal on all ranks."""
    dtype = compute_dtype(logits)
    result = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
    for rows in row_chunks(logits):
        result[rows] = torch.logsumexp(_scaled(logits[rows], temperature, dtype), dim=-1)
    if not parallel or parallel_state().model_size == 1:
        return result
    highest = all_reduce(result, dist.ReduceOp.MAX)
    highest = torch.where(highest.isfinite(), highest, torch.zeros_like(highest))
    return highest + torch.log(all_reduce(torch.exp(result - highest)))


def _scaled(chunk: torch.Tensor, temperature: float, dtype: torch.dtype) -> torch.Tensor:
    chunk = chunk.to(dtype)
    return chunk if temperature == 1.0 else chunk / temperature


def _summed(rows: torch.Tensor, parallel: bool) -> torch.Tensor:
    return all_reduce(rows) if parallel else rows


def _fill_gradient(like: torch.Tensor, chunk_gradient: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """The gradient of a [n, v/p] tensor, computed chunk by chunk straight into a tensor of its own dtype."""
    gradient = torch.empty_like(like, memory_format=torch.contiguous_format)
    for rows in row_chunks(like):
        gradient[rows] = chunk_gradient(rows)
    return gradient


def _log_probabilities(logits: torch.Tensor, log_z: torch.Tensor, rows: slice, temperature: float) -> torch.Tensor:
    return _scaled(logits[rows], temperature, log_z.dtype) - log_z[rows].unsqueeze(-1)


def _surprise(log_p: torch.Tensor, log_q: torch.Tensor, q: torch.Tensor, is_kl: bool) -> torch.Tensor:
    """What the teacher's probability ``q`` weighs in the sum; zero where ``q`` is zero."""
    return torch.where(q > 0, log_q - log_p if is_kl else -log_p, 0.0)


class _SoftLabels(torch.autograd.Function):
    """Row losses between student and teacher logits, [n, v/p] x 2 -> [n]: KL, or cross entropy."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float, is_kl: bool,
                parallel: bool) -> torch.Tensor:
        dtype = compute_dtype(student, teacher)
        log_zs = log_normalizer(student, temperature, parallel).to(dtype)
        log_zt = log_normalizer(teacher, temperature, parallel).to(dtype)
        loss = torch.empty(student.shape[0], dtype=dtype, device=student.device)
        for rows in row_chunks(student):
            log_q = _log_probabilities(teacher, log_zt, rows, temperature)
            q = log_q.exp()
            surprise = _surprise(_log_probabilities(student, log_zs, rows, temperature), log_q, q, is_kl)
            loss[rows] = (q * surprise).sum(dim=-1)
        loss = _summed(loss, parallel)
        ctx.save_for_backward(student, teacher, log_zs, log_zt, loss)
        ctx.temperature, ctx.is_kl = temperature, is_kl
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher, log_zs, log_zt, loss = ctx.saved_tensors
        weight = (grad / ctx.temperature).unsqueeze(-1)

        def probabilities(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            return (_log_probabilities(student, log_zs, rows, ctx.temperature),
                    _log_probabilities(teacher, log_zt, rows, ctx.temperature))

        def student_chunk(rows: slice) -> torch.Tensor:
            log_p, log_q = probabilities(rows)
            return log_p.exp_().sub_(log_q.exp_()).mul_(weight[rows])

        def teacher_chunk(rows: slice) -> torch.Tensor:
            log_p, log_q = probabilities(rows)
            q = log_q.exp()
            surprise = _surprise(log_p, log_q, q, ctx.is_kl)
            return q * (surprise - loss[rows].unsqueeze(-1)) * weight[rows]

        return (_fill_gradient(student, student_chunk) if ctx.needs_input_grad[0] else None,
                _fill_gradient(teacher, teacher_chunk) if ctx.needs_input_grad[1] else None, None, None, None)


class _HardLabels(torch.autograd.Function):
    """Cross entropy with the id of the right token, [n, v/p], [n] -> [n]."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor, parallel: bool) -> torch.Tensor:
        log_z = log_normalizer(logits, 1.0, parallel)
        width = logits.shape[-1]
        first = parallel_state().model_rank * width if parallel else 0
        owned = (target >= first) & (target < first + width)
        column = (target - first).masked_fill(~owned, 0)
        picked = logits.gather(-1, column.unsqueeze(-1)).squeeze(-1).to(log_z.dtype).masked_fill(~owned, 0.0)
        ctx.save_for_backward(logits, log_z, column, owned)
        return log_z - _summed(picked, parallel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, log_z, column, owned = ctx.saved_tensors

        def chunk(rows: slice) -> torch.Tensor:
            p = _log_probabilities(logits, log_z, rows, 1.0).exp_()
            p.scatter_add_(-1, column[rows].unsqueeze(-1), -owned[rows].to(p.dtype).unsqueeze(-1))
            return p.mul_(grad[rows].unsqueeze(-1))

        return _fill_gradient(logits, chunk), None, None


class _Entropy(torch.autograd.Function):
    """Entropy of the softmax of each row, [n, v/p] -> [n]."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, temperature: float, parallel: bool) -> torch.Tensor:
        log_z = log_normalizer(logits, temperature, parallel)
        entropy = torch.empty_like(log_z)
        for rows in row_chunks(logits):
            log_p = _log_probabilities(logits, log_z, rows, temperature)
            p = log_p.exp()
            entropy[rows] = -torch.where(p > 0, p * log_p, 0.0).sum(dim=-1)
        entropy = _summed(entropy, parallel)
        ctx.save_for_backward(logits, log_z, entropy)
        ctx.temperature = temperature
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, log_z, entropy = ctx.saved_tensors
        weight = (grad / ctx.temperature).unsqueeze(-1)

        def chunk(rows: slice) -> torch.Tensor:
            log_p = _log_probabilities(logits, log_z, rows, ctx.temperature)
            p = log_p.exp()
            return torch.where(p > 0, p * (-log_p - entropy[rows].unsqueeze(-1)), 0.0) * weight[rows]

        return _fill_gradient(logits, chunk), None, None


class _SquaredError(torch.autograd.Function):
    """Sum of squared differences of each row, ``sum (s - w t)^2``, [n, v/p] x 2 -> [n]."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, teacher_weight: float,
                parallel: bool) -> torch.Tensor:
        ctx.dtype, ctx.teacher_weight = compute_dtype(student, teacher), teacher_weight
        loss = torch.empty(student.shape[0], dtype=ctx.dtype, device=student.device)
        for rows in row_chunks(student):
            loss[rows] = _difference(student, teacher, rows, teacher_weight, ctx.dtype).square_().sum(dim=-1)
        ctx.save_for_backward(student, teacher)
        return _summed(loss, parallel)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        student, teacher = ctx.saved_tensors

        def chunk(rows: slice, factor: float) -> torch.Tensor:
            difference = _difference(student, teacher, rows, ctx.teacher_weight, ctx.dtype)
            return difference.mul_(factor * grad[rows].unsqueeze(-1))

        return (_fill_gradient(student, lambda rows: chunk(rows, 2.0)) if ctx.needs_input_grad[0] else None,
                _fill_gradient(teacher, lambda rows: chunk(rows, -2.0 * ctx.teacher_weight))
                if ctx.needs_input_grad[1] else None, None, None)


def _difference(student: torch.Tensor, teacher: torch.Tensor, rows: slice, teacher_weight: float,
                dtype: torch.dtype) -> torch.Tensor:
    return student[rows].to(dtype) - teacher[rows].to(dtype) * teacher_weight


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
    rows = _SoftLabels.apply(as_rows(student), as_rows(teacher), float(temperature), kind == "kl", parallel)
    return rows.view(student.shape[:-1])


def hard_label_rows(logits: torch.Tensor, target: torch.Tensor, *, parallel: bool = False) -> torch.Tensor:
    """Cross entropy of each row with the right id: [..., v/p] and [...] int64 (global ids) -> [...]."""
    return _HardLabels.apply(as_rows(logits), target.reshape(-1), parallel).view(target.shape)


def entropy_rows(logits: torch.Tensor, *, temperature: float = 1.0, parallel: bool = False) -> torch.Tensor:
    """Entropy (nats) of the softmax over the last axis: [..., v/p] -> [...]."""
    return _Entropy.apply(as_rows(logits), float(temperature), parallel).view(logits.shape[:-1])


def squared_error_rows(student: torch.Tensor, teacher: torch.Tensor, *, teacher_weight: float = 1.0,
                       parallel: bool = False) -> torch.Tensor:
    """``sum (student - teacher_weight * teacher)^2`` over the last axis: [..., v/p] x 2 -> [...]."""
    _check_shapes(student, teacher)
    rows = _SquaredError.apply(as_rows(student), as_rows(teacher), float(teacher_weight), parallel)
    return rows.view(student.shape[:-1])
