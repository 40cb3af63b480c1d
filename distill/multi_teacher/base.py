"""The combiner: how the losses towards several teachers become one. One teacher goes through it as well.

    step -> for each teacher i: pre_i, inter_i (the student's two losses) -> one scalar

A combiner implements :meth:`MultiTeacherModel.combine`, which gets a :class:`Step`.

Legend: ``b`` samples, ``c`` choices, ``s`` sequence, ``v`` vocabulary, ``p`` model-parallel ranks, ``N`` teachers.
"""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from distill.student import GLMStudent, Loss
from model.taps import Hook

logger = logging.getLogger(__name__)

#: What the student and each teacher hand over: ``logits``, and where known ``loss`` and ``loss_batch`` (hard-label
#: loss of the batch and of each sample). A disabled teacher hands over the number 0.
Outputs = dict[str, Any]


@dataclass(frozen=True)
class OutputShape:
    """What the models put out for a sample.

    Attributes:
        num_classes: scores of a sample, one a class or choice; None for token logits [b, s, v/p].
        num_choices: rows of the batch that belong to one sample.
        varies: samples differ in their number of choices; the two numbers are then the largest in training.
    """

    num_classes: int | None = None
    num_choices: int = 1
    varies: bool = False


@dataclass
class Step:
    """One forward pass of all models, and the student's two losses towards each teacher.

    Attributes:
        s_vars, t_vars: tapped tensors of the student and of each teacher; the filled hooks name their places.
        s_out: ``logits``, ``loss`` (scalar) and ``loss_batch`` [b] of the student; ``t_out`` the same per teacher.
        common: ``loss_mask``, ``labels``, ``logit_mask``: passed on to the losses.
    """

    student: GLMStudent
    teachers: Sequence[nn.Module]
    s_hook: Hook
    s_vars: Sequence[torch.Tensor]
    s_out: Outputs
    t_hooks: Sequence[Hook]
    t_vars: Sequence[Sequence[torch.Tensor]]
    t_out: Sequence[Outputs]
    common: dict[str, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return len(self.s_out["logits"])

    def prediction(self, t_no: int, *, keep_batch: bool = False) -> Loss:
        """``pre_i``, a scalar or [b]; the number 0 where the method has no such term."""
        hard = self.s_out["loss_batch" if keep_batch else "loss"]
        return self.student.prediction_loss(self.s_out["logits"], self.t_out[t_no]["logits"], hard, t_no=t_no,
                                            keep_batch=keep_batch, **self.common)

    def intermediate(self, t_no: int, *, keep_batch: bool = False) -> Loss:
        """``inter_i``, a scalar or [b]: a sample's value is the mean over its choices."""
        loss = self.student.intermediate_loss(
            self.s_vars, self.t_vars[t_no], self.s_hook, self.t_hooks[t_no], t_no=t_no, keep_batch=keep_batch,
            t_model=self.teachers[t_no], **self.common)
        if keep_batch and isinstance(loss, torch.Tensor) and len(loss) != self.num_samples:
            return loss.view(self.num_samples, -1).mean(dim=1)
        return loss

    def teacher_logits(self, t_no: int, reader: str) -> torch.Tensor:
        """The logits of a teacher. Raises ValueError if it was not run."""
        logits = self.t_out[t_no]["logits"]
        if not isinstance(logits, torch.Tensor):
            raise ValueError(f"{reader} reads the logits of every teacher, but --mt_disable_operation switches teacher "
                             f"{t_no} off; set it to 0 there")
        return logits

    def record_teacher(self, t_no: int, term: Loss) -> None:
        """Record a teacher's whole term."""
        with self.student.facing(t_no):
            self.student.add_summary(f"teacher_loss/teacher_{t_no}", term)

    def position_mask(self, *, wo_loss_mask: bool, only_mask_pad: bool) -> torch.Tensor | None:
        """[b, s] weight of each position under a combiner's own switches; None for all ones."""
        loss_mask, labels = self.common.get("loss_mask"), self.common.get("labels")
        if loss_mask is None or wo_loss_mask:
            return None
        return labels > 0 if only_mask_pad and labels is not None and labels.dim() == 2 else loss_mask


class MultiTeacherModel(nn.Module):
    """Base of all combiners. Parameters of a combiner are saved under ``student.multi_teacher_model.`` and trained
    along.

    Subclasses implement :meth:`combine`, or :meth:`compute` with the whole argument list.

    Attributes:
        unused: teachers that this combiner passes over (:meth:`kept_apart`, its own and in a mixture the others').
    """

    combiner_name: ClassVar[str] = ""
    #: Name as a member of a mixture, in ``--mixmt_model`` and in checkpoints; default: the class name.
    member_name: ClassVar[str] = ""

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.args = args
        self.unused: frozenset[int] = frozenset()

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Register the combiner's own flags."""

    @property
    def batch_coupled(self) -> str:
        """Why a sample's loss depends on the other samples of the micro-batch; empty if it does not."""
        return ""

    @property
    def fits_widths(self) -> bool:
        """Whether the method sees hidden states of student and teacher at one width, whatever the models' widths."""
        return False

    def kept_apart(self, student: GLMStudent) -> frozenset[int]:
        """Teachers that serve another purpose than the student's losses; asked before :meth:`build`."""
        return frozenset()

    def build(self, student: GLMStudent, outputs: OutputShape) -> None:
        """Make the parameters, once the student and its teachers are known. Raises ValueError for what cannot be."""

    def hooks_process(self, t_hooks: list[Hook]) -> list[Hook]:
        """May alter what is tapped in the teachers."""
        return t_hooks

    def own_terms(self, student: GLMStudent) -> list[str]:
        """Loss terms that the combiner itself adds, in words. One that needs labels begins with "label"."""
        return []

    def memory(self) -> dict[str, Any]:
        """What is carried from step to step on this rank beside parameters: tensors and plain values, for a resume."""
        return {}

    def restore_memory(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`memory`."""

    def numbers(self, step: Step) -> list[int]:
        """The teachers that count, in flag order."""
        return [t_no for t_no in range(len(step.t_out)) if t_no not in self.unused]

    def combine(self, step: Step) -> Loss:
        """The loss of the step, a scalar."""
        raise TypeError(f"{type(self).__name__} has to define combine()")

    def compute(self, teacher_models: Sequence[nn.Module], t_hook_L: Sequence[Hook],
                t_inter_vars_L: Sequence[Sequence[torch.Tensor]], t_out_L: Sequence[Outputs],
                student_model: GLMStudent, s_hook: Hook, s_inter_vars: Sequence[torch.Tensor], s_out: Outputs,
                loss_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None,
                **kwargs: Any) -> Loss:
        """As :meth:`combine`. ``kwargs`` (``logit_mask`` …) are passed on to the method's losses."""
        return self.combine(Step(
            student_model, teacher_models, s_hook, s_inter_vars, s_out, t_hook_L, t_inter_vars_L, t_out_L,
            {"loss_mask": loss_mask, "labels": labels, **kwargs}))

    def warn_of_two_labels(self, reason: str) -> None:
        """Warn if the method's prediction loss has the label as well, which ``reason`` adds."""
        stage = "ft" if self.args.finetune else "pt"
        if getattr(self.args, f"distill_{stage}_hard"):
            logger.warning("the label counts twice: %s adds it, and so does --distill_%s_hard", reason, stage)


def add_label(step: Step, loss: Loss, weight: float) -> Loss:
    """``loss + weight * hard``, recorded."""
    hard = weight * step.s_out["loss"]
    step.student.add_summary("multi_teacher_model/hard_loss", hard)
    return loss + hard


def weighted_mean(values: Loss, weights: torch.Tensor | float) -> Loss:
    """``mean_b(weights[b] values[b])``; the number 0 stays 0."""
    return (weights * values).mean() if isinstance(values, torch.Tensor) else values


COMBINERS: dict[str, type[MultiTeacherModel]] = {}
"""Value of ``--multi_teacher_model`` -> class."""


def register_combiner(*names: str) -> Callable[[type[MultiTeacherModel]], type[MultiTeacherModel]]:
    """Class decorator: offer a combiner under these names."""

    def register(cls: type[MultiTeacherModel]) -> type[MultiTeacherModel]:
        for name in names:
            if COMBINERS.setdefault(name, cls) is not cls:
                raise ValueError(f"--multi_teacher_model={name} is taken by {COMBINERS[name].__qualname__}")
        cls.combiner_name = names[0]
        cls.member_name = vars(cls).get("member_name") or cls.__name__
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
