"""What the planner hands to the runner: commands as lists of words, grouped by task.

A plan is pure data. Composing it touches no file; the runner writes derived DeepSpeed files and starts the processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

FlagPair = tuple[str, "str | None"]
"""A flag name with its dashes and its value; None is a bare switch."""

DEEPSPEED_FLAG = "--deepspeed_config"
RESULT_FLAG = "--custom_tmp_result"


@dataclass(frozen=True)
class StageCommand:
    """One child process: what the launcher starts for one stage of one task.

    Attributes:
        task: preset name, e.g. "copa".
        stage: place in the task's stages: 0 for the first, then one for every K of `--again_K__`, by rising K.
        environment: variables set for the child, in order.
        launcher: the process launcher with its own options: ("deepspeed", "--master_port=…", "--include=…", …).
        script: the training script.
        flags: flags of the training script in order, without `--custom_tmp_result`.
        deepspeed_config: content of the derived DeepSpeed file where it differs from the base file, else None.
        deepspeed_path: where the command expects the DeepSpeed file; the runner writes `deepspeed_config` there.
        checkpoint: the folder the stage writes, `<save>/<experiment name>`.
        resplits: checkpoints that have to be cut for another model-parallel size before the stage starts, as pairs of
            paths (present, new); `flags` name the new ones.
    """

    task: str
    stage: int
    environment: tuple[tuple[str, str], ...]
    launcher: tuple[str, ...]
    script: str
    flags: tuple[FlagPair, ...]
    deepspeed_config: dict[str, Any] | None
    deepspeed_path: str
    checkpoint: str
    resplits: tuple[tuple[str, str], ...] = ()

    def words(self) -> list[str]:
        """The command as a list that is started without a shell (environment not included)."""
        return [*self.launcher, self.script, *(render_flag(name, value) for name, value in self.flags)]

    def line(self) -> str:
        """The command as one line for reading, with the environment in front and no quoting."""
        return " ".join([*(f"{name}={value}" for name, value in self.environment), *self.words()])

    def with_deepspeed_path(self, path: str) -> StageCommand:
        """The same command with its derived DeepSpeed file at another place; itself where it has none."""
        if self.deepspeed_config is None:
            return self
        flags = tuple((name, path if name == DEEPSPEED_FLAG else value) for name, value in self.flags)
        return replace(self, flags=flags, deepspeed_path=path)

    def value(self, flag: str) -> str | None:
        """Value of a flag such as "--epochs"; None where it is absent or a bare switch."""
        return dict(self.flags).get(flag)


@dataclass(frozen=True)
class TaskPlan:
    """What runs for one task.

    Attributes:
        task: preset name.
        stages: in the order in which they run.
        gpus: devices that may be given to them, as in `--gpus`.
        devices: how many of these they get; 0 for all. The commands are composed for that number.
    """

    task: str
    stages: tuple[StageCommand, ...]
    gpus: str
    devices: int = 0


@dataclass(frozen=True)
class Point(Mapping[str, str]):
    """Values of the searched flags of one trial, by flag name with dashes; equal points compare and hash equal."""

    items_: tuple[tuple[str, str], ...] = field(default=())

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Point:
        """A point with the flags in sorted order, so that equal values give equal points."""
        return cls(tuple(sorted(values.items())))

    def __getitem__(self, flag: str) -> str:
        for name, value in self.items_:
            if name == flag:
                return value
        raise KeyError(flag)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.items_)

    def __len__(self) -> int:
        return len(self.items_)


def render_flag(name: str, value: str | None) -> str:
    """A flag as one word: `--name`, or `--name=value`."""
    return name if value is None else f"{name}={value}"
