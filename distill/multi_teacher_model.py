"""Where a combiner of several teachers is found.

    =========== ================================================== ==================================
    avg, tmkd   mean or sum, with survival (DGKD)                  distill/multi_teacher/avg.py
    mt_bert     by the teachers' own losses, hidden states fitted  distill/multi_teacher/mt_bert.py
    uncertainty by the student's entropy                           distill/multi_teacher/uncertainty.py
    rl_kd       chosen by an agent                                 distill/multi_teacher/rl_kd.py
    mixmt       the sum of several of these                        distill/multi_teacher/mixmt.py
    =========== ================================================== ==================================

A new one is a subclass of :class:`MultiTeacherModel` with ``@register_combiner("name")`` in a file that is imported
here.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from distill.multi_teacher import avg, mixmt, mt_bert, rl_kd, uncertainty  # noqa: F401  (registers the combiners)
from distill.multi_teacher.base import (
    COMBINERS,
    MultiTeacherModel,
    OutputShape,
    Step,
    find_combiner,
    register_combiner,
)
from distill.student import GLMStudent
from model.parallel.groups import get_model_parallel_world_size
from model.parallel.sharding import mark_replicated_parameters

__all__ = ["COMBINERS", "MultiTeacherModel", "OutputShape", "Step", "add_multi_teacher_flags", "attach_combiner",
           "attach_live_teachers", "find_combiner", "register_combiner"]

logger = logging.getLogger(__name__)


def add_multi_teacher_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of all combiners and those they share."""
    group = parser.add_argument_group("multi-teacher")
    group.add_argument("--multi_teacher_model", default=None,
                       help=f"how teachers are combined: {', '.join(sorted(COMBINERS))}; default avg")
    group.add_argument("--mt_disable_operation", default="0",
                       help="1 = do not run this teacher, colon-separated per teacher, or one value for all")
    group.add_argument("--mt_has_loss", action="store_true", help="compute each teacher's own label loss")
    group.add_argument("--mt_has_grad", action="store_true",
                       help="train the teachers along; they are saved with the student")
    group.add_argument("--mt_load_from_s", default=None,
                       help="take the teachers' weights from a student's checkpoint made with --mt_has_grad")
    group.add_argument("--mt_model_load", default=None,
                       help="take the combiner's own parameters from another student's checkpoint")
    group.add_argument("--teacher_offload", action="store_true",
                       help="keep the weights of at most one teacher on the device at a time, the others on the CPU")
    group.add_argument("--teacher-model-parallel-size", type=int, default=None, metavar="SIZE",
                       help="ranks that share a teacher; default: as --model-parallel-size. One divides the other")
    for combiner in dict.fromkeys(COMBINERS.values()):
        combiner.add_flags(parser)


def attach_combiner(student: GLMStudent, args: Any, outputs: OutputShape | None = None) -> MultiTeacherModel:
    """Build the combiner, make it part of the student, and check sizes, flags, and that a step has a loss term at all.

    Args:
        outputs: what the models put out for a sample; default: token logits, as in pretraining.

    Raises:
        ValueError: flags or sizes that combiner or method refuse.
    """
    combiner = find_combiner(args.multi_teacher_model)(args)
    combiner.unused = combiner.kept_apart(student)
    student.check_teachers(unused=combiner.unused, widths_are_fitted=combiner.fits_widths)
    combiner.build(student, outputs or OutputShape())
    mark_replicated_parameters(combiner)
    student.multi_teacher_model = combiner
    student.check_terms(combiner.own_terms(student))
    _check_live_teachers(student, args)
    _check_places(student, args)
    return combiner


def attach_live_teachers(student: GLMStudent, teachers: Sequence[nn.Module], args: Any) -> None:
    """``--mt_has_grad``: make the teachers part of the student (``teacher_model_<i>``), so that they are trained, and
    saved and loaded under ``student.teacher_model_<i>.`` and their own names."""
    if not args.mt_has_grad:
        return
    for number, teacher in enumerate(teachers):
        student.add_module(f"teacher_model_{number}", teacher.requires_grad_(True))
    student.train(student.training)


def _check_live_teachers(student: GLMStudent, args: Any) -> None:
    if args.student_use_empty_glm and not args.mt_has_grad:
        raise ValueError("--student_use_empty_glm leaves nothing to train: it is for teachers that learn, add "
                         "--mt_has_grad")
    parts = [part for part in student.modules() if isinstance(part, GLMStudent)]
    watching = [part.method_name for part in parts[1:] or parts if type(part).observe is not GLMStudent.observe]
    if args.student_use_empty_glm and watching:
        raise ValueError(f"{watching[0]} needs the student's inner tensors, which an empty student does not "
                         "have: remove --student_use_empty_glm")
    if args.student_use_empty_glm and student.config.map_vocab_size:
        raise ValueError("--student_use_empty_glm has no vocabulary of its own: remove --map_vocab_size")
    if args.mt_has_grad and student.method_name == "theseus":
        raise ValueError("theseus needs frozen teachers: remove --mt_has_grad")
    if args.mt_has_grad and any((spec.fp16, spec.bf16) != (args.fp16, args.bf16) for spec in student.teachers):
        logger.warning("--mt_has_grad: the teachers train in the student's precision (--fp16, --bf16), whatever "
                       "--teacher_fp16 and --teacher_bf16 say")


def _check_places(student: GLMStudent, args: Any) -> None:
    """Teachers' weights that are not always on the device, or cut in another way."""
    if args.teacher_offload and args.mt_has_grad:
        raise ValueError("--teacher_offload is for frozen teachers; with --mt_has_grad they stay on the device: remove "
                         "one of the two")
    reasons = [module.teacher_weights for module in student.modules() if isinstance(module, GLMStudent)]
    reason = next(filter(None, reasons), "")
    if reason and args.teacher_offload:
        raise ValueError(f"--teacher_offload: {reason}, so they have to stay on the device: remove the flag")
    size = args.teacher_model_parallel_size
    if reason and size not in (None, get_model_parallel_world_size()):
        raise ValueError(f"--teacher-model-parallel-size={size}: {reason}, so they have to be cut as the student is: "
                         "remove the flag")
