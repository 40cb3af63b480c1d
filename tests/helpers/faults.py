"""Runs of the entry scripts in processes that something happens to: kill, SIGTERM, an error, a full disk.

A warm process (:class:`Nursery`) has imported everything and forks the ranks of a run, each in a process group of its
own with the variables that torchrun sets; a run on tiny models then takes a second. Inside a rank every change of the
file system below a folder is counted, so that "before the 17th change" is the same moment in every run of a command.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that survivors of a fault and worker processes get to end by themselves.
GRACE = 20.0
#: Seconds in which the ranks of a run find each other; they are forked from one process, so they begin together.
JOINING = 15.0
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Fault:
    """What happens, and when.

    Attributes:
        what: "kill" (SIGKILL), "terminate" (SIGTERM, to its workers too), "raise" (an exception), "full" (no space left
            on the device from then on, below the folder), "worker" (SIGKILL to a process that loads data).
        at: "step" (while optimizer step number ``count`` goes on), "change" (before change number ``count`` of the file
            system), "bytes" (after ``count`` written bytes of checkpoints and token caches, in the middle of a write).
        count: from 1.
        rank: that it happens to; None for all.
        delay: seconds after the beginning of the step.
    """

    what: str
    at: str
    count: int
    rank: int | None = None
    delay: float = 0.0


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended: exit code (negative: the signal), what it printed, and how long after the first rank's end.

    Attributes:
        steps, changes, written: optimizer steps, changes of the file system, bytes of checkpoints, caches and records;
            0 where the rank did not come to its end.
        left_behind: whether processes of its group were still there after :data:`GRACE` seconds (they are ended).
    """

    code: int
    output: str
    seconds: float
    later: float
    steps: int
    changes: int
    written: int
    left_behind: bool


