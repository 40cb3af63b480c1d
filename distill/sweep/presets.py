"""Presets of the sweep launcher, read from the JSON files below ``config/sweep`` and a folder of the user's own.

    models.json          sizes, tokenizer, start checkpoint and DeepSpeed file of a model
    epochs.json          tables of epochs by task preset
    scripts/<name>.json  a command preset: the order of its flags, and its task presets
    pretrain.json        complete flags of sample commands

Flags are words of a command line. ``<model>`` and ``<task>`` stand for the flags of these presets, ``{name}`` for a
value that is known once a command is composed. A key that is not known here is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.json_files import read_json
from distill.sweep.types import FlagPair

REPOSITORY = Path(__file__).resolve().parents[2]
PRESETS = REPOSITORY / "config" / "sweep"
#: Filled in by the launcher; a task preset adds its own ``values``.
PLACEHOLDERS = ("checkpoint", "experiment", "task", "data", "save", "epochs", "batch_size", "mask_ratio")
GROUPS = ("<model>", "<task>")
_FIELD = re.compile(r"\{(\w+)\}")
_FLAG = re.compile(r"--[A-Za-z][\w-]*(=.*)?")


@dataclass(frozen=True)
class ModelPreset:
    """A model and where it starts.

    Attributes:
        label: first part of the experiment's name.
        checkpoint: start checkpoint below the data root.
        deepspeed: DeepSpeed file; ``{suffix}`` is the suffix of big tasks.
        flags: of the training script.
        vocab_size: rows of the word table, to tell the number of parameters.
    """

    name: str
    label: str
    checkpoint: str
    deepspeed: str
    flags: tuple[str, ...]
    vocab_size: int


@dataclass(frozen=True)
class TaskPreset:
    """A task of a command preset.

    Attributes:
        task: name for the training script.
        label: second part of the experiment's name.
        data: file or folder below the data folder of the command preset.
        values: replace ``{name}`` in flags.
    """

    name: str
    task: str
    label: str
    data: str
    flags: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScriptPreset:
    """A command preset.

    Attributes:
        save_sub: folder for results below the start checkpoint, where none is given.
        data: folder below the data root.
        flags: in order, with ``<model>`` and ``<task>``.
        batch_size: to be divided by the number of devices; 0 where the tasks have one of their own.
    """

    name: str
    save_sub: str
    data: str
    flags: tuple[str, ...]
    tasks: Mapping[str, TaskPreset]
    batch_size: int = 0


@dataclass(frozen=True)
class Presets:
    """All presets by name; ``samples`` are commands of the pretraining script as (DeepSpeed file, flags)."""

    models: Mapping[str, ModelPreset]
    scripts: Mapping[str, ScriptPreset]
    epochs: Mapping[str, Mapping[str, int]]
    samples: Mapping[str, tuple[str, tuple[str, ...]]]

    def task_names(self) -> list[str]:
        """The task presets of all command presets, each once."""
        return list(dict.fromkeys(name for script in self.scripts.values() for name in script.tasks))


def load_presets(extra: str | Path | None = None) -> Presets:
    """The presets of the toolkit, and those of the folder ``extra``, which win.

    A file ``scripts/<name>.json`` of ``extra`` may have ``tasks`` only: they join the command preset of that name.

    Raises:
        ValueError: a file that cannot be read, an unknown key, a wrong value, a placeholder that nothing fills.
    """
    folders = [PRESETS, *([Path(extra)] if extra else [])]
    if extra and not Path(extra).is_dir():
        raise ValueError(f"--preset_path={extra} is no folder (of models.json, epochs.json, scripts/<name>.json)")
    models: dict[str, ModelPreset] = {}
    scripts: dict[str, ScriptPreset] = {}
    epochs: dict[str, dict[str, int]] = {}
    samples: dict[str, tuple[str, tuple[str, ...]]] = {}
    for folder in folders:
        for name, content in _read(folder / "models.json").items():
            models[name] = _model(name, _Block(folder / "models.json", name, content))
        for path in sorted((folder / "scripts").glob("*.json")):
            scripts[path.stem] = _script(path, scripts.get(path.stem))
        for name, table in _read(folder / "epochs.json").items():
            epochs.setdefault(name, {}).update(_epochs(folder / "epochs.json", name, table))
        for name, content in _read(folder / "pretrain.json").items():
            block = _Block(folder / "pretrain.json", name, content)
            samples[name] = (block.text("deepspeed"), block.flags(()))
            block.finish()
    return Presets(models, scripts, epochs, samples)


def nearest(name: str, known: Iterable[str]) -> str:
    """``": did you mean …?"``, or nothing where no name is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {found[0]}?" if found else ""


