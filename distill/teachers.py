"""Teachers from the command line: their properties, their models, and the view of ``args`` that a method gets of one.

Each teacher has its own :class:`TeacherSpec` and :class:`~model.config.ModelConfig`; no field of a shared namespace is
ever swapped.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from model.config import ModelConfig

logger = logging.getLogger(__name__)

#: Properties that have a list form ``--mt_X`` beside ``--teacher_X``: type, default, help.
LISTED: dict[str, tuple[type, Any, str]] = {
    "num_layers": (int, 24, "number of layers"),
    "hidden_size": (int, 1024, "width"),
    "num_attention_heads": (int, 16, "attention heads"),
    "max_position_embeddings": (int, 512, "longest position; raised to the student's if smaller"),
    "load_pretrained": (str, None, "checkpoint to load; its presence turns distillation on"),
    "ib_hidden_size": (int, 1024, "inner width of the inverted bottleneck"),
    "ib_ffn_num": (int, 1, "feed-forward blocks per bottleneck layer"),
    "ib_word_emb": (int, 0, "three-token embedding slice"),
    "compress_word_emb": (int, 0, "width of the factorised embedding"),
    "map_vocab_size": (float, 0.0, "size of the compressed vocabulary"),
}
#: Switches that hold for all teachers.
COMMON = {
    "fp16": "run the teachers in float16",
    "bf16": "run the teachers in bfloat16",
    "inverted_bottleneck_mode": "the teachers have the inverted-bottleneck shape",
    "cross_layer_parameter_sharing": "the teachers run one layer several times",
    "random_para": "leave the teachers at random weights (for tests); paths must be given but are not read",
}


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher as the command line describes it; ``index`` counts from 0 in flag order."""

    index: int
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    load_pretrained: str | None
    ib_hidden_size: int = 1024
    ib_ffn_num: int = 1
    ib_word_emb: int = 0
    compress_word_emb: int = 0
    map_vocab_size: float = 0.0
    fp16: bool = False
    bf16: bool = False
    inverted_bottleneck_mode: bool = False
    cross_layer_parameter_sharing: bool = False
    random_para: bool = False
    gelu: str = "tanh"

    def model_config(self, student: ModelConfig, **overrides: Any) -> ModelConfig:
        """Sizes of this teacher's model; vocabulary, dropout and the like are the student's, its shape is its own."""
        positions = max(self.max_position_embeddings, student.max_position_embeddings)
        if positions > self.max_position_embeddings:
            logger.info("teacher %d: %d positions, as the student (--max-position-embeddings), instead of %d",
                        self.index, positions, self.max_position_embeddings)
        own = {name: getattr(self, name) for name in (
            "num_layers", "hidden_size", "num_attention_heads", "ib_hidden_size", "ib_ffn_num", "ib_word_emb",
            "compress_word_emb", "inverted_bottleneck_mode", "cross_layer_parameter_sharing", "gelu")}
        return replace(student, **{**own, "max_position_embeddings": positions, "map_vocab_size": 0,
                                   "unmap_vocab_output": False, **overrides})


class TeacherView:
    """``args`` as seen by a method that deals with one teacher: ``teacher_*`` are that teacher's properties.

    Read-only, and a view: the namespace behind it is not touched.
    """

    def __init__(self, args: Any, spec: TeacherSpec) -> None:
        object.__setattr__(self, "_args", args)
        object.__setattr__(self, "_spec", spec)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("teacher_") and hasattr(self._spec, name[len("teacher_"):]):
            return getattr(self._spec, name[len("teacher_"):])
        return getattr(self._args, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"args are read-only: cannot set {name}")


def add_teacher_flags(parser: argparse.ArgumentParser) -> None:
    """``--teacher_*``, ``--mt_*`` lists."""
    group = parser.add_argument_group("single teacher")
    for name, (kind, default, text) in LISTED.items():
        group.add_argument(f"--teacher_{name}", type=kind, default=default, help=f"teacher: {text}")
    for name, text in COMMON.items():
        group.add_argument(f"--teacher_{name}", action="store_true", help=text)
    group.add_argument("--teacher_gelu", choices=("tanh", "erf"), default="tanh", help="the teachers' form of GELU")
    group = parser.add_argument_group("multi-teacher: model lists")
    for name, (_, _, text) in LISTED.items():
        group.add_argument(f"--mt_{name}", type=str, default="",
                           help=f"teachers, colon-separated; one value serves all: {text}")


def has_teachers(args: Any) -> bool:
    """Whether the command line describes teachers (that is, whether a student distils at all)."""
    return bool(args.student_model) and bool(args.teacher_load_pretrained or any(
        getattr(args, f"mt_{name}") for name in LISTED))


