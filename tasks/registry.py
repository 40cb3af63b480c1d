"""The tasks by name."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from tasks.examples import nearest
from tasks.patterns import check_pattern_id
from tasks.spec import TaskOptions, TaskSpec
from tasks.superglue import TASKS as SUPERGLUE

_TASKS = {task.name: task for task in SUPERGLUE}

#: Tasks of the published release that are not part of this toolkit yet.
LATER_TASKS = ("wic", "wsc", "multirc", "ax-b", "ax-g", "mnli", "mnli-mm", "sst2", "cola", "mrpc", "qqp", "qnli",
               "agnews", "yelp-polarity", "yelp-full", "yahoo", "race", "squad", "afqmc", "tnews", "cluewsc")


def task_names() -> tuple[str, ...]:
    """The known tasks, in lower case."""
    return tuple(_TASKS)


def get_task(name: str, options: TaskOptions | Namespace) -> TaskSpec:
    """The task of a name (any case), with its head for these options.

    Raises ValueError for an unknown name (the nearest known one is named) and for a pattern that the task lacks.
    """
    known = ", ".join(task_names())
    if name.lower() in LATER_TASKS:
        raise ValueError(f"--task={name}: this task is not available yet; available: {known}")
    if name.lower() not in _TASKS:
        raise ValueError(f"--task={name}: unknown task{nearest(name, _TASKS)}; available: {known}")
    if not isinstance(options, TaskOptions):
        options = TaskOptions.from_args(options)
    spec = _TASKS[name.lower()]
    if not options.cloze_eval:
        return spec
    check_pattern_id(spec.name, options.pattern_id, spec.pattern_ids)
    is_multi_token = spec.choices_are_answers or options.multi_token
    return replace(spec, is_multi_token=is_multi_token, head="multi_token" if is_multi_token else "single_token")
