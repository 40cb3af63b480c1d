"""What can be known to go wrong before the first run: unknown flags, refused combinations, missing files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.sweep.deepspeed_files import write_file
from distill.sweep.devices import number_of_devices
from distill.sweep.flags import SweepArgs, flag_names
from distill.sweep.presets import REPOSITORY, nearest
from distill.sweep.types import StageCommand, TaskPlan, render_flag

logger = logging.getLogger(__name__)

_STAGES = {"distill/finetune.py": "finetune", "distill/pretrain.py": "pretrain"}
_LOADED = ("--load-pretrained", "--teacher_load_pretrained", "--mt_load_pretrained")
#: Problems that are listed where nothing can work.
MOST = 12
_READ = ("--data-dir", "--valid-data")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a command, in a sentence."""

    task: str
    stage: int
    text: str

    def __str__(self) -> str:
        return f"{self.task}{f', stage {self.stage}' if self.stage else ''}: {self.text}"


def check_plans(sweep: SweepArgs, plans: Sequence[TaskPlan], *, is_example: bool) -> None:
    """Refuse a sweep that cannot do anything, and warn of runs that will fail.

    Args:
        plans: of one choice of searched values. is_example: whether other choices may do better than this one.

    Raises:
        ValueError: no such script, flags that it does not know, an objective that is no score of a task, or problems
            with the commands of every task.
    """
    script = find_script(plans[0].stages[0].script)
    problems = [*_refusals(sweep, script, plans), *_missing(plans)]
    if not is_example and {problem.task for problem in problems} == {plan.task for plan in plans}:
        raise ValueError("none of the runs can work:\n" + "\n".join(f"  {problem}" for problem in problems[:MOST]))
    for problem in problems:
        logger.warning("%s", problem)


def find_script(path: str) -> Path:
    """The training script, from the working directory or else the repository. ValueError if there is none."""
    for candidate in (Path(path), REPOSITORY / path):
        if candidate.is_file():
            return candidate
    raise ValueError(f"--py_file={path} does not exist; the scripts are {' and '.join(_STAGES)}")


def script_stage(script: Path) -> str | None:
    """The name under which a training script reads its flags; None if it is not ours."""
    return next((stage for name, stage in _STAGES.items() if script.resolve() == REPOSITORY / name), None)


def _refusals(sweep: SweepArgs, script: Path, plans: Sequence[TaskPlan]) -> list[Problem]:
    """What the script's own parser and checks say; ValueError for flags and for an objective that it does not know."""
    stage = script_stage(script)
    if stage is None:
        logger.warning("--py_file=%s is not ours: its flags are not checked", script)
        return []
    commands = [(command, number_of_devices(plan.gpus, plan.devices)) for plan in plans for command in plan.stages]
    with tempfile.TemporaryDirectory() as folder:
        answers = _ask(stage, [(_with_config(command, Path(folder), number), processes)
                               for number, (command, processes) in enumerate(commands)])
    own, problems, objective = flag_names(sweep.presets), [], sweep.known.objective
    for (command, _), answer in zip(commands, answers, strict=True):
        if answer["unknown"]:
            word = answer["unknown"][0].partition("=")[0]
            raise ValueError(f"{word} is a flag neither of the launcher nor of {command.script}"
                             f"{nearest(word, [*own, *answer['known']])}")
        if answer["problem"]:
            problems.append(Problem(command.task, command.stage, answer["problem"]))
        if objective is not None and (metrics := answer.get("metrics")) and objective not in metrics:
            raise ValueError(f"--objective={objective}: the scores of {command.task} are {', '.join(metrics)}"
                             f"{nearest(objective, metrics)}")
    return problems


def _with_config(command: StageCommand, folder: Path, number: int) -> StageCommand:
    """The command with its derived DeepSpeed file where it can be read."""
    if command.deepspeed_config is None:
        return command
    path = folder / f"{number}.json"
    write_file(path, command.deepspeed_config)
    return command.with_deepspeed_path(str(path))


def _ask(stage: str, commands: Sequence[tuple[StageCommand, int]]) -> list[dict]:
    """In a process of its own: parsing needs torch, which the launcher does without."""
    content = [{"stage": stage, "words": [render_flag(name, value) for name, value in command.flags],
                "processes": processes} for command, processes in commands]
    paths = (str(REPOSITORY), os.environ.get("PYTHONPATH"))
    done = subprocess.run([sys.executable, "-m", "distill.command_check"], input=json.dumps(content), text=True,
                          capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"the flags cannot be checked, as the training script would not start: {lines[-1]}")
    return json.loads(done.stdout)


def _missing(plans: Sequence[TaskPlan]) -> list[Problem]:
    """Checkpoints and data that a command reads and that are not there; a dry run makes its own."""
    problems = []
    for plan in plans:
        made = {command.checkpoint for command in plan.stages}
        for command in plan.stages:
            flags = dict(command.flags)
            if "--fast-dev-run" in flags:
                continue
            made |= {new for _, new in command.resplits}
            read = [(name, path) for name in _LOADED for path in (flags.get(name) or "").split(":")
                    if not (name != _LOADED[0] and "--teacher_random_para" in flags)]
            read += [(name, flags.get(name)) for name in _READ]
            problems += [Problem(command.task, command.stage, f"{name}={path} does not exist")
                         for name, path in read if path and path not in made and not Path(path).exists()]
    return problems
