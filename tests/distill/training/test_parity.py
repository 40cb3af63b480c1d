"""Engines, ZeRO stages, splits of the batch and model-parallel sizes give the same losses (dropout 0)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distill.training.small_runs import (
    NO_DROPOUT,
    deepspeed_flags,
    losses,
    pretrain_flags,
    records,
    run,
    run_on_ranks,
)

STEPS = 20


def flags(world: Path, logs: Path, *extra: str, **changes: Any) -> list[str]:
    return [*pretrain_flags(world, **{"train-iters": STEPS, "log-dir": logs, "eval-batch-size": 8, **changes}),
            *NO_DROPOUT, *extra]


@pytest.fixture(scope="module")
def reference(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one process with PyTorch alone, batch 8."""
    folder = tmp_path_factory.mktemp("reference")
    assert run("pretrain", flags(world, folder)) == 0
    found = losses(folder)
    assert len(found) == STEPS and found[-1] < found[0] - 0.1, "the model has to learn something"
    return found


def assert_equal(folder: Path, reference: list[float]) -> None:
    assert losses(folder) == pytest.approx(reference, abs=1e-5)


def test_accumulation_changes_nothing(world: Path, tmp_path: Path, reference: list[float]) -> None:
    run("pretrain", flags(world, tmp_path, **{"batch-size": 4, "gradient-accumulation-steps": 2}))
    assert_equal(tmp_path, reference)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed_in_one_process(world: Path, tmp_path: Path, reference: list[float], stage: int) -> None:
    run("pretrain", flags(world, tmp_path, *deepspeed_flags(tmp_path, stage, batch_size=4, accumulation=2)))
    assert_equal(tmp_path, reference)


@pytest.mark.distributed
def test_two_data_parallel_ranks(world: Path, tmp_path: Path, reference: list[float]) -> None:
    jobs = [("pretrain", flags(world, tmp_path / "plain", **{"batch-size": 4}))]
    for stage in (0, 1, 2):
        engine = deepspeed_flags(tmp_path, stage, batch_size=2, accumulation=2)
        jobs.append(("pretrain", flags(world, tmp_path / f"zero-{stage}", *engine)))
    run_on_ranks(jobs, 2)
    for name in ("plain", "zero-0", "zero-1", "zero-2"):
        assert_equal(tmp_path / name, reference)


@pytest.mark.distributed
def test_two_model_parallel_ranks(world: Path, tmp_path: Path, reference: list[float]) -> None:
    jobs = [("pretrain", flags(world, tmp_path / "plain", "--model-parallel-size=2"))]
    for stage in (0, 1, 2):
        engine = deepspeed_flags(tmp_path, stage, batch_size=8)
        jobs.append(("pretrain", flags(world, tmp_path / f"zero-{stage}", "--model-parallel-size=2", *engine)))
    run_on_ranks(jobs, 2, model_parallel_size=2)
    one = records(tmp_path / "plain")
    for name in ("plain", "zero-0", "zero-1", "zero-2"):
        assert_equal(tmp_path / name, reference)
        norms = [record["grad_norm"] for record in records(tmp_path / name)]
        assert norms == pytest.approx([record["grad_norm"] for record in one], rel=1e-4)


@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_bf16_runs(world: Path, tmp_path: Path, reference: list[float], engine: str) -> None:
    extra = ["--bf16"] if engine == "plain" else deepspeed_flags(tmp_path, 0, batch_size=8, bf16=True)
    run("pretrain", flags(world, tmp_path, *extra))
    assert losses(tmp_path) == pytest.approx(reference, abs=0.1)
    assert losses(tmp_path) != reference


def test_activation_checkpointing_changes_nothing(world: Path, tmp_path: Path, reference: list[float]) -> None:
    run("pretrain", flags(world, tmp_path, "--deepspeed-activation-checkpointing"))
    assert_equal(tmp_path, reference)
