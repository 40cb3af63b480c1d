"""Everything that belongs to one run while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from distill.training.batches import Source
from distill.training.engine import Engine
from distill.training.forward_step import StepContext
from distill.training.lr_schedule import LearningRateSchedule
from distill.training.metrics import MetricWriter
from distill.training.run_folder import RunFolder
from distill.training.run_state import RunState
from distill.training.setup import Runtime


@dataclass
class Best:
    """The best evaluation so far; ``score`` is None before the first."""

    score: float | None = None
    epoch: int = -1
    iteration: int = 0
    #: Per metric the best score, with its epoch, iteration and all scores of that evaluation.
    by_metric: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """One run.

    Attributes:
        model: what is trained: head, student or GLM.
        context: how a forward step is done.
        run: position as the methods see it; only the loop writes it.
        source, engine, schedule: None where nothing is trained.
        position: micro-batches consumed so far.
        steps: optimizer steps applied so far.
        epochs_done: epochs of fine-tuning that are complete and evaluated.
        resumed_from: folder of the run that this one goes on from.
        pending_from: iteration before the last step, where what is due after that step was cut short by SIGTERM; None
            otherwise.
        should_stop: whether this rank was asked to stop; evaluations ask it between batches.
        has_labels: whether the training data say what is right; without, the label loss means nothing.
    """

    args: Any
    runtime: Runtime
    folder: RunFolder
    writer: MetricWriter
    model: nn.Module
    context: StepContext
    run: RunState
    source: Source | None = None
    engine: Engine | None = None
    schedule: LearningRateSchedule | None = None
    position: int = 0
    steps: int = 0
    epochs_done: int = 0
    resumed_from: Path | None = None
    pending_from: int | None = None
    should_stop: Callable[[], bool] | None = None
    has_labels: bool = True
    best: Best = field(default_factory=Best)

    @property
    def iteration(self) -> int:
        """Complete iterations: optimizer steps in pretraining, micro-batches in fine-tuning."""
        return self.position // self.source.per_iteration if self.source else 0
