"""Runs a command line in an empty folder, shrunk by ``--fast-dev-run``, and judges what it did.

A command is a dict as in ``seed_commands.json``: ``id``, ``method``, ``kind`` (``pretrain``, ``finetune``, ``tune`` or
``reshard``), ``args`` (words behind the script), ``launcher`` (words between ``deepspeed`` and the script) and
sometimes ``expect``: ``error:<text>`` and ``warn:<text>`` for what it has to say, ``make:<what>`` for what has to be
there first.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.load import read_module_state
from tests.model.checkpoint.synthetic import whole_state, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FLAG = "--fast-dev-run"
VERDICT = "fast-dev-run ok"
SCRIPTS = {"pretrain": "distill/pretrain.py", "finetune": "distill/finetune.py", "tune": "distill/auto_tune.py",
           "reshard": "change_mp.py"}
#: ``none`` runs a command inside a worker of the calling program, which imports torch once.
LAUNCHERS = ("none", "python", "torchrun", "deepspeed")
#: Seconds that a planned run may take, and after which it is ended.
LIMIT, TIMEOUT = 60, 300
#: Seconds in which a sweep has to end its runs.
GRACE = 40
_TERM = re.compile(r"^  ((?:inter_loss|pre_loss)/\S+|loss) +\S+ +\S+$", re.MULTILINE)
_RANKS = re.compile(r"--(?:include=[\w.]+:|gpus=)(?P<ids>[\d,]+)$|--(?:num_gpus|nproc[-_]per[-_]node)=(?P<number>\d+)$")
Command = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a command; ``problem`` is empty if it did what is expected of it.

    Attributes:
        ranks: processes of a training run.
        runs: seconds of each training run of a sweep, which were not made if they are 0; None for other commands.
        terms: number of loss terms, "" where there are none; of a sweep the smallest and the largest number.
    """

    command: Command
    launcher: str
    seconds: float
    problem: str
    output: str = ""
    ranks: int = 1
    runs: tuple[float, ...] | None = None
    terms: str = ""

    @property
    def is_slow(self) -> bool:
        """Whether a training run of it took longer than :data:`LIMIT`."""
        return max((self.seconds,) if self.runs is None else self.runs, default=0.0) > LIMIT

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.problem:
            return f"FAILED: {self.problem.splitlines()[0][:150]}"
        kind, _, text = self.command.get("expect", "").partition(":")
        said = {"error": f"refused: {text}", "warn": f"ok, warned: {text}"}.get(kind, "ok")
        if self.runs is not None:
            said = (f"ok, {len(self.runs)} runs, longest {max(self.runs):.1f} s" if any(self.runs) else
                    f"ok, {len(self.runs)} commands printed and understood")
        return f"{said}, SLOW" if self.is_slow else said


def num_ranks(command: Command) -> int:
    """Processes that a command was published with; of a sweep those of each of its runs."""
    for word in (*command.get("launcher", ()), *(command["args"] if command["kind"] == "tune" else ())):
        if match := _RANKS.match(word):
            return int(match["number"] or match["ids"].count(",") + 1)
    return 1


def count_terms(output: str) -> int | None:
    """Loss terms in the table of a dry run; 1 for training on the labels alone."""
    tags = set(_TERM.findall(output))
    return len(tags - {"loss"}) or len(tags) or None


def run_here(command: Command) -> Result:
    """Run a training command in this process."""
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
        left = _names(Path(folder))
        seconds = time.monotonic() - began
    text = output.getvalue()
    return Result(command, "none", seconds, judge(command, code, text, left), text, terms=_text(count_terms(text)))


def run_launched(command: Command, launcher: str = "deepspeed", processes: int | None = None) -> Result:
    """Run a training command by a launcher, with as many processes as published if ``processes`` is None."""
    with scratch() as (work, temporary):
        began = time.monotonic()
        code, output = execute(_words(command, launcher, processes), work, temporary, TIMEOUT)
        seconds = time.monotonic() - began
        left = leftovers(work, temporary)
    ranks = 1 if launcher == "python" else processes or num_ranks(command)
    return Result(command, launcher, seconds, judge(command, code, output, left), output, ranks,
                  terms=_text(count_terms(output)))


def run_reshard(command: Command) -> Result:
    """Cut a small checkpoint that is made for it; the parts, joined again, have to be equal to it bit for bit."""
    with scratch() as (work, temporary):
        state = whole_state()
        write_checkpoint(work / command["args"][0], state)
        began = time.monotonic()
        words = [sys.executable, str(ROOT / SCRIPTS["reshard"]), *command["args"]]
        code, output = execute(words, work, temporary, TIMEOUT)
        seconds = time.monotonic() - began
        return Result(command, "python", seconds, _compare_parts(command, state, work, code, output), output)


