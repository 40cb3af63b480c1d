"""The one forward step: plain training, distillation, pretraining and tasks, training and evaluation all go through it.

    student forward (tapped) -> label loss -> teachers (no gradient, tapped) -> combiner: prediction and inner losses

While distilling, a step may pass over its batch several times (``--forward_repeat_num``); the losses are added.

Axes: b samples, c choices, s sequence, v vocabulary, p model-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from distill.multi_teacher_model import MultiTeacherModel
from distill.student import GLMStudent
from distill.teacher_parallel import TeacherParallel
from distill.training.random_data import randomised
from distill.training.run_state import RunState
from model.checkpoint.nonparameters import backbone_of
from model.fast_decode import pack_mask
from model.parallel.cross_entropy import vocab_parallel_cross_entropy
from model.parallel.mappings import scatter_to_model_parallel_region
from model.taps import Hook, TapRequest
from tasks.losses import choice_loss, mask_choices, sum_segments

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
        visit: context in which the weights of a teacher are on the device.
        teacher_parallel: runs teachers of another model-parallel size; None: they are cut as the student is.
        stage: ``"lm"`` for token losses (pretraining, language-model tasks), ``"choice"`` for scores of choices.
        loss_kind: of the choice loss.
        num_tokens: of the tokenizer; None: the size of the vocabulary, padding included.
        fused: does the whole step instead (``--fused-lm-loss``); the models then return hidden states.
    """

    model: Any
    args: Any
    run: RunState
    student: GLMStudent | None = None
    teachers: Sequence[nn.Module] = ()
    combiner: MultiTeacherModel | None = None
    disabled: Sequence[bool] = ()
    visit: Callable[[int], AbstractContextManager[Any]] = nullcontext
    teacher_parallel: TeacherParallel | None = None
    stage: str = "lm"
    loss_kind: str = "cross_entropy"
    num_tokens: int | None = None
    fused: Callable[[StepContext, Batch, torch.Tensor | float | None], StepOutput] | None = None

    def __post_init__(self) -> None:
        if self.student is not None:
            for module in self.student.modules():
                if isinstance(module, GLMStudent):
                    module.has_token_labels = self.stage == "lm"

    @property
    def is_distilling(self) -> bool:
        return self.student is not None and bool(self.teachers) and self.run.is_training


@dataclass
class StepOutput:
    """What came out; where a batch was passed over several times, everything but the loss is of the first pass.

    Attributes:
        loss: scalar to back-propagate, over all passes that count.
        hard_loss: the label loss, whatever the switches say (scalar).
        logits: [b, s, v/p] in the stage "lm" (None where the fused loss never formed them), scores [b, c] in the stage
            "choice".
        hard_loss_per_sample: [b].
        parts: named terms of the step, as recorded by the student (detached scalars); a tag that was recorded
            twice has its last value here, one that several passes recorded that of the first.
        teacher_outputs: what each teacher handed over.
        recorded: the same terms in the order they were recorded, repetitions included, of all passes.
        passes: each pass by itself.
    """

    loss: torch.Tensor
    hard_loss: torch.Tensor
    logits: torch.Tensor | None
    hard_loss_per_sample: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    teacher_outputs: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    passes: list[StepOutput] = field(default_factory=list)


