"""From arguments to a session: model, teachers, weights, engine, schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from data_utils.tokenizers import Tokenizer, padded_vocab_size
from distill.distill_model import build_student
from distill.multi_teacher_model import OutputShape, attach_combiner, attach_live_teachers
from distill.teacher_offload import TeacherOffload
from distill.teacher_parallel import remember_groups, teacher_parallel
from distill.teachers import TeacherSpec, build_teachers, disabled_teachers, teacher_specs
from distill.training.batches import Source
from distill.training.compile import compile_layers
from distill.training.engine import build_engine, training_dtype
from distill.training.forward_step import StepContext
from distill.training.fused_step import use_fused_loss
from distill.training.lr_schedule import LearningRateSchedule
from distill.training.metrics import MetricWriter
from distill.training.run_folder import RunFolder, checkpoint_to_resume
from distill.training.run_state import RunState
from distill.training.session import Session
from distill.training.setup import Runtime
from distill.training.student_parts import COMBINER, load_student_part, teacher_prefix
from distill.truncate import truncate_teacher
from distill.vocab_init import resolve_map_size, set_up_vocab_map
from model.checkpoint.load import HEAD_PREFIXES, STUDENT_PREFIXES, LoadReport, load_backbone
from model.config import ModelConfig
from model.glm import GLMModel
from model.heads import MultiTokenCloze, MultiTokenClozeFast, SequenceClassification, SingleTokenCloze
from model.parallel.groups import parallel_state, use_parallel_state
from model.parallel.sharding import mark_replicated_parameters
from model.prompt import start_prompt
from tasks.encoding import label_word_ids
from tasks.registry import Task, verbalizer_words

logger = logging.getLogger(__name__)

#: The vectors of a continuous prompt in a checkpoint.
PROMPT = "prompt_spell.spell_embeddings.weight"


def build_session(args: Any, runtime: Runtime, folder: RunFolder, writer: MetricWriter, tokenizer: Tokenizer, *,
                  source: Source | None, task: Task | None = None) -> Session:
    """Build everything in the order that the weights need.

    Teachers, student, ``--load-pretrained``, truncation, then the engine, which copies its master weights.

    Args:
        source: training data; None builds neither engine nor schedule.
        task: of fine-tuning; None for pretraining.
    """
    config = student_config(args, tokenizer)
    specs = teacher_specs(args)
    parallel = teacher_parallel(args) if specs else None
    with use_parallel_state(parallel.state if parallel else None):
        teachers = build_teachers(
            specs, config, build_model=lambda sizes: with_head(backbone(sizes, task), sizes, args, task),
            load_weights=lambda model, path: load_weights(model, path, args),
            load_part=_teacher_loader(args),
            map_rows=lambda size: _map_rows(size, args, tokenizer),
            place=lambda model, spec: model.to("cpu" if args.teacher_offload else runtime.device, _teacher_dtype(spec)))
    for teacher in teachers:
        remember_groups(teacher, parallel)
    if args.student_model and not specs:
        logger.warning("--student_model=%s has no teacher (--teacher_load_pretrained): the model is trained alone",
                       args.student_model)
    run = new_run(args, source)
    glm = backbone(config, task)
    if args.freeze_transformer:
        glm.freeze_transformer(args.tune_prefix_layers)
    student, combiner = None, None
    if args.student_model and specs:
        student = build_student(glm, args, teachers=specs, run=run)
        combiner = attach_combiner(student, args, output_shape(task, args))
        attach_live_teachers(student, teachers, args)
    model = with_head(student or glm, config, args, task)
    mark_replicated_parameters(model)
    report = load_weights(model, args.load_pretrained, args) if args.load_pretrained else None
    if combiner is not None and args.mt_model_load:
        load_student_part(combiner, args.mt_model_load, COMBINER, flag="--mt_model_load", args=args)
    resumes = args.load is not None and checkpoint_to_resume(args.load, folder.checkpoints) is not None
    set_up_vocab_map(glm, teachers, args, tokenizer, resumes=resumes, answer_words=verbalizer_words())
    if student is not None:
        truncate_teacher(student, teachers, args)
    if args.prompt_init and (report is None or PROMPT in report.missing):  # a trained prompt is not thrown away
        start_prompt(glm, label_word_ids(task, args, tokenizer), tokenizer.num_tokens, args.seed)
    model.to(runtime.device, training_dtype(args))
    context = StepContext(
        model, args, run, student=student, teachers=teachers, combiner=combiner,
        disabled=disabled_teachers(args, len(specs)) if specs else (), stage=stage_of(task),
        loss_kind="adapet" if args.adapet else args.loss_func, num_tokens=tokenizer.num_tokens)
    context.teacher_parallel = parallel
    if args.teacher_offload:
        context.visit = TeacherOffload(teachers, runtime.device)
    if args.fused_lm_loss:
        use_fused_loss(context)
    if args.compile:
        compile_layers(context, runtime.device)
    session = Session(args, runtime, folder, writer, model, context, run, source)
    start_engine(session)
    return session


def new_run(args: Any, source: Source | None) -> RunState:
    """The position at the beginning of a run over ``source``."""
    return RunState(seed=args.seed, train_iters=source.total // source.per_iteration if source else 1,
                    accumulation_steps=args.gradient_accumulation_steps)


def start_engine(session: Session) -> None:
    """Engine and schedule, where there is something to train on."""
    source = session.source
    if source is not None and source.total > 0:
        _warn_about_coupling(session.context)
        session.engine = build_engine(session.model, session.args)
        session.schedule = build_schedule(session.args, source)


def student_config(args: Any, tokenizer: Tokenizer) -> ModelConfig:
    """Sizes of the student, with the tokenizer's padded vocabulary; checked."""
    vocab_size = padded_vocab_size(tokenizer.num_tokens, args.make_vocab_size_divisible_by)
    rows = _map_rows(args.map_vocab_size, args, tokenizer)
    config = ModelConfig.from_args(args, vocab_size=vocab_size, map_vocab_size=rows,
                                   unmap_vocab_output=bool(rows) and args.unmap_vocab_output, **prompt_sizes(args))
    config.check(args.model_parallel_size)
    return config


