"""Processes that die, raise, are asked to stop or find the disk full: nobody hangs, messages say what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.training import setup
from distill.training.metrics import MetricWriter
from distill.training.run_folder import checkpoint_to_resume
from distill.training.setup import ABANDONED, MISTAKE, STOPPED, Launch, who_is_gone
from model.checkpoint.naming import (
    BEST_TRACKER,
    LATEST_TRACKER,
    TRAINING_TRACKER,
    read_tracker,
    write_tracker,
)
from tests.distill.training.small_runs import exact, finetune_flags, pretrain_flags, run
from tests.helpers.distributed import free_port
from tests.helpers.faults import Fault, Nursery, RankEnd


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as warm:
        yield warm


class Runs:
    """Pretraining of eight iterations in ``folder``."""

    def __init__(self, nursery: Nursery, world: Path, folder: Path) -> None:
        self.nursery, self.world, self.folder = nursery, world, folder

    def __call__(self, name: str, *words: str, ranks: int = 1, workers: int = 0,
                 fault: Fault | None = None) -> list[RankEnd]:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        flags = pretrain_flags(self.world, **{"train-iters": 8, "save-interval": 3, "eval-interval": 0,
                                              "num-workers": workers, "batch-size": 4})
        ends = self.nursery.run("pretrain", [*flags, f"--save={folder / 'save'}", *words], folder, ranks=ranks,
                                port=free_port(), fault=fault)
        assert not any(end.left_behind for end in ends)
        return ends

    def saved(self, name: str) -> Path:
        (folder,) = (self.folder / name / "save").iterdir()
        return folder


@pytest.fixture
def runs(nursery: Nursery, world: Path, tmp_path: Path) -> Runs:
    return Runs(nursery, world, tmp_path)


@pytest.mark.distributed
def test_a_rank_that_raises_ends_the_others(runs: Runs) -> None:
    waiting, raising = runs("a", "--model-parallel-size=2", ranks=2, fault=Fault("raise", "step", 4, rank=1))
    assert raising.code == 1 and "ZeroDivisionError: a fault of the test" in raising.output
    assert waiting.code == ABANDONED and "error: another rank has ended" in waiting.output
    assert "Traceback" not in waiting.output and "--load" in waiting.output
    assert read_tracker(runs.saved("a"), TRAINING_TRACKER) == "3"


@pytest.mark.distributed
def test_a_killed_rank_ends_the_others_though_its_workers_hold_its_connections(runs: Runs) -> None:
    ends = runs("a", ranks=2, workers=1, fault=Fault("kill", "step", 4, rank=0))
    assert [end.code for end in ends] == [-9, ABANDONED]
    assert ends[1].later < 4, "torch's workers look for their parent every five seconds"


def test_a_dead_worker_is_named(runs: Runs) -> None:
    (end,) = runs("a", workers=2, fault=Fault("worker", "step", 4))
    assert end.code == ABANDONED and "Traceback" not in end.output
    assert "error: the data worker with process id" in end.output and "--num-workers" in end.output


@pytest.mark.distributed
def test_a_full_disk_ends_all_ranks_and_gives_the_space_back(runs: Runs) -> None:
    (whole,) = runs("whole")
    first, second = runs("a", ranks=2, fault=Fault("full", "bytes", whole.written * 6 // 10, rank=0))
    assert (first.code, second.code) == (MISTAKE, MISTAKE)
    assert "error: [Errno 28] cannot write: No space left on device" in first.output
    assert "error: another rank could not save the checkpoint" in second.output
    assert "Traceback" not in first.output + second.output
    assert sorted(path.name for path in runs.saved("a").iterdir()) == sorted(
        ["0", "3", LATEST_TRACKER, TRAINING_TRACKER, "tensorboard"])


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 1)])
def test_sigterm_saves_and_the_resumed_run_is_the_same(runs: Runs, ranks: int, workers: int) -> None:
    """With dropout, to the ranks' whole process groups, as launchers send it."""
    whole = runs("whole", ranks=ranks, workers=workers)
    ends = runs("a", ranks=ranks, workers=workers, fault=Fault("terminate", "step", 5, rank=0))
    assert [end.code for end in (*whole, *ends)] == [0] * ranks + [STOPPED] * ranks
    assert read_tracker(runs.saved("a"), TRAINING_TRACKER) == "5" and max(end.seconds for end in ends) < 20
    # What a loader with workers draws for itself must not matter.
    rest = runs("a", f"--load={runs.saved('a')}", ranks=ranks, workers=workers)
    assert [end.code for end in rest] == [0] * ranks
    assert exact(runs.folder / "a") == exact(runs.folder / "whole")


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_in_the_last_step_saves(runs: Runs, ranks: int) -> None:
    ends = runs("a", ranks=ranks, fault=Fault("terminate", "step", 8, rank=0))
    assert [end.code for end in ends] == [STOPPED] * ranks
    assert read_tracker(runs.saved("a"), TRAINING_TRACKER) == "8"


