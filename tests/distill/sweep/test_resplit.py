"""Checkpoints that a command needs at another model-parallel size: found when it is planned, cut when it is run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.sweep import resplit
from distill.sweep.process import marked
from distill.sweep.resplit import Cutter, resplits_of
from model.checkpoint.naming import LATEST_TRACKER, shard_path, write_tracker
from model.checkpoint.save import save_shard
from tests.distill.sweep.planning import commands


def checkpoint(path: Path, size: int) -> Path:
    """A checkpoint of one weight in so many parts, which are all [2, 2] when there are two."""
    weight = torch.arange(8.0).reshape(4, 2)
    for rank, part in enumerate(weight.chunk(size)):
        save_shard(path, "7", {"module": {"word_embeddings.weight": part.clone()}, "iteration": 7}, rank)
    write_tracker(path, "7\n", LATEST_TRACKER)
    return path


def found(path: Path | str, size: int | str, flag: str = "--load-pretrained") -> tuple[str | None, dict[str, str]]:
    flags, resplits = resplits_of([(flag, str(path)), ("--model-parallel-size", str(size))])
    return dict(flags)[flag], dict(resplits)


def test_what_has_to_be_cut(tmp_path: Path) -> None:
    one, four = checkpoint(tmp_path / "one", 1), checkpoint(tmp_path / "four_MP4", 4)
    assert found(one, 2) == (f"{one}_MP2", {str(one): f"{one}_MP2"})
    assert found(one, 1) == (str(one), {}) and found(four, 4) == (str(four), {})
    assert found(four, 2) == (str(tmp_path / "four_MP2"), {str(four): str(tmp_path / "four_MP2")})
    assert found(four, 1) == (str(tmp_path / "four"), {str(four): str(tmp_path / "four")})
    assert found(tmp_path / "nothing", 2) == (str(tmp_path / "nothing"), {})


def test_a_checkpoint_that_has_the_size_under_another_name(tmp_path: Path) -> None:
    """The published launcher ended with status 0 there."""
    assert found(checkpoint(tmp_path / "plain", 2), 2) == (str(tmp_path / "plain"), {})


def test_teachers(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one", 1), checkpoint(tmp_path / "two_MP2", 2)
    value, resplits = found(f"{one}:{two}:{tmp_path}/none", 2, "--mt_load_pretrained")
    assert value == f"{one}_MP2:{two}:{tmp_path}/none" and resplits == {str(one): f"{one}_MP2"}
    flags, resplits = resplits_of([("--teacher_load_pretrained", str(two)), ("--load-pretrained", str(one)),
                                   ("--model-parallel-size", "2"), ("--teacher-model-parallel-size", "1")])
    assert dict(resplits) == {str(two): str(tmp_path / "two"), str(one): f"{one}_MP2"}
    assert resplits_of([("--load-pretrained", str(two))]) == ([("--load-pretrained", str(two))], ())
    with pytest.raises(ValueError, match="--model-parallel-size=0"):
        found(one, 0)


def test_a_plan_names_the_new_checkpoint_and_leaves_the_disk_alone(tmp_path: Path) -> None:
    four = checkpoint(tmp_path / "four_MP4", 4)
    first, second = commands("--tasks=copa", f"--model_path={four}", "--model-parallel-size=2", "--task_t_load=base",
                             "--again_1__x")
    assert first.value("--load-pretrained") == str(tmp_path / "four_MP2")
    assert first.resplits == ((str(four), str(tmp_path / "four_MP2")),) and second.resplits == ()
    assert first.checkpoint.startswith(f"{four}/") and sorted(path.name for path in tmp_path.iterdir()) == ["four_MP4"]


def test_cutting(tmp_path: Path) -> None:
    four = checkpoint(tmp_path / "four_MP4", 4)
    target = tmp_path / "four_MP2"
    Cutter().perform([(str(four), str(target))])
    parts = [torch.load(shard_path(target, "7", rank), weights_only=False)["module"] for rank in range(2)]
    assert torch.equal(torch.cat([part["word_embeddings.weight"] for part in parts]), torch.arange(8.0).reshape(4, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four_MP2", "four_MP4"]
    marker = shard_path(target, "7", 0).stat().st_mtime_ns
    Cutter().perform([(str(four), str(target))])
    assert shard_path(target, "7", 0).stat().st_mtime_ns == marker
    with pytest.raises(ValueError, match="cannot be cut for model-parallel size 3: .*3 does neither"):
        Cutter().perform([(str(four), str(tmp_path / "four_MP3"))])


def slow_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands in for ``change_mp.py``: it writes its session down, and never comes to an end."""
    script = folder / "slow.py"
    script.write_text("import os, pathlib, sys, time\n"
                      "pathlib.Path(f'{sys.argv[1]}.session').write_text(str(os.getsid(0)))\ntime.sleep(600)\n")
    monkeypatch.setattr(resplit, "CHANGE_MP", script)
    return script


def in_background(work: Callable[[], None]) -> tuple[threading.Thread, list[str]]:
    said: list[str] = []

    def run() -> None:
        try:
            work()
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, said


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cut_is_found_by_its_mark_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_script(tmp_path, monkeypatch)
    cutter = Cutter(mark=f"{os.getpid()}:cut")
    pairs = [(str(tmp_path / name), str(tmp_path / f"{name}_MP2")) for name in "ab"]
    thread, said = in_background(lambda: cutter.perform(pairs))
    session = tmp_path / "a.session"
    wait_for(lambda: session.exists() and bool(session.read_text()))
    running, = marked(cutter.mark.__eq__)
    assert int(session.read_text()) == running.pid != os.getsid(0)  # Ctrl-C in a terminal does not reach it
    cutter.stop()
    thread.join(timeout=20)
    assert said == ["the launcher was asked to end"] and not marked(cutter.mark.__eq__)
    assert not (tmp_path / "b.session").exists()  # the next one was not begun


def test_waiting_for_the_cut_of_another_launcher_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resplit, "_LOOK", 0.02)
    cutter, target = Cutter(mark=f"{os.getpid()}:wait"), str(tmp_path / "x_MP2")
    with resplit.FileLock(resplit._lock_file(target)):
        thread, said = in_background(lambda: cutter.perform([(str(tmp_path / "x"), target)]))
        time.sleep(0.1)
        cutter.stop()
        thread.join(timeout=20)
    assert said == ["the launcher was asked to end"]


def test_a_checkpoint_that_is_there_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock file may belong to another user of the machine."""
    monkeypatch.setattr(resplit, "FileLock", None)
    Cutter().perform([("x", str(tmp_path))])
