"""``--fused-lm-loss``: the forward step without logits, where nothing but the loss would read them.

The models return hidden states; output layer, label loss and the loss towards the teacher's vocabulary are one
operation (:mod:`model.parallel.fused_vocab_loss`). It serves plain pretraining, ``kd`` and ``logitsdistil``.

Axes: b samples, s sequence, h hidden, v vocabulary, p model-parallel ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from distill.losses import position_pad_mask
from distill.losses.masking import fit_mask
from distill.multi_teacher.avg import AvgTeacher
from distill.student import GLMStudent
from distill.training.forward_step import Batch, StepContext, StepOutput
from model.checkpoint.nonparameters import backbone_of
from model.glm import GLMModel
from model.parallel.fused_vocab_loss import SoftTarget, fused_vocab_loss
from model.parallel.vocab_log_prob import global_width

#: Methods whose terms are known here; another one may do anything with the logits.
KNOWN_METHODS = ("kd", "logitsdistil")


@dataclass(frozen=True)
class SoftTerm:
    """The loss between the vocabulary logits of student and teacher: ``rate`` times a mean over b and s.

    Attributes:
        kind: ``kl``, ``ce`` or ``mse``.
        rate: factor, tau^2 of ``kl`` included.
        tag: under which it is recorded.
    """

    kind: str
    rate: float
    temperature: float
    tag: str


def use_fused_loss(context: StepContext) -> None:
    """Make ``context`` take its steps without logits.

    Raises:
        ValueError: something else needs the logits; the message says what.
    """
    reasons = list(_obstacles(context))
    if reasons:
        raise ValueError(f"--fused-lm-loss forms no logits, but {reasons[0]}; leave --fused-lm-loss out")
    for model in (context.model, *context.teachers):
        _glm(model).output_predict = False
    context.fused = fused_step


def _obstacles(context: StepContext) -> Iterable[str]:
    args, student = context.args, context.student
    if context.stage != "lm" or args.finetune:
        yield "fine-tuning scores choices with them (and forms them at a few places only)"
    if args.fp16:
        yield "its gradient is formed before the loss scale of --fp16 is known (--bf16 needs none)"
    if student is None:
        return
    if student.method_name not in KNOWN_METHODS:
        known = ", ".join(KNOWN_METHODS)
        yield f"--student_model={student.method_name} may read them (the methods known not to: {known})"
        return
    if len(context.teachers) > 1 or type(context.combiner) is not AvgTeacher or args.avgmt_teacher_survival_p < 1.0:
        yield "combining several teachers does"
    if any(context.disabled) or args.mt_has_loss:
        yield "--mt_disable_operation and --mt_has_loss look at each teacher's"
    if args.forward_repeat_num or args.distill_random_data:
        yield "--forward_repeat_num and --distill_random_data pass several times over a batch"
    if args.distil_analysis_inter:
        yield "--distil_analysis_inter analyses every term by itself"
    if args.distill_logits_parallel:
        yield "--distill_logits_parallel adds a second loss on them"
    if student.method_name == "logitsdistil" and not args.logitsdistil_wo_inter:
        if args.logitsdistil_top_n is not None:
            yield "--logitsdistil_top_n looks for the best of a whole row"
        if student.soft_kind() and student.rate("soft"):
            yield "--distill_pt_soft adds a second loss on them"


def fused_step(context: StepContext, batch: Batch, token_denominator: torch.Tensor | float | None) -> StepOutput:
    """As :func:`distill.training.forward_step.forward_step`; ``logits`` of the output is None."""
    glm, shape = _glm(context.model), batch["labels"].shape
    hidden, table = _factors(context.model, batch)
    mask = batch["loss_mask"].to(torch.float32)
    counts = mask.sum(dim=-1)
    denominator = counts.sum().clamp(min=1.0) if token_denominator is None else token_denominator
    label_weight = (mask / denominator).flatten()
    labels = glm.map_input_to_ids(batch["labels"]).flatten()

    def label_losses(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sums = (rows.view(shape) * mask).sum(dim=-1)
        return sums.sum() / denominator, sums / counts.clamp(min=1.0)

    if not context.is_distilling:
        result = fused_vocab_loss(hidden.flatten(0, 1), table, labels, label_weight)
        hard, per_sample = label_losses(result.label_rows)
        return StepOutput(result.loss, hard, None, per_sample)
    student, teacher = context.student, context.teachers[0]
    with context.visit(0):
        with student.facing(0):
            term, hard_rate = soft_term(student), _hard_rate(student)
        with torch.no_grad():
            t_hidden, t_table = _factors(teacher, batch)
        soft, constant = None, 0.0
        if term is not None:
            width = global_width(table.shape[0], True, table.device)
            weight, constant = _soft_weight(student, term, batch, width)
            soft = SoftTarget(t_hidden.flatten(0, 1), t_table.detach(), weight, term.kind, term.temperature)
        result = fused_vocab_loss(hidden.flatten(0, 1), table, labels, label_weight * hard_rate,
                                  label_mask=mask.flatten(), soft=soft)
    hard, per_sample = label_losses(result.label_rows)
    loss = result.loss + constant
    _record(student, term, hard, hard_rate, soft, result.soft_rows, constant, loss)
    return StepOutput(loss, hard, None, per_sample, dict(student.recorded), [], student.recorded)


def soft_term(student: GLMStudent) -> SoftTerm | None:
    """The loss on vocabulary logits that the flags of ``kd`` or ``logitsdistil`` switch on."""
    args = student.args
    tau = args.distill_temperature
    if student.method_name == "logitsdistil" and not args.logitsdistil_wo_inter:
        kind, rate, tag = "mse" if args.logitsdistil_mse else "kl", 1.0, "inter_loss/logits_parallel"
    else:
        kind, rate, tag = student.soft_kind(), student.rate("soft"), "pre_loss/pt_soft"
    return SoftTerm(kind, rate * (tau ** 2 if kind == "kl" else 1.0), tau, tag) if kind and rate else None


def _hard_rate(student: GLMStudent) -> float:
    return student.rate("hard") if student.args.distill_pt_hard else 0.0


def _soft_weight(student: GLMStudent, term: SoftTerm, batch: Batch, width: int) -> tuple[torch.Tensor, float]:
    """What each row's loss is multiplied with, [b s], and what the masked ones add as a constant."""
    args, rate = student.args, term.rate / (width if term.kind == "mse" else 1)
    mask: torch.Tensor | None = None
    if term.tag == "inter_loss/logits_parallel":
        masks = [position_pad_mask(batch["position_ids"])] if args.logitsdistil_mask_pad else []
        masks += [batch["loss_mask"]] if args.logitsdistil_mask_a else []
        mask = math.prod(masks[1:], start=masks[0]) if masks else None
    elif not args.distill_wo_loss_mask:
        mask = batch["labels"] > 0 if args.distill_only_mask_pad else batch["loss_mask"]
    ones = torch.ones(batch["labels"].shape, dtype=torch.float32, device=batch["labels"].device)
    mask = ones if mask is None else fit_mask(mask, ones)
    constant = 0.0
    if term.kind == "ce" and not args.distill_wo_loss_mask and not args.distill_mask_wo_constant:
        constant = rate * math.log(width) * (1.0 - mask).mean()
    return (mask * (rate / mask.numel())).flatten(), constant


def _record(student: GLMStudent, term: SoftTerm | None, hard: torch.Tensor, hard_rate: float, soft: SoftTarget | None,
            soft_rows: torch.Tensor, constant: Any, loss: torch.Tensor) -> None:
    """The same named terms as with logits, in the same order."""
    student.add_summary("Train/hard_loss", hard)
    with student.facing(0):
        soft_loss = None if soft is None else (soft_rows * soft.weight).sum() + constant
        if soft_loss is not None and term.tag.startswith("pre_loss"):
            student.add_summary(term.tag, soft_loss)
        if hard_rate:
            student.add_summary("pre_loss/pt_hard", hard_rate * hard)
        if soft_loss is not None and not term.tag.startswith("pre_loss"):
            student.add_summary(term.tag, soft_loss)
        student.add_summary("teacher_loss/teacher_0", loss)


def _glm(model: Any) -> GLMModel:
    glm = backbone_of(model)
    if glm is None:
        raise ValueError(f"--fused-lm-loss needs a GLM, not {type(model).__name__}")
    return glm


def _factors(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [b, s, h] and this rank's word table [v/p, h], whose product are the logits."""
    hidden, _ = model(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    return _glm(model).output_layer(hidden)