def test_what_there_is_to_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert checkpoint_to_resume(folder) is None
    folder.mkdir()
    assert checkpoint_to_resume(folder) is None
    for name in ("tensorboard", "0.new", "best"):
        (folder / name).mkdir()
    assert checkpoint_to_resume(folder) is None, "killed while the first one was written"
    for tag in ("4", "12"):
        (folder / tag).mkdir()
        (folder / tag / "mp_rank_00_model_states.pt").touch()
    assert checkpoint_to_resume(folder).tag == "12", "killed before the tracker"
    write_tracker(folder, "4", TRAINING_TRACKER)
    assert checkpoint_to_resume(folder).tag == "4"
    assert checkpoint_to_resume(folder / "12").tag == "12"


def test_a_best_before_the_first_training_state(tmp_path: Path) -> None:
    """Only in the run's own folder: elsewhere the flag names it on purpose."""
    best = tmp_path / "run" / "best"
    best.mkdir(parents=True)
    (best / "mp_rank_00_model_states.pt").touch()
    write_tracker(best.parent, "9", BEST_TRACKER)
    assert checkpoint_to_resume(best.parent, best.parent) is None
    write_tracker(best.parent, "best", LATEST_TRACKER)
    assert checkpoint_to_resume(best.parent, best.parent) is None
    assert checkpoint_to_resume(best.parent, tmp_path / "other").tag == "best"
    (best.parent / "9").mkdir()
    assert checkpoint_to_resume(best.parent, best.parent).tag == "9", "killed between the folder and its tracker"
    assert checkpoint_to_resume(best.parent, tmp_path / "other").tag == "best"


def test_a_folder_of_other_things_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"notes\.txt"):
        checkpoint_to_resume(tmp_path)


def test_the_best_of_a_run_that_goes_on_elsewhere_is_scored(world: Path, tmp_path: Path,
                                                            caplog: pytest.LogCaptureFixture) -> None:
    flags = finetune_flags(world, **{"save-epoch": 1})
    assert run("finetune", [*flags, f"--save={tmp_path / 'one'}"]) == 0
    caplog.clear()
    with caplog.at_level("INFO"):
        assert run("finetune", [*flags, f"--save={tmp_path / 'two'}", f"--load={tmp_path / 'one' / 'copa'}"]) == 0
    assert "scoring the best checkpoint" in caplog.text and not (tmp_path / "two" / "copa" / "best").exists()


def test_the_best_of_an_earlier_run_is_not_scored(world: Path, tmp_path: Path,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    flags = [*finetune_flags(world, **{"epochs": 1}), f"--save={tmp_path}"]
    assert run("finetune", flags) == 0 and (tmp_path / "copa" / "best").exists()
    caplog.clear()
    with caplog.at_level("INFO"):
        assert run("finetune", [*flags, "--overwrite", "--eval-epoch=5"]) == 0
    assert "scoring the best checkpoint" not in caplog.text


@pytest.mark.parametrize(("stage", "change"), [
    ("pretrain", "--batch-size=2"), ("pretrain", "--gradient-accumulation-steps=2"), ("finetune", "--batch-size=2")])
def test_another_cut_of_the_data_is_refused(world: Path, tmp_path: Path, stage: str, change: str) -> None:
    flags = (pretrain_flags(world, **{"save-interval": 2, "train-iters": 2}) if stage == "pretrain"
             else finetune_flags(world, **{"save-epoch": 1}))
    flags.append(f"--save={tmp_path}")
    assert run(stage, flags) == 0
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match="was saved by a run with batch-size .* start from the weights"):
        run(stage, [*flags, f"--load={folder}", change])


def test_half_a_record_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "iteration": 1}\n{"kind": "tra')
    with MetricWriter(tmp_path, resumed=True) as writer:
        writer.record("train", {"iteration": 2})
    assert path.read_text() == '{"kind": "train", "iteration": 1}\n{"kind": "train", "iteration": 2}\n'


@pytest.mark.parametrize(("text", "expected"), [
    ("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1674.", "another rank has ended"),
    ("[gloo/pair.cc:537] Read error [127.0.0.1]:17: Connection reset by peer.", "another rank has ended"),
    ("ncclRemoteError: A call failed possibly due to a network error or a remote process exited", "another rank"),
    ("wait timeout after 300000ms, keys: /default_pg/0//3//cpu//0/1", "another rank has ended"),
    ("DataLoader worker (pid 12) is killed by signal: Killed.", "process id 12 was ended"),
    ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "process id 12, 13 was ended"),
    ("mat1 and mat2 shapes cannot be multiplied", None)])
def test_what_is_told_of_other_processes(text: str, expected: str | None) -> None:
    told = who_is_gone(RuntimeError(text))
    assert told is None if expected is None else expected in told


def test_leaving_that_takes_too_long_is_cut_short(monkeypatch: pytest.MonkeyPatch,
                                                  capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    monkeypatch.setattr(setup, "LEAVING", 0.05)
    monkeypatch.setattr(os, "_exit", codes.append)
    assert setup._last_resort(Launch(0, 1, 0, 1)) is None
    try:
        raise KeyError("the cause")
    except KeyError:
        timer = setup._last_resort(Launch(1, 2, 1, 2))
    deadline = time.monotonic() + 5
    while not codes and time.monotonic() < deadline:
        time.sleep(0.01)
    timer.cancel()
    assert codes == [ABANDONED] and "KeyError: 'the cause'" in capfd.readouterr().err
