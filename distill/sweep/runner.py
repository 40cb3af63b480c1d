"""Runs a sweep from its command line to its report; begins a study, or continues one that was interrupted."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.sweep.campaign import Campaign
from distill.sweep.devices import DevicePool, check_devices, child_environment, has_gpu
from distill.sweep.display import read_results, show
from distill.sweep.domains import Domain
from distill.sweep.flags import SweepArgs, parse
from distill.sweep.live import View, print_summary, watching
from distill.sweep.plan import find_search_space, fresh_stamp, plan_tasks
from distill.sweep.report_page import write_report
from distill.sweep.resplit import Cutter
from distill.sweep.results import Summary, summarize, write_result_list, write_tables
from distill.sweep.scheduler import Limits, Scheduler, Surroundings
from distill.sweep.scores import Objective
from distill.sweep.search import GridSearch, OptunaSearch, Search
from distill.sweep.search_flags import check_search_flags, parse_seeds, split_words
from distill.sweep.study import FORMAT, STUDY, Study, is_finished, is_locked, opened, read_facts, requeue
from distill.sweep.trials import FAILED, SKIPPED, WAITING, Trial
from distill.sweep.types import TaskPlan

logger = logging.getLogger(__name__)

#: Exit status of a sweep in which something failed.
FAILURES = 1
#: Seconds between two writings of the tables while the sweep runs.
REWRITE = 5.0
_PREFIX = "tune_"
_PACKAGES = ("torch", "deepspeed", "optuna")

PlanTasks = Callable[..., Sequence[TaskPlan]]


def run_sweep(sweep: SweepArgs, *, plan: PlanTasks = plan_tasks, console: Console | None = None) -> int:
    """Run a sweep, or go on with one.

    Args:
        plan: composes the commands; see :func:`distill.sweep.plan.plan_tasks`.

    Returns:
        The exit status: 0 if every trial is done or was given up for others, :data:`FAILURES` if one failed, 128 + the
        signal if the sweep was interrupted.

    Raises:
        ValueError: nothing was started, because of an impossible command line or study folder.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    where = _find_study(sweep)
    if where.facts is None:
        sweep = _stored_arguments(sweep, where.folder)
        console.print(f"going on with the sweep in {where.folder}", soft_wrap=True, markup=False, highlight=False)
    space = find_search_space(sweep)
    check_search_flags(sweep.known, has_space=bool(space),
                       has_ranges=any(domain.is_range for domain in space.values()))
    check_devices(sweep.known.gpus, sweep.known.gpus_per_trial or 0)
    if where.facts is None and _as_json(space) != read_facts(where.folder)["searched"]:
        raise ValueError(f"--search_space={sweep.known.search_space} has changed since the sweep in {where.folder} was "
                         "begun: restore it, or begin a new sweep")
    with opened(where.folder, where.facts) as study:
        console.print(f"study: {study.folder}", soft_wrap=True, markup=False, highlight=False)
        return _Sweep(sweep, space, study, plan).run(console, retry_failed=where.retry_failed)


# Which study ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Where:
    """The folder, and what to store in it at its beginning (None: it is continued)."""

    folder: Path
    facts: dict[str, Any] | None = None
    retry_failed: bool = False


def _find_study(sweep: SweepArgs) -> _Where:
    known = sweep.known
    if known.resume:
        others, _ = split_words(sweep.words)
        if others:
            raise ValueError(f"--resume={known.resume} takes the arguments of the sweep from its folder: leave out "
                             f"{' '.join(others)}")
        return _Where(Path(known.resume).expanduser().resolve(), retry_failed=known.retry_failed)
    if known.retry_failed:
        raise ValueError("--retry_failed goes with --resume=FOLDER, which names the sweep whose failures are meant")
    root = Path(sweep.data_root) / "tmp"
    if known.study is None:
        if (old := _interrupted(root, sweep)) is not None:
            return _Where(old)
        stamp = fresh_stamp()
        folder = (root / f"{_PREFIX}{stamp}").resolve()
        return _Where(folder, _facts(sweep, folder.with_name(f"{folder.name}.json")))
    folder = Path(known.study).expanduser().resolve()
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return _Where(folder, _facts(sweep, folder / f"{_PREFIX}{fresh_stamp()}.json"))
    if not (folder / STUDY).is_file():
        raise ValueError(f"--study={known.study} exists and holds no sweep: name a new folder")
    if not _is_same(read_facts(folder), sweep):
        raise ValueError(f"--study={known.study} holds a sweep with other arguments (see {folder / STUDY}): name a new "
                         f"folder, or continue it with --resume={known.study}")
    return _Where(folder)


def _interrupted(root: Path, sweep: SweepArgs) -> Path | None:
    """The newest study with the same arguments that nobody runs and that has not come to its end."""
    for file in sorted(root.glob(f"{_PREFIX}*/{STUDY}"), reverse=True):
        with suppress(ValueError, OSError):
            folder = file.parent.resolve()
            if _is_same(read_facts(folder), sweep) and not is_finished(folder) and not is_locked(folder):
                return folder
    return None


def _is_same(facts: Mapping[str, Any], sweep: SweepArgs) -> bool:
    return (split_words(facts["words"])[0] == split_words(sweep.words)[0]
            and Path(facts["working_folder"]) == Path.cwd())


def _facts(sweep: SweepArgs, result_list: Path) -> dict[str, Any]:
    """What ``study.json`` says."""
    versions = {"python": platform.python_version(), "code": _revision()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"format": FORMAT, "id": uuid.uuid4().hex[:12], "created": time.strftime("%Y-%m-%d %H:%M:%S"),
            "words": list(sweep.words), "working_folder": os.getcwd(), "result_list": str(result_list),
            "machine": platform.node(), "versions": versions, "tasks": list(sweep.tasks),
            "searched": _as_json(find_search_space(sweep))}


