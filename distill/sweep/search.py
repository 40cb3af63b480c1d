"""Which configurations are tried: every combination, or what Optuna proposes; and which are given up.

Every number that the searches see is a gain: more is better, whatever the metric's own sign.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from distill.sweep.domains import Domain
from distill.sweep.types import Point

logger = logging.getLogger(__name__)

DEFAULT_TRIALS = 20
#: Best share of a rung of ASHA that goes on is one in this many.
REDUCTION = 3
#: Draws of a configuration that was tried already before the values count as used up.
_MOST_REPEATS = 100
_NUMBER = "configuration"

Space = Mapping[str, Domain]


class Search(Protocol):
    """A source of configurations for one task; each has a number from 0 on."""

    total: int

    def ask(self) -> Point | None:
        """The next configuration; None if there is none left."""

    def restore(self, points: list[Point]) -> None:
        """Go on after these configurations, which an interrupted sweep has asked for."""

    def report(self, number: int, step: int, gain: float) -> bool:
        """Tell the gain at an evaluation (counted from 1); whether the configuration should be given up for it. An
        evaluation that was told before decides nothing."""

    def tell(self, number: int, state: str, gain: float | None) -> None:
        """Tell how a configuration has ended: "done" with its gain, "failed", or "pruned"."""


class GridSearch:
    """Every combination of listed values, the last flag changing fastest. Needs no further package."""

    def __init__(self, space: Space) -> None:
        self._points = grid_points(space)
        self.total = len(self._points)
        self._asked = 0

    def ask(self) -> Point | None:
        if self._asked == self.total:
            return None
        self._asked += 1
        return self._points[self._asked - 1]

    def restore(self, points: list[Point]) -> None:
        self._asked = len(points)

    def report(self, number: int, step: int, gain: float) -> bool:
        return False

    def tell(self, number: int, state: str, gain: float | None) -> None:
        return None


def grid_points(space: Space) -> list[Point]:
    """All combinations; one empty configuration where nothing is searched. ValueError for a range."""
    for flag, domain in space.items():
        if domain.is_range:
            raise ValueError(f"{flag} has a range, of which there is no grid: list values (grid:a,b), or add "
                             "--search=random or --search=tpe")
    return [Point.of(dict(zip(space, values))) for values in itertools.product(*(d.values for d in space.values()))]


def example_point(space: Space) -> Point:
    """The first value of each list, the low end of each range."""
    return Point.of({flag: domain.text(domain.low if domain.is_range else domain.values[0])
                     for flag, domain in space.items()})


def neighbours(space: Space) -> list[Point]:
    """The example with another value of one flag, for each flag that has a second one."""
    example = example_point(space)
    others = {flag: domain.text(domain.high if domain.is_range else domain.values[-1])
              for flag, domain in space.items()}
    return [Point.of({**example, flag: text}) for flag, text in others.items() if text != example[flag]]


class OptunaSearch:
    """Configurations from Optuna's samplers, given up by its pruners; kept in a journal file of Optuna's.

    The draws of a configuration depend on the seed and its number only, so that an interrupted search goes on as if
    nothing had happened. With several trials at the same time, what the estimator knows depends on which ends first.
    """

    def __init__(self, name: str, space: Space, *, kind: str, trials: int | None, seed: int, pruner: str, startup: int,
                 warmup: int, parallel: bool, storage: Path) -> None:
        """
        Args:
            name: of the task. kind: "grid", "random" or "tpe". trials: number of configurations (not for a grid).
            startup: configurations that end before the median counts. warmup: evaluations without pruning.
            storage: the journal file, shared by the tasks.

        Raises:
            ValueError: Optuna is not installed.
        """
        self._optuna = load_optuna(f"--search={kind}" if pruner == "none" else f"--pruner={pruner}")
        self._space, self._kind, self._seed, self._parallel = dict(space), kind, seed, parallel
        self._grid = grid_points(space) if kind == "grid" else []
        self.total = len(self._grid) or trials or DEFAULT_TRIALS
        if not any(domain.is_range for domain in space.values()):
            self.total = min(self.total, math.prod(len(domain.values) for domain in space.values()))
        self._study = self._optuna.create_study(
            storage=self._storage(storage), study_name=name, direction="maximize", load_if_exists=True,
            pruner=self._pruner(pruner, startup, warmup))
        self._asked: list[Point] = []
        self._trials: dict[int, Any] = {}
        self._late: dict[int, dict[int, float]] = {}

    def _storage(self, path: Path) -> Any:
        journal = self._optuna.storages.journal
        # A killed launcher leaves half a line, or the lock; this one holds the lock of the whole study.
        Path(f"{path}.lock").unlink(missing_ok=True)
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
        lock = journal.JournalFileOpenLock(str(path))
        return self._optuna.storages.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=lock))

    def _pruner(self, kind: str, startup: int, warmup: int) -> Any:
        pruners = self._optuna.pruners
        if kind == "median":
            return pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup + 1)
        if kind == "asha":
            return pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup), reduction_factor=REDUCTION)
        return pruners.NopPruner()

    def _sampler(self, number: int, repeat: int) -> Any:
        samplers, seed = self._optuna.samplers, _mixed(self._seed, number, repeat)
        if self._kind != "tpe":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return samplers.TPESampler(seed=seed, n_startup_trials=max(3, min(10, self.total // 3)),
                                       constant_liar=self._parallel)

    def ask(self) -> Point | None:
        number = len(self._asked)
        if number == self.total:
            return None
        for repeat in range(_MOST_REPEATS):
            if self._grid and not self._is_waiting():
                self._study.enqueue_trial(dict(self._grid[number]))
            self._study.sampler = self._sampler(number, repeat)
            trial = self._study.ask(fixed_distributions=self._distributions())
            point = Point.of({flag: domain.text(trial.params[flag]) for flag, domain in self._space.items()})
            if point not in self._asked:
                trial.set_user_attr(_NUMBER, number)
                self._trials[number] = trial
                self._asked.append(point)
                return point
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        logger.warning("%s: the searched values are used up after %d configurations", self._study.study_name, number)
        self.total = number
        return None

    def _is_waiting(self) -> bool:
        """Whether the launcher was killed between naming the next configuration and asking for it."""
        return bool(self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.WAITING,)))

    def _distributions(self) -> dict[str, Any]:
        known, found = self._optuna.distributions, {}
        for flag, domain in self._space.items():
            if domain.kind == "float":
                found[flag] = known.FloatDistribution(domain.low, domain.high, log=domain.log)
            elif domain.kind == "int":
                found[flag] = known.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
            else:
                found[flag] = known.CategoricalDistribution(domain.values)
        return found

    def restore(self, points: list[Point]) -> None:
        self._asked = list(points)
        for frozen in self._study.get_trials(deepcopy=False):
            number = frozen.user_attrs.get(_NUMBER)
            if number is not None and number < len(points):
                self._trials[number] = self._trial(frozen)
            elif frozen.state == self._optuna.trial.TrialState.RUNNING:
                # Asked for, but the launcher was killed before it knew: the same will be asked for again.
                self._study.tell(frozen.number, state=self._optuna.trial.TrialState.FAIL)

    def report(self, number: int, step: int, gain: float) -> bool:
        trial = self._trials.get(number)
        if trial is None or not math.isfinite(gain):
            return False
        frozen = self._frozen(trial)
        if frozen.state.is_finished():  # it had failed, and is run again
            self._late.setdefault(number, {})[step] = gain
            return False
        if step in frozen.intermediate_values:
            return False
        trial.report(gain, step)
        return bool(trial.should_prune())

    def tell(self, number: int, state: str, gain: float | None) -> None:
        trial, known = self._trials.get(number), self._optuna.trial.TrialState
        if trial is None:
            return
        final = {"done": known.COMPLETE, "pruned": known.PRUNED}.get(state, known.FAIL)
        if final == known.COMPLETE and (gain is None or not math.isfinite(gain)):
            final = known.FAIL
        frozen = self._frozen(trial)
        if not frozen.state.is_finished():
            self._study.tell(trial.number, gain if final == known.COMPLETE else None, state=final)
        elif (frozen.state, final) == (known.FAIL, known.COMPLETE):
            self._add(number, frozen, gain)

    def _add(self, number: int, failed: Any, gain: float) -> None:
        """A configuration that had failed is done at last: a finished trial cannot change, so there is one more."""
        self._study.add_trial(self._optuna.trial.create_trial(
            params=failed.params, distributions=failed.distributions, value=gain, user_attrs={_NUMBER: number},
            intermediate_values=self._late.pop(number, {})))
        self._trials[number] = self._trial(self._study.get_trials(deepcopy=False)[-1])

    def _trial(self, frozen: Any) -> Any:
        return self._optuna.trial.Trial(self._study, frozen._trial_id)

    def _frozen(self, trial: Any) -> Any:
        return self._study.get_trials(deepcopy=False)[trial.number]


def load_optuna(wanted_for: str) -> Any:
    """Optuna, told to be quiet. ValueError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"{wanted_for} needs Optuna: pip install optuna; lists of values (grid:a,b) and --seeds work "
                         "without it") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    mixed = 0x9E3779B9
    for number in numbers:
        mixed = (mixed ^ (number + 1)) * 0x01000193 % 2 ** 32
    return mixed
