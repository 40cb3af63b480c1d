"""The folder of a sweep: one launcher at a time, a journal that survives a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distill.sweep.process import Identity
from distill.sweep.scores import Evaluation
from distill.sweep.study import FORMAT, is_finished, is_locked, opened, read_journal, requeue
from distill.sweep.trials import DONE, FAILED, INTERRUPTED, PRUNED, RUNNING, SKIPPED, WAITING, StageRun, Trial, trial_id
from distill.sweep.types import Point, StageCommand, TaskPlan

FACTS = {"format": FORMAT, "id": "abc", "working_folder": "/"}
LOCK = "import sys, time; from pathlib import Path; from distill.sweep.study import opened\n" \
       "with opened(Path(sys.argv[1])):\n    print('locked', flush=True); time.sleep(600)"


def trial(number: int = 0) -> Trial:
    stages = tuple(StageCommand("copa", stage, (("A", "1"),), ("deepspeed", "--include=localhost:0"), "x.py",
                                (("--a", "1"), ("--b", None)), {"fp16": {"enabled": True}}, "ds.json", "save/x",
                                (("old", "new"),)) for stage in (0, 1))
    plan = TaskPlan("copa", stages, "0")
    return Trial(trial_id("copa", number, 7), "copa", 0, number, Point.of({"--lr": "1"}), 7, plan)


def test_what_happened_is_read_back(tmp_path: Path) -> None:
    known = trial()
    with opened(tmp_path / "s", FACTS) as study:
        study.add_trial(known)
        first, second = known.stages
        first.state, first.attempts, first.line, first.began, first.devices = RUNNING, 2, "cmd", 5.0, ("localhost:0",)
        study.begin_stage(known, 0, Identity(1, 2.0, "host"))
        first.state, first.status, first.seconds, first.failures = DONE, 0, 3.5, 1
        first.result, first.curve = {"epoch": -1}, [Evaluation(10, 0, {"accuracy": 0.5})]
        study.end_stage(known, 0)
        second.state, second.attempts, second.line, second.began = RUNNING, 1, "cmd 2", 6.0
        study.begin_stage(known, 1, Identity(9, 8.0, "host"))
        assert study.log_file(known, 0) == tmp_path / "s" / "trials" / "copa-000-s7" / "stage_0" / "attempt_2.log"
        assert study.mark(known, 0) == "abc:copa-000-s7:0:2"
    with opened(tmp_path / "s") as study:
        (read,), running = study.load()
    assert read == known and running == {("copa-000-s7", 1): Identity(9, 8.0, "host")}
    assert read.plan.stages[0].words() == ["deepspeed", "--include=localhost:0", "x.py", "--a=1", "--b"]


def test_half_an_event_is_dropped_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    with opened(tmp_path, FACTS) as study:
        study.record("started")
    journal = tmp_path / "journal.jsonl"
    with open(journal, "a", encoding="utf-8") as file:
        file.write('{"event": "trial", "tri')
    assert [event["event"] for event in read_journal(journal)] == ["started"]
    with opened(tmp_path) as study:
        study.record("finished")
    assert [event["event"] for event in read_journal(journal)] == ["started", "finished"] and is_finished(tmp_path)
    journal.write_text("{\n" + journal.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"journal.jsonl, line 1 is damaged"):
        read_journal(journal)


def test_one_launcher_at_a_time_and_a_killed_one_holds_no_lock(tmp_path: Path) -> None:
    with opened(tmp_path, FACTS):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="another launcher is running the sweep"), opened(tmp_path):
        pass
    process.kill()
    process.communicate()
    with opened(tmp_path) as study:
        assert study.id == "abc"


def test_a_folder_without_a_sweep_or_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no sweep"), opened(tmp_path):
        pass
    with opened(tmp_path, {**FACTS, "format": FORMAT}):
        pass
    (tmp_path / "study.json").write_text('{"format": 99}', encoding="utf-8")
    with pytest.raises(ValueError, match="has format 99"), opened(tmp_path):
        pass


@pytest.mark.parametrize(("states", "state", "following", "is_final"), [
    ((WAITING, WAITING), WAITING, 0, False), ((DONE, WAITING), WAITING, 1, False), ((DONE, DONE), DONE, None, True),
    ((RUNNING, WAITING), RUNNING, None, False), ((FAILED, SKIPPED), FAILED, None, True),
    ((DONE, FAILED), FAILED, None, True), ((PRUNED, SKIPPED), PRUNED, None, True),
    ((SKIPPED, SKIPPED), SKIPPED, None, True),
    ((DONE, INTERRUPTED), INTERRUPTED, 1, False)])
def test_the_state_of_a_trial_follows_from_its_stages(states: tuple[str, str], state: str, following: int | None,
                                                      is_final: bool) -> None:
    known = trial()
    known.stages = [StageRun(name) for name in states]
    assert (known.state, known.next_stage, known.is_final) == (state, following, is_final)


def test_a_stage_that_runs_again_forgets_what_it_was() -> None:
    stage = StageRun(FAILED, attempts=3, kind="crashed", reason="x", result={"a": 1}, curve=[Evaluation(1, 0, {})])
    requeue(stage)
    assert stage == StageRun(INTERRUPTED, attempts=3)


def test_a_trial_without_a_plan_has_failed() -> None:
    known = Trial("x", "copa", 0, 0, Point(), None, TaskPlan("copa", (), ""), "no such value")
    assert known.state == FAILED and known.failure() == (0, known.stages[0]) and known.next_stage is None
    assert Trial.from_json(known.plan_as_json()) == known
