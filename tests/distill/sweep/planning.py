"""Plans with times and ports that a test can compare."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from distill.sweep.flags import SweepArgs, parse
from distill.sweep.plan import plan_tasks
from distill.sweep.types import StageCommand, TaskPlan


def plan(*words: str, **options: Any) -> list[TaskPlan]:
    """The plan of a command line; times are t1, t2 …, every port is 1."""
    return plan_of(parse(words), **options)


def plan_of(sweep: SweepArgs, **options: Any) -> list[TaskPlan]:
    numbers = itertools.count(1)
    return plan_tasks(sweep, stamp=lambda: f"t{next(numbers)}", port=lambda: 1, **options)


def commands(*words: str, **options: Any) -> list[StageCommand]:
    """All stages of all tasks."""
    return stages(plan(*words, **options))


def command(*words: str, **options: Any) -> StageCommand:
    """The one command of a plan."""
    (found,) = commands(*words, **options)
    return found


def stages(plans: Sequence[TaskPlan]) -> list[StageCommand]:
    return [stage for task in plans for stage in task.stages]


def names(found: StageCommand) -> list[str]:
    """Flag names in order."""
    return [name for name, _ in found.flags]
