"""SIGTERM during an evaluation: the state is saved at once, and the resumed run evaluates first."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.training import evaluate
from distill.training.setup import STOPPED
from model.parallel.groups import parallel_state
from tests.distill.training.small_runs import exact, finetune_flags, pretrain_flags, records, run
from tests.helpers.distributed import run_distributed

STAGES = {"pretrain": (pretrain_flags, "forward_step", 2), "finetune": (finetune_flags, "_predicted", 1)}


def ask_to_stop_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose call number ``count`` finds that SIGTERM has come."""
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **options)

    return counted


@pytest.mark.parametrize("stage", STAGES)
def test_the_resumed_run_is_the_same(stage: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags_of, function, calls = STAGES[stage]
    flags = flags_of(world, **{"eval-batch-size": 2, "eval-iters": 3})
    assert run(stage, [*flags, f"--save={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        # The training loop has a reference of its own to what is replaced here.
        patch.setattr(evaluate, function, ask_to_stop_at(calls, getattr(evaluate, function)))
        assert run(stage, [*flags, f"--save={tmp_path / 'cut'}"]) == STOPPED
    kind = "validation" if stage == "pretrain" else "metrics"
    assert records(tmp_path / "cut", kind) == []
    stopped_at = records(tmp_path / "cut")[-1]["iteration"]
    assert 0 < stopped_at < records(tmp_path / "whole")[-1]["iteration"]

    assert run(stage, [*flags, f"--save={tmp_path / 'cut'}", f"--load={_run_folder(tmp_path / 'cut')}"]) == 0
    assert exact(tmp_path / "cut") == exact(tmp_path / "whole")
    assert _scores(tmp_path / "cut", kind) == _scores(tmp_path / "whole", kind) != []


def _run_folder(save: Path) -> Path:
    (folder,) = save.iterdir()
    return folder


def _scores(folder: Path, kind: str) -> list[dict[str, Any]]:
    clock = ("time", "seconds")
    return [{name: value for name, value in record.items() if name not in clock} for record in records(folder, kind)]


def stopped_evaluations(who: int) -> list[Any]:
    """Rank ``who`` is asked after its second batch; data-parallel ranks have 3 and 5 batches. What each rank saw."""
    state, seen = parallel_state(), []
    rank = state.data_rank * state.model_size + state.model_rank
    session = type("Session", (), {
        "should_stop": lambda self: rank == who and len(seen) == 2,
        "run": type("Run", (), {"is_training": True})(), "model": type("Model", (), {
            "eval": lambda self: None, "train": lambda self: None})(),
        "runtime": type("Runtime", (), {"device": "cpu"})()})()
    try:
        with evaluate.evaluating(session) as evaluation:
            for batch in evaluation.over(range(3 + 2 * state.data_rank)):
                seen.append(batch)
    except evaluate.EvaluationStopped:
        return [*seen, "stopped"]
    return seen


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "who", "expected"), [
    (1, 1, [[0, 1, 2, "stopped"], [0, 1, "stopped"]]), (1, 0, [[0, 1, "stopped"], [0, 1, 2, 3, 4, "stopped"]]),
    (2, 1, [[0, 1, "stopped"]] * 2), (1, 7, [[0, 1, 2], [0, 1, 2, 3, 4]])])
def test_ranks_stop_together(size: int, who: int, expected: list[list[Any]]) -> None:
    assert run_distributed(stopped_evaluations, 2, who, model_parallel_size=size) == expected
