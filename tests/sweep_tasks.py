"""The nine tasks of the sweep examples, distilled by three methods, each with and without ``--fast-decode``, tried out
with ``--fast-dev-run`` in this process.

    python -m tests.sweep_tasks                  all
    python -m tests.sweep_tasks --task wsc cb    those of some task presets
    python -m tests.sweep_tasks --jobs 2         several at a time

The commands are composed by the launcher, as ``distill/auto_tune.py`` would start them. ``--fast-decode`` needs answers
that are compared token by token: tasks whose labels are single words get ``--multi-token`` with it, and WSC without
candidates, which has one answer, takes no part.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from distill.sweep.flags import parse
from distill.sweep.plan import plan_tasks
from tasks.registry import get_task
from tasks.spec import TaskOptions
from tests.helpers.command_runs import Command
from tests.run_commands import run_all, summary, text_table

TASKS = ("record", "copa", "wsc", "rte", "boolq", "wic", "cb", "multirc", "wsc_generative")
METHODS = {
    "kd": ("--student_model=kd", "--distill_ft_soft", "--distill_ft_hard", "--distill_temperature=10"),
    "tinybert": ("--student_model=tinybert",),
    "logitsdistil": ("--student_model=logitsdistil", "--distill_temperature=15", "--logitsdistil_mask_pad"),
}
FAST = "--fast-decode"


def task_commands(tasks: Sequence[str] = TASKS, methods: Sequence[str] = tuple(METHODS)) -> list[Command]:
    """The commands, by task, method and form: ``<task>-<method>`` and ``<task>-<method>-fast``."""
    commands = []
    for method in methods:
        words = ["--gpus=0", "--model=block_tiny6", "--task_t_load=base", f"--tasks={','.join(tasks)}"]
        for plan in plan_tasks(parse([*words, *METHODS[method]])):
            stage = plan.stages[0]
            args = stage.words()[len(stage.launcher) + 1:]
            command = {"id": f"{plan.task}-{method}", "method": method, "kind": "finetune", "args": args}
            commands.append(command)
            if fast := fast_flags(plan.task, stage.value("--task") or ""):
                commands.append({**command, "id": f"{command['id']}-fast", "args": [*args, *fast]})
    return commands


def fast_flags(preset: str, task: str) -> list[str]:
    """What makes a preset score its answers behind one text; nothing where it has but one answer."""
    spec = get_task(task, TaskOptions(cloze_eval=True, wsc_negative=preset == "wsc"))
    return {"multi_token": [FAST], "single_token": ["--multi-token", FAST]}.get(spec.head, [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, print the table; 1 if a command failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweep_tasks", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS, help="presets")
    parser.add_argument("--method", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time (default 1)")
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    results = run_all(task_commands(args.task, args.method), jobs=args.jobs)
    sys.stdout.write(f"{text_table(results)}\n{summary(results, time.monotonic() - began)}\n")
    return int(any(result.problem for result in results))


if __name__ == "__main__":
    sys.exit(main())
