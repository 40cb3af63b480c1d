"""The combiner: how the losses towards several teachers become one. One teacher goes through it as well."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from distill.student import GLMStudent, Loss
from model.taps import Hook

#: What the student and each teacher hand over: ``logits``, and where known ``loss`` and ``loss_batch`` (hard-label
#: loss).
Outputs = dict[str, Any]


class MultiTeacherModel(nn.Module):
    """Base of all combiners. Parameters of a combiner are saved under ``student.multi_teacher_model.`` and trained
    along.

    Subclasses implement :meth:`compute`.
    """

    combiner_name: ClassVar[str] = ""

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.args = args

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Register the combiner's own flags."""

    def hooks_process(self, t_hooks: list[Hook]) -> list[Hook]:
        """May alter what is tapped in the teachers."""
        return t_hooks

    def own_terms(self, student: GLMStudent) -> list[str]:
        """Loss terms that the combiner itself adds, in words. One that needs labels begins with "label"."""
        return []

    def compute(self, teacher_models: Sequence[nn.Module], t_hook_L: Sequence[Hook],
                t_inter_vars_L: Sequence[Sequence[torch.Tensor]], t_out_L: Sequence[Outputs],
                student_model: GLMStudent, s_hook: Hook, s_inter_vars: Sequence[torch.Tensor], s_out: Outputs,
                loss_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None,
                **kwargs: Any) -> Loss:
        """The loss of the step, a scalar. ``kwargs`` (``logit_mask`` …) are passed on to the method's losses."""
        raise TypeError(f"{type(self).__name__} has to define compute()")


COMBINERS: dict[str, type[MultiTeacherModel]] = {}
"""Value of ``--multi_teacher_model`` -> class."""


def register_combiner(*names: str) -> Callable[[type[MultiTeacherModel]], type[MultiTeacherModel]]:
    """Class decorator: offer a combiner under these names."""

    def register(cls: type[MultiTeacherModel]) -> type[MultiTeacherModel]:
        for name in names:
            if COMBINERS.setdefault(name, cls) is not cls:
                raise ValueError(f"--multi_teacher_model={name} is taken by {COMBINERS[name].__qualname__}")
        cls.combiner_name = names[0]
        return cls

    return register


def find_combiner(name: str | None) -> type[MultiTeacherModel]:
    """The combiner of ``--multi_teacher_model``; none or "" is the average."""
    if not name:
        name = "avg"
    if name not in COMBINERS:
        near = difflib.get_close_matches(name, COMBINERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--multi_teacher_model={name} is not a combiner of this version{hint} "
                         f"Known: {', '.join(sorted(COMBINERS))}")
    return COMBINERS[name]