def _as_json(space: Mapping[str, Domain]) -> dict[str, Any]:
    return {flag: {**vars(domain), "values": list(domain.values)} for flag, domain in space.items()}


def _revision() -> str:
    """The commit of the code, with a plus if files were changed; empty where git does not know."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=30,
                                 check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return revision.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _stored_arguments(sweep: SweepArgs, folder: Path) -> SweepArgs:
    """The arguments that a study was begun with, with those of this command line that say how to run it."""
    facts = read_facts(folder)
    if Path(facts["working_folder"]) != Path.cwd():
        raise ValueError(f"the sweep in {folder} was begun in the folder {facts['working_folder']}, where relative "
                         "paths of its commands start: change into it to go on")
    return parse([*facts["words"], *split_words(sweep.words)[1]])


# The sweep ------------------------------------------------------------------------------------------------------------


class _Sweep:
    """An open study and what it needs to be run."""

    def __init__(self, sweep: SweepArgs, space: Mapping[str, Domain], study: Study, plan: PlanTasks) -> None:
        known = sweep.known
        self.study, self.space, self.known = study, space, known
        self.on_gpu = has_gpu(os.environ)
        asked = [(known.gpus, known.gpus_per_trial or 0)]
        if known.big_task_gpus is not None:
            asked.append((known.big_task_gpus, 0))
        self.pool = DevicePool(asked, exclusive=self.on_gpu, parallel=known.parallel)
        self.environment = child_environment(os.environ, asked, on_gpu=self.on_gpu, trials=self.pool.capacity)
        searches = {task: self._search(task) for task in sweep.tasks}
        self.campaign = Campaign(
            study, searches, parse_seeds(known.seeds, known.seed_base),
            lambda seed, point, position: plan(sweep, seed=seed, point=point, only=position)[0],
            Objective(known.objective), prunes=known.pruner != "none")

    def _search(self, task: str) -> Search:
        known = self.known
        if known.search == "grid" and known.pruner == "none":
            return GridSearch(self.space)
        return OptunaSearch(
            task, self.space, kind=known.search, trials=known.n_trials, seed=known.search_seed, pruner=known.pruner,
            startup=known.pruner_startup, warmup=known.pruner_warmup, parallel=self.pool.capacity > 1,
            storage=self.study.folder / "optuna.jsonl")

    def run(self, console: Console, *, retry_failed: bool) -> int:
        known, campaign, study = self.known, self.campaign, self.study
        trials, running = study.load()
        campaign.restore(trials)
        if retry_failed:
            _requeue_failed(campaign.trials, study)
        if known.search == "grid":
            while campaign.more():  # all of it is known beforehand: what cannot be composed is refused now
                pass
        limits = Limits(known.trial_timeout, known.max_retries, known.retry_wait, known.grace)
        surroundings = Surroundings(
            self.environment, is_quiet=not self.on_gpu, chains=known.stage_from == "previous",
            cutter=Cutter(known.fix_module_parameters_mp, f"{study.id}:prepare"))
        study.record("started", process=os.getpid(), words=sys.argv[1:])
        with watching(console, study, campaign) as view:
            recorder = _Recorder(view, self._write)
            scheduler = Scheduler(study, campaign, self.pool, limits, surroundings, recorder)
            scheduler.adopt(running)
            is_whole = scheduler.run()
        summary = self._write()
        study.record("finished" if is_whole else "interrupted")
        if not self.space and known.seeds is None and summary.has_scores:
            runs = [replace(run, command="") for run in read_results(study.facts["result_list"])]
            console.print(show(runs), soft_wrap=True, markup=False, highlight=False)
        print_summary(console, summary, self._files(is_whole))
        if not is_whole:
            return 128 + (scheduler.stop_signal or 0)
        return FAILURES if summary.failed else 0

    def _write(self) -> Summary:
        summary = summarize(self.campaign, self.study, self.space)
        write_tables(summary, self.study)
        write_result_list(self.campaign, Path(self.study.facts["result_list"]))
        write_report(summary, self.campaign, self.study)
        return summary

    def _files(self, is_whole: bool) -> list[str]:
        folder = self.study.folder
        lines = [f"report: {folder / 'report.html'} (tables: results.csv, results.json, results.md)",
                 f"list of results: {self.study.facts['result_list']} (print it with --show_tune)"]
        return lines if is_whole else [*lines, f"interrupted; go on with --resume={folder}"]


class _Recorder:
    """Keeps the tables of the study folder up to date while the sweep runs."""

    def __init__(self, view: View, write: Callable[[], Any]) -> None:
        self._view, self._write = view, write
        self._written, self._is_stale = time.monotonic(), False

    def started(self, trial: Trial, index: int) -> None:
        self._view.started(trial, index)

    def ended(self, trial: Trial, index: int) -> None:
        self._is_stale = True
        self._view.ended(trial, index)

    def refresh(self, campaign: Campaign) -> None:
        if self._is_stale and time.monotonic() - self._written >= REWRITE:
            self._written, self._is_stale = time.monotonic(), False
            try:
                self._write()
            except OSError as error:  # no reason to end the sweep: it is written again
                logger.warning("the tables cannot be written now: %s", error)
        self._view.refresh(campaign)


def _requeue_failed(trials: Sequence[Trial], study: Study) -> None:
    for trial in trials:
        if trial.problem or trial.failure() is None:
            continue
        for index, stage in enumerate(trial.stages):
            if stage.state in (FAILED, SKIPPED):
                requeue(stage)
                stage.state, stage.failures = WAITING, 0
                study.end_stage(trial, index)
