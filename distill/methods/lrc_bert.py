"""LRC-BERT (Fu et al. 2021, arXiv:2012.07335): a sample's hidden states against the teacher's states of the same sample
and, as negatives, of the other samples; with a perturbation of the embeddings along their gradient.

    x_k = P hid_s(k),  t_k = hid_t(seg k),  k = 1..S;   c_ij = mean_{k, s} cos(x_k[i], t_k[j]),   g_ij = 1 - c_ij
    l_i = 1 + g_ii - ( mean_{j != i} g_ij - g_ii ) / 2,   inter = alpha S mean_i l_i

P is bias-free, one per teacher. Padding is not masked. Accumulating gradients over small micro-batches leaves fewer
negatives; ``--lrc_bert_gather_dp`` takes those of all data-parallel ranks.

With ``--lrc_bert_gard_perturb`` a first pass gives the gradient g of its whole loss at the embeddings and does not
count; the second pass, which does, adds ``g / |g|`` (norm over the width, position by position).

Legend: ``b`` rows of the batch (samples x choices), ``s`` sequence, ``h`` width of the teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distill.layer_maps import hidden_state, uniform_layer_map
from distill.losses.distances import COSINE_EPSILON
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.parallel.groups import parallel_state
from model.parallel.layers import ColumnParallelLinear
from model.parallel.row_chunks import compute_dtype
from model.taps import Hook, tapped

NORM_EPSILON = 1e-12
#: Keeps small gradients at the embeddings above the smallest fp16 number; their length does not matter.
FP16_SCALE = 2.0 ** 12


@register_method("lrc_bert")
class LRCBERT(GLMStudent):
    """Flags ``--lrc_bert_*``. Parameters: ``s_fit_dense.<n>`` (h_t, h_s) for teacher n, cut by rows."""

    has_projections = True
    switches = "--lrc_bert_alpha above 0"

    def __init__(self, language_model: nn.Module, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        self.s_fit_dense = nn.ModuleList(
            ColumnParallelLinear(self.config.hidden_size, spec.hidden_size, bias=False, gather_output=True)
            for spec in self.teachers)
        self._embeddings: torch.Tensor | None = None
        self._perturbation: torch.Tensor | None = None

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: LRC-BERT")
        group.add_argument("--lrc_bert_alpha", type=float, default=1.0,
                           help="weight of the contrast of hidden states; 0 or less removes it")
        group.add_argument("--lrc_bert_gard_perturb", action="store_true",
                           help="perturb the embeddings along their gradient (needs --forward_repeat_num=1 "
                                "--ignore_first_backward_gard)")
        group.add_argument("--lrc_bert_gather_dp", action="store_true",
                           help="the samples of all data-parallel ranks serve as negatives")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if args.lrc_bert_gard_perturb and not (args.forward_repeat_num == 1 and args.ignore_first_backward_gard):
            raise ValueError(f"--lrc_bert_gard_perturb needs --forward_repeat_num=1 (not {args.forward_repeat_num}) "
                             "and --ignore_first_backward_gard: the first pass only gives the gradient")
        if args.lrc_bert_gard_perturb and args.distill_random_data:
            raise ValueError("--lrc_bert_gard_perturb and --distill_random_data exclude each other: the gradient of "
                             "one batch would perturb another one")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        if self.args.lrc_bert_alpha > 0:
            uniform_layer_map(self.config.num_layers, teacher.num_layers)

    @property
    def batch_coupled(self) -> str:
        return "the other samples of the micro-batch are the negatives" if self.args.lrc_bert_alpha > 0 else ""

    # ---- contrast ---------------------------------------------------------------------------------------------------

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        if self.args.lrc_bert_alpha <= 0:
            return ()
        depth, t_depth = self.config.num_layers, self.teachers[t_no].num_layers
        seg = uniform_layer_map(depth, t_depth)
        return [Pair("hidden_states", hidden_state(k, depth), hidden_state(seg[k], t_depth))
                for k in range(1, depth + 1)]

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        pairs = self.pairs(t_no)
        if not pairs:
            return 0.0
        similarity: Loss = 0.0
        for pair in pairs:
            student = self.apply_layer(self.s_fit_dense[t_no], tapped(s_inter_vars, s_hook, *pair.student))
            similarity = similarity + self._similarity(student, tapped(t_inter_vars, t_hook, *pair.teacher))
        first = parallel_state().data_rank * len(similarity) if self.args.lrc_bert_gather_dp else 0
        losses = self.args.lrc_bert_alpha * len(pairs) * contrast(similarity / len(pairs), first)
        loss = losses if keep_batch else losses.mean()
        self.add_summary(f"inter_loss/hidden_states.{len(pairs) - 1}", loss)
        return loss

    def _similarity(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Mean cosine over positions of each sample of ours with each sample of the teacher: [b, b] or [b, all b]."""
        dtype = compute_dtype(student, teacher)
        x, t = (value.to(dtype) * (value.to(dtype).square().sum(-1, keepdim=True) + COSINE_EPSILON).rsqrt()
                for value in (student, teacher))
        if self.args.lrc_bert_gather_dp:
            t = gather_rows(t)
        return x.flatten(1) @ t.flatten(1).t() / x.shape[1]

    # ---- perturbation -----------------------------------------------------------------------------------------------

    def get_student_hook_op(self, teacher_models: Sequence[nn.Module] | None = None, **kwargs: Any) -> dict[str, Any]:
        if not self.args.lrc_bert_gard_perturb:
            return {}
        operation = self._watch if self.run.repeat == 0 else self._perturb
        return {"transformer": {"embeddings": operation}}

    def _watch(self, this: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """First pass: start the graph here; what lies below is not asked for."""
        self._embeddings = hidden_states.detach().requires_grad_()
        return self._embeddings

    def _perturb(self, this: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        if self._perturbation is None:
            return hidden_states
        return hidden_states + self._perturbation.to(hidden_states.dtype)

    def after_pass(self, loss: Loss) -> None:
        """After the first pass, take its gradient at the embeddings; parameters get none. Not finite: no
        perturbation."""
        embeddings, self._embeddings, self._perturbation = self._embeddings, None, None
        if embeddings is None or not (isinstance(loss, torch.Tensor) and loss.requires_grad):
            return
        scale = FP16_SCALE if embeddings.dtype == torch.float16 else 1.0
        gradient, = torch.autograd.grad(loss * scale, embeddings, allow_unused=True)
        if gradient is None or not gradient.isfinite().all():
            return
        gradient = gradient.to(compute_dtype(gradient)) / scale
        self._perturbation = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=NORM_EPSILON)


def contrast(similarity: torch.Tensor, first: int = 0) -> torch.Tensor:
    """``1 + g_ii - (mean_{j != i} g_ij - g_ii) / 2`` with ``g = 1 - similarity``: [b, n] -> [b].

    Args:
        similarity: of b students with n teachers; the teacher of student i is number ``first + i``.

    Raises:
        ValueError: n = 1, where there is no negative.
    """
    b, n = similarity.shape
    if n < 2:
        raise ValueError("LRC-BERT needs at least 2 samples in a micro-batch as negatives of each other, it got 1: "
                         "raise --batch-size")
    distance = 1.0 - similarity
    rows = torch.arange(b, device=distance.device)
    own = distance[rows, first + rows]
    return 1.0 + own - ((distance.sum(dim=1) - own) / (n - 1) - own) / 2.0


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all data-parallel ranks, in rank order; the gradient is that of the own rows.

    No sum is needed in the backward pass: the losses of other ranks do not depend on this rank's student.

    Raises:
        ValueError: the ranks hold tensors of unequal shapes.
    """
    state = parallel_state()
    if state.data_size == 1:
        return rows
    rows = rows.contiguous()
    shape = torch.tensor(rows.shape, device=rows.device)
    shapes = [torch.empty_like(shape) for _ in range(state.data_size)]
    dist.all_gather(shapes, shape, group=state.data_group)
    if any(not torch.equal(shape, other) for other in shapes):
        raise ValueError("--lrc_bert_gather_dp needs equal shapes on all data-parallel ranks, not "
                         f"{[tuple(other.tolist()) for other in shapes]}: add --fix_variable_num_choices")
    parts = [torch.empty_like(rows) for _ in range(state.data_size)]
    dist.all_gather(parts, rows.detach(), group=state.data_group)
    parts[state.data_rank] = rows
    return torch.cat(parts)
