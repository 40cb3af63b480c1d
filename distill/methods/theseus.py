"""BERT-of-Theseus (Xu et al. 2020, arXiv:2002.02925): no distillation loss; each student layer is replaced at random by
the teacher block that it stands for, and the student's share rises to 1.

    p = p0 + it / (E f) (1 - p0)        p0 --theseus_replacing_rate, f --theseus_not_replaced_steps, E length of the run

Each layer k is the student's with probability p, otherwise teacher layers seg(k-1)+1 .. seg(k) of a uniformly drawn
teacher; at least one layer is the student's (or all are drawn again). Gradients pass through teacher blocks, whose
weights stay as they are and which run without dropout. Evaluation uses the student alone. The teacher's own forward
pass is not needed: ``--mt_disable_operation=1``. Departure from the paper: the blocks stand before a common final
LayerNorm, the student's.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from distill.layer_maps import uniform_layer_map
from distill.student import GLMStudent, TeacherSpec, register_method

#: Draws without a student layer after which the limit of the repeated draw is taken: one layer, all equally likely.
_PATIENCE = 1000


@register_method("theseus")
class Theseus(GLMStudent):
    """Flags ``--theseus_*``. No parameters of its own."""

    has_self_test = True
    teacher_weights = "theseus runs layers of the teachers inside the student"

    def __init__(self, language_model: nn.Module, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        self._teacher_sums: list[float] = []

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: Theseus")
        group.add_argument("--theseus_replacing_rate", type=float, default=0.3,
                           help="probability of a student layer at the start")
        group.add_argument("--theseus_not_replaced_steps", type=float, default=0.66,
                           help="share of the run after which there are student layers only")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if not 0.0 <= args.theseus_replacing_rate <= 1.0:
            raise ValueError(f"--theseus_replacing_rate={args.theseus_replacing_rate} must be a probability")
        if args.theseus_not_replaced_steps <= 0.0:
            raise ValueError(f"--theseus_not_replaced_steps={args.theseus_not_replaced_steps} must be above 0")
        if args.distil_analysis_inter:
            raise ValueError("theseus and --distil_analysis_inter exclude each other: with replaced layers the numbers "
                             "of layers do not mean the student's; remove one of the two")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        uniform_layer_map(self.config.num_layers, teacher.num_layers)
        if self.config.hidden_size != teacher.hidden_size:
            raise ValueError(f"Theseus needs equal hidden sizes: student {self.config.hidden_size} (--hidden-size) vs "
                             f"teacher {teacher.hidden_size} (--teacher_hidden_size)")

    @property
    def replacing_rate(self) -> float:
        """Probability p of a student layer; 1 and more in the last part of the run."""
        start, run = self.args.theseus_replacing_rate, self.run
        return start + run.iteration / (run.train_iters * self.args.theseus_not_replaced_steps) * (1 - start)

    def get_student_hook_op(self, teacher_models: Sequence[nn.Module] | None = None, **kwargs: Any) -> dict[str, Any]:
        rate, depth = self.replacing_rate, self.config.num_layers
        self.add_summary("get_student_hook_op/replacing_rate", rate)
        choice = self.draw(
            "theseus_choice", lambda generator: draw_choice(depth, len(self.teachers), rate, generator))
        blocks = [self._blocks(teacher, t_no) for t_no, teacher in enumerate(teacher_models)]
        if self.args.distill_test_output:
            self._test(choice, teacher_models)
        return {"transformer": {"self_layers": _replacement(choice, blocks)}}

    def _blocks(self, teacher: nn.Module, t_no: int) -> list[list[nn.Module]]:
        """The layers of a teacher that stand for each student layer."""
        depth = self.teachers[t_no].num_layers
        body = next(module.transformer for module in teacher.modules() if hasattr(module, "transformer"))
        dtypes = [next(part.parameters()).dtype for part in (body, self.origin_model)]
        if dtypes[0] != dtypes[1]:
            raise ValueError(f"Theseus runs layers of teacher {t_no} ({dtypes[0]}) inside the student ({dtypes[1]}), "
                             "so both need one precision: give --teacher_fp16 or --teacher_bf16 as for the student")
        # A teacher with shared parameters has one layer, which it runs several times.
        layers = list(body.layers) * (depth // len(body.layers))
        seg = uniform_layer_map(self.config.num_layers, depth)
        return [layers[start:end] for start, end in zip(seg[:-1], seg[1:], strict=True)]

    def _test(self, choice: Sequence[int], teachers: Sequence[nn.Module]) -> None:
        """``--distill_test_output``: what the method promises, checked in every step."""
        own = {id(parameter) for parameter in self.parameters()}
        sums = []
        for t_no, teacher in enumerate(teachers):
            parameters = list(teacher.parameters())
            if any(id(parameter) in own or parameter.grad is not None for parameter in parameters):
                raise RuntimeError(f"theseus self-test: teacher {t_no} is trained along")
            sums.append(sum(parameter.detach().double().abs().sum().item() for parameter in parameters))
            if teacher.training:
                raise RuntimeError(f"theseus self-test: teacher {t_no} is in training mode")
        if self._teacher_sums and sums != self._teacher_sums:
            raise RuntimeError(f"theseus self-test: teacher weights changed: sums {self._teacher_sums} -> {sums}")
        self._teacher_sums = sums
        if len(choice) != self.config.num_layers or not any(entry < 0 for entry in choice):
            raise RuntimeError(f"theseus self-test: no student layer among {list(choice)}")


def draw_choice(depth: int, num_teachers: int, rate: float, generator: random.Random) -> list[int]:
    """For each student layer -1 (itself) or the number of the teacher whose block takes its place."""
    for _ in range(_PATIENCE):
        choice = [-1 if generator.random() < rate else generator.randrange(num_teachers) for _ in range(depth)]
        if -1 in choice:
            return choice
    choice[generator.randrange(depth)] = -1
    return choice


def _replacement(choice: Sequence[int], blocks: Sequence[Sequence[Sequence[nn.Module]]],
                 ) -> Callable[[Sequence[nn.Module]], list[nn.Module]]:
    def self_layers(self_layers: Sequence[nn.Module]) -> list[nn.Module]:
        chosen: list[nn.Module] = []
        for k, (own, teacher) in enumerate(zip(self_layers, choice, strict=True)):
            chosen += [own] if teacher < 0 else blocks[teacher][k]
        return chosen

    return self_layers