def forward_step(context: StepContext, batch: Batch, *, token_denominator: torch.Tensor | float | None = None,
                 ) -> StepOutput:
    """One micro-batch.

    Args:
        batch: ``tokens, labels, loss_mask, position_ids, attention_mask`` (stage "lm"), or
            ``text, position, mask, target, logit_mask, label`` and sometimes ``loss_mask`` (stage "choice"); the
            options of tasks add ``prompt_pos``, ``segment_id`` or ``dec_*`` (:class:`tasks.encoding.TaskEncoder`); for
            a BERT :class:`tasks.bert_encoding.BertEncoder` makes it.
        token_denominator: what the sum of the masked token losses is divided by, instead of this micro-batch's own
            number of loss tokens.

    Raises:
        ValueError: the step has no loss term at all (the message lists the flags that switch one on).
    """
    student = context.student
    if student is not None:
        student.recorded = []
    if context.fused is not None:
        return context.fused(context, batch, token_denominator)
    if not context.is_distilling:
        logits, _ = run_model(context, context.model, batch)
        hard, per_sample = hard_loss(context, logits, batch, token_denominator)
        return StepOutput(hard, hard, logits, per_sample)
    passes = []
    try:
        for number in range(context.args.forward_repeat_num + 1):
            context.run.repeat = number
            passes.append(_pass(context, batch, token_denominator))
    finally:
        context.run.repeat = 0
    # The gradient of a first pass that does not count is thrown away; there is no need to compute it.
    counted = passes[1:] if context.args.ignore_first_backward_gard else passes
    loss = sum((output.loss for output in counted), 0.0)
    if not isinstance(loss, torch.Tensor):
        raise ValueError(student.no_term_message())
    parts = {tag: value for output in reversed(passes) for tag, value in output.parts.items()}
    return replace(passes[0], loss=loss, parts=parts, recorded=student.recorded, passes=passes)


def _pass(context: StepContext, batch: Batch, token_denominator: torch.Tensor | float | None) -> StepOutput:
    """One pass over the batch. Its loss is the number 0 if it has no term."""
    student = context.student
    first = len(student.recorded)
    rows = len(next(iter(batch.values())))
    batch = randomised(batch, student, context.num_tokens or student.config.vocab_size)
    if token_denominator is not None:  # it was counted without the random copies
        token_denominator = token_denominator * (len(next(iter(batch.values()))) // rows)
    s_hook = student.student_taps()
    t_hooks = context.combiner.hooks_process([student.teacher_taps(i) for i in range(len(context.teachers))])
    s_op = student.get_student_hook_op(teacher_models=context.teachers)
    logits, s_vars = run_model(context, context.model, batch, s_hook, s_op)
    TapRequest.from_hook(s_hook, student.config.num_layers).fill(s_hook)
    hard, per_sample = hard_loss(context, logits, batch, token_denominator)
    student.add_summary("Train/hard_loss", hard)
    t_vars, t_outputs = _run_teachers(context, batch, t_hooks, token_denominator)
    labels = _labels(context, batch)
    student.observe(s_vars, s_hook, t_vars, t_hooks, **labels)
    loss = context.combiner.compute(
        context.teachers, t_hooks, t_vars, t_outputs, student, s_hook, s_vars,
        {"logits": logits, "loss": hard, "loss_batch": per_sample}, **labels)
    student.after_pass(loss)
    recorded = student.recorded[first:]
    return StepOutput(loss, hard, logits, per_sample, dict(recorded), t_outputs, recorded)


def hard_loss(context: StepContext, logits: torch.Tensor, batch: Batch,
              token_denominator: torch.Tensor | float | None = None, *,
              model: nn.Module | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The label loss of the batch and of each sample, in at least fp32.

    Token losses: their sum where ``loss_mask`` is 1, divided by the number of such tokens (of the batch, or of the
    sample; at least 1). Choices: the task's loss; padding choices do not compete.

    Args:
        model: whose logits they are, if not the student's: a compact vocabulary has columns of its own for the labels.
    """
    if not is_text(batch):
        mask = None if "segment_id" in batch else batch.get("loss_mask")
        per_sample = choice_loss(logits, batch["label"], kind=context.loss_kind, choice_mask=mask, per_sample=True)
        return per_sample.mean(), per_sample
    backbone = backbone_of(context.model if model is None else model)
    labels = batch["labels"] if backbone is None else backbone.map_input_to_ids(batch["labels"])
    losses = vocab_parallel_cross_entropy(logits, labels)
    mask = batch["loss_mask"].to(losses.dtype)
    sums, counts = (losses * mask).sum(dim=-1), mask.sum(dim=-1)
    denominator = counts.sum().clamp(min=1.0) if token_denominator is None else token_denominator
    return sums.sum() / denominator, sums / counts.clamp(min=1.0)


def is_text(batch: Batch) -> bool:
    """Whether a batch has token losses. In the stage "choice" some are such texts (``--block-lm-ratio``)."""
    return "tokens" in batch


def run_model(context: StepContext, model: Any, batch: Batch, hook: Hook | None = None,
              hook_op: dict[str, Any] | None = None) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits or scores of the batch by one model, and its tapped tensors."""
    options: dict[str, Any] = {"hook": hook or None, "hook_op": hook_op or None}
    options.update({name: batch[name] for name in ("prompt_pos", "dec_text", "dec_position") if name in batch})
    if is_text(batch):
        logits, inter_vars = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], **options)
        # A head of choices has gathered the vocabulary; token losses want it cut.
        return (logits if context.stage == "lm" else scatter_to_model_parallel_region(logits)), inter_vars
    if "padding_mask" in batch:  # a BERT
        return model(batch["text"], batch["padding_mask"], batch["types"])
    answers = [batch.get(f"dec_{name}" if "dec_text" in batch else name) for name in ("target", "logit_mask")]
    scores, inter_vars = model(batch["text"], batch["position"], batch["mask"], *answers, **options)
    if "segment_id" in batch:  # of pieces of answers: here they become those of choices, for whatever follows
        scores = mask_choices(*sum_segments(scores, batch["segment_id"], batch.get("loss_mask")))
    return scores, inter_vars


