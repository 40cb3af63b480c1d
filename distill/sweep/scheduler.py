"""Runs the stages of trials on the devices that are there, until none is left or somebody asks to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from distill.sweep.campaign import Campaign
from distill.sweep.commands import program, records_file, runnable, shell_text
from distill.sweep.devices import DevicePool, Lease, device_ids, free_port
from distill.sweep.files import write_json, write_text
from distill.sweep.outcome import Outcome, judge
from distill.sweep.process import GRACE, Child, Identity, end_all
from distill.sweep.resplit import Cutter
from distill.sweep.scores import read_curve
from distill.sweep.study import Study, requeue
from distill.sweep.trials import (
    DONE,
    FAILED,
    FINAL,
    PRUNED,
    RUNNING,
    SKIPPED,
    WAITING,
    StageRun,
    Trial,
)
from distill.sweep.types import StageCommand

logger = logging.getLogger(__name__)

#: Seconds between two looks at the children, and at their scores.
POLL, READ_SCORES = 0.1, 2.0
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True)
class Limits:
    """What a stage may take.

    Attributes:
        timeout: seconds of one attempt; None for no limit. grace: seconds between SIGTERM and SIGKILL.
        retries: further attempts after a crash. retry_wait: seconds before the first of them, doubled each time.
    """

    timeout: float | None = None
    retries: int = 1
    retry_wait: float = 10.0
    grace: float = GRACE


@dataclass(frozen=True)
class Surroundings:
    """What children get besides their command.

    Attributes:
        environment: of every child. is_quiet: see :func:`runnable`.
        chains: whether a stage starts from the one before it, not from the first one.
        cutter: cuts the checkpoints of commands anew, where they need that.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    is_quiet: bool = True
    chains: bool = False
    cutter: Cutter | None = None


@dataclass
class _Job:
    """A stage that is being run."""

    trial: Trial
    index: int
    lease: Lease
    command: StageCommand
    port: int = 0
    preparing: Future[None] | None = None
    child: Child | None = None
    ending: str = ""
    read_at: float = 0.0

    @property
    def stage(self) -> StageRun:
        return self.trial.stages[self.index]


