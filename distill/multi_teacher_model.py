"""Where a combiner of several teachers is found.

    ========== ================================================== ==============================
    avg, tmkd  mean or sum, with survival (DGKD)                  distill/multi_teacher/avg.py
    ========== ================================================== ==============================

A new one is a subclass of :class:`MultiTeacherModel` with ``@register_combiner("name")`` in a file that is imported
here.
"""

from __future__ import annotations

import argparse
from typing import Any

from distill.multi_teacher import avg  # noqa: F401  (registers the combiners)
from distill.multi_teacher.base import COMBINERS, MultiTeacherModel, find_combiner, register_combiner
from distill.student import GLMStudent
from model.parallel.sharding import mark_replicated_parameters

__all__ = ["COMBINERS", "MultiTeacherModel", "add_multi_teacher_flags", "attach_combiner", "find_combiner",
           "register_combiner"]


def add_multi_teacher_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of all combiners and those they share."""
    group = parser.add_argument_group("multi-teacher")
    group.add_argument("--multi_teacher_model", default=None,
                       help=f"how teachers are combined: {', '.join(sorted(COMBINERS))}; default avg")
    group.add_argument("--mt_disable_operation", default="0",
                       help="1 = do not run this teacher, colon-separated per teacher, or one value for all")
    group.add_argument("--mt_has_loss", action="store_true", help="compute each teacher's own label loss")
    group.add_argument("--mt_has_grad", action="store_true", help="refused in this version")
    group.add_argument("--mt_load_from_s", default=None, help="refused in this version")
    group.add_argument("--mt_model_load", default=None, help="refused in this version")
    for combiner in dict.fromkeys(COMBINERS.values()):
        combiner.add_flags(parser)


def attach_combiner(student: GLMStudent, args: Any) -> MultiTeacherModel:
    """Build the combiner, make it part of the student, and check that a step has a loss term at all."""
    combiner = find_combiner(args.multi_teacher_model)(args)
    mark_replicated_parameters(combiner)
    student.multi_teacher_model = combiner
    student.check_terms(combiner.own_terms(student))
    return combiner