def _run_teachers(context: StepContext, batch: Batch, hooks: Sequence[Hook],
                  token_denominator: torch.Tensor | float | None = None,
                  ) -> tuple[list[tuple[torch.Tensor, ...]], list[dict[str, Any]]]:
    """Tapped tensors and outputs of each teacher; ``hooks`` are filled. A disabled teacher gives the number 0."""
    student, variables, outputs = context.student, [], []
    for t_no, teacher in enumerate(context.teachers):
        if context.disabled and context.disabled[t_no]:
            variables.append(())
            outputs.append({"logits": 0.0, **({"loss": 0.0, "loss_batch": 0.0} if context.args.mt_has_loss else {})})
            continue
        with student.facing(t_no):
            operations = student.get_teacher_hook_op(t_no=t_no)
        is_live = any(parameter.requires_grad for parameter in teacher.parameters())
        with context.visit(t_no), nullcontext() if is_live else torch.no_grad():
            logits, inter_vars = _run_teacher(context, t_no, batch, hooks[t_no], operations)
            output = {"logits": logits}
            if context.args.mt_has_loss:
                output["loss"], output["loss_batch"] = hard_loss(
                    context, logits, batch, token_denominator, model=teacher)
        TapRequest.from_hook(hooks[t_no], student.teachers[t_no].num_layers).fill(hooks[t_no])
        variables.append(inter_vars)
        outputs.append(output)
    return variables, outputs


def _run_teacher(context: StepContext, t_no: int, batch: Batch, hook: Hook,
                 operations: dict[str, Any]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    teacher, parallel = context.teachers[t_no], context.teacher_parallel
    if parallel is None:
        return run_model(context, teacher, batch, hook, operations)
    if operations and parallel.is_shared:
        raise ValueError(f"--teacher-model-parallel-size={parallel.state.model_size}: {context.args.student_model} "
                         "alters tensors inside the teachers, which then cannot serve several students at once: give "
                         "at most --model-parallel-size")
    names = TapRequest.from_hook(hook, context.student.teachers[t_no].num_layers).names
    return parallel.run(batch, lambda shared: run_model(context, teacher, shared, hook, operations), names,
                        is_cut=is_text(batch))


def _labels(context: StepContext, batch: Batch) -> dict[str, torch.Tensor | None]:
    """What the method's losses get: a loss mask in language-model tasks only (that of padding choices is another)."""
    if is_text(batch):
        return {"loss_mask": batch["loss_mask"], "labels": batch["labels"], "logit_mask": None}
    logit_mask = pack_mask(batch["text"], batch["dec_logit_mask"]) if "dec_text" in batch else batch.get("logit_mask")
    return {"loss_mask": None, "labels": batch["label"], "logit_mask": logit_mask}
