"""A trial: one task with one configuration and one seed, as a chain of stages, planned and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from distill.sweep.scores import Evaluation
from distill.sweep.types import Point, StageCommand, TaskPlan

#: States of a stage. "interrupted" is waiting again; the ones behind it are final.
WAITING, RUNNING, INTERRUPTED = "waiting", "running", "interrupted"
DONE, FAILED, PRUNED, SKIPPED = "done", "failed", "pruned", "skipped"
FINAL = (DONE, FAILED, PRUNED, SKIPPED)


@dataclass
class StageRun:
    """What has become of a stage.

    Attributes:
        attempts: how often it was started. failures: how often it failed.
        kind, reason: of the failure (see :class:`~distill.sweep.outcome.Outcome`), or why it was pruned or skipped.
        line: the command as it was run. devices: that it held.
        began: time of the last start, seconds since the epoch. seconds: that the last attempt took.
        status: exit status of the last attempt; None if nobody saw it.
        result: content of the result file. curve: scorings after epochs.
    """

    state: str = WAITING
    attempts: int = 0
    failures: int = 0
    kind: str = ""
    reason: str = ""
    line: str = ""
    devices: tuple[str, ...] = ()
    began: float | None = None
    seconds: float | None = None
    status: int | None = None
    result: dict[str, Any] | None = None
    curve: list[Evaluation] = field(default_factory=list)


@dataclass
class Trial:
    """One task with one configuration and one seed.

    Attributes:
        id: the same for the same sweep, whatever was interrupted: task, number, seed.
        position: of the task in ``--tasks``.
        number: of the configuration in the search of its task.
        point: the searched values. seed: None leaves the command's own.
        plan: its stages. problem: why there is none.
    """

    id: str
    task: str
    position: int
    number: int
    point: Point
    seed: int | None
    plan: TaskPlan
    problem: str = ""
    stages: list[StageRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.stages:
            self.stages = [StageRun() for _ in self.plan.stages]
        if self.problem:
            self.stages = [StageRun(FAILED, kind="refused", reason=self.problem)]

    @property
    def state(self) -> str:
        """Of the trial as a whole."""
        states = [stage.state for stage in self.stages]
        for state in (RUNNING, FAILED, PRUNED):
            if state in states:
                return state
        if all(state == DONE for state in states):
            return DONE
        return SKIPPED if SKIPPED in states else INTERRUPTED if INTERRUPTED in states else WAITING

    @property
    def is_final(self) -> bool:
        """Whether nothing of it is left to do."""
        return all(stage.state in FINAL for stage in self.stages)

    @property
    def next_stage(self) -> int | None:
        """Index of the stage that may start now; None if one is running, or none is left."""
        for index, stage in enumerate(self.stages):
            if stage.state == RUNNING:
                return None
            if stage.state in (WAITING, INTERRUPTED):
                return index
        return None

    @property
    def curve(self) -> list[Evaluation]:
        """The scorings of all stages, one after the other."""
        return [evaluation for stage in self.stages for evaluation in stage.curve]

    def failure(self) -> tuple[int, StageRun] | None:
        """Index and state of the first stage that failed."""
        return next(((index, stage) for index, stage in enumerate(self.stages) if stage.state == FAILED), None)

    def plan_as_json(self) -> dict[str, Any]:
        """What is stored before the first stage starts."""
        return {"id": self.id, "task": self.task, "position": self.position, "number": self.number,
                "point": dict(self.point), "seed": self.seed, "problem": self.problem, "plan": asdict(self.plan)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trial:
        """The trial that :meth:`plan_as_json` has stored, with nothing run yet."""
        plan = content["plan"]
        return cls(content["id"], content["task"], content["position"], content["number"], Point.of(content["point"]),
                   content["seed"], TaskPlan(plan["task"], tuple(map(_stage_from_json, plan["stages"])), plan["gpus"],
                                             plan.get("devices", 0)),
                   content["problem"])


def trial_id(task: str, number: int, seed: int | None) -> str:
    """The name of a trial and of its folder."""
    return f"{task}-{number:03d}" + ("" if seed is None else f"-s{seed}")


def _stage_from_json(content: Mapping[str, Any]) -> StageCommand:
    pairs = {name: tuple((first, second) for first, second in content[name])
             for name in ("environment", "flags", "resplits")}
    return StageCommand(**{**content, **pairs, "launcher": tuple(content["launcher"])})