class Scheduler:
    """The loop that starts, watches and ends children. Everything that matters goes to the journal first."""

    def __init__(self, study: Study, campaign: Campaign, pool: DevicePool, limits: Limits, surroundings: Surroundings,
                 view: Any) -> None:
        """
        Args:
            view: is told what happens: ``started(trial, index)``, ``ended(trial, index)``, ``refresh(campaign)``.
        """
        self.study, self.campaign, self.pool = study, campaign, pool
        self.limits, self.surroundings, self.view = limits, surroundings, view
        self.stop_signal: int | None = None
        self._jobs: list[_Job] = []
        self._not_before: dict[str, float] = {}
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def run(self) -> bool:
        """Run everything; False if it was interrupted. No child is left then, and the study can be continued."""
        with self._stopped_by_signals():
            try:
                while self._turn():
                    self.view.refresh(self.campaign)
                    time.sleep(POLL)
            finally:
                self._end_everything()
                self._preparer.shutdown(wait=True)
        self.view.refresh(self.campaign)
        return self.stop_signal is None

    def adopt(self, running: Mapping[tuple[str, int], Identity]) -> None:
        """Take over what an earlier launcher of this study has left: living children are watched on, stages of dead
        ones are judged by their result files, or run again; processes that belong to no stage are ended. Stages that
        cannot follow are skipped, which an earlier launcher may not have come to."""
        for trial in self.campaign.trials:
            if not trial.is_final:
                for index in range(len(trial.stages)):
                    self._skip_followers(trial, index)
                if trial.is_final:
                    self.campaign.settle(trial)
        trials = {trial.id: trial for trial in self.campaign.trials}
        alive = {key: identity for key, identity in running.items() if identity.is_alive()}
        kept = {self.study.mark(trials[name], index) for name, index in alive}
        stray = end_all(lambda mark: mark.startswith(f"{self.study.id}:") and mark not in kept, self.limits.grace)
        if stray:
            logger.warning("%d process(es) that an earlier launcher of this study has left were ended", stray)
        for (name, index), identity in running.items():
            trial = trials[name]
            lease = Lease(trial.stages[index].devices)
            job = _Job(trial, index, lease, trial.plan.stages[index])
            if (name, index) in alive:
                logger.info("%s, stage %d still runs (process %d)", name, index, identity.pid)
                job.child = Child.adopt(identity, self.study.mark(trial, index), self.limits.grace)
                self.pool.hold(lease)
                self._jobs.append(job)
            else:
                self._close(job, None, nobody_saw=True)

    # One turn of the loop ---------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Look at everything once; whether there is more to do."""
        for job in list(self._jobs):
            self._look_at(job)
        if self.stop_signal is not None:
            return False
        self._start_what_fits()
        return bool(self._jobs) or any(not trial.is_final for trial in self.campaign.trials)

    def _start_what_fits(self) -> None:
        """Start waiting stages in their order. Nobody overtakes a trial that waits for devices by taking them."""
        reserved: set[str] = set()
        now = time.monotonic()
        for trial in self.campaign.trials:
            index = trial.next_stage
            if index is None or now < self._not_before.get(trial.id, 0.0) or not self.campaign.may_start(trial):
                continue
            if self.pool.is_full:
                return
            self._try_to_start(trial, index, reserved)
        while not self.pool.is_full and not reserved:
            known = len(self.campaign.trials)
            if not self.campaign.more():
                return
            for trial in self.campaign.trials[known:]:
                if trial.is_final:
                    self.view.ended(trial, 0)
                elif self.campaign.may_start(trial) and not self.pool.is_full:
                    self._try_to_start(trial, 0, reserved)

    def _try_to_start(self, trial: Trial, index: int, reserved: set[str]) -> None:
        lease = self.pool.take(trial.plan.gpus, trial.plan.devices, reserved=reserved)
        if lease is None:
            reserved.update(device_ids(trial.plan.gpus))
        else:
            self._start(trial, index, lease)

    # Starting ---------------------------------------------------------------------------------------------------

    def _start(self, trial: Trial, index: int, lease: Lease) -> None:
        stage = trial.stages[index]
        stage.state, stage.attempts, stage.devices = RUNNING, stage.attempts + 1, lease.devices
        stage.kind = stage.reason = ""
        folder = self.study.stage_folder(trial, index)
        folder.mkdir(parents=True, exist_ok=True)
        self.study.result_file(trial, index).unlink(missing_ok=True)
        job = _Job(trial, index, lease, trial.plan.stages[index])
        self._jobs.append(job)
        if job.command.resplits and self.surroundings.cutter is not None:
            job.preparing = self._preparer.submit(self.surroundings.cutter.perform, job.command.resplits)
        else:
            self._launch(job)

    def _launch(self, job: _Job) -> None:
        trial, index, stage = job.trial, job.index, job.stage
        folder = self.study.stage_folder(trial, index)
        try:
            job.port = free_port(other.port for other in self._jobs)
            job.command = runnable(
                job.command, port=job.port, include=job.lease.include, result=self.study.result_file(trial, index),
                deepspeed_file=folder / "deepspeed.json", is_quiet=self.surroundings.is_quiet)
            if job.command.deepspeed_config is not None:
                write_json(folder / "deepspeed.json", job.command.deepspeed_config)
            write_text(folder / "command.txt", shell_text(job.command, self.surroundings.environment))
            stage.line, stage.began = job.command.line(), time.time()
            job.child = Child.start(
                program(job.command), folder=self.study.working_folder, log=self.study.log_file(trial, index),
                environment={**self.surroundings.environment, **dict(job.command.environment)},
                mark=self.study.mark(trial, index), grace=self.limits.grace)
        except OSError as error:
            self._end(job, Outcome("not started", f"the command cannot be started: {error}"))
            return
        self.study.begin_stage(trial, index, job.child.identity)
        self.view.started(trial, index)

    # Watching ---------------------------------------------------------------------------------------------------

    def _look_at(self, job: _Job) -> None:
        if job.child is None:
            self._look_at_preparation(job)
            return
        if job.child.has_ended():
            job.stage.seconds = job.child.seconds
            self._close(job, job.child.status)
        elif not job.ending:
            if self.limits.timeout is not None and job.child.seconds > self.limits.timeout:
                self._ask_to_end(job, "timeout")
            elif time.monotonic() >= job.read_at:
                job.read_at = time.monotonic() + READ_SCORES
                self._read_curve(job)
                if self.campaign.is_hopeless(job.trial):
                    self._ask_to_end(job, "pruned")

    def _look_at_preparation(self, job: _Job) -> None:
        if job.preparing is None or not job.preparing.done():
            return
        if job.ending:  # whatever has become of it: it is cut again where that is needed
            self._interrupt(job)
            return
        try:
            job.preparing.result()
        except (ValueError, OSError) as error:
            self._end(job, Outcome("not started", str(error)))
            return
        self._launch(job)

    def _read_curve(self, job: _Job) -> None:
        file = self.study.working_folder / records_file(job.command)
        job.stage.curve = read_curve(file, job.stage.began or 0.0, job.stage.curve)

    @staticmethod
    def _ask_to_end(job: _Job, why: str) -> None:
        job.ending = why
        if job.child is not None:
            job.child.end()

    # Ending -----------------------------------------------------------------------------------------------------

    def _close(self, job: _Job, status: int | None, *, nobody_saw: bool = False) -> None:
        """A child has ended: find out how."""
        trial, index, stage = job.trial, job.index, job.stage
        stage.status = status
        self._read_curve(job)
        outcome = judge(status, self.study.result_file(trial, index), self.study.log_file(trial, index),
                        time_limit=self.limits.timeout if job.ending == "timeout" else None)
        if outcome.is_done and job.ending in ("", "interrupted"):
            self._end(job, self._scored(outcome, stage))
        elif job.ending == "pruned":
            stage.state, stage.kind = PRUNED, "pruned"
            stage.reason = f"given up after {len(trial.curve)} evaluation(s): the scores stay behind"
            self._finish(job)
        elif job.ending == "interrupted" or nobody_saw:
            self._interrupt(job)
        else:
            self._end(job, outcome)

    def _scored(self, outcome: Outcome, stage: StageRun) -> Outcome:
        try:
            self.campaign.objective.best(outcome.result or {}, stage.curve)
        except ValueError as error:
            return Outcome("no score", str(error), outcome.result)
        return outcome

    def _end(self, job: _Job, outcome: Outcome) -> None:
        """An attempt has ended by itself: well, for a further attempt, or for good."""
        stage = job.stage
        stage.kind, stage.reason, stage.result = "", outcome.reason, outcome.result
        if outcome.is_done:
            stage.state = DONE
            self.campaign.is_hopeless(job.trial)  # the scores count for those of others
        else:
            stage.kind, stage.failures = outcome.kind, stage.failures + 1
            again = outcome.may_be_retried and stage.failures <= self.limits.retries
            stage.state = WAITING if again else FAILED
            wait = self.limits.retry_wait * 2 ** (stage.failures - 1)
            self._not_before[job.trial.id] = time.monotonic() + wait
        self._finish(job)

    def _interrupt(self, job: _Job) -> None:
        requeue(job.stage)
        self._finish(job)

    def _finish(self, job: _Job) -> None:
        trial, stage = job.trial, job.stage
        self.study.end_stage(trial, job.index)
        if job in self._jobs:
            self._jobs.remove(job)
            self.pool.give_back(job.lease)
        self.view.ended(trial, job.index)
        self._skip_followers(trial, job.index)
        if stage.state in FINAL and trial.is_final:
            self.campaign.settle(trial)

    def _skip_followers(self, trial: Trial, index: int) -> None:
        """Stages have nothing to start from where the one before them was given up or has failed."""
        state = trial.stages[index].state
        if state != PRUNED and not (state == FAILED and (index == 0 or self.surroundings.chains)):
            return
        for number, follower in enumerate(trial.stages[index + 1:], start=index + 1):
            if follower.state not in FINAL:
                follower.state = SKIPPED
                follower.reason = f"stage {index} {'was given up' if state == PRUNED else 'failed'}"
                self.study.end_stage(trial, number)

    # Stopping ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """The first signal asks the children to end, a second one ends them by force."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.stop_signal is None:
                self.stop_signal = number
            else:
                self._kill_everything()

        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as nohup wants it
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_everything(self) -> None:
        for job in self._jobs:
            self._ask_to_end(job, job.ending or "interrupted")
            if job.preparing is not None:
                job.preparing.cancel()  # what is only queued
        try:
            if self.surroundings.cutter is not None:
                self.surroundings.cutter.stop()
            while self._jobs:
                for job in list(self._jobs):
                    self._look_at(job)
                self.view.refresh(self.campaign)
                time.sleep(POLL / 2)
        finally:  # not even a full disk leaves a child behind
            self._kill_everything()

    def _kill_everything(self) -> None:
        for job in self._jobs:
            if job.child is not None:
                job.child.kill()
