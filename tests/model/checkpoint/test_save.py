"""A kill or a full disk at any moment of a save leaves a whole checkpoint; trackers move last."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model.checkpoint import files
from model.checkpoint.files import safe_load
from model.checkpoint.load import read_module_state
from model.checkpoint.naming import (
    BEST_TRACKER,
    LATEST_TRACKER,
    read_tracker,
    resolve_checkpoint,
)
from model.checkpoint.save import module_payload, publish, save_checkpoint, save_shard
from model.parallel.sharding import QKV_ROWS, ROWS, set_shard_spec


class Killed(BaseException):
    """Stands for a kill: no handler for ordinary errors sees it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Make the ``step``-th change of the disk fail, before or (for a file's bytes, half-way) while it happens."""
    done: list[str] = []

    def guard(owner: object, name: str, half: Callable[..., None] | None = None) -> None:
        real = getattr(owner, name)

        def guarded(*args: object, **kwargs: object) -> object:
            done.append(name)
            if len(done) - 1 == step:
                if half is not None:
                    half(*args)
                raise Killed(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    guard(files.torch, "save", lambda obj, file: file.write(b"half a file"))
    guard(files.os, "fsync")
    guard(files.os, "replace")
    guard(files.os, "rename")
    guard(files.shutil, "rmtree", lambda folder: [os.unlink(file) for file in sorted(Path(folder).iterdir())[:1]])
    return done


def save_best(directory: Path, value: float) -> None:
    """What rank 0 of two does; rank 1 writes its file once room is made."""
    waited = []

    def agree(problem: str) -> str:
        waited.append(1)
        if len(waited) == 2:
            save_shard(directory, "best.new", half_of_best(value + 0.5), 1)
        return problem

    save_checkpoint(directory, "best", half_of_best(value), mp_rank=0, mp_size=2, is_first_rank=True, agree=agree,
                    best_iteration=int(value))


def half_of_best(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"module": {"word_embeddings.weight": torch.full((2, 2), value)}}


def loaded(path: Path) -> float:
    """The value of the loaded "best"; both halves must be of one save."""
    first, second = (read_module_state(path, mp_rank=rank, mp_size=2)[0]["word_embeddings.weight"] for rank in (0, 1))
    assert torch.equal(second, first + 0.5)
    return first[0, 0].item()


def test_best_survives_a_kill_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, step = set(), 0
    while True:
        directory = tmp_path / str(step)
        save_best(directory, 1.0)
        with monkeypatch.context() as patch:
            done = kill_at(patch, step)
            try:
                save_best(directory, 2.0)
                killed = False
            except Killed:
                killed = True
        for path in (directory, directory / "best"):
            assert loaded(path) in (1.0, 2.0)
        seen.add((loaded(directory), str(sorted(child.name for child in directory.iterdir()))))
        # The next save starts from whatever is there, may be killed itself, and a whole one ends clean.
        with monkeypatch.context() as patch:
            kill_at(patch, 2)
            with pytest.raises(Killed):
                save_best(directory, 3.0)
        assert loaded(directory) in (1.0, 2.0)
        save_best(directory, 4.0)
        assert loaded(directory) == 4.0 and read_tracker(directory, BEST_TRACKER) == "4"
        assert sorted(child.name for child in directory.iterdir()) == sorted([LATEST_TRACKER, BEST_TRACKER, "best"])
        if not killed:
            break
        step += 1
    assert step > 12 and done.count("rename") >= 2
    assert {value for value, _ in seen} == {1.0, 2.0}
    assert any("best.old" in names and "'best'" not in names for _, names in seen), "the gap between the renames"


def test_a_first_save_that_is_killed_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, 1)
        with pytest.raises(Killed):
            save_best(tmp_path / "run", 1.0)
    with pytest.raises(FileNotFoundError):
        resolve_checkpoint(tmp_path / "run")
    save_best(tmp_path / "run", 2.0)
    assert loaded(tmp_path / "run") == 2.0


def test_latest_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(directory: Path, tag: str) -> None:
        save_checkpoint(directory, tag, {"module": {"x": torch.tensor(float(tag))}}, mp_rank=0, mp_size=1,
                        is_first_rank=True, agree=lambda problem: problem, training_state=True)

    step, tags = 0, []
    while True:
        directory = tmp_path / str(step)
        save(directory, "100")
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                save(directory, "200")
                break
            except Killed:
                step += 1
        locations = [resolve_checkpoint(directory, training_state=training) for training in (False, True)]
        for location in locations:
            assert read_module_state(location, mp_rank=0, mp_size=1)[0]["x"].item() == float(location.tag)
        tags.append([location.tag for location in locations])
    # Killed in the very last step (making the rename durable), the new one counts; before, "latest" is the old one.
    assert tags == sorted(tags) and ["100", "100"] in tags and ["100", "200"] in tags
    assert tags.count(["200", "200"]) == 1


def test_order_of_steps_and_who_does_them(tmp_path: Path) -> None:
    log: list[str] = []

    def save(rank: int, payload: dict | None) -> None:
        def agree(problem: str) -> str:
            found = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
            log.append(f"{rank}: {' '.join(found)}")
            if rank == 0 and log.count(log[-1]) == 2:  # room is made: the other ranks write
                save(1, {"module": {}})
                save(1, None)
            return problem

        save_checkpoint(tmp_path, "7", payload, mp_rank=rank, mp_size=2, is_first_rank=rank == 0, agree=agree,
                        more={f"optimizer_{rank}": {}} if payload else {})

    save(0, {"module": {}})
    mine, theirs = ("mp_rank_00_model_states.pt", "optimizer_0"), ("mp_rank_01_model_states.pt", "optimizer_1")
    others = " ".join(f"7.new/{name}" for name in theirs)
    both = sorted([*mine, *theirs])
    assert log == [
        "0: ", "0: ", "1: ", "1: ", f"1: {others}", f"1: {others}", *[f"1: {others}"] * 4,
        f"0: {' '.join(f'7.new/{name}' for name in both)}",
        f"0: {' '.join(f'7/{name}' for name in both)} {LATEST_TRACKER}"]


@pytest.mark.parametrize("full_at", range(6))
def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        full_at: int) -> None:
    save_best(tmp_path, 1.0)
    (tmp_path / "77.new").mkdir()
    with monkeypatch.context() as patch:
        calls = []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) > full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            save_best(tmp_path, 2.0)
    assert loaded(tmp_path) in ((1.0,) if full_at < 4 else (1.0, 2.0))
    save_best(tmp_path, 3.0)
    assert loaded(tmp_path) == 3.0
    assert sorted(child.name for child in tmp_path.iterdir()) == sorted([LATEST_TRACKER, BEST_TRACKER, "best"])


