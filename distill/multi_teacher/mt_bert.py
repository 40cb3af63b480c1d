"""MT-BERT (Wu, Wu, Huang 2021, arXiv:2106.01023, similar): a teacher that knows the answer better counts more, and
hidden states of unequal widths meet through a projection.

    L = sum_i [ mean_b( pre_i[b] / (1 + l_i[b]) ) + inter_i ] + hard

``l_i[b]`` is teacher i's own label loss of sample b, a constant. Departures from the paper: the weight is on the
prediction loss only, and a hidden state is read through the LayerNorm that follows it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from distill.multi_teacher.base import (
    MultiTeacherModel,
    OutputShape,
    Step,
    add_label,
    register_combiner,
    weighted_mean,
)
from distill.student import GLMStudent, Loss
from model.parallel.layers import ColumnParallelLinear
from model.taps import Hook

#: The tapped tensors that are projected.
PROJECTED = ("layernorm_output", "output")


@register_combiner("mt_bert")
class MTBert(MultiTeacherModel):
    """Flags ``--mt_bert_*``. Parameters: ``fit_dense_<i>``; with ``--mt_bert_fix_layernorm`` a trainable ``layernorm``
    of the student's width, and frozen ``t_layernorm_<i>``.

    The projection maps teacher i's hidden states to the student's width (``--mt_bert_fit_teacher``) or the other way
    round. It acts for one teacher as for several; both LayerNorms are applied once, before it.
    """

    member_name = "MT_BERT"

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        if not args.mt_has_loss:
            raise ValueError("--multi_teacher_model=mt_bert weighs a teacher by its own label loss: add --mt_has_loss")
        if not args.mt_bert_wo_hard:
            self.warn_of_two_labels("mt_bert (unless --mt_bert_wo_hard)")

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("multi-teacher: MT-BERT")
        for name, text in (
                ("fit_teacher", "project the teachers' hidden states to the student's width, not the reverse"),
                ("wo_hard", "do not add the label loss"),
                ("wo_convert_layer", "no projection"),
                ("fix_layernorm", "a LayerNorm on the hidden states before: trained for the student, fixed for "
                                  "teachers")):
            group.add_argument(f"--mt_bert_{name}", action="store_true", help=text)

    @property
    def fits_widths(self) -> bool:
        return not self.args.mt_bert_wo_convert_layer

    def build(self, student: GLMStudent, outputs: OutputShape) -> None:
        width = student.config.hidden_size
        specs = [spec for spec in student.teachers if spec.index not in self.unused]
        unequal = [spec.hidden_size for spec in specs if spec.hidden_size != width]
        if self.fits_widths and unequal and (reason := _needs_own_widths(student)):
            raise ValueError(
                f"mt_bert projects hidden states between the widths {width} (--hidden-size) and {unequal[0]} "
                f"(--teacher_hidden_size), but {reason}: add --mt_bert_wo_convert_layer")
        if self.args.mt_bert_fix_layernorm:
            self.layernorm = nn.LayerNorm(width)
        for spec in specs:
            if self.args.mt_bert_fix_layernorm:
                self.add_module(f"t_layernorm_{spec.index}", nn.LayerNorm(spec.hidden_size).requires_grad_(False))
            if self.fits_widths:
                source, target = width, spec.hidden_size
                if self.args.mt_bert_fit_teacher:
                    source, target = target, source
                self.add_module(f"fit_dense_{spec.index}", ColumnParallelLinear(source, target, gather_output=True))

    def own_terms(self, student: GLMStudent) -> list[str]:
        return [] if self.args.mt_bert_wo_hard else ["label x 1 beside the teachers"]

    def combine(self, step: Step) -> Loss:
        total: Loss = 0.0
        if self.args.mt_bert_fix_layernorm:
            step = replace(step, s_vars=_transformed(step, step.s_vars, step.s_hook, self.layernorm))
        for t_no in self.numbers(step):
            own_loss = torch.as_tensor(step.t_out[t_no]["loss_batch"]).detach()
            prediction = weighted_mean(step.prediction(t_no, keep_batch=True), 1.0 / (1.0 + own_loss))
            term = prediction + self._fitted(step, t_no).intermediate(t_no)
            step.record_teacher(t_no, term)
            total = total + term
        return total if self.args.mt_bert_wo_hard else add_label(step, total, 1.0)

    def _fitted(self, step: Step, t_no: int) -> Step:
        """The step with hidden states of one width."""
        student, teacher = list(step.s_vars), list(step.t_vars[t_no])
        if self.args.mt_bert_fix_layernorm:
            teacher = _transformed(step, teacher, step.t_hooks[t_no], getattr(self, f"t_layernorm_{t_no}"))
        if self.fits_widths:
            layer = getattr(self, f"fit_dense_{t_no}")
            if self.args.mt_bert_fit_teacher:
                teacher = _transformed(step, teacher, step.t_hooks[t_no], layer)
            else:
                student = _transformed(step, student, step.s_hook, layer)
        return replace(step, s_vars=student, t_vars=[
            teacher if number == t_no else values for number, values in enumerate(step.t_vars)])


def _needs_own_widths(student: GLMStudent) -> str:
    """Why the method cannot do with projected hidden states; empty if it can."""
    if student.has_projections:
        return f"{student.method_name} does so itself"
    reasons = [part.teacher_weights for part in student.modules() if isinstance(part, GLMStudent)]
    return next(filter(None, reasons), "")


def _transformed(step: Step, values: Sequence[torch.Tensor], hook: Hook, layer: nn.Module) -> list[torch.Tensor]:
    """A copy of the list with ``layer`` applied to the hidden states. Raises ValueError for another width."""
    result = list(values)
    width = layer.weight.shape[-1]
    for place in _projected_places(hook) if values else ():
        if result[place].shape[-1] != width:
            raise ValueError(f"mt_bert expects hidden states of width {width}, but {step.student.method_name} hands "
                             f"over {result[place].shape[-1]}: add --mt_bert_wo_convert_layer and remove "
                             "--mt_bert_fix_layernorm")
        result[place] = step.student.apply_layer(layer, result[place])
    return result


def _projected_places(hook: Hook) -> Iterator[int]:
    for name, value in hook.items():
        if isinstance(value, Mapping):
            yield from _projected_places(value)
        elif name in PROJECTED:
            yield value
