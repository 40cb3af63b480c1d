"""Tries the published command lines with ``--fast-dev-run``, several at a time, and prints a table.

    python -m tests.run_commands                          every command
    python -m tests.run_commands kd-1 pd-1                some, by id
    python -m tests.run_commands --method KD --method PD  those of a method
    python -m tests.run_commands --launcher deepspeed --processes 2 kd-1

Without ``--launcher`` the commands run in worker processes of this one, which import torch once. Exit code 1 if a
command did not do what ``seed_commands.json`` expects of it, or left something in its working folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("seed_commands.json")
FLAG = "--fast-dev-run"
LAUNCHERS = ("none", "python", "torchrun", "deepspeed")
#: Seconds after which a launched command is ended.
TIMEOUT = 120
Command = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a command; ``problem`` is empty if it did what is expected of it."""

    command: Command
    seconds: float
    problem: str
    output: str = ""

    @property
    def line(self) -> str:
        verdict = self.problem.splitlines()[0][:150] if self.problem else self.command.get("expect", "ok")
        return f"{self.command['id']:<36} {self.command['method']:<26} {self.seconds:6.1f} s  {verdict}"


def published() -> list[Command]:
    """The commands: ``id``, ``method``, ``kind``, ``args``, ``launcher`` and sometimes ``expect``."""
    return json.loads(LIST.read_text(encoding="utf-8"))


def chosen(ids: Sequence[str], methods: Sequence[str]) -> list[Command]:
    """Commands by id and by method, all without either. ValueError for an unknown id or method."""
    commands = published()
    for names, key in ((ids, "id"), (methods, "method")):
        if unknown := set(names) - {command[key] for command in commands}:
            raise ValueError(f"no command with the {key} {', '.join(sorted(unknown))}; known: "
                             f"{', '.join(dict.fromkeys(command[key] for command in commands))}")
    return [command for command in commands
            if not (ids or methods) or command["id"] in ids or command["method"] in methods]


def run_here(command: Command) -> Result:
    """Run a command in this process, in an empty working folder."""
    from distill import finetune, pretrain

    main = {"pretrain": pretrain, "finetune": finetune}[command["kind"]].main
    output, before = io.StringIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        began = time.monotonic()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code: int | str = main([*command["args"], FLAG])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
            output.write(traceback.format_exc())
        finally:
            os.chdir(before)
        left = sorted(path.name for path in Path(folder).iterdir())
        seconds = time.monotonic() - began
    return Result(command, seconds, judge(command, code, output.getvalue(), left), output.getvalue())


def run_launched(command: Command, launcher: str, processes: int) -> Result:
    """Run a command by a launcher, in an empty working folder and a process group of its own, which is ended."""
    environment = {**os.environ, "LOCAL_SIZE": "8", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    script, port = str(ROOT / "distill" / f"{command['kind']}.py"), free_port()
    start = {"python": [], "torchrun": [
        "-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"], "deepspeed": [
            "-m", "deepspeed.launcher.runner", "--quiet", f"--num_gpus={processes}", f"--master_port={port}"]}[launcher]
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *start, script, *command["args"], FLAG], cwd=folder, env=environment, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, code = process.communicate(timeout=TIMEOUT)[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, code = process.communicate()[0], f"no end within {TIMEOUT} s"
        left = sorted(path.name for path in Path(folder).iterdir())
    return Result(command, time.monotonic() - began, judge(command, code, output, left), output)


def judge(command: Command, code: int | str, output: str, left: Iterable[str]) -> str:
    """Why a command did not do what is expected of it; empty if it did."""
    kind, _, text = command.get("expect", "").partition(":")
    if left := list(left):
        return f"left in the working folder: {', '.join(left)}"
    if kind == "error":
        words = text.split(" (")[0]
        return "" if code != 0 and words in output else f"expected an error about {words!r}, got {code}"
    if code != 0:
        lines = [line for line in output.splitlines() if "rror" in line or "FAILED" in line]
        return f"{code if isinstance(code, str) else lines[-1] if lines else f'exit code {code}'}"
    return ""


def free_port() -> int:
    """A port that nobody listens to at the moment."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run_all(commands: Sequence[Command], *, launcher: str = "none", processes: int = 2,
            jobs: int | None = None) -> list[Result]:
    """Run commands, ``jobs`` at a time (default: one a core)."""
    jobs = min(len(commands), jobs or len(os.sched_getaffinity(0)))
    if launcher != "none":
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            return list(pool.map(partial(run_launched, launcher=launcher, processes=processes), commands))
    if jobs < 2:
        return [run_here(command) for command in commands]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(run_here, commands))


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.run_commands", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--method", action="append", default=[], help="a method as seed_commands.json names it")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none")
    parser.add_argument("--processes", type=int, default=2, help="ranks of a launched command")
    parser.add_argument("--jobs", type=int, default=None, help="commands at a time; default: one a core")
    parser.add_argument("--verbose", action="store_true", help="print what failing commands wrote")
    args = parser.parse_args(argv)
    try:
        commands = chosen(args.ids, args.method)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    results = run_all(commands, launcher=args.launcher, processes=args.processes, jobs=args.jobs)
    for result in results:
        sys.stdout.write(f"{result.line}\n")
        if result.problem and args.verbose:
            sys.stdout.write(f"{result.output}\n")
    failed = sum(bool(result.problem) for result in results)
    sys.stdout.write(f"{len(results)} commands, {failed} failed, {time.monotonic() - began:.0f} s\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