def fill(words: Iterable[str], values: Mapping[str, str]) -> list[FlagPair]:
    """Flags with their placeholders filled in, as pairs."""
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        pairs.append((name, _FIELD.sub(lambda match: values[match[1]], value) if equals else None))
    return pairs


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty where there is no file."""
    return read_json(path, dict) if path.is_file() else {}


class _Block:
    """One entry of a preset file; what is left at the end was not asked for, and is refused."""

    def __init__(self, path: Path, name: str, content: Any) -> None:
        self.where = f"{path}: {name}"
        if not isinstance(content, dict):
            raise ValueError(f"{self.where} must be a JSON object")
        self._content, self._asked = content, []

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        self._asked.append(key)
        value = self._content.get(key, default)
        if value is None:
            raise ValueError(f"{self.where} has no entry {key!r}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{self.where}.{key} has the wrong type: {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return self.take(key, str, default)

    def flags(self, names: Iterable[str]) -> tuple[str, ...]:
        """The entry ``flags``, with only placeholders of ``names``."""
        words, known = self.take("flags", list), set(names)
        for word in words:
            if not isinstance(word, str) or word not in GROUPS and not _FLAG.fullmatch(word):
                raise ValueError(f"{self.where}.flags: {word!r} is no flag; write --name or --name=value")
            self.check_fields("flags", word, known)
        return tuple(words)

    def check_fields(self, key: str, text: str, known: Iterable[str]) -> None:
        if unknown := sorted(set(_FIELD.findall(text)) - set(known)):
            raise ValueError(f"{self.where}.{key}: nothing fills {{{unknown[0]}}} in {text!r}; known are "
                             f"{', '.join(sorted(known))}")

    def finish(self) -> None:
        if unknown := [key for key in self._content if key not in self._asked]:
            raise ValueError(f"{self.where}: unknown key {unknown[0]!r}{nearest(unknown[0], self._asked)}; known keys "
                             f"are {', '.join(self._asked)}")


def _model(name: str, block: _Block) -> ModelPreset:
    preset = ModelPreset(name, block.text("label"), block.text("checkpoint"), block.text("deepspeed"),
                         block.flags(("checkpoint",)), block.take("vocab_size", int, 0))
    block.check_fields("deepspeed", preset.deepspeed, ("suffix",))
    block.finish()
    return preset


def _script(path: Path, base: ScriptPreset | None) -> ScriptPreset:
    """A command preset, or (without flags) more tasks for ``base``."""
    content = _read(path)
    block = _Block(path, path.stem, content)
    if base is not None and set(content) == {"tasks"}:
        preset = base
        own = block.take("tasks", dict)
    else:
        own = block.take("tasks", dict)
        values = {name for task in own.values() if isinstance(task, dict) for name in task.get("values", {})}
        preset = ScriptPreset(path.stem, block.text("save_sub"), block.text("data"),
                              block.flags((*PLACEHOLDERS, *values)), {}, block.take("batch_size", int, 0))
    block.finish()
    used = set(_FIELD.findall(" ".join(preset.flags)))
    needed = used - set(PLACEHOLDERS) | (set() if preset.batch_size else used & {"batch_size"})
    tasks = {name: _task(name, _Block(path, name, task), needed) for name, task in own.items()}
    return ScriptPreset(preset.name, preset.save_sub, preset.data, preset.flags, {**preset.tasks, **tasks},
                        preset.batch_size)


def _task(name: str, block: _Block, needed: set[str]) -> TaskPreset:
    values = {key: str(value) for key, value in block.take("values", dict, {}).items()}
    if missing := sorted(needed - set(values)):
        raise ValueError(f"{block.where}.values has no {missing[0]!r}, which the command preset asks for")
    task = block.text("task")
    preset = TaskPreset(name, task, block.text("label", task), block.text("data"),
                        block.flags((*PLACEHOLDERS, *values)), values)
    block.check_fields("label", preset.label, ("mask_ratio",))
    block.finish()
    return preset


def _epochs(path: Path, name: str, table: Any) -> dict[str, int]:
    block = _Block(path, name, table)
    return {task: block.take(task, int) for task in table}
