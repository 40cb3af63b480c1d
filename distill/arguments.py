"""The command line: the only reader of ``sys.argv``.

Every room declares its own flags; here they are collected, the DeepSpeed file is merged in, the combination is checked,
and the namespace is frozen. What changes during a run lives in :class:`distill.training.run_state.RunState`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from data_utils.flags import add_data_flags, check_data_flags
from distill.bert_flags import check_bert_flags
from distill.distill_model import find_method
from distill.flag_types import PerTeacher
from distill.multi_teacher_model import add_multi_teacher_flags
from distill.retired_flags import add_retired_flags, check_retired_flags
from distill.student import add_distill_flags, add_method_flags, check_distill_flags
from distill.teachers import add_teacher_flags, teacher_specs
from distill.training import ds_config
from distill.training.flags import add_training_flags
from distill.vocab_init import add_vocab_flags, check_vocab_flags
from model.config import ModelConfig, add_model_flags
from model.parallel import backend
from tasks.flags import add_task_flags, check_task_flags
from tasks.language_model import is_language_model_task

logger = logging.getLogger(__name__)

PRETRAIN, FINETUNE = "pretrain", "finetune"


class FrozenNamespace(argparse.Namespace):
    """The final arguments. Assigning to one raises; a variant is a copy made by :func:`replace_args`."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"arguments are read-only: args.{name} cannot become {value!r} (use replace_args)")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"arguments are read-only: args.{name} cannot be deleted")


def replace_args(args: argparse.Namespace, **changes: Any) -> FrozenNamespace:
    """A copy of ``args`` with some values changed. Raises AttributeError for a name that is not there."""
    unknown = sorted(set(changes) - set(vars(args)))
    if unknown:
        raise AttributeError(f"there is no argument {', '.join(unknown)}")
    return FrozenNamespace(**{**vars(args), **changes})


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", []) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """No abbreviations, and an unknown flag is answered with the nearest known one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Without the usage: with this many flags it would hide the message."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists every flag)\n")

    def reject_unknown(self, words: Iterable[str]) -> None:
        for word in words:
            name = word.split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
            self.error(f"unknown argument {word}{hint}")


def build_parser(stage: str = PRETRAIN) -> argparse.ArgumentParser:
    """The parser with the flags of every room, method and combiner."""
    parser = _Parser(prog=f"distill/{stage}.py", usage="%(prog)s --flag=value …", description=_DESCRIPTIONS[stage])
    add_model_flags(parser)
    add_data_flags(parser)
    add_training_flags(parser)
    add_task_flags(parser)
    add_vocab_flags(parser)
    add_distill_flags(parser)
    add_teacher_flags(parser)
    add_method_flags(parser)
    add_multi_teacher_flags(parser)
    add_retired_flags(parser)
    return parser


_DESCRIPTIONS = {
    PRETRAIN: "Pretrain a GLM on text, alone or distilled from teachers (--student_model, --teacher_load_pretrained).",
    FINETUNE: "Fine-tune a GLM on a task, alone or distilled (--student_model, --teacher_load_pretrained).",
}


def parse_args(argv: Sequence[str] | None = None, stage: str = PRETRAIN) -> FrozenNamespace:
    """Parse, merge the DeepSpeed file, check and freeze.

    Args:
        argv: words of the command line; default ``sys.argv[1:]``.
        stage: ``pretrain`` or ``finetune``.

    Returns:
        The read-only arguments, with three more than there are flags: ``ds_config`` (dict for DeepSpeed, or None),
        ``start_notes`` (lines to tell at the start of the run) and ``given_model_parallel_size`` (before it is limited
        to the processes that there are).

    Raises:
        SystemExit: as argparse does, for ``--help`` and for words that cannot be parsed.
        ValueError: a combination that cannot work; the message names flags, numbers and the way out.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    _load_user_module(words)
    parser = build_parser(stage)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        parser.reject_unknown(unknown)
    notes = check_retired_flags(args)
    args.given_model_parallel_size = args.model_parallel_size
    _limit_model_parallel(args, notes)
    _resolve_engine(args, notes)
    _resolve_fractions(args)
    notes += check_bert_flags(args)
    _check(args, stage)
    return FrozenNamespace(**vars(args), start_notes=tuple(notes))


def _load_user_module(words: Sequence[str]) -> None:
    """``--user-module`` comes first: it may register methods, which bring flags."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--user-module")
    name = early.parse_known_args(words)[0].user_module
    if name is not None:
        import_user_module(name)


def import_user_module(name: str) -> ModuleType:
    """Import a Python file or a dotted module; a second time the same one is returned.

    Raises:
        ValueError: there is no such file or module, or another file of that name has been imported.
    """
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.split(".")[0]):
                raise
            raise ValueError(f"--user-module={name}: neither a .py file nor an importable module") from None
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"--user-module={name} does not exist")
    module_name = f"glmkd_user_{path.stem}"
    known = sys.modules.get(module_name)
    if known is not None:
        if known.__file__ != str(path):
            raise ValueError(f"--user-module={name}: {known.__file__} has been loaded under the same name; rename one")
        return known
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _limit_model_parallel(args: argparse.Namespace, notes: list[str]) -> None:
    """A model cannot be cut over more ranks than there are."""
    world_size = backend.launched_world_size(os.environ)
    if args.model_parallel_size > world_size:
        notes.append(f"--model-parallel-size {args.model_parallel_size} -> {world_size}: the number of processes")
        args.model_parallel_size = world_size
    if (args.teacher_model_parallel_size or 0) > world_size:
        notes.append(f"--teacher-model-parallel-size {args.teacher_model_parallel_size} -> {world_size}: the number of "
                     "processes")
        args.teacher_model_parallel_size = world_size


