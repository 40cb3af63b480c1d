"""What a process learns from its environment."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from distill.training.setup import Launch, detect_launch, running
from model.parallel import groups
from model.parallel.backend import launched_world_size
from tests.helpers.distributed import run_distributed

ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.mark.parametrize(("environ", "expected"), [
    ({}, Launch()),
    ({**ADDRESS, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Launch(5, 8, 1, 4)),
    ({**ADDRESS, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "8"}, Launch(1, 2, 1, 2)),
    ({**ADDRESS, "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
      "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Launch(3, 4, 1, 2)),
    ({**ADDRESS, "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2"}, Launch(2, 4, 2, 4)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Launch()),
])
def test_launchers(environ: dict[str, str], expected: Launch) -> None:
    assert detect_launch(environ) == expected
    assert launched_world_size(environ) == expected.world_size


def test_several_processes_need_a_common_port() -> None:
    with pytest.raises(ValueError, match="MASTER_PORT"):
        detect_launch({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"})


def arguments(**changes: object) -> SimpleNamespace:
    values = dict(deepspeed=False, local_rank=None, distributed_backend="gloo", model_parallel_size=1, seed=7)
    return SimpleNamespace(**{**values, **changes})


def test_alone_there_is_no_process_group_and_everything_is_undone() -> None:
    level = logging.getLogger("distill").level
    with pytest.raises(RuntimeError, match="boom"):
        with running(arguments()) as runtime:
            assert runtime.is_main and runtime.device.type == "cpu" and not dist.is_initialized()
            assert groups.is_initialized()
            first = torch.rand(1)
            raise RuntimeError("boom")
    assert not groups.is_initialized() and logging.getLogger("distill").level == level
    with running(arguments()):
        assert torch.equal(torch.rand(1), first), "seeded"


def enter_and_leave(model_parallel_size: int) -> tuple[int, int, int, bool]:
    """From the variables of a launcher, without a process group."""
    with running(arguments(model_parallel_size=model_parallel_size)) as runtime:
        position = runtime.launch.rank, groups.get_model_parallel_rank(), groups.get_data_parallel_rank()
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == int(os.environ["WORLD_SIZE"])
    return *position, dist.is_initialized()


@pytest.mark.distributed
def test_two_launched_processes_make_and_destroy_their_group() -> None:
    assert run_distributed(enter_and_leave, 2, 2, process_group=False) == [(0, 0, 0, False), (1, 1, 0, False)]
    assert run_distributed(enter_and_leave, 2, 1, process_group=False) == [(0, 0, 0, False), (1, 0, 1, False)]


def test_threads_are_shared_among_local_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    with running(arguments()):
        assert chosen == [], "OMP_NUM_THREADS decides"
    monkeypatch.delenv("OMP_NUM_THREADS")
    with running(arguments()):
        assert chosen == [12]
