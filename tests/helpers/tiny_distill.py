"""A distillation step small enough for a test: flags in, context out, through the parser and builders of the entry
scripts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from distill.arguments import build_parser
from distill.multi_teacher_model import attach_combiner, attach_live_teachers
from distill.student import GLMStudent, build_student
from distill.teacher_parallel import teacher_parallel
from distill.teachers import build_teachers, disabled_teachers, teacher_specs
from distill.training.build import backbone, output_shape, prompt_sizes, stage_of, with_head
from distill.training.forward_step import StepContext, StepOutput, forward_step
from distill.training.run_state import RunState
from distill.truncate import backbone as inner_glm
from model.config import ModelConfig
from model.parallel.groups import use_parallel_state
from model.parallel.sharding import mark_replicated_parameters
from tasks.registry import get_task
from tests.golden.replay import whole_gradient
from tests.helpers.tiny_model import tiny_lm_batch
from tests.model.test_compressed import example_map

SIZES = ("--block-lm", "--num-layers=2", "--hidden-size=16", "--num-attention-heads=4", "--max-position-embeddings=32",
         "--attention-dropout=0", "--hidden-dropout=0")
TEACHER = ("--teacher_random_para", "--teacher_load_pretrained=none", "--teacher_num_layers=3",
           "--teacher_hidden_size=24", "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=32")
TWO_TEACHERS = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=24:24")
COPA = ("--finetune", "--cloze-eval", "--task=copa")
CB = ("--finetune", "--cloze-eval", "--task=cb")


def tiny_args(*flags: str) -> SimpleNamespace:
    """Flags on top of tiny sizes, by the parser of the entry scripts (64 words)."""
    stage = "finetune" if "--finetune" in flags else "pretrain"
    args = build_parser(stage).parse_args([*SIZES, *flags])
    return SimpleNamespace(**{**vars(args), "vocab_size": 64, "log_interval": 1})


def tiny_context(*flags: str, run: RunState | None = None, dtype: torch.dtype = torch.float64, seed: int = 0,
                 checkpoint_activations: bool = False) -> StepContext:
    """Student (or plain model) and teachers from flags, with weights large enough for losses to differ."""
    args, run = tiny_args(*flags), run or RunState(seed=1)
    task = get_task(args.task, args) if args.task else None
    rows = int(args.map_vocab_size)
    config = ModelConfig.from_args(args, checkpoint_activations=checkpoint_activations, map_vocab_size=rows,
                                   unmap_vocab_output=bool(rows) and args.unmap_vocab_output, **prompt_sizes(args))
    torch.manual_seed(seed)
    glm, specs = backbone(config, task), teacher_specs(args)
    parallel = teacher_parallel(args)
    with use_parallel_state(parallel.state if parallel else None):
        teachers = build_teachers(specs, config, load_weights=lambda model, path: None,
                                  build_model=lambda sizes: with_head(backbone(sizes, task), sizes, args, task),
                                  map_rows=int,
                                  place=lambda teacher, spec: enlarged(teacher).to(dtype))
    student = build_student(glm, args, teachers=specs, run=run) if args.student_model else None
    combiner = attach_combiner(student, args, output_shape(task, args)) if student is not None else None
    if student is not None:
        attach_live_teachers(student, teachers, args)
    model = enlarged(with_head(student if student is not None else glm, config, args, task)).to(dtype)
    mark_replicated_parameters(model)
    for each in (model, *teachers):
        if vocab_map := getattr(inner_glm(each), "vocab_map", None):
            vocab_map.set(example_map(args.vocab_size, vocab_map.num_rows))
    return StepContext(model.train(), args, run, student=student, teachers=teachers, combiner=combiner,
                       teacher_parallel=parallel,
                       disabled=disabled_teachers(args, len(specs)) if specs else (),
                       stage=stage_of(task), loss_kind=args.loss_func)


def enlarged(model: nn.Module) -> nn.Module:
    """The model with larger matrices than at initialisation, so that attention and softmaxes are not uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model


def choice_batch(batch_size: int = 3, choices: int = 2, length: int = 12) -> dict[str, torch.Tensor]:
    """A multi-token cloze batch as of COPA."""
    lm = tiny_lm_batch(batch_size * choices, length)
    shape = (batch_size, choices)
    return {"text": lm["tokens"].view(*shape, length), "position": lm["position_ids"].view(*shape, 2, length),
            "mask": lm["attention_mask"].view(shape), "target": lm["labels"].view(*shape, length),
            "logit_mask": lm["loss_mask"].long().view(*shape, length),
            "label": torch.arange(batch_size) % choices}


def single_token_batch(batch_size: int = 3, classes: int = 3, length: int = 12) -> dict[str, torch.Tensor]:
    """A single-token cloze batch as of CB."""
    lm = tiny_lm_batch(batch_size, length)
    return {"text": lm["tokens"], "position": lm["position_ids"], "mask": lm["attention_mask"],
            "target": torch.arange(8, 8 + classes).expand(batch_size, classes), "logit_mask": lm["loss_mask"].long(),
            "label": torch.arange(batch_size) % classes}


def batch_for(context: StepContext) -> dict[str, torch.Tensor]:
    """The batch of the context's stage and task."""
    if context.stage == "lm":
        return tiny_lm_batch()
    return choice_batch() if context.args.task == "copa" else single_token_batch()


def watch_losses(student: GLMStudent) -> dict[str, Any]:
    """A dict that the next step fills: ``prediction_loss`` and ``intermediate_loss`` as the combiner gets them."""
    kept: dict[str, Any] = {}

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(student, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            kept[name] = original(*args, **kwargs)
            return kept[name]

        return call

    for name in ("prediction_loss", "intermediate_loss"):
        setattr(student, name, watched(name))
    return kept


def step(context: StepContext, batch: dict[str, torch.Tensor] | None = None) -> StepOutput:
    """One forward and backward pass."""
    output = forward_step(context, batch if batch is not None else batch_for(context))
    output.loss.backward()
    return output


def student_of(*flags: str, **options: Any) -> GLMStudent:
    """Only the student."""
    student = tiny_context(*flags, **options).student
    assert student is not None
    return student


def step_result(*flags: str, checkpoint_activations: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and whole gradients of one step on this rank; the same on every rank of a model-parallel group."""
    context = tiny_context(*flags, checkpoint_activations=checkpoint_activations)
    output = step(context)
    named = context.model.state_dict(keep_vars=True)
    gradients = {name: whole_gradient(value) for name, value in named.items() if isinstance(value, nn.Parameter)}
    return output.loss.item(), {name: value for name, value in gradients.items() if value is not None}
