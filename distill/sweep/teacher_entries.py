"""Named teachers of a sweep (``--task_t_load``): their checkpoints by task, and the flags that load them.

A JSON object, entry name -> object with ``comments`` (free text), ``tasks`` (task preset -> checkpoint below the data
root, with a slash in front) and ``args`` (pairs of a flag and a value). A value is text, null for a bare switch, or a
list of teachers: each is the name of an entry, whose checkpoint for the present task is meant, or a fixed path below
the data root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.json_files import read_json
from distill.sweep.presets import REPOSITORY, nearest
from distill.sweep.types import FlagPair

_KEYS = ("comments", "tasks", "args")


@dataclass(frozen=True)
class TeacherEntry:
    """One entry of the file.

    Attributes:
        tasks: task preset -> checkpoint below the data root.
        args: flags without dashes; a value is text, None, or a tuple of entry names and paths.
    """

    name: str
    comments: str
    tasks: Mapping[str, str]
    args: tuple[tuple[str, str | None | tuple[str, ...]], ...]


class TeacherEntries:
    """All entries of a file."""

    def __init__(self, path: Path, entries: Mapping[str, TeacherEntry]) -> None:
        self.path, self._entries = path, entries

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def comments(self, name: str) -> str:
        """What the file says about an entry."""
        return self._entries[name].comments

    def check(self, name: str, tasks: Iterable[str], flag: str = "--task_t_load") -> None:
        """Find everything that ``flags`` would stumble over.

        Raises:
            ValueError: an unknown entry, or tasks for which a teacher has no checkpoint; all of them are named.
        """
        entry = self._find(name, f"{flag}={name}")
        missing: dict[str, list[str]] = {}
        for _, value in entry.args:
            for teacher in value if isinstance(value, tuple) else ():
                if not teacher.startswith("/"):
                    found = self._find(teacher, f"{self.path}: a teacher of {name!r}")
                    missing[teacher] = [task for task in tasks if task not in found.tasks]
        texts = [f"{teacher!r} has no checkpoint for {', '.join(lost)}" for teacher, lost in missing.items() if lost]
        if texts:
            raise ValueError(f"{flag}={name}: {'; '.join(texts)}. Add them to 'tasks' of the entry in {self.path}, or "
                             "leave the task out of --tasks")

    def flags(self, name: str, task: str, data_root: str) -> list[FlagPair]:
        """The flags of entry ``name`` for a task preset, in order; call :meth:`check` before."""
        pairs: list[FlagPair] = []
        for flag, value in self._entries[name].args:
            if isinstance(value, tuple):
                value = ":".join(f"{data_root}{self._path(teacher, task)}" for teacher in value)
            pairs.append((f"--{flag}", value))
        return pairs

    def _path(self, teacher: str, task: str) -> str:
        return teacher if teacher.startswith("/") else self._entries[teacher].tasks[task]

    def _find(self, name: str, what: str) -> TeacherEntry:
        if name not in self._entries:
            raise ValueError(f"{what} is no entry of {self.path}: {name!r}{nearest(name, self._entries)}; there are "
                             f"{', '.join(self._entries)}")
        return self._entries[name]


def load_teacher_entries(path: str) -> TeacherEntries:
    """Read the file at ``path``, from the working directory or else the repository.

    Raises:
        ValueError: no such file, no JSON, or an entry of another form.
    """
    file = next((candidate for candidate in (Path(path).expanduser(), REPOSITORY / path) if candidate.is_file()), None)
    if file is None:
        raise ValueError(f"--task_t_load_path={path} does not exist")
    content = read_json(file, dict, f"--task_t_load_path={path}")
    return TeacherEntries(file, {name: _entry(f"{file}: {name}", name, entry) for name, entry in content.items()})


def _entry(where: str, name: str, content: Any) -> TeacherEntry:
    if not isinstance(content, dict) or "args" not in content:
        raise ValueError(f"{where} must be an object with 'args', a list of pairs of a flag and a value")
    if unknown := sorted(set(content) - set(_KEYS)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(_KEYS)}")
    tasks = content.get("tasks", {})
    if not isinstance(tasks, dict) or not all(isinstance(path, str) for path in tasks.values()):
        raise ValueError(f"{where}.tasks must map task presets to paths")
    for task, path in tasks.items():
        if not path.startswith("/"):
            raise ValueError(f"{where}.tasks.{task}: {path!r} has to begin with a slash; it lies below the data root")
    pairs = tuple(_pair(where, pair) for pair in content["args"])
    return TeacherEntry(name, str(content.get("comments", "")), tasks, pairs)


def _pair(where: str, pair: Any) -> tuple[str, str | None | tuple[str, ...]]:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise ValueError(f"{where}.args: {pair!r} is no pair of a flag and a value")
    flag, value = pair[0].lstrip("-"), pair[1]
    if isinstance(value, list) and value and all(isinstance(teacher, str) for teacher in value):
        return flag, tuple(value)
    if value is None or isinstance(value, str):
        return flag, value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return flag, str(value)
    raise ValueError(f"{where}.args: the value of {flag!r} must be text, null or a list of teachers, not {value!r}")
