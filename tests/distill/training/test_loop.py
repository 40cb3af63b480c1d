"""The loop: what it skips, when it acts, what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.training import loop
from distill.training.forward_step import StepOutput, forward_step
from distill.training.loop import crossed
from tests.distill.training.small_runs import (
    NO_DROPOUT,
    deepspeed_flags,
    losses,
    pretrain_flags,
    records,
    run,
)
from tests.helpers.distributed import run_distributed


@pytest.mark.parametrize(("interval", "before", "after", "expected"), [
    (3, 2, 3, True), (3, 3, 4, False), (3, 2, 5, True), (3, 0, 2, False), (0, 0, 9, False), (1, 4, 5, True)])
def test_crossed(interval: int, before: int, after: int, expected: bool) -> None:
    assert crossed(interval, before, after) is expected


def break_losses(monkeypatch: pytest.MonkeyPatch, broken: set[tuple[int, int]]) -> None:
    """Makes the loss NaN at some (iteration, micro-step)."""
    def step(context: Any, batch: Any, **kwargs: Any) -> StepOutput:
        output = forward_step(context, batch, **kwargs)
        if context.run.is_training and (context.run.iteration, context.run.micro_step) in broken:
            return replace(output, loss=output.loss * float("nan"))
        return output

    monkeypatch.setattr(loop, "forward_step", step)


@pytest.mark.parametrize("engine", ["plain", "zero-0", "zero-2"])
def test_a_nan_loss_adds_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str,
                                 caplog: pytest.LogCaptureFixture) -> None:
    extra = ["--batch-size=4", "--gradient-accumulation-steps=2"]
    if engine != "plain":
        extra = deepspeed_flags(tmp_path, int(engine[-1]), batch_size=4, accumulation=2)
    flags = [*pretrain_flags(world, **{"eval-interval": 0, "warmup": 0}), *NO_DROPOUT, *extra]
    break_losses(monkeypatch, {(1, 0), (2, 1), (3, 0), (3, 1)})
    assert run("pretrain", [*flags, f"--log-dir={tmp_path / 'logs'}"]) == 0
    found = records(tmp_path / "logs")
    assert [record.get("skipped_micro_batches", 0) for record in found] == [0, 1, 1, 2, 0, 0]
    assert found[3]["loss"] is None and found[3]["grad_norm"] is None, "nothing was left to step with"
    assert all(record["grad_norm"] > 0 for record in found if record["iteration"] != 4)
    assert found[4]["lr"] == found[3]["lr"], "the schedule waits for the step that was left out"
    assert caplog.text.count("Found NaN loss, skip backward") == 4
    # Half of an iteration has about half of the loss, as the other half adds nothing.
    assert found[1]["loss"] == pytest.approx(found[0]["loss"] / 2, rel=0.2)


def test_a_run_that_never_steps_ends(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "IDLE_STEPS", 3)
    break_losses(monkeypatch, {(0, 0), (1, 0), *((iteration, 0) for iteration in range(3, 9))})
    with pytest.raises(ValueError, match=r"3 steps in a row left the weights as they were.*iteration 6\)"):
        run("pretrain", pretrain_flags(world, **{"train-iters": 9, "eval-interval": 0}))


def test_terms_of_several_devices_are_averaged() -> None:
    """A method may record plain numbers, which lie on the CPU; there is no second device here but "meta"."""
    parts = {"a": torch.zeros((), device="meta"), "b": torch.tensor(0.5)}
    with pytest.raises(Exception, match="meta"):
        torch.stack(list(parts.values()))
    with pytest.raises(Exception, match=r"(?i)meta tensor|item"):  # moved there together; it has no values to read
        loop._mean_parts(parts, torch.device("meta"))
    assert loop._mean_parts({"b": torch.tensor(0.5)}, torch.device("cpu")) == {"b": 0.5}


def nan_on_one_rank(flags: list[str]) -> int:
    """Only the second data-parallel rank sees a NaN."""
    rank = torch.distributed.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        break_losses(patch, {(1, 0)} if rank == 1 else set())
        return run("pretrain", flags)


@pytest.mark.distributed
def test_a_nan_on_one_rank_is_skipped_by_all(world: Path, tmp_path: Path) -> None:
    flags = [*pretrain_flags(world, **{"train-iters": 3, "eval-interval": 0}), f"--log-dir={tmp_path}"]
    assert run_distributed(nan_on_one_rank, 2, flags) == [0, 0]
    assert [record["loss"] is None for record in records(tmp_path)] == [False, True, False]


def test_intervals_and_records(world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = pretrain_flags(world, **{"train-iters": 7, "log-interval": 2, "eval-interval": 3, "save-interval": 4})
    assert run("pretrain", [*flags, f"--save={tmp_path}", "--experiment-name=named"]) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("named_")
    logs = folder / "tensorboard"
    train = records(folder)
    assert [record["iteration"] for record in train] == [2, 4, 6, 7], "and at the end"
    assert {"loss", "mean_loss", "hard_loss", "lr", "grad_norm", "tokens_per_second", "ms_per_iteration",
            "epoch"} <= set(train[0])
    assert [record["iteration"] for record in records(folder, "validation")] == [3, 6, 7]
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["0", "4", "7"]
    assert (folder / "latest_checkpointed_iteration.txt").read_text().strip() == "7"
    assert json.loads((logs / "config.json").read_text())["hidden_size"] == 32
    (start,) = records(folder, "start")
    assert start["parameters"] == start["trained_parameters"] > 30000 and start["iterations"] == 7
    assert records(folder, "end")[0]["iteration"] == 7
    assert any(path.name.startswith("events.out.tfevents") for path in logs.iterdir())
    line = next(message for message in caplog.messages if " iteration        2/       7 |" in message)
    assert "elapsed time per iteration/sample (ms)" in line and "learning rate" in line and "lm loss" in line


def test_tensorboard_has_the_published_tags(world: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run("pretrain", [*pretrain_flags(world, **{"train-iters": 3}), f"--log-dir={tmp_path}"]) == 0
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"Train/lr", "Train/train_loss", "Train/train_loss_iter", "Train/elapsed_time", "Train/valid_loss",
            "Train/valid_ppl", "log_time/forward", "log_time/backward", "log_time/optimizer",
            "log_time/batch generator"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("Train/train_loss_iter")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("Train/train_loss_iter")] == pytest.approx(losses(tmp_path))


def test_without_save_nothing_is_written(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("pretrain", pretrain_flags(world, **{"train-iters": 2})) == 0
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_but_records(world: Path, tmp_path: Path) -> None:
    flags = [*pretrain_flags(world, **{"train-iters": 2}), f"--save={tmp_path}", "--custom_no_save_checkpoint"]
    assert run("pretrain", flags) == 0
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["tensorboard"] and len(records(folder)) == 2
