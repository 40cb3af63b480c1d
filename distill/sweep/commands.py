"""A planned command as it is run: on the devices it got, at a port that is free, with files in its own folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distill.sweep.presets import REPOSITORY
from distill.sweep.types import RESULT_FLAG, StageCommand

LAUNCHER = "deepspeed"
#: Variables that decide how a command runs, besides those that it names itself.
SHOWN = ("DS_ACCELERATOR", "LOCAL_SIZE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def runnable(command: StageCommand, *, port: int, include: str | None, result: Path, deepspeed_file: Path,
             is_quiet: bool) -> StageCommand:
    """The command with what is known only now.

    Args:
        port: a free one. include: devices for the launcher; None leaves those of the plan.
        result: file for the scores.
        deepspeed_file: where the derived DeepSpeed file lies, if the command has one.
        is_quiet: tell DeepSpeed's launcher to be silent (on a CPU it warns of what does not concern it).
    """
    words = []
    for word in command.launcher:
        name = word.partition("=")[0]
        if name == "--master_port":
            word = f"--master_port={port}"
        elif name == "--include" and include is not None:
            word = f"--include={include}"
        words.append(word)
    if is_quiet and words[:1] == [LAUNCHER] and "--quiet" not in words:
        words.insert(1, "--quiet")
    command = command.with_deepspeed_path(str(deepspeed_file))
    return replace(command, launcher=tuple(words), flags=(*command.flags, (RESULT_FLAG, str(result))))


def program(command: StageCommand) -> list[str]:
    """The words to execute: DeepSpeed's launcher and Python are those of this environment, whatever PATH says, and a
    script that is not below the working folder is that of the repository."""
    script = REPOSITORY / command.script
    words = (command if Path(command.script).is_file() or not script.is_file() else replace(
        command, script=str(script))).words()
    if words[0] == LAUNCHER:
        return [sys.executable, "-m", "deepspeed.launcher.runner", *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else words


def shell_text(command: StageCommand, environment: Mapping[str, str]) -> str:
    """The command for a shell, to run it again by hand.

    Args:
        environment: the whole of it; of this the variables that matter are written down.
    """
    variables = {name: environment[name] for name in SHOWN if name in environment} | dict(command.environment)
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
                     *map(shlex.quote, command.words())]) + "\n"


def records_file(command: StageCommand) -> Path:
    """Where the training script writes its records, relative to its working folder."""
    folder = command.value("--log-dir") or f"{command.checkpoint}/tensorboard"
    return Path(folder) / "metrics.jsonl"
