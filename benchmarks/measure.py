"""CPU time and peak memory of two forms of the same computation, measured in turns in one process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from model.parallel.gradient_memory import release_gradient_memory

Work = Callable[[], object]


@dataclass
class Cost:
    """What a form costs: seconds of CPU time, one entry a repeat; MB (10^6 bytes) beyond what there was before."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    @property
    def time(self) -> float:
        return statistics.median(self.seconds)

    @property
    def memory(self) -> float:
        return statistics.median(self.megabytes)


@dataclass
class Row:
    """A line of the table.

    Attributes:
        ratios: CPU time naive / ours of each repeat (or whatever ``goal`` speaks of).
        goal_ratio: smallest wanted median ratio; goal_megabytes: most memory of ours. None: no goal.
    """

    name: str
    naive: Cost
    ours: Cost
    goal_ratio: float | None = None
    goal_megabytes: float | None = None

    @property
    def ratios(self) -> list[float]:
        return [naive / ours for naive, ours in zip(self.naive.seconds, self.ours.seconds)]

    def text(self) -> str:
        ratio = statistics.median(self.ratios)
        goals, met = [], True
        if self.goal_ratio is not None:
            goals.append(f">= {self.goal_ratio:g}x")
            met &= ratio >= self.goal_ratio
        if self.goal_megabytes is not None:
            goals.append(f"<= {self.goal_megabytes:.0f} MB")
            met &= self.ours.memory <= self.goal_megabytes
        verdict = "" if not goals else "yes" if met else "NO"
        return (f"{self.name:<44} {self.naive.time:8.3f} {self.ours.time:8.3f} {ratio:6.2f}x "
                f"({min(self.ratios):.2f}-{max(self.ratios):.2f}) {self.naive.memory:8.0f} {self.ours.memory:8.0f}   "
                f"{', '.join(goals):<18} {verdict}")


HEADER = (f"{'':<44} {'CPU s':>8} {'CPU s':>8} {'':>7} {'':>11} {'MB':>8} {'MB':>8}\n"
          f"{'what':<44} {'naive':>8} {'ours':>8} {'faster':>7} {'(spread)':>11} {'naive':>8} {'ours':>8}   "
          f"{'goal':<18} met")


def compare(name: str, naive: Work, ours: Work, leaves: Sequence[torch.Tensor], *, repeats: int,
            goal_ratio: float | None = None, goal_megabytes: float | None = None) -> Row:
    """Run both in turns. ``leaves`` lose their gradients before each."""
    row = Row(name, Cost(), Cost(), goal_ratio, goal_megabytes)
    alternate([(naive, row.naive), (ours, row.ours)], leaves, repeats)
    return row


def alternate(forms: Sequence[tuple[Work, Cost]], leaves: Sequence[torch.Tensor], repeats: int) -> None:
    """Run the forms in turns: once without counting, once for memory, then for time.

    Memory has a turn of its own because it begins without the memory that a form keeps from one step to the next.
    """
    for turn in range(repeats + 2):
        for work, cost in forms:
            for leaf in leaves:
                leaf.grad = None
            if turn == 0:
                work()
            elif turn == 1:
                cost.megabytes.append(peak_growth(work))
            else:
                cost.seconds.append(cpu_seconds(work))


def cpu_seconds(work: Work) -> float:
    """CPU time of this process, user and system."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_growth(work: Work) -> float:
    """Growth of the resident memory at its highest point in MB (Linux; 0 elsewhere), memory that is kept for further
    steps included."""
    gc.collect()
    release_gradient_memory()
    before = _reset_peak()
    work()
    return max(0.0, _status("VmHWM") - before)


def _reset_peak() -> float:
    """Give freed memory back, set the high-water mark to what is in use, and return that in MB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except (OSError, AttributeError):
        return 0.0
    return _status("VmRSS")


def _status(key: str) -> float:
    try:
        with open("/proc/self/status") as stream:
            line = next(line for line in stream if line.startswith(key + ":"))
    except (OSError, StopIteration):
        return 0.0
    return int(line.split()[1]) * 1024 / 1e6
