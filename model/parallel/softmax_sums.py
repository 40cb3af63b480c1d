"""What losses over a vocabulary need of each row, collected in chunks, and their gradients from it, chunk by chunk.

The vocabulary may be cut over the model-parallel ranks; the formulas stand in ``model/parallel/vocab_log_prob.py``.
Per-row tensors are columns [n, 1], so that they broadcast over a chunk [r, v/p] as they are.

Legend: ``n`` rows, ``r`` rows of a chunk, ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

from model.parallel.groups import parallel_state
from model.parallel.mappings import all_reduce
from model.parallel.row_chunks import compute_dtype, given, scratch_chunks

#: Sums of exponentials between these need no offset: nothing in them overflows, what underflows is below 1e-26 of the
#: largest, and their inverse times the weight of a row stays a normal number.
SMALLEST_SUM, LARGEST_SUM = 2.0 ** -20, 2.0 ** 60


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


def without_undefined(product: torch.Tensor) -> torch.Tensor:
    """0 where a factor was zero and the other infinite: what has no probability adds nothing. In place. It hides other
    NaNs, too, so gradients of rows whose loss is NaN are made NaN afterwards."""
    return product.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)


def weighted_sum(q: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    """Sums of ``q x`` over the last axis, [r, v] -> [r, 1]; ``x`` is edited. On a CPU the careful way is taken only
    where an infinity came up; on an accelerator to ask would be to wait."""
    x.mul_(q)
    if q.device.type == "cpu":
        torch.sum(x, dim=-1, keepdim=True, out=out)
        if math.isfinite(out.sum().item()):
            return
    torch.sum(without_undefined(x), dim=-1, keepdim=True, out=out)


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
                   self.product, *given(early))
        for (s, t, e), s_logits, t_logits, s_offset, s_total, t_offset, t_total, product, *difference in scratch_chunks(
                3, self.dtype, student, *of_rows):
            centre(s_logits, self.temperature, s_offset, s)
            centre(t_logits, self.temperature, t_offset, t)
            torch.sum(torch.exp(t, out=e), dim=-1, keepdim=True, out=t_total)
            weighted_sum(e, t.sub_(s) if self.is_kl else torch.neg(s, out=t), product)
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


def soft_label_gradient(out: torch.Tensor, q: torch.Tensor, s: torch.Tensor, t: torch.Tensor, temperature: float,
                        s_offset: torch.Tensor, s_factor: torch.Tensor, t_offset: torch.Tensor,
                        t_factor: torch.Tensor) -> torch.Tensor:
    """A chunk of student minus teacher probabilities from the logits, in ``out``; ``q`` is a tensor to work in."""
    centred(s, s_offset, temperature, out).exp_()
    centred(t, t_offset, temperature, q).exp_()
    return probability_difference(out, q, s_factor, t_factor, out)


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
        for (scratch,), z, total, *out in scratch_chunks(1, self.dtype, logits, self.softmax.total, *given(early)):
            exponentials = out[0] if out else scratch
            torch.exp(z if z.dtype == self.dtype else exponentials.copy_(z), out=exponentials)
            torch.sum(exponentials, dim=-1, keepdim=True, out=total)

    def _read_centred(self, logits: torch.Tensor, early: torch.Tensor | None, wanted: torch.Tensor) -> None:
        """The chunks with rows that are ``wanted`` [n, 1], which lies on the CPU."""
        of_rows = (wanted, self.softmax.offset, self.softmax.total, *given(early))
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


def difference(student: torch.Tensor, teacher: torch.Tensor, teacher_weight: float, out: torch.Tensor) -> torch.Tensor:
    """``s - w t`` of a chunk, in ``out``."""
    if student.dtype != out.dtype:
        student = out.copy_(student)
    return torch.sub(student, teacher, alpha=teacher_weight, out=out)
