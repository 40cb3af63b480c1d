"""Whole sweeps of fake runs: what is run when and where, what fails, what is repeated after a kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from distill.sweep import resplit, runner, scheduler
from distill.sweep.process import MARK, marked
from distill.sweep.study import read_journal
from distill.sweep.trials import Trial
from tests.distill.sweep.fakes import Sweep

ROOT = Path(__file__).resolve().parents[3]
#: A launcher in a process of its own.
LAUNCHER = """
import sys
from pathlib import Path
from tests.distill.sweep.fakes import Sweep
sys.exit(Sweep(Path(sys.argv[1]), *sys.argv[2:]).run()[0])
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often; this machine has no GPU; git is not asked for the revision."""
    monkeypatch.setattr(scheduler, "POLL", 0.02)
    monkeypatch.setattr(scheduler, "READ_SCORES", 0.02)
    monkeypatch.setattr(runner, "_revision", lambda: "")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Living processes of the trials of a study."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))["id"]
    return marked(lambda mark: mark.startswith(study))


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def launch(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, str(folder), *words], cwd=Path.cwd(), env=environment,
                            start_new_session=True, stdout=subprocess.DEVNULL)


def leave_alone(folder: Path, *words: str) -> Sweep:
    """A sweep whose launcher was killed while its first trial ran."""
    sweep, process = Sweep(folder, *words), launch(folder, *words)
    journal = sweep.folder / "journal.jsonl"
    wait_until(lambda: bool(sweep.started()) and any(event["event"] == "begin" for event in read_journal(journal)))
    process.kill()
    process.wait()
    return sweep


# Scores ---------------------------------------------------------------------------------------------------------------


def test_grid_seeds_and_stages_give_the_numbers_of_the_result_files(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa,cb", "--lr=grid:1e-5,2e-5", "--score_1e-5=0.5", "--score_2e-5=0.75",
                  "--seeds=3,4", "--again_1__epochs=3", "--parallel=4")
    code, out = sweep.run()
    assert code == 0 and "[8/8] " in out
    assert list(sweep.trials) == [f"{task}-00{n}-s{seed}" for task in ("copa", "cb") for n in (0, 1) for seed in (3, 4)]
    for rows in sweep.trials.values():
        assert [row["state"] for row in rows] == ["done", "done"]
        for row in rows:
            file = sweep.folder / "trials" / row["trial"] / f"stage_{row['stage']}" / "result.json"
            result = json.loads(file.read_text(encoding="utf-8"))
            assert row["metrics"] == result["max_score_dict"]["accuracy"]["score_dict"]
            assert (row["epochs"], row["last_epoch"]) == (3 if row["stage"] else 2, -1)
    best = [group for group in sweep.results["configurations"] if group["is_best"]]
    assert [(group["task"], group["values"], group["stage"]) for group in best] == [
        ("copa", {"--lr": "2e-5"}, 1), ("cb", {"--lr": "2e-5"}, 1)]
    assert best[0]["score"] == {"mean": 0.75, "deviation": 0.0} and best[0]["done"] == best[0]["trials"] == 2
    shares = dict(sweep.results["importance"]["copa"]["shares"])
    assert not shares and "too few" in sweep.results["importance"]["copa"]["note"]


def test_the_list_of_results_has_the_published_form(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa,cb", "--score=0.5", "--again_1__score=0.75")
    assert sweep.run()[0] == 0
    file, = sweep.folder.glob("tune_*.json")
    entries = json.loads(file.read_text(encoding="utf-8"))
    assert [(entry["*trial"], entry["*stage"]) for entry in entries] == [
        ("copa-000", 0), ("copa-000", 1), ("cb-000", 0), ("cb-000", 1)]
    assert all(entry["epoch"] == -1 and "--custom_tmp_result=" in entry["*cmd"] for entry in entries)
    assert [entry["max_score_dict"]["accuracy"]["score_dict"]["accuracy"] for entry in entries] == [0.5, 0.75] * 2


def test_a_trial_has_a_folder_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--score=0.5")
    sweep.run()
    folder = sweep.folder / "trials" / "copa-000" / "stage_0"
    assert {path.name for path in folder.iterdir()} == {"command.txt", "attempt_1.log", "result.json", "status.json"}
    assert (folder / "attempt_1.log").read_text(encoding="utf-8") == "finished\n"
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert status["status"] == 0 and status["seconds"] > 0
    assert [(point["epoch"], point["scores"]) for point in status["curve"]] == [
        (0, {"accuracy": 0.25}), (1, {"accuracy": 0.5})]
    command = (folder / "command.txt").read_text(encoding="utf-8")
    again = subprocess.run(command, shell=True, check=False)
    assert again.returncode == 0 and "DS_ACCELERATOR=cpu" in command and "NCCL_DEBUG=info" in command


# Failures -------------------------------------------------------------------------------------------------------------


def test_an_impossible_a_slow_and_a_truncated_trial_are_named_and_the_others_are_complete(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa,cb,rte,wic,wsc", "--behaviour_copa=refuse", "--behaviour_cb=hang",
                  "--behaviour_rte=truncated", "--score=0.5", "--again_1__score=0.75", "--trial_timeout=4",
                  "--parallel=5", "--max_retries=1", "--grace=1")
    code, out = sweep.run()
    assert code == runner.FAILURES
    kinds = {name: (rows[0]["state"], rows[0]["kind"], rows[0]["attempts"]) for name, rows in sweep.trials.items()}
    assert kinds == {"copa-000": ("failed", "refused", 1), "cb-000": ("failed", "timeout", 1),
                     "rte-000": ("failed", "damaged result", 2), "wic-000": ("done", "", 1), "wsc-000": ("done", "", 1)}
    assert [sweep.trials[name][1]["state"] for name in ("copa-000", "cb-000", "rte-000", "wic-000", "wsc-000")] == [
        "skipped", "skipped", "skipped", "done", "done"]
    page = (sweep.folder / "report.html").read_text(encoding="utf-8")
    for text in ("--hidden-size=100 is no multiple of --num-attention-heads=12", "no end within 4 s (--trial_timeout)",
                 "the result file is cut short"):
        assert text in out and text in page and text in (sweep.folder / "results.md").read_text(encoding="utf-8")
    assert not processes_of(sweep.folder)


@pytest.mark.parametrize(("behaviour", "kind", "attempts", "reason"), [
    ("crash", "crashed", 3, "RuntimeError: the loss is not finite (exit status 1)"),
    ("out_of_memory", "memory", 1, "out of memory: torch.OutOfMemoryError"),
    ("incomplete", "incomplete result", 3, "epoch 1 of 2"),
    ("silent", "no result", 3, "without a result file")])
def test_a_failure_is_named_and_tried_again_where_that_may_help(
        tmp_path: Path, behaviour: str, kind: str, attempts: int, reason: str) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", f"--behaviour_copa={behaviour}", "--max_retries=2")
    assert sweep.run()[0] == runner.FAILURES
    row, = sweep.trials["copa-000"]
    assert (row["kind"], row["attempts"]) == (kind, attempts) and reason in row["reason"]
    assert len(sweep.started()) == attempts


def test_a_crash_that_does_not_come_again_is_no_failure(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--behaviour_copa=flaky", "--score=0.5")
    code, out = sweep.run()
    row, = sweep.trials["copa-000"]
    assert code == 0 and row["state"] == "done" and row["attempts"] == 2
    assert "ConnectionError: the rendezvous failed" in out


def test_values_that_no_command_can_be_made_of_are_one_failed_trial(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--lr=grid:1,impossible", "--score=0.5")
    assert sweep.run()[0] == runner.FAILURES
    assert sweep.trials["copa-000"][0]["state"] == "done"
    assert sweep.trials["copa-001"][0]["reason"] == "--lr=impossible is no number"
    sweep = Sweep(tmp_path / "one", "--tasks=copa,cb", "--lr=grid:1,impossible_cb", "--score=0.5")
    assert sweep.run()[0] == runner.FAILURES
    assert {name: rows[0]["state"] for name, rows in sweep.trials.items()} == {
        "copa-000": "done", "copa-001": "done", "cb-000": "done", "cb-001": "failed"}
    with pytest.raises(ValueError, match="impossible"):
        Sweep(tmp_path / "other", "--tasks=copa", "--lr=impossible").run()


def test_an_objective_that_a_task_does_not_have_is_named(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--objective=f1", "--score=0.5")
    assert sweep.run()[0] == runner.FAILURES
    assert sweep.trials["copa-000"][0]["reason"] == "--objective=f1: the scores are accuracy"
    assert len(sweep.started()) == 1


# Devices --------------------------------------------------------------------------------------------------------------


def test_parallel_trials_overlap_and_share_the_cores(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa,cb,rte,wic", "--pause=0.4", "--parallel=2", "--again_1__pause=0")
    assert sweep.run()[0] == 0
    intervals = [found for found in sweep.intervals() if found[2].endswith("-0")]
    overlaps = [(a, b) for a, b in itertools.combinations(intervals, 2) if a[0] < b[1] and b[0] < a[1]]
    assert overlaps
    for begin, *_ in intervals:
        assert sum(other[0] <= begin < other[1] for other in intervals) <= 2
    cores = len(os.sched_getaffinity(0))
    assert {line["threads"] for line in sweep.diary} == {str(max(1, cores // 2))}
    assert len({line["port"] for line in sweep.diary}) >= 8


def test_one_trial_at_a_time_is_the_default_and_stages_follow_each_other(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa,cb", "--again_1__epochs=1")
    assert sweep.run()[0] == 0
    intervals = sorted(sweep.intervals())
    assert [name for *_, name, _ in intervals] == ["copa-sNone-0", "copa-sNone-1", "cb-sNone-0", "cb-sNone-1"]
    assert all(first[1] <= second[0] for first, second in zip(intervals, intervals[1:]))


def test_no_device_is_ever_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "has_gpu", lambda environ: True)
    sweep = Sweep(tmp_path, "--tasks=copa,cb,rte", "--gpus=4,5,6", "--gpus_per_trial=1", "--lr=grid:1,2", "--pause=0.1")
    assert sweep.run()[0] == 0
    intervals = sweep.intervals()
    assert {devices for *_, devices in intervals} == {"localhost:4", "localhost:5", "localhost:6"}
    for one, other in itertools.combinations(intervals, 2):
        assert one[3] != other[3] or one[1] <= other[0] or other[1] <= one[0]
    assert any(one[0] < other[1] and other[0] < one[1] for one, other in itertools.combinations(intervals, 2))


def test_a_big_task_gets_all_the_devices_that_others_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "has_gpu", lambda environ: True)
    words = ("--tasks=copa,record", "--gpus=4,5,6", "--gpus_per_trial=1", "--big_task_gpus=4,5,6", "--lr=grid:1,2")
    sweep = Sweep(tmp_path, *words)
    assert sweep.run()[0] == 0
    assert {name: len(rows[0]["devices"]) for name, rows in sweep.trials.items()} == {
        "copa-000": 1, "copa-001": 1, "record-000": 3, "record-001": 3}
    plan = json.loads((sweep.folder / "trials" / "copa-000" / "plan.json").read_text(encoding="utf-8"))["plan"]
    assert (plan["gpus"], plan["devices"]) == ("4,5,6", 1)
    assert sweep.resume()[0] == 0


def test_too_many_devices_for_a_trial_leave_no_folder_behind(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--gpus=0,1", "--gpus_per_trial=3")
    with pytest.raises(ValueError, match="--gpus_per_trial=3, but --gpus=0,1 names 2"):
        sweep.run()
    assert not sweep.folder.exists()


# Interruptions --------------------------------------------------------------------------------------------------------


def test_a_killed_launcher_repeats_nothing_that_was_finished(tmp_path: Path) -> None:
    words = ("--tasks=copa,cb,rte", "--behaviour_cb=hang_once", "--score=0.5", "--again_1__score=0.75")
    sweep = Sweep(tmp_path, *words)
    process = launch(tmp_path, *words)
    wait_until(lambda: len(sweep.started()) == 3)
    process.kill()
    process.wait()
    running, = processes_of(sweep.folder)  # nobody has told it to end
    running.kill()
    wait_until(lambda: not processes_of(sweep.folder))
    code, out = sweep.resume()
    assert code == 0 and "going on" in out
    assert sweep.started() == ["copa-sNone-0", "copa-sNone-1", "cb-sNone-0", "cb-sNone-0", "cb-sNone-1", "rte-sNone-0",
                               "rte-sNone-1"]
    assert all(row["state"] == "done" for rows in sweep.trials.values() for row in rows)


def test_a_run_that_outlives_its_launcher_is_watched_on(tmp_path: Path) -> None:
    sweep = leave_alone(tmp_path, "--tasks=copa,cb", "--behaviour_copa=wait", "--score=0.5")
    assert len(processes_of(sweep.folder)) == 1
    threading.Timer(0.3, (tmp_path / "go").touch).start()
    assert sweep.run()[0] == 0  # the same command line again goes on, too
    assert sweep.started() == ["copa-sNone-0", "cb-sNone-0"]
    assert [rows[0]["state"] for rows in sweep.trials.values()] == ["done", "done"]
    assert [rows[0]["status"] for rows in sweep.trials.values()] == [None, 0]  # nobody saw how the first one ended


def test_a_run_that_ended_well_while_nobody_watched_is_done(tmp_path: Path) -> None:
    sweep = leave_alone(tmp_path, "--tasks=copa", "--behaviour_copa=wait", "--score=0.5")
    (tmp_path / "go").touch()
    wait_until(lambda: not processes_of(sweep.folder))
    assert sweep.resume()[0] == 0
    assert sweep.started() == ["copa-sNone-0"] and sweep.trials["copa-000"][0]["score"] == 0.5


def test_a_stage_does_not_follow_a_failed_one_after_a_kill(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--behaviour_copa=refuse", "--again_1__behaviour=ok", "--score=0.5")
    assert sweep.run()[0] == runner.FAILURES
    journal = sweep.folder / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    failed, = (number for number, line in enumerate(lines) if '"state": "failed"' in line)
    journal.write_text("".join(lines[:failed + 1]), encoding="utf-8")  # before it was said of stage 1
    assert sweep.resume()[0] == runner.FAILURES
    assert len(sweep.started()) == 1
    assert [(row["state"], row["reason"]) for row in sweep.trials["copa-000"]][1] == ("skipped", "stage 0 failed")


def test_scores_of_untrained_weights_are_no_end_of_a_run(tmp_path: Path) -> None:
    sweep = leave_alone(tmp_path, "--tasks=copa", "--behaviour_copa=untrained_once", "--epochs=1", "--score=0.5")
    wait_until((tmp_path / "hung").exists)
    for process in processes_of(sweep.folder):
        process.kill()
    wait_until(lambda: not processes_of(sweep.folder))
    assert sweep.resume()[0] == 0
    assert len(sweep.started()) == 2 and sweep.trials["copa-000"][0]["score"] == 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_leaves_a_study_to_go_on_with(tmp_path: Path, number: int) -> None:
    words = ("--tasks=copa,cb", "--behaviour_cb=stubborn", "--grace=0.3", "--score=0.5")
    sweep = Sweep(tmp_path, *words)
    process = launch(tmp_path, *words)
    wait_until(lambda: len(sweep.started()) == 2 and len(processes_of(sweep.folder)) == 2)
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert not processes_of(sweep.folder)
    assert [rows[0]["state"] for rows in sweep.trials.values()] == ["done", "interrupted"]
    events = [event["event"] for event in read_journal(sweep.folder / "journal.jsonl")]
    assert events[-1] == "interrupted"


def test_ctrl_c_while_checkpoints_are_cut_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "change_mp.py"
    script.write_text("import pathlib, sys, time\npathlib.Path(sys.argv[1] + '.began').touch()\ntime.sleep(600)\n")
    monkeypatch.setattr(resplit, "CHANGE_MP", script)
    sweep = Sweep(tmp_path, "--tasks=copa,cb", f"--cut={tmp_path}", "--parallel=2", "--score=0.5")

    def press() -> None:
        wait_until((tmp_path / "copa.began").exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    assert sweep.run()[0] == 128 + signal.SIGINT
    assert [rows[0]["state"] for rows in sweep.trials.values()] == ["interrupted", "interrupted"]
    assert not (tmp_path / "cb.began").exists() and not processes_of(sweep.folder)  # what was only queued is dropped
    script.write_text("import pathlib, sys\nmade = sys.argv[1] + '_MP2'\npathlib.Path(made).mkdir()\nprint(made)\n")
    assert sweep.resume()[0] == 0
    assert [rows[0]["state"] for rows in sweep.trials.values()] == ["done", "done"]


def test_a_finished_sweep_is_shown_again_and_failures_are_repeated_on_request_only(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa,cb", "--behaviour_cb=flaky", "--score=0.5", "--max_retries=0")
    assert sweep.run()[0] == runner.FAILURES
    assert sweep.resume()[0] == runner.FAILURES
    assert len(sweep.started()) == 2
    assert sweep.resume("--retry_failed")[0] == 0
    assert sweep.started() == ["copa-sNone-0", "cb-sNone-0", "cb-sNone-0"]


def test_the_folder_of_a_sweep_may_be_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sweep = Sweep(tmp_path, "--tasks=copa", "--score=0.5")
    assert sweep.run()[0] == 0
    code, out = sweep.call(["--resume=~/study"])
    assert code == 0 and f"going on with the sweep in {sweep.folder}" in out


def test_the_same_command_goes_on_with_an_interrupted_sweep_below_the_data_root(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--score=0.5")
    assert sweep.call(sweep.words)[0] == 0
    folder, = (tmp_path / "tmp").glob("tune_*/")
    assert folder.with_name(f"{folder.name}.json").is_file()
    journal = folder / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]), encoding="utf-8")  # as if it had not come to its end
    code, out = sweep.call([*sweep.words, "--parallel=3"])
    assert code == 0 and f"going on with the sweep in {folder}" in out and len(sweep.started()) == 1
    assert sweep.call(sweep.words)[0] == 0  # now it has: a new one
    assert len(sweep.started()) == 2 and len(list((tmp_path / "tmp").glob("tune_*/"))) == 2


def test_folders_and_arguments_that_do_not_belong_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                       ) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--score=0.5")
    with pytest.raises(ValueError, match="holds no sweep"):
        sweep.resume()
    assert sweep.run()[0] == 0
    with pytest.raises(ValueError, match="other arguments"):
        sweep.run("--epochs=3")
    with pytest.raises(ValueError, match="leave out --tasks=cb"):
        sweep.resume("--tasks=cb")
    with pytest.raises(ValueError, match="--retry_failed goes with --resume"):
        sweep.run("--retry_failed")
    with pytest.raises(ValueError, match="exists and holds no sweep"):
        sweep.call([*sweep.words, f"--study={tmp_path}"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="was begun in the folder"):
        sweep.resume()


# Search ---------------------------------------------------------------------------------------------------------------


def test_hopeless_configurations_are_given_up_the_same_way_each_time(tmp_path: Path) -> None:
    def run(folder: Path) -> dict[str, list[dict]]:
        sweep = Sweep(folder, "--tasks=copa", "--lr=grid:1,2,3,4", "--score_1=0.5", "--score_2=0.75", "--score_3=0.25",
                      "--score_4=1", "--epochs=4", "--pause_3=0.4", "--pruner=median", "--pruner_startup=2",
                      "--seeds=2")
        assert sweep.run()[0] == 0
        return sweep.trials

    first = run(tmp_path / "a")
    states = {name: rows[0]["state"] for name, rows in first.items()}
    assert states == {
        "copa-000-s1234": "done", "copa-000-s1235": "done", "copa-001-s1234": "done", "copa-001-s1235": "done",
        "copa-002-s1234": "pruned", "copa-002-s1235": "skipped", "copa-003-s1234": "done", "copa-003-s1235": "done"}
    assert "stay behind" in first["copa-002-s1234"][0]["reason"]
    assert "given up with seed 1234" in first["copa-002-s1235"][0]["reason"]
    again = run(tmp_path / "b")
    assert {name: rows[0]["state"] for name, rows in again.items()} == states


def test_failures_are_repeated_on_request_where_configurations_can_be_given_up(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "--tasks=copa", "--lr=grid:1,2", "--behaviour_copa=flaky", "--score=0.5", "--max_retries=0",
                  "--pruner=median")
    assert sweep.run()[0] == runner.FAILURES
    assert sweep.resume("--retry_failed")[0] == 0
    assert [rows[0]["state"] for rows in sweep.trials.values()] == ["done", "done"]


def test_drawn_configurations_depend_on_the_seed_only_not_on_interruptions(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep(folder: Path, *words: str) -> Sweep:
        return Sweep(folder, "--tasks=copa", "--lr=float:1e-6..1e-3:log", "--score=0.5", "--epochs=1", "--search=tpe",
                     "--n_trials=5", *words)

    def drawn(done: Sweep) -> list[str]:
        return [rows[0]["values"]["--lr"] for rows in done.trials.values()]

    whole, other, broken = sweep(tmp_path / "a"), sweep(tmp_path / "b", "--search_seed=1"), sweep(tmp_path / "c")
    assert whole.run()[0] == other.run()[0] == 0
    assert len(set(drawn(whole))) == 5 and drawn(other) != drawn(whole)

    def stop_after_three(recorder: runner._Recorder, trial: Trial, index: int) -> None:
        if trial.number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(runner._Recorder, "ended", stop_after_three)
        assert broken.run()[0] == 128 + signal.SIGINT
    assert len(broken.started()) == 3
    assert broken.run()[0] == 0
    assert drawn(broken) == drawn(whole) and len(broken.started()) == 5


def test_the_mark_of_an_outer_sweep_does_not_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "outer")
    sweep = Sweep(tmp_path, "--tasks=copa", "--behaviour_copa=orphan", "--score=0.5", "--grace=1")
    assert sweep.run()[0] == 0
    assert not processes_of(sweep.folder)
    assert MARK not in (sweep.folder / "trials" / "copa-000" / "stage_0" / "command.txt").read_text(encoding="utf-8")
