"""MixMT: the sum of several combiners.

    L = sum over the members of their losses

Members keep the order of ``--mixmt_model``, on every rank. Each adds its own label term; the ``*_wo_hard`` flags switch
it off.
"""

from __future__ import annotations

import argparse
from typing import Any

from distill.multi_teacher.base import COMBINERS, MultiTeacherModel, OutputShape, Step, register_combiner
from distill.student import GLMStudent, Loss
from model.taps import Hook


@register_combiner("mixmt")
class MixMT(MultiTeacherModel):
    """Parameters of a member lie under its published name (``MT_BERT.fit_dense_0`` …).

    A teacher that a member keeps for itself (the encoder of RL-KD) has no tensors for the others: they pass over it.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        names = list(dict.fromkeys(name.strip() for name in args.mixmt_model.split(",") if name.strip()))
        known = {cls.member_name: cls for cls in COMBINERS.values() if cls is not MixMT}
        if not names:
            raise ValueError(f"--multi_teacher_model=mixmt needs --mixmt_model, a comma list of {', '.join(known)}")
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"--mixmt_model={args.mixmt_model}: {unknown[0]} is no combiner; known: "
                             f"{', '.join(known)}")
        self.names = names
        for name in names:
            self.add_module(name, known[name](args))

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("multi-teacher: MixMT")
        group.add_argument("--mixmt_model", default="",
                           help="combiners whose losses are added: AvgTeacher,MT_BERT,Uncertainty,RL_KD")

    @property
    def members(self) -> dict[str, MultiTeacherModel]:
        """By name, in order."""
        return {name: getattr(self, name) for name in self.names}

    @property
    def batch_coupled(self) -> str:
        return "; ".join(filter(None, (member.batch_coupled for member in self.members.values())))

    @property
    def fits_widths(self) -> bool:
        return all(member.fits_widths for member in self.members.values())

    def kept_apart(self, student: GLMStudent) -> frozenset[int]:
        return frozenset().union(*(member.kept_apart(student) for member in self.members.values()))

    def build(self, student: GLMStudent, outputs: OutputShape) -> None:
        for member in self.members.values():
            member.unused = self.unused
            member.build(student, outputs)

    def hooks_process(self, t_hooks: list[Hook]) -> list[Hook]:
        for member in self.members.values():
            t_hooks = member.hooks_process(t_hooks)
        return t_hooks

    def own_terms(self, student: GLMStudent) -> list[str]:
        return [term for member in self.members.values() for term in member.own_terms(student)]

    def memory(self) -> dict[str, Any]:
        return {name: state for name, member in self.members.items() if (state := member.memory())}

    def restore_memory(self, state: dict[str, Any]) -> None:
        for name, member in self.members.items():
            if name in state:
                member.restore_memory(state[name])

    def combine(self, step: Step) -> Loss:
        total: Loss = 0.0
        for name, member in self.members.items():
            loss = member.combine(step)
            step.student.add_summary(f"multi_teacher_model/{name}", loss)
            total = total + loss
        return total
