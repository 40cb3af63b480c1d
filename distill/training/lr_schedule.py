"""The learning rate as a function of the number of optimizer steps taken."""

from __future__ import annotations

import math
from typing import Any


class LearningRateSchedule:
    """Warm-up from 0, then linear, cosine or constant.

    With N steps in all, w = warmup * N, E = N - w, peak rate eta, last share rho, and t steps taken so far:

    ===========  =======================================================================================
    t <= w       eta t / w
    linear       eta - eta (1 - rho) (t - w) / E, not clamped: it goes on falling after N
    cosine       eta rho (1 + (1/rho - 1) (1 + cos(pi x)) / 2), x = min(1, (t - w) / E)
    constant     eta, and the same for "exponential"
    ===========  =======================================================================================

    The first step after a warm-up's start therefore has rate 0: it only fills Adam's moments.
    """

    def __init__(self, lr: float, num_steps: int, *, warmup: float = 0.0, style: str = "linear",
                 decay_ratio: float = 0.1) -> None:
        """``num_steps`` is N, ``warmup`` a share of it. Raises ValueError for a warm-up above one half."""
        self.lr = lr
        self.style = style
        self.decay_ratio = decay_ratio
        num_steps = max(1, num_steps)
        self.warmup_steps = warmup * num_steps
        self.decay_steps = num_steps - self.warmup_steps
        self.steps = 0
        self._switched: dict[str, float] | None = None
        if self.warmup_steps > self.decay_steps:
            raise ValueError(f"--warmup={warmup} is longer than the rest of the schedule; at most 0.5")

    def rate(self) -> float:
        """The learning rate of the next optimizer step."""
        t, w, rho = self.steps, self.warmup_steps, self.decay_ratio
        if w > 0 and t <= w:
            return self.lr * t / w
        if self.style == "linear":
            return self.lr - self.lr * (1 - rho) * (t - w) / self.decay_steps
        if self.style == "cosine":
            x = min(1.0, (t - w) / self.decay_steps)
            return self.lr * (rho + (1 - rho) * (1 + math.cos(math.pi * x)) / 2)
        return self.lr

    def first_negative_step(self) -> int | None:
        """The number of steps after which the rate is below 0; None where it never is."""
        if self.style != "linear" or self.decay_ratio >= 1:
            return None
        return math.floor(self.warmup_steps + self.decay_steps / (1 - self.decay_ratio)) + 1

    def step(self) -> None:
        """To be called after each optimizer step that was applied."""
        self.steps += 1

    def switch_to_linear(self, train_steps: int) -> None:
        """``--switch-linear``: from the current rate down to the end of training; the warm-up's length is kept, so a
        new warm-up comes first (as in the release). A schedule that has not begun or was switched before stays."""
        if self.steps == 0 or self._switched:
            return
        self._follow({"lr": self.rate(), "decay_steps": max(1, train_steps - self.steps)})
        self.steps = 0

    def _follow(self, switched: dict[str, float]) -> None:
        self._switched, self.style = switched, "linear"
        self.lr, self.decay_steps = switched["lr"], switched["decay_steps"]

    def state_dict(self) -> dict[str, Any]:
        """Under the published names; ``num_iters`` is the number of steps taken, ``decay_ratio`` is 1 / rho."""
        return {
            "warmup_iter": self.warmup_steps, "num_iters": self.steps, "decay_style": self.style,
            "end_iter": self.decay_steps, "decay_ratio": 1 / self.decay_ratio if self.decay_ratio else math.inf,
            **({"switched": self._switched} if self._switched else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position and the warm-up; shape and length stay those of the command line, as published, but for
        a schedule that was switched to linear."""
        self.warmup_steps = float(state["warmup_iter"])
        self.steps = int(state["num_iters"])
        if switched := state.get("switched"):
            self._follow(switched)
