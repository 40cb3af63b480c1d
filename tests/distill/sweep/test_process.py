"""Children and everything that they start are ended as a whole."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from distill.sweep.process import Child, Identity, end_all, identify, marked

#: Starts a process in a session of its own, says that it has, and goes on.
SPAWN = """
import signal, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
"""
#: Saves when it is asked to end.
SAVE = """
import signal, sys, time
def stop(*_):
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(600)
"""


def start(folder: Path, code: str, *, mark: str, grace: float = 0.2) -> Child:
    return Child.start([sys.executable, "-c", code], folder=folder, environment=dict(os.environ), log=folder / "log",
                       mark=mark, grace=grace)


def wait_for(child: Child, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not child.has_ended():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_log(folder: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in (folder / "log").read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> str:
    return f"{os.getpid()}-{request.node.name}"


@pytest.mark.parametrize(("code", "status"), [("print('x')", 0), ("raise SystemExit(3)", 3)])
def test_the_exit_status_and_the_output_are_kept(tmp_path: Path, mark: str, code: str, status: int) -> None:
    child = start(tmp_path, code, mark=mark)
    wait_for(child)
    assert child.status == status
    assert (tmp_path / "log").read_text(encoding="utf-8") == ("x\n" if status == 0 else "")


def test_the_end_reaches_processes_in_other_sessions_that_ignore_it(tmp_path: Path, mark: str) -> None:
    child = start(tmp_path, SPAWN + "time.sleep(600)", mark=mark)
    wait_for_log(tmp_path, "ready")
    assert len(marked(mark.__eq__)) == 2
    child.end()
    child.end()
    wait_for(child)
    assert marked(mark.__eq__) == [] and child.status == -15


def test_what_is_left_behind_is_ended_and_the_status_stays(tmp_path: Path, mark: str) -> None:
    child = start(tmp_path, SPAWN, mark=mark)
    wait_for(child)
    assert marked(mark.__eq__) == [] and child.status == 0


def test_the_grace_is_given(tmp_path: Path, mark: str) -> None:
    child = start(tmp_path, SAVE, mark=mark, grace=20)
    wait_for_log(tmp_path, "ready")
    child.end()
    wait_for(child)
    assert child.status == 1 and "saved" in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_process_is_known_by_number_and_start(tmp_path: Path, mark: str) -> None:
    child = start(tmp_path, "import time; time.sleep(600)", mark=mark)
    known = child.identity
    assert known == identify(known.pid) and known.is_alive()
    assert not Identity(known.pid, known.started - 60, known.host).is_alive()
    assert not Identity(known.pid, known.started, "another machine").is_alive()
    adopted = Child.adopt(known, mark, grace=0.2)
    assert not adopted.has_ended() and adopted.status is None
    adopted.kill()
    wait_for(child)
    assert adopted.has_ended() and not known.is_alive()


def test_all_with_a_mark_are_ended(tmp_path: Path, mark: str) -> None:
    child = start(tmp_path, SPAWN + "time.sleep(600)", mark=f"{mark}:1")
    wait_for_log(tmp_path, "ready")
    assert end_all(lambda found: found.startswith(mark), grace=0.2) == 2
    assert child.has_ended()
    assert end_all(lambda found: found.startswith(mark), grace=0.2) == 0


def test_a_program_that_is_not_there_cannot_be_started(tmp_path: Path, mark: str) -> None:
    words: Sequence[str] = [str(tmp_path / "nothing")]
    with pytest.raises(OSError, match="nothing"):
        Child.start(words, folder=tmp_path, environment={}, log=tmp_path / "log", mark=mark)
