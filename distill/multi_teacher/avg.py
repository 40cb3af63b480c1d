"""The average over teachers; with sum and survival, DGKD (Son et al. 2021, arXiv:2009.08825); with squared error of the
logits, TMKD (Yang et al. 2020, arXiv:1910.08381, similar)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill.multi_teacher.base import MultiTeacherModel, Outputs, register_combiner
from distill.student import GLMStudent, Loss
from model.taps import Hook

logger = logging.getLogger(__name__)


@register_combiner("avg", "tmkd")
class AvgTeacher(MultiTeacherModel):
    """Mean (or sum) over the surviving teachers of prediction loss + intermediate loss.

    Each teacher survives with probability p (``--avgmt_teacher_survival_p``), independently, drawn equally on all
    ranks. For p < 1 the label loss times ``--distill_hard_rate`` is one more term, which the mean counts as well.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        if not 0.0 <= args.avgmt_teacher_survival_p <= 1.0:
            raise ValueError(f"--avgmt_teacher_survival_p={args.avgmt_teacher_survival_p} must be a probability")
        stage = "ft" if args.finetune else "pt"
        if args.avgmt_teacher_survival_p < 1.0 and getattr(args, f"distill_{stage}_hard"):
            logger.warning("the label counts twice: --avgmt_teacher_survival_p below 1 adds it, and so does "
                           "--distill_%s_hard", stage)

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("multi-teacher: average")
        group.add_argument("--avgmt_sum_loss", action="store_true", help="sum over the teachers instead of mean")
        group.add_argument("--avgmt_teacher_survival_p", type=float, default=1.0,
                           help="probability that a teacher counts in a step; below 1 the label loss is added")
        group.add_argument("--avgmt_inter_checkpoint", action="store_true", help="accepted, without effect")
        group.add_argument("--avgmt_pre_checkpoint", action="store_true", help="accepted, without effect")

    def own_terms(self, student: GLMStudent) -> list[str]:
        if self.args.avgmt_teacher_survival_p < 1.0 and student.rate("hard"):
            return [f"label x {student.rate('hard'):g} beside the teachers"]
        return []

    def compute(self, teacher_models: Sequence[nn.Module], t_hook_L: Sequence[Hook],
                t_inter_vars_L: Sequence[Sequence[torch.Tensor]], t_out_L: Sequence[Outputs],
                student_model: GLMStudent, s_hook: Hook, s_inter_vars: Sequence[torch.Tensor], s_out: Outputs,
                loss_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None, **kwargs: Any) -> Loss:
        common = {"loss_mask": loss_mask, "labels": labels, **kwargs}
        terms: list[Loss] = []
        for t_no in self._survivors(student_model, len(t_out_L)):
            prediction = student_model.prediction_loss(s_out["logits"], t_out_L[t_no]["logits"], s_out["loss"],
                                                       t_no=t_no, **common)
            intermediate = student_model.intermediate_loss(
                s_inter_vars, t_inter_vars_L[t_no], s_hook, t_hook_L[t_no], t_no=t_no, t_model=teacher_models[t_no],
                **common)
            terms.append(prediction + intermediate)
            with student_model.facing(t_no):
                student_model.add_summary(f"teacher_loss/teacher_{t_no}", terms[-1])
        if self.args.avgmt_teacher_survival_p < 1.0:
            terms.append(student_model.rate("hard") * s_out["loss"])
            student_model.add_summary("multi_teacher_model/hard_loss", terms[-1])
        total = sum(terms, 0.0)
        return total if self.args.avgmt_sum_loss else total / max(1, len(terms))

    def _survivors(self, student: GLMStudent, count: int) -> list[int]:
        p = self.args.avgmt_teacher_survival_p
        if p >= 1.0:
            return list(range(count))
        return student.draw("avgmt_survivors", lambda generator: [i for i in range(count) if generator.random() < p])
