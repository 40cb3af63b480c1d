"""Checkpoints that have to be cut for another model-parallel size before a command can start from them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from distill.sweep.presets import REPOSITORY
from distill.sweep.process import MARK, end_all
from distill.sweep.types import FlagPair

logger = logging.getLogger(__name__)

_STUDENT, _TEACHERS = ("--load-pretrained",), ("--teacher_load_pretrained", "--mt_load_pretrained")
_SIZE = re.compile(r"_MP(\d+)$")
CHANGE_MP = REPOSITORY / "change_mp.py"
_TRACKER = "latest_checkpointed_iteration.txt"
#: Seconds between two looks at whether the launcher is to end, while another one cuts the same checkpoint.
_LOOK = 0.5


def resplits_of(flags: Sequence[FlagPair]) -> tuple[list[FlagPair], tuple[tuple[str, str], ...]]:
    """The flags with the names of the checkpoints as they will be, and what has to be cut for that.

    Only looks at folders; nothing is cut where a command names no ``--model-parallel-size``, where the checkpoint does
    not exist (yet), has the size, or is read at every size.

    Raises:
        ValueError: a size that is no number above 0.
    """
    given = dict(flags)
    if "--model-parallel-size" not in given:
        return list(flags), ()
    sizes = {**dict.fromkeys(_STUDENT, _number("--model-parallel-size", given["--model-parallel-size"]))}
    of_teachers = given.get("--teacher-model-parallel-size") or given["--model-parallel-size"]
    sizes |= dict.fromkeys(_TEACHERS, _number("--teacher-model-parallel-size", of_teachers))
    found: dict[str, str] = {}
    result: list[FlagPair] = []
    for name, value in flags:
        if name in sizes and value:
            paths = [_target(path, sizes[name]) for path in (value.split(":") if name in _TEACHERS else [value])]
            found |= {old: new for old, new in paths if old != new}
            value = ":".join(new for _, new in paths)
        result.append((name, value))
    return result, tuple(found.items())


class Cutter:
    """Cuts checkpoints in processes of their own: the launcher does not need torch, and the weights leave the memory.

    They are in sessions of their own, so that Ctrl-C in a terminal is for the launcher alone, which ends them; and they
    carry a mark (see :mod:`~distill.sweep.process`), by which a later launcher finds those that a killed one has left.
    """

    def __init__(self, fixed: str = "", mark: str = "") -> None:
        """
        Args:
            fixed: parameters that every rank holds whole, separated by semicolons. mark: of the processes.
        """
        self.fixed, self.mark = fixed, mark
        self._stopped = threading.Event()

    def perform(self, resplits: Iterable[tuple[str, str]]) -> None:
        """Cut what is not there yet, one process at a time for each checkpoint.

        Raises:
            ValueError: a checkpoint could not be cut, with what ``change_mp.py`` says; or :meth:`stop` was called.
        """
        for source, target in resplits:
            if Path(target).exists():  # also for those who may not write to the lock file of another user
                continue
            with self._locked(target):
                if not Path(target).exists():
                    self._change_mp(source, target)

    def stop(self) -> None:
        """End what is being cut, and begin nothing more; for another thread than that of :meth:`perform`."""
        self._stopped.set()
        end_all(self.mark.__eq__, grace=0)  # half a checkpoint lies under another name

    @contextmanager
    def _locked(self, target: str) -> Iterator[None]:
        lock = FileLock(_lock_file(target))
        while True:
            self._check_stopped()
            with suppress(Timeout):
                lock.acquire(timeout=_LOOK)
                break
        try:
            yield
        finally:
            lock.release()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise ValueError("the launcher was asked to end")

    def _change_mp(self, source: str, target: str) -> None:
        size = _size_of(target)
        logger.info("%s is cut for model-parallel size %d", source, size)
        process = subprocess.Popen(
            [sys.executable, str(CHANGE_MP), *change_mp_words(source, target, self.fixed)], text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, MARK: self.mark}, start_new_session=True)
        if self._stopped.is_set():  # while it was started, when nobody could find it
            process.kill()
        out, err = process.communicate()
        if process.returncode:
            self._check_stopped()
            lines = [line for line in err.splitlines() if line.strip()]
            raise ValueError(f"{source} cannot be cut for model-parallel size {size}: "
                             f"{lines[-1] if lines else f'exit status {process.returncode}'}")
        made = out.splitlines()[-1]
        if made != target:
            Path(made).rename(target)


def change_mp_words(source: str, target: str, fixed: str) -> list[str]:
    """The words behind ``change_mp.py``; it writes ``source`` with ``_MP<size>`` behind it, whatever ``target`` is."""
    words = [source.rstrip("/"), str(_size_of(target))]
    return [*words, f"--fix_module_parameters={fixed}"] if fixed else words


def _size_of(target: str) -> int:
    return int(match[1]) if (match := _SIZE.search(target)) else 1


def _lock_file(target: str) -> Path:
    """Of this machine, so that no lock file is left beside the checkpoints."""
    name = hashlib.sha256(str(Path(target).resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"glmkd_resplit_{name}.lock"


def _number(flag: str, text: str | None) -> int:
    if not (text or "").isdigit() or int(text or 0) < 1:
        raise ValueError(f"{flag}={text}: give the number of ranks that share a model")
    return int(text)


def _target(path: str, size: int) -> tuple[str, str]:
    """``path``, and where it lies at the wanted size."""
    folder = path.rstrip("/")
    match = _SIZE.search(folder)
    if match and int(match[1]) == size or _number_of_parts(Path(folder)) in (None, size):
        return path, path
    base = folder[:match.start()] if match else folder
    return path, base if size == 1 else f"{base}_MP{size}"


def _number_of_parts(folder: Path) -> int | None:
    """Files of the checkpoint in ``folder``; None if there is none, or one that is read at every size."""
    tracker = folder / _TRACKER
    if tracker.is_file():
        words = tracker.read_text(encoding="utf-8").split()
        folder = folder / (words[-1] if words else "")
    return len(list(folder.glob("mp_rank_*_model_states.pt"))) or None
