"""The trials of a sweep: made from what the searches propose, and reported back to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from distill.sweep.scores import Evaluation, Objective
from distill.sweep.search import Search
from distill.sweep.study import Study
from distill.sweep.trials import DONE, FAILED, FINAL, PRUNED, SKIPPED, Trial, trial_id
from distill.sweep.types import Point, TaskPlan

#: Composes the commands of a task for (seed, searched values, place in ``--tasks``).
Planner = Callable[[int | None, Point, int], TaskPlan]


class Campaign:
    """All trials, in the order in which they were planned.

    The tasks take turns; a configuration of a task is one trial a seed. Where configurations can be pruned, the first
    seed of each goes ahead: it decides for the others.
    """

    def __init__(self, study: Study, searches: Mapping[str, Search], seeds: Sequence[int | None], planner: Planner,
                 objective: Objective, *, prunes: bool) -> None:
        self.study, self.searches, self.seeds = study, dict(searches), tuple(seeds)
        self.objective, self.trials = objective, []
        self._planner, self._prunes = planner, prunes
        self._groups: dict[tuple[str, int], list[Trial]] = {}
        self._turns = list(searches)

    @property
    def total(self) -> int:
        """Number of trials, those included that are not planned yet."""
        return len(self.seeds) * sum(search.total for search in self.searches.values())

    def restore(self, trials: Sequence[Trial]) -> None:
        """Go on with the trials of an interrupted sweep."""
        for trial in trials:
            self._add(trial)
        for task, search in self.searches.items():
            groups = [self._groups[task, number] for number in range(self._count(task))]
            search.restore([group[0].point for group in groups])
            for number, group in enumerate(groups):
                for seed in self.seeds[len(group):]:  # the launcher was killed between two trials of a configuration
                    self._plan(task, number, group[0].point, seed)
        # A turn at a time: where the interrupted sweep stopped asking, the next task goes on.
        self._turns.sort(key=self._count)
        for group in list(self._groups.values()):
            self._settle(group)

    def more(self) -> bool:
        """Plan the next configuration; False if there is none."""
        while self._turns:
            task = self._turns.pop(0)
            number = self._count(task)
            point = self.searches[task].ask()
            if point is None:
                continue
            self._turns.append(task)
            for seed in self.seeds:
                self._plan(task, number, point, seed)
            self._settle(self._groups[task, number])
            return True
        return False

    def _count(self, task: str) -> int:
        return sum(key[0] == task for key in self._groups)

    def _plan(self, task: str, number: int, point: Point, seed: int | None) -> None:
        position, problem = list(self.searches).index(task), ""
        try:
            plan = self._planner(seed, point, position)
        except ValueError as error:
            if not point:
                raise
            plan, problem = TaskPlan(task, (), ""), str(error)
        trial = Trial(trial_id(task, number, seed), task, position, number, point, seed, plan, problem)
        self.study.add_trial(trial)
        self._add(trial)

    def _add(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._groups.setdefault((trial.task, trial.number), []).append(trial)

    def may_start(self, trial: Trial) -> bool:
        """Whether its turn has come."""
        scout = self._groups[trial.task, trial.number][0]
        return not self._prunes or trial is scout or scout.is_final

    def is_hopeless(self, trial: Trial) -> bool:
        """Whether a running trial should be given up, after its newest scores."""
        group = self._groups[trial.task, trial.number]
        if not self._prunes or trial is not group[0]:
            return False
        search = self.searches[trial.task]
        return any(search.report(trial.number, step, self.objective.gain(evaluation.scores))
                   for step, evaluation in enumerate(trial.curve, start=1))

    def settle(self, trial: Trial) -> None:
        """A trial has come to its end: tell the search if its configuration has."""
        self._settle(self._groups[trial.task, trial.number])

    def _settle(self, group: list[Trial]) -> None:
        first = group[0]
        if first.state == PRUNED:
            for trial in group[1:]:
                self._skip(trial, f"the configuration was given up with seed {first.seed}")
        if len(group) < len(self.seeds) or not all(trial.is_final for trial in group):
            return
        states = {trial.state for trial in group}
        state = PRUNED if PRUNED in states else DONE if states == {DONE} else FAILED
        gains = [self.gain(trial) for trial in group if trial.state == DONE]
        self.searches[first.task].tell(first.number, state, math.fsum(gains) / len(gains) if state == DONE else None)

    def _skip(self, trial: Trial, reason: str) -> None:
        for index, stage in enumerate(trial.stages):
            if stage.state not in FINAL:
                stage.state, stage.reason = SKIPPED, reason
                self.study.end_stage(trial, index)

    def best(self, trial: Trial, index: int = -1) -> Evaluation | None:
        """The best scoring of a stage (the last one counts for the trial); None if it is not done."""
        stage = trial.stages[index]
        return self.objective.best(stage.result, stage.curve) if stage.state == DONE and stage.result else None

    def gain(self, trial: Trial) -> float:
        """What ranks a trial that is done."""
        best = self.best(trial)
        return -math.inf if best is None else self.objective.gain(best.scores)
