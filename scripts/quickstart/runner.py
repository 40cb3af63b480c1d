"""Runs the steps of a plan as child processes: in parallel where cores allow, resumable, each with a log of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from scripts.quickstart.steps import Step, command_of, fingerprint, step_folder

ROOT = Path(__file__).resolve().parents[2]
DONE_FILE, LOG_FILE, LOCK_FILE = "done.json", "log.txt", ".lock"
TAIL_LINES = 25
TERMINATE_SECONDS = 10.0


class StepFailed(Exception):
    """A child ended with an error; the message has the end of its log."""


def run_plan(run: Path, plan: Sequence[Step], *, jobs: int, console: Console,
             command: Callable[[Step, list[str]], list[str]] | None = None) -> int:
    """Run what is not done of a plan and tell how it went; the exit code: 1 if a step failed, 130 if interrupted."""
    console.print(f"{len(plan)} steps, {jobs} at a time, in {run}\n", soft_wrap=True)
    try:
        Runner(run, plan, jobs=jobs, console=console, command=command).run_all()
    except StepFailed as failure:
        console.print(f"\n[red]failed:[/red] {escape(str(failure))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped; start it again to go on with the steps that are left")
        return 130
    return 0


@dataclass
class Child:
    """A running step."""

    step: Step
    process: subprocess.Popen
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def end(self) -> None:
        """End the child's whole process group: the launcher, its ranks, and what they started."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
            except ProcessLookupError:
                break
            if sign == signal.SIGTERM and self.process.poll() is None:
                try:
                    self.process.wait(TERMINATE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        self.process.wait()


class Runner:
    """Runs a plan in its folder.

    Args:
        run: the run's folder.
        plan: the steps, in the order in which they are preferred.
        jobs: steps at a time; the cores are shared out between them.
        command: step and filled-in words -> the whole command line (replaced in tests).

    Raises:
        StepFailed: by `run_all`, after all other children have been ended.
    """

    def __init__(
        self,
        run: Path,
        plan: Sequence[Step],
        *,
        jobs: int,
        console: Console,
        command: Callable[[Step, list[str]], list[str]] | None = None,
    ) -> None:
        self.run, self.plan, self.jobs, self.console = run, list(plan), jobs, console
        self._command = command or launch_command
        self._fingerprints: dict[str, str] = {}
        self._children: list[Child] = []

    def run_all(self) -> None:
        """Run every step that is not done; returns when all are."""
        with _only_one(self.run):
            self._run_waiting()

    def _run_waiting(self) -> None:
        waiting = [step for step in self.plan if not self._is_done(step)]
        if len(waiting) < len(self.plan):
            self.console.print(f"{len(self.plan) - len(waiting)} of {len(self.plan)} steps are done already")
        try:
            with Live(console=self.console, refresh_per_second=2, transient=True) as live:
                while waiting or self._children:
                    self._start_ready(waiting)
                    self._collect()
                    live.update(Group(*(self._line(child) for child in self._children)))
                    time.sleep(0.2)
        finally:
            for child in self._children:
                child.end()

    def _is_done(self, step: Step) -> bool:
        """Whether the step ended well before, with this very command and on top of the same earlier steps."""
        self._fingerprints[step.name] = mark = fingerprint(step, self._fingerprints)
        try:
            return json.loads((step_folder(self.run, step.name) / DONE_FILE).read_text())["fingerprint"] == mark
        except (OSError, ValueError, KeyError):
            return False

    def _start_ready(self, waiting: list[Step]) -> None:
        unfinished = {step.name for step in waiting} | {child.step.name for child in self._children}
        for step in list(waiting):
            if len(self._children) < self.jobs and not unfinished & set(step.needs):
                waiting.remove(step)
                self._children.append(self._start(step))

    def _start(self, step: Step) -> Child:
        folder = step_folder(self.run, step.name)
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        folder.mkdir(parents=True)
        if step.training is not None:
            (folder / "deepspeed.json").write_text(json.dumps(step.training.deepspeed_file(), indent=2) + "\n")
        trained = {other.name for other in self.plan if other.stage}
        checkpoints = {name: checkpoint_of(self.run, name) for name in step.needs if name in trained}
        words = self._command(step, command_of(step, checkpoints))
        (folder / "command.txt").write_text(" ".join(words) + "\n")
        number = f"{self.plan.index(step) + 1:2d}/{len(self.plan)}"
        of_seed = f", seed {step.seed}" if step.name.endswith(f"-{step.seed}") else ""
        self.console.print(f"[bold]\\[{number}] {step.title}[/bold]{of_seed}: {step.why}", soft_wrap=True)
        with open(folder / LOG_FILE, "wb") as log:
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=child_environment(self.jobs),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Child(step, process)

    def _collect(self) -> None:
        for child in list(self._children):
            code = child.process.poll()
            if code is None:
                continue
            self._children.remove(child)
            child.end()  # nothing of the group may stay behind
            folder = step_folder(self.run, child.step.name)
            if code != 0:
                raise StepFailed(
                    f"step {child.step.name} ended with exit code {code}; the end of {folder / LOG_FILE}:\n\n"
                    + tail(folder / LOG_FILE)
                )
            done = {"fingerprint": self._fingerprints[child.step.name], "seconds": round(child.seconds, 1)}
            temporary = folder / f"{DONE_FILE}.new"
            temporary.write_text(json.dumps(done) + "\n")
            temporary.replace(folder / DONE_FILE)
            number = f"{self.plan.index(child.step) + 1:2d}/{len(self.plan)}"
            self.console.print(f"[green]\\[{number}] done[/green] in {child.seconds:.0f} s{_result(folder)}")

    def _line(self, child: Child) -> Text:
        progress = ""
        records = read_records(step_folder(self.run, child.step.name) / "records")
        total = next((r["iterations"] for r in records if r["kind"] == "start"), None)
        steps = [r for r in records if r["kind"] == "train"]
        if steps:
            progress = f"  iteration {steps[-1]['iteration']}/{total}  loss {steps[-1]['loss']:.3f}"
        return Text(f"  … {child.step.title}  {child.seconds:.0f} s{progress}")


@contextmanager
def _only_one(run: Path) -> Iterator[None]:
    """Hold the run's folder: two quick starts would delete each other's steps."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepFailed(
                f"another quick start is at work in {run}; wait for it, or give --run=ANOTHER_FOLDER"
            ) from None
        yield


def launch_command(step: Step, words: list[str]) -> list[str]:
    """The command line of a step: the entry script under the `deepspeed` launcher, or a module of ours."""
    if step.training is None:
        return [sys.executable, "-m", *words]
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside) if beside.exists() else shutil.which("deepspeed")
    if launcher is None:
        raise StepFailed("the deepspeed launcher was not found beside this Python or in PATH: pip install deepspeed")
    return [sys.executable, launcher, "--quiet", "--include=localhost:0", f"--master_port={free_port()}", *words]


def child_environment(jobs: int) -> dict[str, str]:
    """CPU everywhere, so that every machine gives the same numbers; the cores are shared between the jobs."""
    threads = max(1, num_cores() // jobs)
    return {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "LOCAL_SIZE": "8",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def checkpoint_of(run: Path, name: str) -> Path:
    """The one run folder below a step's checkpoints (pretraining adds the time to its name)."""
    folder = step_folder(run, name) / "checkpoints"
    found = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    if len(found) != 1:
        raise StepFailed(f"step {name} left {len(found)} checkpoints in {folder}, expected one; run again with --fresh")
    return found[0]


def read_records(folder: Path) -> list[dict]:
    """The objects of a step's metrics.jsonl that are written completely."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # the last line may be half written
            continue
    return records


def tail(log: Path, count: int = TAIL_LINES) -> str:
    """The last lines of a log, without what the launcher adds below the error itself."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in lines if "[launch.py:" not in line] or lines
    return "\n".join(lines[-count:])


def _result(folder: Path) -> str:
    """What a finished step has to say: its last validation loss or its scores."""
    records = read_records(folder / "records")
    for record in reversed(records):
        if record["kind"] == "validation":
            return f", validation loss {record['loss']:.3f}"
        if record["kind"] == "metrics":
            scores = {name: value for name, value in record.items() if name not in ("kind", "iteration", "epoch")}
            return f", held-out {', '.join(f'{name} {value:.1f}' for name, value in scores.items())}"
    return ""