def prompt_sizes(args: Any) -> dict[str, Any]:
    """The continuous prompt of a fine-tuning run; a teacher reads one of the same length, with its own vectors."""
    if not args.finetune:
        return {}
    return {"num_prompt_tokens": args.num_prompt_tokens + args.prefix_prompt, "prompt_func": args.prompt_func}


def _map_rows(size: float, args: Any, tokenizer: Tokenizer) -> int:
    divisor = args.make_vocab_size_divisible_by
    return resolve_map_size(size, tokenizer.num_tokens, padded_vocab_size(tokenizer.num_tokens, divisor), divisor)


def backbone(config: ModelConfig, task: Task | None) -> GLMModel:
    """The GLM: logits cut over the vocabulary for token losses, whole for cloze, hidden states for classification."""
    if stage_of(task) == "lm":
        return GLMModel(config, parallel_output=True)
    return GLMModel(config, parallel_output=False, output_predict=task.head != "classification")


def with_head(model: nn.Module, config: ModelConfig, args: Any, task: Task | None) -> nn.Module:
    """The task's head around a GLM or a student; nothing for token losses."""
    if stage_of(task) == "lm":
        return model
    if task.head == "multi_token" and args.fast_decode:
        if config.ib_word_emb:
            raise ValueError("--fast-decode puts the answers of an example behind each other, where --ib_word_emb "
                             "would join the vectors of different answers; leave one of both out (a teacher's form has "
                             "--teacher_ or --mt_ before it)")
        return MultiTokenClozeFast(model, args.length_penalty)
    if task.head == "multi_token":
        return MultiTokenCloze(model, args.length_penalty)
    if task.head == "single_token":
        return SingleTokenCloze(model, take_log_softmax=args.adapet)
    head = SequenceClassification(
        model, config.hidden_size, task.num_classes, args.output_dropout, args.pool_token)
    mark_replicated_parameters(head)
    return head


def load_weights(model: nn.Module, path: str, args: Any) -> LoadReport:
    """``--load-pretrained`` and teachers: weights only; a head in the file is loaded where the model has one."""
    state = parallel_state()
    return load_backbone(
        model, path, mp_rank=state.model_rank, mp_size=state.model_size,
        allowed_unexpected=(*STUDENT_PREFIXES, *HEAD_PREFIXES), trust_pickle=args.trust_checkpoint)


