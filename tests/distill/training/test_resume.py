"""A run that is interrupted and resumed gives, bit for bit, the numbers of the uninterrupted one (with dropout)."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from distill.methods.kd import KD
from distill.training.setup import STOPPED
from model.checkpoint.naming import read_tracker
from tests.distill.training.small_runs import (
    deepspeed_flags,
    exact,
    finetune_flags,
    pretrain_flags,
    records,
    run,
    run_on_ranks,
)

ENGINES = ("plain", "zero-0", "zero-1", "zero-2", "plain-bf16", "zero-1-bf16")


def engine_flags(folder: Path, engine: str, batch_size: int) -> list[str]:
    bf16 = engine.endswith("bf16")
    if engine.startswith("plain"):
        changes = [f"--batch-size={batch_size}", "--gradient-accumulation-steps=2"]
        return [*changes, "--bf16"] if bf16 else changes
    stage = int(engine.split("-")[1])
    return deepspeed_flags(folder, stage, batch_size=batch_size, accumulation=2, bf16=bf16)


def pretrain_job(world: Path, folder: Path, engine: str, batch_size: int) -> tuple[str, list[str]]:
    """6 iterations in one go."""
    common = [*pretrain_flags(world, **{"save-interval": 3}), *engine_flags(folder, engine, batch_size)]
    return "pretrain", [*common, f"--save={folder / engine}"]


def resumed_pretrain_job(world: Path, folder: Path, engine: str, batch_size: int) -> tuple[str, list[str]]:
    """The last 3 iterations once more, from the checkpoint in the middle. The first run's folder carries the time."""
    common = [*pretrain_flags(world, **{"save-interval": 3}), *engine_flags(folder, engine, batch_size)]
    (run_folder,) = (folder / engine).iterdir()
    return "pretrain", [*common, f"--save={folder / engine}-rest", "--new-save-directory",
                        f"--load={run_folder / '3'}"]


def finetune_job(world: Path, folder: Path, engine: str, batch_size: int) -> tuple[str, list[str]]:
    """2 epochs in one go, saved after every step."""
    common = [*finetune_flags(world, **{"save_interval_time": 1e-9}), *engine_flags(folder, engine, batch_size)]
    return "finetune", [*common, f"--save={folder / engine}"]


def resumed_finetune_job(world: Path, folder: Path, engine: str, batch_size: int) -> tuple[str, list[str]]:
    """The same from the middle of the second epoch."""
    common = [*finetune_flags(world), *engine_flags(folder, engine, batch_size)]
    start = sorted(int(path.name) for path in (folder / engine / "copa").iterdir() if path.name.isdigit())[-4]
    return "finetune", [*common, f"--save={folder / engine}-rest", f"--load={folder / engine / 'copa' / str(start)}"]


def assert_resumed(folder: Path, engine: str) -> None:
    whole, rest = folder / engine, folder / f"{engine}-rest"
    found = exact(rest)
    start = found[0]["iteration"]
    assert len(found) >= 3 and 1 < start and found == exact(whole, after=start - 1)
    for kind in ("validation", "metrics"):
        assert records(rest, kind) == [r for r in records(whole, kind) if r["iteration"] >= start]


JOBS = {"pretrain": (pretrain_job, resumed_pretrain_job), "finetune": (finetune_job, resumed_finetune_job)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stage", JOBS)
def test_one_process(world: Path, tmp_path: Path, stage: str, engine: str) -> None:
    for make in JOBS[stage]:
        assert run(*make(world, tmp_path, engine, 4)) == 0
    assert_resumed(tmp_path, engine)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", JOBS)
def test_two_ranks(world: Path, tmp_path: Path, stage: str) -> None:
    engines = ("plain", "zero-0", "zero-1", "zero-2", "zero-2-bf16")
    for make in JOBS[stage]:
        run_on_ranks([make(world, tmp_path, engine, 2) for engine in engines], 2)
    for engine in engines:
        assert_resumed(tmp_path, engine)


def test_sigterm_saves_and_the_next_start_goes_on(world: Path, tmp_path: Path) -> None:
    flags = [*pretrain_flags(world, **{"train-iters": 300, "eval-interval": 0}), f"--save={tmp_path / 'run'}"]
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert run("pretrain", flags) == STOPPED
    timer.join()
    (folder,) = (tmp_path / "run").iterdir()
    stopped = int(read_tracker(folder, "latest_training_state.txt"))
    assert 0 < stopped < 300
    again = [*pretrain_flags(world, **{"train-iters": stopped + 2, "eval-interval": 0, "lr-decay-iters": 300})]
    assert run("pretrain", [*again, f"--load={folder}"]) == 0
    assert [record["iteration"] for record in records(folder)] == list(range(1, stopped + 3)), "one run, one record"
    assert read_tracker(folder, "latest_checkpointed_iteration.txt") == str(stopped + 2)


def test_the_state_of_a_method_is_kept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[dict[str, int]] = []
    monkeypatch.setattr(KD, "method_state", lambda self: {"unlocked": 3}, raising=False)
    monkeypatch.setattr(KD, "load_method_state", lambda self, state: restored.append(state), raising=False)
    flags = [*pretrain_flags(world, **{"train-iters": 1}), f"--save={tmp_path}", "--student_model=kd",
             "--distill_pt_soft", "--teacher_load_pretrained=none", "--teacher_random_para", "--teacher_num_layers=2",
             "--teacher_hidden_size=32", "--teacher_num_attention_heads=4"]
    assert run("pretrain", flags) == 0
    (folder,) = tmp_path.iterdir()
    assert run("pretrain", [*flags, f"--load={folder}"]) == 0
    assert restored == [{"unlocked": 3}]


def test_best_keeps_the_marker_and_training_state_has_its_own(world: Path, tmp_path: Path) -> None:
    assert run("finetune", [*finetune_flags(world, **{"save-epoch": 1}), f"--save={tmp_path}"]) == 0
    folder = tmp_path / "copa"
    assert read_tracker(folder, "latest_checkpointed_iteration.txt") == "best"
    assert read_tracker(folder, "latest_training_state.txt") == "18"
    best = torch.load(folder / "best" / "mp_rank_00_model_states.pt", weights_only=True)
    assert "optimizer" not in best and best["module"]


@pytest.mark.parametrize(("change", "message"), [
    (["--model-parallel-size=1", "--num-layers=1"], "num-layers"),
    (["--bf16"], "optimizer state is laid out"),
])
def test_a_checkpoint_that_does_not_fit(world: Path, tmp_path: Path, change: list[str], message: str) -> None:
    assert run("pretrain", [*pretrain_flags(world, **{"train-iters": 1}), f"--save={tmp_path}"]) == 0
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match=message):
        run("pretrain", [*pretrain_flags(world), *change, f"--load={folder}"])


def test_weights_alone_with_no_load_optim(world: Path, tmp_path: Path) -> None:
    assert run("pretrain", [*pretrain_flags(world, **{"train-iters": 2}), f"--save={tmp_path}", "--no-save-optim"]) == 0
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match="--no-load-optim"):
        run("pretrain", [*pretrain_flags(world), f"--load={folder}"])
    resumed = [*pretrain_flags(world, **{"train-iters": 3}), f"--load={folder}", "--no-load-optim"]
    assert run("pretrain", resumed) == 0
    assert records(folder)[-1]["iteration"] == 3