def _resolve_engine(args: argparse.Namespace, notes: list[str]) -> None:
    """Precision, collectives and batch size, with or without DeepSpeed."""
    on_gpu = backend.has_gpu()
    args.ds_config = None
    if args.fp16 and args.bf16:
        raise ValueError("--fp16 and --bf16 exclude each other")
    if args.deepspeed:
        if args.deepspeed_config is None:
            raise ValueError("--deepspeed needs --deepspeed_config (the shipped files are in config/)")
        path, note = ds_config.find_config(args.deepspeed_config)
        # A dry run stands for one on any number of GPUs.
        ranks = backend.launched_world_size(os.environ) // args.model_parallel_size
        resolved = ds_config.resolve(args, ds_config.read_config(path), on_gpu=on_gpu,
                                     data_size=None if args.fast_dev_run else max(1, ranks))
        notes.extend([note] if note else [])
        notes.extend(resolved.notes)
        vars(args).update(resolved.overrides, ds_config=resolved.config)
    else:
        if args.deepspeed_config is not None:
            notes.append(f"--deepspeed_config={args.deepspeed_config} is not read without --deepspeed")
        if args.fp16 and not on_gpu:
            notes.append("no GPU: --fp16 becomes fp32 (use --bf16 for half precision on a CPU)")
            args.fp16 = False
    if args.teacher_fp16 and not on_gpu:
        notes.append("no GPU: --teacher_fp16 becomes fp32")
        args.teacher_fp16 = False
    if args.distributed_backend == "nccl" and not on_gpu:
        notes.append("no GPU: --distributed-backend=nccl becomes gloo")
        args.distributed_backend = "gloo"
    if args.eval_batch_size is None:
        args.eval_batch_size = args.batch_size


def _resolve_fractions(args: argparse.Namespace) -> None:
    shares = {name: value for name, value in vars(args).items() if isinstance(value, PerTeacher)}
    if shares:
        num_teachers = len(teacher_specs(args))
        vars(args).update({name: share.resolve(num_teachers) for name, share in shares.items()})


def _check_sizes(args: argparse.Namespace) -> None:
    """Sizes of student and teachers that cannot be built; the vocabulary is not known yet."""
    # A dry run is asked about the ranks of the real one.
    ranks = args.given_model_parallel_size if args.fast_dev_run else args.model_parallel_size
    student = ModelConfig.from_args(args, vocab_size=ranks)
    student.check(ranks)
    for spec in teacher_specs(args):
        spec.model_config(student).check(ranks, prefix="teacher_")


def _check(args: argparse.Namespace, stage: str) -> None:
    """Combinations that cannot work, before anything is built."""
    check_vocab_flags(args)
    if args.optimizer == "adafactor":
        raise ValueError("--optimizer=adafactor is not built; use adam")
    if not 0.0 <= args.warmup <= 0.5:
        raise ValueError(f"--warmup={args.warmup} is a share of the schedule between 0 and 0.5")
    if not 0.0 <= args.lr_decay_ratio <= 1.0:
        raise ValueError(f"--lr-decay-ratio={args.lr_decay_ratio} is a share of the peak between 0 and 1")
    for name in ("train_iters", "epochs", "eval_interval", "save_interval"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(args, name)} is negative")
    for name in ("eval_iters", "eval_epoch", "save_epoch"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(args, name)} has to be at least 1")
    if args.seed <= 0 and backend.launched_world_size(os.environ) > 1:
        raise ValueError(f"--seed={args.seed} leaves the generators unseeded; several processes need a common seed")
    if args.seq_length > args.max_position_embeddings:
        raise ValueError(
            f"--seq-length {args.seq_length} is longer than --max-position-embeddings {args.max_position_embeddings}")
    if stage == FINETUNE:
        if not args.finetune:
            raise ValueError("distill/finetune.py needs --finetune (distill/pretrain.py pretrains)")
        if args.task is None:
            raise ValueError("distill/finetune.py needs --task")
        check_task_flags(args)
        if args.epochs is None and is_language_model_task(args.task):
            args.epochs = 0
        if args.epochs is None:
            raise ValueError("distill/finetune.py needs --epochs (0 evaluates only)")
    elif args.finetune:
        raise ValueError("--finetune belongs to distill/finetune.py; distill/pretrain.py pretrains")
    check_data_flags(args)
    if not args.pretrained_bert:
        _check_sizes(args)
    if args.student_model is not None:
        find_method(args.student_model).check_flags(args)
    check_distill_flags(args)
