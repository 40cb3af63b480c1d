"""Checkpoints that have to be cut for another model-parallel size before a command can start from them."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock

from distill.sweep.presets import REPOSITORY
from distill.sweep.types import FlagPair

logger = logging.getLogger(__name__)

_STUDENT, _TEACHERS = ("--load-pretrained",), ("--teacher_load_pretrained", "--mt_load_pretrained")
_SIZE = re.compile(r"_MP(\d+)$")
_TRACKER = "latest_checkpointed_iteration.txt"


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


def perform(resplits: Iterable[tuple[str, str]], fixed: str = "") -> None:
    """Cut what is not there yet, one process at a time for each checkpoint.

    Args:
        fixed: parameters that every rank holds whole, separated by semicolons.

    Raises:
        ValueError: a checkpoint could not be cut; with what ``change_mp.py`` says.
    """
    for source, target in resplits:
        with FileLock(_lock_file(target)):
            if not Path(target).exists():
                _change_mp(source, target, fixed)


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


def _change_mp(source: str, target: str, fixed: str) -> None:
    """In a process of its own: the launcher does not need torch, and the weights leave the memory."""
    size = int(match[1]) if (match := _SIZE.search(target)) else 1
    logger.info("%s is cut for model-parallel size %d", source, size)
    words = [sys.executable, str(REPOSITORY / "change_mp.py"), source.rstrip("/"), str(size),
             f"--fix_module_parameters={fixed}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(f"{source} cannot be cut for model-parallel size {size}: "
                         f"{lines[-1] if lines else f'exit status {done.returncode}'}")
    made = done.stdout.splitlines()[-1]
    if made != target:
        Path(made).rename(target)
