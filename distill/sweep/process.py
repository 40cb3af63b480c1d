"""A child process and everything that it starts: begun in a session of its own, ended as a whole.

Ending the launcher of ranks leaves its ranks alive, and a rank may move to a session of its own. So every child gets a
mark in its environment, which its descendants inherit wherever they go; ending a child ends all that carry its mark.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

MARK = "GLMKD_SWEEP_CHILD"
#: Seconds between the request to end and the end by force: a run may save for 20 s (see the training loop).
GRACE = 30.0
#: The time at which a process started is known to about this many seconds.
_SAME_START = 2.0


@dataclass(frozen=True)
class Identity:
    """Which process it was: a process number alone may belong to another one by now."""

    pid: int
    started: float
    host: str

    def is_alive(self) -> bool:
        """Whether this very process still runs, on this machine."""
        try:
            process = psutil.Process(self.pid)
            return (self.host == platform.node() and abs(process.create_time() - self.started) < _SAME_START
                    and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


def identify(pid: int) -> Identity:
    """The identity of a running process; one that has ended already started now."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:
        started = time.time()
    return Identity(pid, started, platform.node())


def marked(belongs: Callable[[str], bool]) -> list[psutil.Process]:
    """Running processes whose mark ``belongs``; those of other users cannot be looked into and are left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK)
            if mark is not None and belongs(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_all(belongs: Callable[[str], bool], grace: float = GRACE) -> int:
    """End every marked process, with SIGTERM first; returns how many there were. Waits until they are gone."""
    processes = marked(belongs)
    number, by_force = len(processes), time.monotonic() + grace
    _send(processes, signal.SIGTERM)
    while processes := marked(belongs):
        if time.monotonic() > by_force:
            _send(processes, signal.SIGKILL)
        psutil.wait_procs(processes, timeout=0.1)
    return number


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


class Child:
    """A running command; made by :meth:`start`, or by :meth:`adopt` for one that an earlier launcher has started.

    Attributes:
        status: exit status, once it has ended; negative for a signal; None if it was not this process that started it.
    """

    def __init__(self, identity: Identity, mark: str, process: subprocess.Popen[bytes] | None, grace: float) -> None:
        self.identity, self.mark, self.grace = identity, mark, grace
        self.status: int | None = None
        self._process = process
        self._by_force: float | None = None

    @classmethod
    def start(cls, words: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path, mark: str,
              grace: float = GRACE) -> Child:
        """Start a command.

        Args:
            folder: working folder. environment: the whole of it. log: file for stdout and stderr, written anew.
            mark: unlike that of any other child.
            grace: seconds between SIGTERM and SIGKILL.

        Raises:
            OSError: the program cannot be started.
        """
        with open(log, "wb") as output:
            process = subprocess.Popen(
                list(words), cwd=folder, env={**environment, MARK: mark}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True)
        return cls(identify(process.pid), mark, process, grace)

    @classmethod
    def adopt(cls, identity: Identity, mark: str, grace: float = GRACE) -> Child:
        """Watch over a child that lost its launcher."""
        return cls(identity, mark, None, grace)

    @property
    def seconds(self) -> float:
        """Since its start."""
        return max(0.0, time.time() - self.identity.started)

    def end(self) -> None:
        """Ask all of it to end; :meth:`has_ended` does it by force when the grace is over."""
        if self._by_force is None:
            self._by_force = time.monotonic() + self.grace
            self._signal_all(signal.SIGTERM)

    def kill(self) -> None:
        """End all of it at once."""
        self._by_force = time.monotonic()
        self._signal_all(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the command **and** all that it started have ended. What it leaves behind when it ends is ended: it
        would keep the devices busy."""
        if not self._is_leader_alive():
            if not marked(self.mark.__eq__):
                return True
            self.end()
        if self._by_force is not None and time.monotonic() >= self._by_force:
            self._signal_all(signal.SIGKILL)
        return False

    def _is_leader_alive(self) -> bool:
        if self._process is None:
            return self.identity.is_alive()
        if self.status is None:
            self.status = self._process.poll()
        return self.status is None

    def _signal_all(self, number: int) -> None:
        _send(marked(self.mark.__eq__), number)
        # Until it executes its program a new process carries the mark of its parent; the group is its own at once.
        if self._is_leader_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.identity.pid, number)