def _compare_parts(command: Command, state: dict[str, torch.Tensor], work: Path, code: int | str, output: str) -> str:
    """What is wrong with a checkpoint that was cut; empty if nothing is."""
    name, size = command["args"][:2]
    target, problem = work / f"{name}_MP{size}", ""
    if code != 0 or not target.is_dir():
        problem = f"exit code {code}, {target.name} is {'there' if target.is_dir() else 'missing'}: {output[-200:]}"
    elif (count := len(list(target.rglob("mp_rank_*")))) != int(size):
        problem = f"{target.name} has {count} parts"
    else:
        joined, _ = read_module_state(target, mp_rank=0, mp_size=1)
        wrong = [key for key in state if key not in joined or not torch.equal(joined[key], state[key])]
        problem = f"joined again, {', '.join(wrong)} differ" if wrong else ""
    return problem


@contextlib.contextmanager
def scratch() -> Iterator[tuple[Path, Path]]:
    """An empty working folder, two levels deep because published paths begin with "../GLM", and one for temporary
    files."""
    with tempfile.TemporaryDirectory(prefix="glmkd-check-") as folder:
        work, temporary = Path(folder) / "files" / "work", Path(folder) / "temporary"
        work.mkdir(parents=True)
        temporary.mkdir()
        yield work, temporary


def leftovers(work: Path, temporary: Path, *known: str) -> list[str]:
    """What stands in the folders of :func:`scratch` after a run, except the ``known`` beside the working folder."""
    return [*_names(work), *_names(work.parent, "work", *known),
            *(name for name in _names(temporary) if name.startswith("glmkd"))]


def _text(count: int | None) -> str:
    return "" if count is None else str(count)


def judge(command: Command, code: int | str, output: str, left: Iterable[str]) -> str:
    """Why a training command did not do what is expected of it; empty if it did."""
    kind, _, text = command.get("expect", "").partition(":")
    if left := list(left):
        return f"left behind: {', '.join(left)}"
    if "Traceback" in output and kind == "error":
        return f"a traceback instead of an error about {text!r}"
    if kind == "error":
        words = text.split(" (")[0]
        return "" if code != 0 and words in output else f"expected an error about {words!r}, got {code}"
    if code != 0:
        lines = [line for line in output.splitlines() if "rror" in line or "FAILED" in line]
        return f"{code if isinstance(code, str) else lines[-1] if lines else f'exit code {code}'}"
    if VERDICT not in output:
        return f"ended with exit code 0, but without {VERDICT!r}"
    if kind == "warn" and not _warns(output, text):
        return f"expected the warning {text!r}"
    return ""


def _warns(output: str, text: str) -> bool:
    """Whether a warning has the text, or names the flag with the value with which the text begins."""
    flag = re.match(r"\w+=\S+", text)
    return any((flag[0] if flag else text) in line for line in output.splitlines() if line.startswith("warning: "))


def _words(command: Command, launcher: str, processes: int | None) -> list[str]:
    """The words to execute."""
    script = str(ROOT / SCRIPTS[command["kind"]])
    port = f"--master_port={free_port()}"
    count = num_ranks(command) if processes is None else processes
    published = [word for word in command.get("launcher", ()) if not word.startswith("--master_port")]
    start = {"python": [], "torchrun": [
        "-m", "torch.distributed.run", f"--nproc-per-node={count}", port.replace("_", "-")], "deepspeed": [
            "-m", "deepspeed.launcher.runner", "--quiet", port,
            *(published if processes is None and published else [f"--num_gpus={count}"])]}[launcher]
    return [sys.executable, *start, script, *command["args"], FLAG]


#: Process group -> whether its first process ends others when it is asked to (a sweep's runs have groups of their own).
_running: dict[int, bool] = {}
_lock = threading.Lock()


def end_all() -> None:
    """End the process groups of all commands that are running in this process."""
    with _lock:
        for group, ends_others in _running.items():
            _signal(os.kill if ends_others else os.killpg, group, signal.SIGTERM if ends_others else signal.SIGKILL)


def _signal(send: Callable[[int, int], None], target: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(target, number)


def execute(words: Sequence[str], work: Path, temporary: Path, timeout: float, *,
            ends_others: bool = False) -> tuple[int | str, str]:
    """Exit code, or why there is none, and what was printed. The process group is ended whatever happens.

    Args:
        timeout: seconds after which it is ended. ends_others: see :data:`_running`.
    """
    environment = {**os.environ, "LOCAL_SIZE": "8", "DS_ACCELERATOR": "cpu", "TMPDIR": str(temporary),
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(words, cwd=work, env=environment, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with _lock:
        _running[process.pid] = ends_others
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        if ends_others:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=GRACE)
        _signal(os.killpg, process.pid, signal.SIGKILL)
        return f"no end within {timeout} s", process.communicate()[0]
    finally:
        _signal(os.killpg, process.pid, signal.SIGKILL)
        with _lock:
            del _running[process.pid]


def _names(folder: Path, *known: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


def free_port() -> int:
    """A port that nobody listens to at the moment."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