class Nursery:
    """The warm process. Use it as a context; not from several threads."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.faults"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def run(self, stage: str, argv: Sequence[str], folder: Path, *, ranks: int = 1, port: int = 0,
            fault: Fault | None = None, timeout: float = 120.0) -> list[RankEnd]:
        """One run.

        Args:
            folder: the working folder; below it changes are counted and the disk is full. Holds the output of ranks.
            port: a free one, for more than one rank.

        Raises:
            TimeoutError: a rank did not end, also not within :data:`GRACE` seconds after a first one has failed.
        """
        request = {"stage": stage, "argv": list(map(str, argv)), "folder": str(folder), "ranks": ranks, "port": port,
                   "fault": asdict(fault) if fault else None, "timeout": timeout}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that starts the ranks ended with code {self._process.wait()}")
        answer = json.loads(line)
        if answer["hung"]:
            raise TimeoutError("\n".join([answer["hung"], *(rank["output"] for rank in answer["ranks"])]))
        return [RankEnd(**rank) for rank in answer["ranks"]]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


# ---- the warm process -----------------------------------------------------------------------------------------------

def _serve() -> None:
    """Answer requests until the input is closed."""
    from distill import finetune, pretrain  # noqa: F401
    with suppress(ImportError):
        import deepspeed  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"])
    began = time.monotonic()
    running = {_fork(request, rank): rank for rank in range(request["ranks"])}
    pids, ends, hung = {rank: pid for pid, rank in running.items()}, {}, ""
    deadline, first_end = began + request["timeout"], None
    while running:
        for pid, rank in list(running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                now = time.monotonic()
                first_end = first_end or now
                code = os.waitstatus_to_exitcode(status)
                ends[rank] = {"code": code, "seconds": now - began, "later": now - first_end}
                if code:
                    deadline = min(deadline, now + GRACE)
                del running[pid]
        if running and time.monotonic() > deadline:
            hung = f"ranks {sorted(running.values())} went on for {time.monotonic() - (first_end or began):.0f} s"
            for pid in running:  # faulthandler writes the stacks: of the rank first, then of its data workers
                os.kill(pid, signal.SIGABRT)
                time.sleep(0.5)
                os.killpg(pid, signal.SIGABRT)
            deadline += 5
        time.sleep(0.005)
    for rank, pid in pids.items():
        ends[rank]["left_behind"] = not _group_ends(pid)
        counts = folder / f"counts-{rank}.json"
        nothing = {"steps": 0, "changes": 0, "written": 0}
        ends[rank].update(json.loads(counts.read_text()) if counts.is_file() else nothing)
        counts.unlink(missing_ok=True)
        ends[rank]["output"] = (folder / f"rank-{rank}.txt").read_text(errors="replace")
    return {"hung": hung, "ranks": [ends[rank] for rank in sorted(ends)]}


def _group_ends(group: int) -> bool:
    """Wait for the last process of a group; whether it ended by itself."""
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    return False


def _fork(request: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        return pid
    code = 70
    try:
        os.setpgid(0, 0)
        code = _run_rank(request, rank)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# ---- a rank ---------------------------------------------------------------------------------------------------------

def _run_rank(request: dict[str, Any], rank: int) -> int:
    import faulthandler

    from distill import finetune, pretrain
    from distill.training.setup import run_script
    from model.parallel import groups
    from model.parallel.random import seed_everything

    folder, size = Path(request["folder"]), request["ranks"]
    output = os.open(folder / f"rank-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdin.close()
    faulthandler.enable()
    os.chdir(folder)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                      LOCAL_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(request["port"]))
    seed_everything(1)
    groups.JOINING_TIMEOUT = timedelta(seconds=JOINING)
    fault = Fault(**request["fault"]) if request["fault"] else None
    watch = Watch(folder, fault if fault and fault.rank in (None, rank) else None)
    watch.install()
    main = {"pretrain": pretrain, "finetune": finetune}[request["stage"]].main
    code = run_script(lambda: main(request["argv"]))
    watch.fault, watch.disk_is_full = None, False
    counts = {"steps": watch.steps, "changes": watch.changes, "written": watch.written}
    (folder / f"counts-{rank}.json").write_text(json.dumps(counts))
    return code


class Watch:
    """Counts what happens in a rank, and lets the fault happen when its moment has come."""

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder, self.fault = str(folder) + os.sep, fault
        self.steps = self.changes = self.written = 0
        self.disk_is_full = False

    def install(self) -> None:
        from data_utils.corpora import build
        from distill.training import loop, metrics
        from model.checkpoint import files
        from tasks import data

        data.MIN_EXAMPLES_FOR_WORKERS = 1
        sys.addaudithook(self._audit)
        files.open = build.open = self._open
        metrics.open = self._open
        loop.train_step = self._counted(loop.train_step)

    def _counted(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            fault = self.fault
            if fault is not None and fault.at == "step" and fault.count == self.steps:
                if fault.delay:
                    timer = threading.Timer(fault.delay, self._happen)
                    timer.daemon = True
                    timer.start()
                else:
                    self._happen()
            return train_step(*args, **kwargs)

        return counted

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES:
            paths = arguments[:2] if event == "os.rename" else arguments[:1]
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            paths = arguments[:1]
        else:
            return
        if not any(isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.folder)
                   for path in paths):
            return
        self.changes += 1
        fault = self.fault
        if fault is not None and fault.at == "change" and fault.count == self.changes:
            self._happen()
        if self.disk_is_full and event == "open":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(paths[0]))

    def _open(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        stream = builtins.open(file, *args, **kwargs)
        return _Cut(stream, self) if stream.writable() else stream

    def write(self, stream: Any, data: Any) -> int:
        """Write; if the moment lies inside ``data``, only as far as that."""
        whole = data if isinstance(data, str) else memoryview(data).cast("B")
        size, part = len(whole), 0
        fault = self.fault
        if fault is not None and fault.at == "bytes" and self.written < fault.count <= self.written + size:
            part = fault.count - self.written
            stream.write(whole[:part])
            stream.flush()
            self._happen()
        if self.disk_is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += size
        if part < size:
            stream.write(whole[part:])  # a rank that was asked to end goes on writing
        return size

    def _happen(self) -> None:
        what, self.fault = self.fault.what, None
        if what == "full":
            self.disk_is_full = True
        elif what == "raise":
            raise ZeroDivisionError("a fault of the test")
        elif what == "worker":
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(random.choice(children)), signal.SIGKILL)
        elif what == "terminate":
            os.killpg(0, signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


class _Cut:
    """A file whose writing can be cut off in the middle."""

    def __init__(self, stream: Any, watch: Watch) -> None:
        self._stream, self._watch = stream, watch

    def write(self, data: Any) -> int:
        return self._watch.write(self._stream, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Cut:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.close()


if __name__ == "__main__":
    _serve()
