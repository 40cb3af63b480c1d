"""Uncertainty (Li et al. 2021, arXiv:2109.11295): the student's own entropy decides which teacher it listens to.

    u_b = mean over positions of Ent(softmax(s)) / log(size)                        in [0, 1]
    L = (1/N) sum_i [ mean_b( rate[b, rank of i] pre_i[b] ) + inter_i ] + rate_h hard

Teachers are ranked from small (0) to large (N-1). Hard selection gives the most uncertain 1/N of the samples to the
smallest teacher and so on; otherwise all teachers count, with N w / sum w, w = u + (1 - 2u) k/(N-1) for rank k.
Gradient flows through u by default, as in the published numbers, although entropy can then be lowered for its own sake;
``--uncertainty_detach`` stops it.
"""

from __future__ import annotations

import argparse
import logging
import math
from typing import Any

import torch

from distill.losses import information_entropy
from distill.multi_teacher.base import (
    MultiTeacherModel,
    OutputShape,
    Step,
    add_label,
    register_combiner,
    weighted_mean,
)
from distill.student import GLMStudent, Loss
from model.parallel.vocab_log_prob import global_width

logger = logging.getLogger(__name__)


@register_combiner("uncertainty")
class Uncertainty(MultiTeacherModel):
    """Flags ``--uncertainty_*``. No parameters.

    Soft rates add up to 1 after the division by N, hard ones to 1/N (kept).
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self._fallback_told = False
        self.ranks: dict[int, int] = {}
        if not args.uncertainty_wo_hard:
            self.warn_of_two_labels("uncertainty (unless --uncertainty_wo_hard)")

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("multi-teacher: Uncertainty")
        for name, text in (
                ("wo_loss_mask", "entropy of all positions"),
                ("only_mask_pad", "entropy of all positions but padding (label 0)"),
                ("valid", "average the entropy over the unmasked positions; else a masked one counts as uniform"),
                ("inter_entropy", "weigh intermediate losses by the entropy, prediction losses by its opposite"),
                ("hard", "each sample listens to one teacher"),
                ("wo_rate", "all teachers count equally"),
                ("wo_hard", "do not add the label loss"),
                ("detach", "no gradient through the entropy")):
            group.add_argument(f"--uncertainty_{name}", action="store_true", help=text)
        group.add_argument("--uncertainty_teacher_seq", default=None,
                           help="rank of each teacher from small (0) to large, colon-separated; default: flag order")

    @property
    def batch_coupled(self) -> str:
        return "hard selection sorts the samples of a micro-batch" if self.args.uncertainty_hard else ""

    def build(self, student: GLMStudent, outputs: OutputShape) -> None:
        numbers = [spec.index for spec in student.teachers if spec.index not in self.unused]
        text = self.args.uncertainty_teacher_seq
        ranks = text.split(":") if text else [str(rank) for rank in range(len(numbers))]
        if sorted(ranks) != sorted(str(rank) for rank in range(len(numbers))):
            raise ValueError(f"--uncertainty_teacher_seq={text} must name each of the ranks 0 to {len(numbers) - 1} "
                             f"once, separated by ':', for the {len(numbers)} teachers")
        self.ranks = {t_no: int(rank) for t_no, rank in zip(numbers, ranks, strict=True)}

    def own_terms(self, student: GLMStudent) -> list[str]:
        if self.args.uncertainty_wo_hard or not student.rate("hard"):
            return []
        return [f"label x {student.rate('hard'):g} beside the teachers"]

    def combine(self, step: Step) -> Loss:
        args, total = self.args, 0.0
        u = self.entropy(step)
        if args.uncertainty_detach:
            u = u.detach()
        rates = self.rates(u, len(self.ranks))
        for t_no, rank in self.ranks.items():
            prediction = step.prediction(t_no, keep_batch=True)
            intermediate = step.intermediate(t_no, keep_batch=args.uncertainty_inter_entropy)
            if args.uncertainty_inter_entropy:
                intermediate = weighted_mean(intermediate, u)
                if intermediate > 0:
                    prediction = (1.0 - u).abs() * prediction
            term = weighted_mean(prediction, rates[:, rank]) + intermediate
            step.record_teacher(t_no, term)
            total = total + term
        total = total / len(self.ranks)
        return total if args.uncertainty_wo_hard else add_label(step, total, step.student.rate("hard"))

    def entropy(self, step: Step) -> torch.Tensor:
        """``u`` [b]: 0 for a certain, 1 for a uniform prediction. No temperature."""
        logits = step.s_out["logits"]
        partition = "vocab" if logits.dim() == 3 else None
        size = global_width(logits.shape[-1], partition is not None, logits.device)
        mask = None if partition is None else step.position_mask(
            wo_loss_mask=self.args.uncertainty_wo_loss_mask, only_mask_pad=self.args.uncertainty_only_mask_pad)
        u = information_entropy(logits, mask=mask, keep_batch=True, partition=partition) / math.log(max(size, 2))
        if mask is None:
            return u
        kept = mask.to(u.dtype).mean(dim=1)
        if self.args.uncertainty_valid:
            return u / kept.clamp(min=1.0 / mask.shape[1])
        return u + (1.0 - kept)

    def rates(self, u: torch.Tensor, count: int) -> torch.Tensor:
        """[b, N] weight of each teacher, by rank, for each sample."""
        samples = len(u)
        if self.args.uncertainty_wo_rate or count == 1:
            return u.new_ones(samples, count)
        if self.args.uncertainty_hard and samples >= count:
            place = torch.empty(samples, dtype=torch.long, device=u.device)
            place[torch.argsort(u.detach(), descending=True, stable=True)] = torch.arange(1, samples + 1,
                                                                                          device=u.device)
            chosen = (place * count - 1) // samples  # k with k < place N / B <= k + 1, in whole numbers
            return torch.nn.functional.one_hot(chosen, count).to(u.dtype)
        if self.args.uncertainty_hard and not self._fallback_told:
            self._fallback_told = True
            logger.warning("--uncertainty_hard needs at least as many samples as teachers; a micro-batch of %d for %d "
                           "teachers weighs all of them instead (--batch-size)", samples, count)
        share = torch.arange(count, device=u.device, dtype=u.dtype) / (count - 1)
        weights = u[:, None] + (1.0 - 2.0 * u[:, None]) * share
        return count * weights / weights.sum(dim=1, keepdim=True)