def test_all_ranks_fail_if_one_cannot_write(tmp_path: Path) -> None:
    save_best(tmp_path, 1.0)
    answers = iter(["", "", "rank 1: no space left"])
    with pytest.raises(OSError, match="another rank could not save the checkpoint: rank 1: no space left"):
        save_checkpoint(tmp_path, "best", half_of_best(2.0), mp_rank=0, mp_size=2, is_first_rank=True,
                        agree=lambda problem: next(answers))
    assert loaded(tmp_path) == 1.0 and not (tmp_path / "best.new").exists(), "the space is given back"


def test_publishing_too_early_is_noticed(tmp_path: Path) -> None:
    save_shard(tmp_path, "5", {"module": {}}, 0)
    with pytest.raises(RuntimeError, match="has 1 model files, expected 2"):
        publish(tmp_path, "5", mp_size=2)
    with pytest.raises(RuntimeError, match="has 0 model files"):
        publish(tmp_path, "6")
    assert read_tracker(tmp_path) is None


def test_trackers_are_separate(tmp_path: Path) -> None:
    for tag in ("100", "best"):
        save_shard(tmp_path, tag, {"module": {}}, 0)
    publish(tmp_path, "best", best_iteration=80)
    publish(tmp_path, "100", tracker=False, training_state=True)
    assert resolve_checkpoint(tmp_path).tag == "best"
    assert resolve_checkpoint(tmp_path, training_state=True).tag == "100"
    assert read_tracker(tmp_path, BEST_TRACKER) == "80"


def test_module_payload(tmp_path: Path) -> None:
    model = nn.Module()
    whole = torch.randn(10, 1000)
    model.query = set_shard_spec(nn.Parameter(whole[:2]), QKV_ROWS)
    model.frozen = set_shard_spec(nn.Parameter(torch.ones(2), requires_grad=False), ROWS)
    model.plain = nn.Parameter(torch.ones(2))
    model.register_buffer("buffer", torch.zeros(1))
    payload = module_payload(model)
    assert set(payload["module"]) == {"query", "frozen", "plain", "buffer"}
    assert payload["shard_specs"] == {"query": [0, 3], "frozen": [0, 1], "plain": [None, 1], "buffer": [None, 1]}
    assert payload["module"]["query"].untyped_storage().nbytes() == 2 * 1000 * 4
    assert not payload["module"]["query"].requires_grad
    assert set(module_payload(model, only_trainable=True)["module"]) == {"query", "plain"}
    path = save_shard(tmp_path, "1", payload, 0)
    assert torch.equal(safe_load(path)["module"]["query"], whole[:2])
