"""Planned commands as they are run."""

from __future__ import annotations

import sys
from pathlib import Path

from distill.sweep.commands import program, records_file, runnable, shell_text
from distill.sweep.types import StageCommand

COMMAND = StageCommand(
    "copa", 0, (("NCCL_DEBUG", "info"),), ("deepspeed", "--master_port=1", "--include=localhost:0,1", "--hostfile="),
    "distill/finetune.py", (("--text", "a b; $c"), ("--deepspeed_config", "old.json"), ("--fp16", None)), {"a": 1},
    "old.json", "save/name")


def made(command: StageCommand = COMMAND, *, include: str | None = None, is_quiet: bool = False) -> StageCommand:
    return runnable(command, port=1234, include=include, result=Path("r.json"), deepspeed_file=Path("new.json"),
                    is_quiet=is_quiet)


def test_what_is_known_only_at_the_start_is_filled_in() -> None:
    command = made(include="localhost:5", is_quiet=True)
    assert command.words() == [
        "deepspeed", "--quiet", "--master_port=1234", "--include=localhost:5", "--hostfile=", "distill/finetune.py",
        "--text=a b; $c", "--deepspeed_config=new.json", "--fp16", "--custom_tmp_result=r.json"]
    assert "--include=localhost:0,1" in made().words() and "--quiet" not in made().words()


def test_a_shipped_deepspeed_file_stays_where_it_is() -> None:
    command = StageCommand(**{**vars(COMMAND), "deepspeed_config": None})
    assert "--deepspeed_config=old.json" in made(command).words()


def test_programs_are_those_of_this_environment() -> None:
    assert program(made())[:4] == [sys.executable, "-m", "deepspeed.launcher.runner", "--master_port=1234"]
    command = StageCommand(**{**vars(COMMAND), "launcher": ("python",)})
    assert program(command)[:2] == [sys.executable, "distill/finetune.py"]
    command = StageCommand(**{**vars(COMMAND), "launcher": ("/bin/other", "x")})
    assert program(command)[0] == "/bin/other"


def test_the_command_for_a_shell_is_quoted() -> None:
    text = shell_text(made(), {"DS_ACCELERATOR": "cpu", "HOME": "/root"})
    assert text.startswith("DS_ACCELERATOR=cpu NCCL_DEBUG=info deepspeed ") and "'--text=a b; $c'" in text


def test_records_lie_below_the_checkpoint_or_where_the_command_says() -> None:
    assert records_file(COMMAND) == Path("save/name/tensorboard/metrics.jsonl")
    command = StageCommand(**{**vars(COMMAND), "flags": (("--log-dir", "logs"),)})
    assert records_file(command) == Path("logs/metrics.jsonl")
