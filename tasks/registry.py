"""The tasks by name."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from tasks.examples import nearest
from tasks.glue import TASKS as GLUE
from tasks.language_model import LANGUAGE_MODEL_TASKS, is_language_model_task
from tasks.language_model.spec import LanguageModelTask
from tasks.patterns import check_pattern_id
from tasks.spec import TaskOptions, TaskSpec
from tasks.superglue import TASKS as SUPERGLUE
from tasks.superglue.copa import CONJUNCTIONS

_TASKS = {task.name: task for task in (*SUPERGLUE, *GLUE)}
#: Published tasks that are not here.
SEQUENCE_TASKS = ("blank", "cnn_dm", "cnn_dm_original", "gigaword", "xsum")

Task = TaskSpec | LanguageModelTask


def task_names() -> tuple[str, ...]:
    """The known tasks with labels or choices, in lower case."""
    return tuple(_TASKS)


def verbalizer_words() -> tuple[str, ...]:
    """Every answer word of every task, sorted: what a compact vocabulary must not drop."""
    words = {word for task in _TASKS.values() for words in task.verbalizers.values() for word in words}
    return tuple(sorted(words | set(CONJUNCTIONS)))


def find_task(name: str, options: TaskOptions | Namespace) -> Task:
    """The task of a name, as :func:`get_task`, or a language-model task."""
    return LANGUAGE_MODEL_TASKS[name.lower()] if is_language_model_task(name) else get_task(name, options)


def get_task(name: str, options: TaskOptions | Namespace) -> TaskSpec:
    """The task of a name (any case), with its head for these options.

    Raises ValueError for an unknown name (the nearest known one is named), for a pattern that the task lacks, and for
    the classifier form of a task that has none.
    """
    if name.lower() in SEQUENCE_TASKS:
        raise ValueError(f"--task={name}: sequence-to-sequence tasks and blank filling are not built in this version")
    if name.lower() not in _TASKS:
        known = (*_TASKS, *LANGUAGE_MODEL_TASKS)
        raise ValueError(f"--task={name}: unknown task{nearest(name, known)}; available: {', '.join(known)}")
    if not isinstance(options, TaskOptions):
        options = TaskOptions.from_args(options)
    spec = _TASKS[name.lower()]
    if spec.adapt is not None:
        spec = spec.adapt(spec, options)
    if not options.cloze_eval:
        if spec.classifier_rows is None:
            raise ValueError(f"--task={name} has no form with a classification head; give --cloze-eval")
        return spec
    check_pattern_id(spec.name, options.pattern_id, spec.pattern_ids)
    if spec.head == "language_model":
        return replace(spec, is_multi_token=True)
    is_multi_token = spec.choices_are_answers or options.multi_token
    return replace(spec, is_multi_token=is_multi_token, head="multi_token" if is_multi_token else "single_token")
