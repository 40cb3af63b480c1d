"""Sizes of a dry run: the given ones checked as they are, then all widths divided by one number.

Models of any size are built on torch's ``meta`` device, without memory: everything that looks at sizes (the model, the
method, the combiner, a checkpoint's header) can be asked in a second.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from distill.arguments import build_parser, replace_args
from distill.distill_model import build_student
from distill.flag_types import width
from distill.multi_teacher_model import attach_combiner
from distill.teachers import build_teachers, teacher_specs
from distill.training.build import backbone, output_shape, student_config, with_head
from distill.training.run_state import RunState
from model.checkpoint.files import headers_only
from model.checkpoint.load import HEAD_PREFIXES, STUDENT_PREFIXES, load_into, read_module_state
from model.checkpoint.naming import CheckpointLocation, canonical_name, resolve_checkpoint
from model.config import ModelConfig
from model.parallel.groups import parallel_state
from model.parallel.sharding import ShardSpec, shard_spec_of
from tasks.registry import Task

#: No head gets narrower than this.
MIN_HEAD_WIDTH = 4
#: Widths of a model: of the student as they stand, of teachers with ``teacher_`` or, as lists, ``mt_`` before them.
_WIDTHS = ("hidden_size", "ib_hidden_size", "ib_word_emb", "compress_word_emb")


@dataclass
class Outline:
    """Student and teachers without memory; ``model`` includes student layers and task head."""

    model: nn.Module
    teachers: list[nn.Module]


@contextmanager
def _silence() -> Iterator[None]:
    """The run itself says all this once more."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def outline(args: Any, num_tokens: int, task: Task | None) -> Outline:
    """Build what a run would train, without memory.

    Args:
        num_tokens: of the vocabulary.
        task: of fine-tuning; None for pretraining.

    Raises:
        ValueError: sizes or flags that model, method or combiner refuse.
    """
    specs = teacher_specs(args)
    meta = torch.device("meta")
    with _silence():
        config = student_config(args, SimpleNamespace(num_tokens=num_tokens))
        with meta:
            glm, student = backbone(config, task), None
        if args.student_model and specs:
            # The layers of a method are few, and it may look at numbers.
            student = build_student(glm, args, teachers=specs, run=RunState(seed=args.seed))
            attach_combiner(student, args, output_shape(task, args))
    with _silence(), meta:
        model = with_head(student or glm, config, args, task)
        teachers = build_teachers(
            specs, config, build_model=lambda sizes: with_head(backbone(sizes, task), sizes, args, task),
            load_weights=lambda model, path: None)
    return Outline(model, teachers)


def widths(args: Any) -> dict[str, list[int]]:
    """The width flags that act: name in ``args`` -> values, one a teacher for lists.

    Beside the model's own ones these are the flags of methods that are declared with ``type=width``.
    """
    has_teachers = bool(teacher_specs(args))
    found = {dest: [getattr(args, dest)] for dest in _method_widths() if getattr(args, dest, None)}
    for prefix in ("", "teacher_", "mt_"):
        for name in _WIDTHS:
            dest, value = prefix + name, getattr(args, prefix + name)
            is_listed = prefix == "teacher_" and getattr(args, f"mt_{name}")
            mode = f"{'teacher_' if prefix else ''}inverted_bottleneck_mode"
            if prefix and not has_teachers or is_listed or name == "ib_hidden_size" and not getattr(args, mode):
                continue
            values = [int(entry) for entry in str(value or "0").split(":")]
            if any(values):
                found[dest] = values
    return found


def _method_widths() -> list[str]:
    return [action.dest for action in build_parser()._actions if action.type is width]


def divided(args: Any, divisor: int) -> dict[str, Any]:
    """The width flags after a division, for :func:`distill.arguments.replace_args`."""
    return {dest: ":".join(str(value // divisor) for value in values) if dest.startswith("mt_") else
            values[0] // divisor for dest, values in widths(args).items()}


def common_divisor(args: Any, fits: Callable[[int], bool]) -> int:
    """The largest divisor of all widths that ``fits``; 1 if none does."""
    greatest = math.gcd(*(value for values in widths(args).values() for value in values))
    return next((number for number in range(greatest, 1, -1) if greatest % number == 0 and fits(number)), 1)


def shrunk_widths(args: Any, num_tokens: int, task: Task | None) -> tuple[int, dict[str, Any]]:
    """The divisor and the flags that it changes.

    It is the largest that keeps what has to divide the widths: heads, model-parallel ranks (those that were asked for),
    and whatever the method wants of them. Heads stay at least :data:`MIN_HEAD_WIDTH` wide.
    """
    smallest = min(MIN_HEAD_WIDTH, *(_head_width(config) for config in _configs(args)))

    def fits(divisor: int) -> bool:
        candidate = replace_args(args, **divided(args, divisor))
        try:
            for config in _configs(candidate):
                config.check(args.given_model_parallel_size)
                if _head_width(config) < smallest:
                    return False
            outline(candidate, num_tokens, task)
        except ValueError:
            return False
        return True

    divisor = common_divisor(args, fits)
    return divisor, divided(args, divisor)


def _configs(args: Any) -> list[ModelConfig]:
    student = ModelConfig.from_args(args, vocab_size=args.given_model_parallel_size)
    with _silence():
        return [student, *(spec.model_config(student) for spec in teacher_specs(args))]


def _head_width(config: ModelConfig) -> int:
    return config.attention_size // config.num_attention_heads


def stored_state(path: str, args: Any, *, spec_of: Callable[[str], ShardSpec | None] = lambda name: None,
                 training_state: bool = False) -> tuple[CheckpointLocation, Mapping[str, torch.Tensor]]:
    """Where a checkpoint lies, and this rank's part of it without content."""
    state, location = parallel_state(), resolve_checkpoint(path, training_state=training_state)
    with headers_only():
        stored, _ = read_module_state(location, mp_rank=state.model_rank, mp_size=state.model_size, spec_of=spec_of,
                                      trust_pickle=args.trust_checkpoint)
    return location, stored


def stored_vocabulary(path: str, args: Any) -> int | None:
    """Rows of a checkpoint's word table; None if it has none."""
    table = stored_state(path, args)[1].get("word_embeddings.weight")
    return None if table is None else len(table) * parallel_state().model_size


def check_header(path: str, model: nn.Module, args: Any, *, resuming: bool = False) -> None:
    """Compare the names and shapes of an existing checkpoint with an outline of the model that would load it.

    Args:
        resuming: the path is that of ``--load``, which has to hold every parameter.

    Raises:
        ValueError, FileNotFoundError: as loading it would, also for a file that was cut short.
    """
    targets = {canonical_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    location, stored = stored_state(path, args, training_state=resuming, spec_of=lambda name: (
        shard_spec_of(targets[name]) if name in targets else None))
    allowed = () if resuming else (*STUDENT_PREFIXES, *HEAD_PREFIXES)
    targets = {name: torch.empty_like(tensor, device="meta") for name, tensor in targets.items()}
    report = load_into(targets, stored, where=str(location.folder), allowed_unexpected=allowed)
    if resuming and report.missing:
        raise ValueError(f"--load={path} lacks {', '.join(report.missing[:5])}: it belongs to another run; start from "
                         "its weights with --load-pretrained")


def exists(path: str | None) -> bool:
    """Whether there is anything at a path of the command line."""
    return bool(path) and Path(path).exists()
