"""Average (TMKD: Yang et al. 2020, arXiv:1910.08381, similar; DGKD: Son et al. 2021, arXiv:2009.08825): the mean over
teachers, or the sum, of those that survive a draw.

    L = mean_i (pre_i + inter_i)   over the teachers that survive, or their sum

TMKD is the mean with squared error of the logits, DGKD the sum with survival. Departure from TMKD: no head of the
student's for each teacher; its one output regresses on every teacher.
"""

from __future__ import annotations

import argparse
from typing import Any

from distill.multi_teacher.base import MultiTeacherModel, Step, add_label, register_combiner
from distill.student import GLMStudent, Loss


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
        if args.avgmt_teacher_survival_p < 1.0:
            self.warn_of_two_labels("--avgmt_teacher_survival_p below 1")

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

    def combine(self, step: Step) -> Loss:
        survivors, total = self._survivors(step), 0.0
        for t_no in survivors:
            term = step.prediction(t_no) + step.intermediate(t_no)
            step.record_teacher(t_no, term)
            total = total + term
        count = len(survivors)
        if self.args.avgmt_teacher_survival_p < 1.0:
            total, count = add_label(step, total, step.student.rate("hard")), count + 1
        return total if self.args.avgmt_sum_loss else total / max(1, count)

    def _survivors(self, step: Step) -> list[int]:
        p, numbers = self.args.avgmt_teacher_survival_p, self.numbers(step)
        if p >= 1.0:
            return numbers
        return step.student.draw("avgmt_survivors", lambda generator: [i for i in numbers if generator.random() < p])
