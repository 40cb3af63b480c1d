"""A worker process never outlives the one that forked it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time

import pytest

from data_utils.workers import start_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks the system to signal it")
PATIENCE = 10.0


def _worker(late: bool, out: int) -> None:
    parent = multiprocessing.parent_process().pid
    while late and os.getppid() == parent:  # it is killed before this process has asked for anything
        time.sleep(0.01)
    start_worker(0)
    os.write(out, b"started ")
    time.sleep(PATIENCE)
    os.write(out, b"alive")


def _parent(late: bool, out: int) -> None:
    """Forks a worker and is killed."""
    context = multiprocessing.get_context("fork")
    context.Process(target=_worker, args=(late, out)).start()
    if not late:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("late", [False, True], ids=["killed later", "killed before the worker began"])
def test_worker_of_a_killed_process(late: bool) -> None:
    read, write = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_parent, args=(late, write))
    process.start()
    os.close(write)
    began = time.monotonic()
    said = b""
    while chunk := os.read(read, 100):  # nothing more comes once every process that could write has ended
        said += chunk
    os.close(read)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert time.monotonic() - began < PATIENCE
    assert said == (b"" if late else b"started ")
