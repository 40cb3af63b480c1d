"""The folder of a sweep: its plan, its journal, a folder for each trial; and one launcher at a time.

    study.json           arguments, versions, searched values
    journal.jsonl        what happened, one line an event; read again when the sweep is continued
    trials/<id>/plan.json
    trials/<id>/stage_<k>/{command.txt, deepspeed.json, attempt_<n>.log, result.json, status.json}
    results.csv, results.json, results.md, report.html
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill.json_files import read_json
from distill.sweep.files import write_json
from distill.sweep.process import Identity
from distill.sweep.scores import Evaluation
from distill.sweep.trials import INTERRUPTED, RUNNING, StageRun, Trial

logger = logging.getLogger(__name__)

STUDY, JOURNAL, LOCK, TRIALS = "study.json", "journal.jsonl", "study.lock", "trials"
FORMAT = 1
Event = dict[str, Any]


class Study:
    """A study folder that this process may write to (see :func:`opened`)."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, dict(facts)
        _drop_half_line(folder / JOURNAL)
        self._journal = open(folder / JOURNAL, "a", encoding="utf-8")

    @property
    def id(self) -> str:
        """A name unlike that of any other study; the processes of its trials carry it."""
        return self.facts["id"]

    @property
    def working_folder(self) -> Path:
        """Where the commands are run: that of the launcher when the study was begun."""
        return Path(self.facts["working_folder"])

    def stage_folder(self, trial: Trial, index: int) -> Path:
        """The folder of a stage."""
        return self.folder / TRIALS / trial.id / f"stage_{index}"

    def log_file(self, trial: Trial, index: int) -> Path:
        """The log of the last attempt."""
        return self.stage_folder(trial, index) / f"attempt_{trial.stages[index].attempts}.log"

    def result_file(self, trial: Trial, index: int) -> Path:
        """What the training script is told to write its scores to."""
        return self.stage_folder(trial, index) / "result.json"

    def mark(self, trial: Trial, index: int) -> str:
        """The mark of the processes of the last attempt."""
        return f"{self.id}:{trial.id}:{index}:{trial.stages[index].attempts}"

    def record(self, event: str, **values: Any) -> None:
        """Add an event to the journal; it is on the disk when this returns."""
        line = {"event": event, "time": round(time.time(), 3), **values}
        self._journal.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def add_trial(self, trial: Trial) -> None:
        """Store the plan of a trial, then that there is one."""
        write_json(self.folder / TRIALS / trial.id / "plan.json", trial.plan_as_json())
        self.record("trial", trial=trial.id)

    def begin_stage(self, trial: Trial, index: int, identity: Identity) -> None:
        """A stage was started."""
        stage = trial.stages[index]
        self.record("begin", trial=trial.id, stage=index, attempt=stage.attempts, line=stage.line,
                    devices=list(stage.devices), began=stage.began, process=vars(identity))

    def end_stage(self, trial: Trial, index: int) -> None:
        """A stage has ended, or is not going to be run."""
        stage = trial.stages[index]
        content = {"state": stage.state, "kind": stage.kind, "reason": stage.reason, "status": stage.status,
                   "seconds": stage.seconds, "failures": stage.failures, "result": stage.result,
                   "curve": [evaluation.as_json() for evaluation in stage.curve]}
        if stage.attempts:
            write_json(self.stage_folder(trial, index) / "status.json", {
                **{name: value for name, value in content.items() if name != "result"}, "attempt": stage.attempts,
                "began": stage.began, "devices": list(stage.devices), "command": stage.line})
        self.record("end", trial=trial.id, stage=index, **content)

    def close(self) -> None:
        self._journal.close()

    def load(self) -> tuple[list[Trial], dict[tuple[str, int], Identity]]:
        """The trials as the journal tells of them, and the processes of stages that were running then."""
        trials: dict[str, Trial] = {}
        running: dict[tuple[str, int], Identity] = {}
        for event in read_journal(self.folder / JOURNAL):
            if event["event"] == "trial":
                plan = read_json(self.folder / TRIALS / event["trial"] / "plan.json", dict)
                trials[event["trial"]] = Trial.from_json(plan)
            elif event["event"] == "begin":
                running[event["trial"], event["stage"]] = Identity(**event["process"])
                _apply_begin(trials[event["trial"]].stages[event["stage"]], event)
            elif event["event"] == "end":
                running.pop((event["trial"], event["stage"]), None)
                _apply_end(trials[event["trial"]].stages[event["stage"]], event)
        return list(trials.values()), running


def _apply_begin(stage: StageRun, event: Event) -> None:
    stage.state, stage.attempts, stage.line = RUNNING, event["attempt"], event["line"]
    stage.devices, stage.began = tuple(event["devices"]), event["began"]


def _apply_end(stage: StageRun, event: Event) -> None:
    for name in ("state", "kind", "reason", "status", "seconds", "failures", "result"):
        setattr(stage, name, event[name])
    stage.curve = [Evaluation(**evaluation) for evaluation in event["curve"]]


def requeue(stage: StageRun) -> None:
    """Let a stage run again."""
    stage.state, stage.kind, stage.reason, stage.result, stage.curve = INTERRUPTED, "", "", None, []


def read_journal(path: Path) -> list[Event]:
    """The events of a journal; a last line that was cut off by a kill is left out.

    Raises:
        ValueError: a line in the middle is no event.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    events = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}): remove the line to go on without what it "
                             "says") from error
    return events


def is_finished(folder: Path) -> bool:
    """Whether the sweep of a folder has come to its end, well or not."""
    events = read_journal(folder / JOURNAL)
    return bool(events) and events[-1]["event"] == "finished"


def read_facts(folder: Path) -> dict[str, Any]:
    """``study.json`` of a folder.

    Raises:
        ValueError: there is none, or one of another version.
    """
    if not (folder / STUDY).is_file():
        raise ValueError(f"{folder} holds no sweep ({STUDY} is missing): give the folder that the sweep printed at its "
                         "start")
    facts = read_json(folder / STUDY, dict)
    if facts.get("format") != FORMAT:
        raise ValueError(f"{folder / STUDY} has format {facts.get('format')}, this program reads {FORMAT}: continue it "
                         "with the program that began it")
    return facts


@contextmanager
def opened(folder: Path, facts: Mapping[str, Any] | None = None) -> Iterator[Study]:
    """The study of a folder, made with ``facts`` or continued without.

    Raises:
        ValueError: another launcher is running it, or there is none to continue.
    """
    if facts is None:
        read_facts(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another launcher is running the sweep in {folder}: wait for it, or give another --study "
                         "folder") from None
    try:
        if facts is not None:
            write_json(folder / STUDY, facts)
        study = Study(folder, read_facts(folder))
        try:
            yield study
        finally:
            study.close()
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a launcher is running the sweep of a folder."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _drop_half_line(path: Path) -> None:
    """Remove what a kill has left of an event at the end of the journal."""
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
