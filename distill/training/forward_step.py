"""The one forward step: plain training, distillation, pretraining and tasks, training and evaluation all go through it.

    student forward (tapped) -> label loss -> teachers (no gradient, tapped) -> combiner: prediction and inner losses

Axes: b samples, c choices, s sequence, v vocabulary, p model-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distill.multi_teacher_model import MultiTeacherModel
from distill.student import GLMStudent
from distill.training.run_state import RunState
from model.parallel.cross_entropy import vocab_parallel_cross_entropy
from model.taps import Hook, TapRequest
from tasks.losses import choice_loss

Batch = Mapping[str, torch.Tensor]


@dataclass
class StepContext:
    """What a step needs beside the batch.

    Attributes:
        model: what is called: the engine or module around a GLM, a student or a task head.
        args: the read-only command line.
        run: position inside the run; teachers and method terms exist only while ``run.is_training``.
        student: the student inside ``model``; None for plain training.
        teachers: their models, in flag order, each with the same task head as ``model``.
        combiner: of the teachers.
        disabled: teachers that are not run (``--mt_disable_operation``), empty for none.
        stage: ``"lm"`` for token losses (pretraining, language-model tasks), ``"choice"`` for scores of choices.
        loss_kind: of the choice loss.
    """

    model: Any
    args: Any
    run: RunState
    student: GLMStudent | None = None
    teachers: Sequence[nn.Module] = ()
    combiner: MultiTeacherModel | None = None
    disabled: Sequence[bool] = ()
    stage: str = "lm"
    loss_kind: str = "cross_entropy"

    @property
    def is_distilling(self) -> bool:
        return self.student is not None and bool(self.teachers) and self.run.is_training


@dataclass
class StepOutput:
    """What came out.

    Attributes:
        loss: scalar to back-propagate.
        hard_loss: the label loss, whatever the switches say (scalar).
        logits: [b, s, v/p] in the stage "lm", scores [b, c] in the stage "choice".
        hard_loss_per_sample: [b].
        parts: named terms of the step, as recorded by the student (detached scalars); a tag that was recorded
            twice has its last value here.
        teacher_outputs: what each teacher handed over.
        recorded: the same terms in the order they were recorded, repetitions included.
    """

    loss: torch.Tensor
    hard_loss: torch.Tensor
    logits: torch.Tensor
    hard_loss_per_sample: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    teacher_outputs: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[tuple[str, torch.Tensor]] = field(default_factory=list)


def forward_step(context: StepContext, batch: Batch, *, token_denominator: torch.Tensor | float | None = None,
                 ) -> StepOutput:
    """One pass over a micro-batch.

    Args:
        batch: ``tokens, labels, loss_mask, position_ids, attention_mask`` (stage "lm"), or
            ``text, position, mask, target, logit_mask, label`` and sometimes ``loss_mask`` (stage "choice").
        token_denominator: what the sum of the masked token losses is divided by, instead of this micro-batch's own
            number of loss tokens.

    Raises:
        ValueError: the step has no loss term at all (the message lists the flags that switch one on).
    """
    student = context.student
    if student is not None:
        student.recorded = []
    if not context.is_distilling:
        logits, _ = _run(context, context.model, batch, {}, {})
        hard, per_sample = hard_loss(context, logits, batch, token_denominator)
        return StepOutput(hard, hard, logits, per_sample)
    s_hook = student.student_taps()
    t_hooks = context.combiner.hooks_process([student.teacher_taps(i) for i in range(len(context.teachers))])
    s_op = student.get_student_hook_op(teacher_models=context.teachers)
    logits, s_vars = _run(context, context.model, batch, s_hook, s_op)
    TapRequest.from_hook(s_hook, student.config.num_layers).fill(s_hook)
    hard, per_sample = hard_loss(context, logits, batch, token_denominator)
    student.add_summary("Train/hard_loss", hard)
    t_vars, t_outputs = _run_teachers(context, batch, t_hooks)
    loss = context.combiner.compute(
        context.teachers, t_hooks, t_vars, t_outputs, student, s_hook, s_vars,
        {"logits": logits, "loss": hard, "loss_batch": per_sample}, **_labels(context, batch))
    if not isinstance(loss, torch.Tensor):
        raise ValueError(student.no_term_message())
    return StepOutput(loss, hard, logits, per_sample, dict(student.recorded), t_outputs, student.recorded)


def hard_loss(context: StepContext, logits: torch.Tensor, batch: Batch,
              token_denominator: torch.Tensor | float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The label loss of the batch and of each sample, in at least fp32.

    Token losses: their sum where ``loss_mask`` is 1, divided by the number of such tokens (of the batch, or of the
    sample; at least 1). Choices: the task's loss; padding choices do not compete.
    """
    if context.stage == "choice":
        mask = batch.get("loss_mask")
        per_sample = choice_loss(logits, batch["label"], kind=context.loss_kind, choice_mask=mask, per_sample=True)
        return per_sample.mean(), per_sample
    losses = vocab_parallel_cross_entropy(logits, batch["labels"])
    mask = batch["loss_mask"].to(losses.dtype)
    sums, counts = (losses * mask).sum(dim=-1), mask.sum(dim=-1)
    denominator = counts.sum().clamp(min=1.0) if token_denominator is None else token_denominator
    return sums.sum() / denominator, sums / counts.clamp(min=1.0)


def _run(context: StepContext, model: Any, batch: Batch, hook: Hook,
         hook_op: dict[str, Any]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    taps: dict[str, Any] = {"hook": hook or None, "hook_op": hook_op or None}
    if context.stage == "lm":
        return model(batch["tokens"], batch["position_ids"], batch["attention_mask"], **taps)
    return model(batch["text"], batch["position"], batch["mask"], batch.get("target"), batch.get("logit_mask"), **taps)


def _run_teachers(context: StepContext, batch: Batch,
                  hooks: Sequence[Hook]) -> tuple[list[tuple[torch.Tensor, ...]], list[dict[str, Any]]]:
    """Tapped tensors and outputs of each teacher; ``hooks`` are filled. A disabled teacher gives the number 0."""
    student, variables, outputs = context.student, [], []
    for t_no, teacher in enumerate(context.teachers):
        if context.disabled and context.disabled[t_no]:
            variables.append(())
            outputs.append({"logits": 0.0, **({"loss": 0.0, "loss_batch": 0.0} if context.args.mt_has_loss else {})})
            continue
        with student.facing(t_no):
            operations = student.get_teacher_hook_op(t_no=t_no)
        with torch.no_grad() if not any(p.requires_grad for p in teacher.parameters()) else nullcontext():
            logits, inter_vars = _run(context, teacher, batch, hooks[t_no], operations)
            output = {"logits": logits}
            if context.args.mt_has_loss:
                output["loss"], output["loss_batch"] = hard_loss(context, logits, batch)
        TapRequest.from_hook(hooks[t_no], student.teachers[t_no].num_layers).fill(hooks[t_no])
        variables.append(inter_vars)
        outputs.append(output)
    return variables, outputs


def _labels(context: StepContext, batch: Batch) -> dict[str, torch.Tensor | None]:
    """What the method's losses get: a loss mask in language-model tasks only (that of padding choices is another)."""
    if context.stage == "lm":
        return {"loss_mask": batch["loss_mask"], "labels": batch["labels"], "logit_mask": None}
    return {"loss_mask": None, "labels": batch["label"], "logit_mask": batch.get("logit_mask")}
