"""One pool of gloo worker processes for the whole test run.

``run_distributed(fn, world_size, ...)`` runs a module-level function on ranks ``0 .. world_size - 1``. The processes
come from a fork server that has imported torch, so the first call costs about two seconds and a further one some
milliseconds; they are kept between calls and ended with the test run. Every call gets a fresh process group.
"""

from __future__ import annotations

import atexit
import faulthandler
import multiprocessing
import os
import pickle
import random
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist

from model.parallel import groups

#: Seconds that a call may take before its workers are ended.
DEFAULT_TIMEOUT = 120.0
#: Seconds that the other ranks get to finish after one of them has failed.
GRACE = 5.0


class RemoteTraceback(Exception):
    """Carries the traceback of a worker as text: the cause of the exception that is raised again here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


@dataclass(frozen=True)
class Job:
    """One rank's part of a call."""

    rank: int
    world_size: int
    model_parallel_size: int
    process_group: bool
    folder: str
    port: int
    timeout: float
    import_path: tuple[str, ...]


@dataclass
class Worker:
    """A living worker and our end of the pipe to it."""

    process: BaseProcess
    connection: Connection


@dataclass
class Outcome:
    """What a rank sends back; ``finished`` tells which of several failures came first."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    finished: float = field(default_factory=time.monotonic)


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, model_parallel_size: int = 1,
                    process_group: bool = True, fresh: bool = False, timeout: float = DEFAULT_TIMEOUT,
                    **kwargs: Any) -> list[Any]:
    """Run ``fn(*args, **kwargs)`` on every rank and return the results in rank order.

    Args:
        fn: a module-level function; it, its arguments and its results have to be picklable.
        world_size: number of ranks. 1 also runs in a worker.
        model_parallel_size: the model-parallel groups are made for it before ``fn`` runs.
        process_group: False leaves torch.distributed alone. The environment variables of a launcher (RANK, WORLD_SIZE,
            LOCAL_RANK, MASTER_ADDR, MASTER_PORT …) are set either way, so ``fn`` can initialise by itself.
        fresh: use new processes and end them afterwards, for a ``fn`` that leaves global state behind.
        timeout: seconds; a call that takes longer (a hung collective) raises TimeoutError.

    Raises:
        the exception of the rank that failed first, with its traceback as cause.
        TimeoutError: with the stack of every rank that did not answer.
        RuntimeError: a worker died.
    """
    pool = WorkerPool() if fresh else _shared_pool()
    try:
        return pool.run(fn, world_size, args, kwargs, model_parallel_size, process_group, timeout)
    finally:
        if fresh:
            pool.close()


class WorkerPool:
    """Workers that are started on demand and reused."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "torch.distributed", "numpy"])
        self._workers: list[Worker] = []
        self._folder = Path(tempfile.mkdtemp(prefix="glmkd-pool-"))
        self._calls = 0

    def run(self, fn: Callable[..., Any], world_size: int, args: tuple[Any, ...], kwargs: dict[str, Any],
            model_parallel_size: int, process_group: bool, timeout: float) -> list[Any]:
        """See :func:`run_distributed`."""
        self._grow(world_size)
        folder = self._folder / f"call-{self._calls}"
        self._calls += 1
        folder.mkdir(parents=True)
        port = free_port()
        call = pickle.dumps((fn, args, kwargs))
        for rank, worker in enumerate(self._workers[:world_size]):
            job = Job(rank, world_size, model_parallel_size, process_group, str(folder), port, timeout,
                      tuple(sys.path))
            worker.connection.send_bytes(pickle.dumps((job, call)))
        try:
            outcomes = self._collect(world_size, timeout, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        failures = sorted((o for o in outcomes.values() if o.error is not None), key=lambda o: o.finished)
        if failures:
            # Ranks that failed may have left the others, or themselves, in any state.
            self.close()
            raise failures[0].error from RemoteTraceback(failures[0].trace)
        return [outcomes[rank].value for rank in range(world_size)]

    def _collect(self, world_size: int, timeout: float, folder: Path) -> dict[int, Outcome]:
        """Outcomes by rank; after a failure the others have ``GRACE`` seconds, and may be missing then."""
        ranks = {worker.connection: rank for rank, worker in enumerate(self._workers[:world_size])}
        outcomes: dict[int, Outcome] = {}
        deadline = time.monotonic() + timeout + 2.0
        while ranks:
            ready = wait(list(ranks), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = ranks.pop(connection)
                outcomes[rank] = self._receive(connection, rank)
                if outcomes[rank].error is not None:
                    deadline = min(deadline, time.monotonic() + GRACE)
        if ranks and not any(outcome.error for outcome in outcomes.values()):
            stacks = "\n".join(_read_stack(folder, rank) for rank in sorted(ranks.values()))
            missing = sorted(ranks.values())
            self.close()
            raise TimeoutError(f"ranks {missing} of {world_size} did not answer within {timeout} s\n{stacks}")
        return outcomes

    def _receive(self, connection: Connection, rank: int) -> Outcome:
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            process = self._workers[rank].process
            process.join(1.0)
            return Outcome(error=RuntimeError(f"the worker of rank {rank} died with exit code {process.exitcode}"))

    def _grow(self, size: int) -> None:
        while len(self._workers) < size:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_worker_main, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(Worker(process, ours))

    def close(self) -> None:
        """End all workers; the next call starts new ones."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(2.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []
        shutil.rmtree(self._folder, ignore_errors=True)


_pool: WorkerPool | None = None


def _shared_pool() -> WorkerPool:
    global _pool
    if _pool is None:
        _pool = WorkerPool()
        atexit.register(close_pool)
    return _pool


def close_pool() -> None:
    """End the shared pool's processes, if there are any."""
    if _pool is not None:
        _pool.close()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _read_stack(folder: Path, rank: int) -> str:
    path = folder / f"stack-{rank}.txt"
    return f"rank {rank}: {path.read_text() if path.exists() else 'no stack was written'}"


# What runs in a worker.

def _worker_main(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        job, call = pickle.loads(message)
        connection.send_bytes(_pack(_run_job(job, call)))


def _pack(outcome: Outcome) -> bytes:
    try:
        data = pickle.dumps(outcome)
        # An exception class whose constructor wants other arguments fails only when it is read.
        if outcome.error is not None:
            pickle.loads(data)
        return data
    except Exception as failure:
        if outcome.error is None:
            return pickle.dumps(Outcome(error=TypeError(f"the result cannot be pickled: {failure}")))
        return pickle.dumps(Outcome(error=RuntimeError(repr(outcome.error)), trace=outcome.trace,
                                    finished=outcome.finished))


def _run_job(job: Job, call: bytes) -> Outcome:
    environment = dict(os.environ)
    sys.path.extend(path for path in job.import_path if path not in sys.path)
    stack = open(Path(job.folder) / f"stack-{job.rank}.txt", "w")
    faulthandler.dump_traceback_later(job.timeout, file=stack)
    try:
        _enter(job)
        fn, args, kwargs = pickle.loads(call)
        return Outcome(value=fn(*args, **kwargs))
    except BaseException as error:
        return Outcome(error=error, trace=f"rank {job.rank} of {job.world_size}:\n{traceback.format_exc()}")
    finally:
        faulthandler.cancel_dump_traceback_later()
        stack.close()
        _leave()
        os.environ.clear()
        os.environ.update(environment)


def _enter(job: Job) -> None:
    rank, size = str(job.rank), str(job.world_size)
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_SIZE=size, LOCAL_WORLD_SIZE=size,
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port))
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)
    if job.process_group:
        # A file in a folder of its own cannot collide with another run, as a port can.
        dist.init_process_group("gloo", init_method=f"file://{job.folder}/rendezvous", rank=job.rank,
                                world_size=job.world_size, timeout=timedelta(seconds=job.timeout))
        groups.initialize_model_parallel(job.model_parallel_size)
        dist.barrier()  # a function that needs no other rank would leave while they still connect


def _leave() -> None:
    groups.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