def build_schedule(args: Any, source: Source) -> LearningRateSchedule:
    """The schedule over ``--lr-decay-iters``, else over the training, counted in optimizer steps."""
    steps = args.lr_decay_iters or source.total // source.per_iteration
    if args.finetune:
        steps //= source.accumulation
    schedule = LearningRateSchedule(
        args.lr, steps, warmup=args.warmup, style=args.lr_decay_style, decay_ratio=args.lr_decay_ratio)
    last, below_zero = -(-source.total // source.accumulation), schedule.first_negative_step()
    if below_zero is not None and below_zero < last:
        logger.warning("--lr-decay-style=linear over %d steps goes on falling: from step %d of %d on the learning rate "
                       "is below 0, which climbs the loss; raise --lr-decay-iters, or take cosine", steps, below_zero,
                       last)
    return schedule


def count_parameters(model: nn.Module, *, only_trainable: bool = False) -> int:
    """Parameters of the whole model, over its model-parallel ranks."""
    state = next((module.parallel_state for module in model.modules() if hasattr(module, "parallel_state")), None)
    size = (state or parallel_state()).model_size
    return sum(parameter.numel() * (size if getattr(parameter, "model_parallel", False) else 1)
               for parameter in model.parameters() if parameter.requires_grad or not only_trainable)


def describe(session: Session, what: str, tokenizer: Tokenizer) -> None:
    """The start summary: what is trained, by what, on what, and which values differ from the command line."""
    args, state = session.args, parallel_state()
    for note in args.start_notes if session.runtime.is_main else ():
        logger.warning("%s", note)
    trained, total = count_parameters(session.model, only_trainable=True), count_parameters(session.model)
    teachers = [count_parameters(teacher) for teacher in session.context.teachers]
    engine = f"DeepSpeed ZeRO {args.zero_stage}" if args.deepspeed else "PyTorch"
    dtype = str(training_dtype(args)).removeprefix("torch.")
    method = f"distilled by {args.student_model} from {len(teachers)} teacher(s)" if teachers else "alone"
    batch = args.batch_size * args.gradient_accumulation_steps * state.data_size
    logger.info("%s %s: %s of %s parameters trained%s", what, method, f"{trained:,}", f"{total:,}",
                f"; teachers {', '.join(f'{count:,}' for count in teachers)}" if teachers else "")
    logger.info("on %d x %s (model-parallel %d, data-parallel %d), %s, %s; global batch %d; vocabulary %d; seed %d",
                session.runtime.launch.world_size, session.runtime.device.type, state.model_size, state.data_size,
                engine, dtype, batch, tokenizer.num_tokens, args.seed)
    session.writer.record("start", {
        "what": what, "method": args.student_model, "parameters": total, "trained_parameters": trained,
        "teacher_parameters": teachers, "world_size": session.runtime.launch.world_size,
        "model_parallel_size": state.model_size, "device": session.runtime.device.type, "engine": engine,
        "dtype": dtype, "global_batch_size": batch, "iterations": session.run.train_iters, "torch": torch.__version__,
        "notes": list(args.start_notes)})
    session.writer.write_json("config.json", {name: value for name, value in vars(args).items() if name != "ds_config"})
    if args.ds_config is not None:
        session.writer.write_json("config_gpt_large.json", args.ds_config)
    logger.info("checkpoints: %s; records: %s", session.folder.checkpoints or "none", session.folder.logs or "none")


def _teacher_dtype(spec: TeacherSpec) -> torch.dtype:
    return torch.float16 if spec.fp16 else torch.bfloat16 if spec.bf16 else torch.float32


def _teacher_loader(args: Any) -> Callable[[nn.Module, int], LoadReport] | None:
    """``--mt_load_from_s``: what fills teacher number i; None without the flag."""
    path = args.mt_load_from_s
    if not path:
        return None
    return lambda model, t_no: load_student_part(model, path, teacher_prefix(t_no), flag="--mt_load_from_s", args=args)


def stage_of(task: Task | None) -> str:
    """``"lm"`` for token losses (pretraining, language-model tasks), ``"choice"`` for scores of choices."""
    return "lm" if task is None or task.head == "language_model" else "choice"


def output_shape(task: Task | None, args: Any) -> OutputShape:
    """What the models put out for a sample of the task."""
    if stage_of(task) == "lm":
        return OutputShape()
    choices = (task.max_num_choices or len(task.labels)) if task.choices_are_answers else len(task.labels)
    is_one_row = args.fast_decode or not task.is_multi_choice
    return OutputShape(choices, 1 if is_one_row else choices, task.variable_num_choices or args.segment_length > 0)


def _warn_about_coupling(context: StepContext) -> None:
    args = context.args
    for name, part in ((args.student_model, context.student), (args.multi_teacher_model, context.combiner)):
        if part is not None and part.batch_coupled and args.gradient_accumulation_steps > 1:
            logger.warning("%s: %s, so its loss depends on the split into --gradient-accumulation-steps=%d",
                           name, part.batch_coupled, args.gradient_accumulation_steps)