def teacher_specs(args: Any) -> list[TeacherSpec]:
    """The teachers in flag order; empty without ``--student_model`` or without any teacher flag.

    Lists of one value are broadcast, empty ones take the ``--teacher_*`` value. Raises ValueError for lists of unequal
    lengths and for entries that cannot be read.
    """
    if not has_teachers(args):
        if not args.student_model and args.teacher_load_pretrained:
            logger.warning("--teacher_load_pretrained is ignored: no --student_model is given")
        return []
    given = {name: getattr(args, f"mt_{name}") for name in LISTED}
    lists = {name: text.split(":") if text else [] for name, text in given.items()}
    count = max(len(entries) for entries in lists.values())
    if any(len(entries) not in (0, 1, count) for entries in lists.values()):
        lengths = ", ".join(f"--mt_{name} has {len(entries)}" for name, entries in lists.items() if entries)
        raise ValueError(f"teacher lists must have equal lengths, or one entry for all: {lengths}; entries are "
                         "separated by ':', and a path cannot contain one")
    columns = {name: _column(args, name, entries, max(count, 1)) for name, entries in lists.items()}
    common = {name: getattr(args, f"teacher_{name}", False) for name in COMMON}
    common["gelu"] = getattr(args, "teacher_gelu", "tanh")
    return [TeacherSpec(index=i, **{name: column[i] for name, column in columns.items()}, **common)
            for i in range(max(count, 1))]


def _column(args: Any, name: str, entries: list[str], count: int) -> list[Any]:
    kind = LISTED[name][0]
    if not entries:
        return [getattr(args, f"teacher_{name}")] * count
    if len(entries) == 1 and count > 1:
        logger.info("--mt_%s=%s serves all %d teachers", name, entries[0], count)
    try:
        values = [kind(entry) for entry in entries]
    except ValueError:
        raise ValueError(f"--mt_{name}={':'.join(entries)}: every entry must be of type {kind.__name__}") from None
    return values * count if len(values) == 1 else values


def disabled_teachers(args: Any, count: int) -> tuple[bool, ...]:
    """``--mt_disable_operation``: which teachers are not run. Raises ValueError for a wrong length or word."""
    entries = args.mt_disable_operation.split(":")
    if len(entries) not in (1, count) or any(entry not in ("0", "1") for entry in entries):
        raise ValueError(f"--mt_disable_operation={args.mt_disable_operation} must be 0 or 1, once or once for each of "
                         f"the {count} teachers, separated by ':'")
    return tuple(entry == "1" for entry in (entries * count if len(entries) == 1 else entries))


def build_teachers(specs: Sequence[TeacherSpec], student: ModelConfig, *,
                   build_model: Callable[[ModelConfig], nn.Module],
                   load_weights: Callable[[nn.Module, str], Any],
                   load_part: Callable[[nn.Module, int], Any] | None = None,
                   map_rows: Callable[[float], int] = lambda size: 0,
                   place: Callable[[nn.Module, TeacherSpec], nn.Module] | None = None) -> list[nn.Module]:
    """Build every teacher, load its weights and freeze it.

    Args:
        specs: from :func:`teacher_specs`.
        student: the student's sizes; a teacher shares its vocabulary and options.
        build_model: makes the model from its sizes, with the same task head as the student's.
        load_weights: fills a model from a checkpoint path.
        load_part: fills teacher number i from a student's checkpoint (``--mt_load_from_s``); takes the place of the
            paths.
        map_rows: rows of a compact word table for a teacher's ``map_vocab_size``, as the student's is resolved.
        place: moves a loaded model to its device and precision.

    Returns:
        Models in evaluation mode whose parameters do not require gradients.
    """
    teachers = []
    for spec in specs:
        config = spec.model_config(student, map_vocab_size=map_rows(spec.map_vocab_size))
        teacher = build_model(config)
        if load_part is not None:
            load_part(teacher, spec.index)
        elif spec.random_para:
            logger.warning("teacher %d keeps random weights (--teacher_random_para)", spec.index)
        elif not spec.load_pretrained:
            raise ValueError(f"teacher {spec.index} has no weights; pass --teacher_load_pretrained or "
                             "--mt_load_pretrained (or --teacher_random_para for a test)")
        else:
            try:
                load_weights(teacher, spec.load_pretrained)
            except ValueError as error:
                raise ValueError(f"teacher {spec.index}: {error} (for a teacher, flags of sizes begin with --teacher_ "
                                 "or --mt_)") from error
        teacher = place(teacher, spec) if place else teacher
        teachers.append(teacher.eval().requires_grad_(False))
    return teachers
