"""The pool of gloo workers itself: results, reuse, failures, hung collectives."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from model.parallel import groups
from tests.helpers.distributed import RemoteTraceback, run_distributed

pytestmark = pytest.mark.distributed


def layout() -> tuple[int, int, int, int]:
    return dist.get_rank(), groups.get_model_parallel_rank(), groups.get_data_parallel_rank(), os.getpid()


def sum_of_ranks(start: torch.Tensor) -> torch.Tensor:
    total = start + dist.get_rank()
    dist.all_reduce(total)
    return total


def fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ValueError("--flag=7 is wrong")
    dist.all_reduce(torch.zeros(1))


def hang_on_rank_zero() -> None:
    if dist.get_rank() == 0:
        time.sleep(60)


def die() -> None:
    os._exit(3)


def environment() -> tuple[bool, str, str]:
    return dist.is_initialized(), os.environ["RANK"], os.environ["WORLD_SIZE"]


def test_groups_and_reuse_of_processes() -> None:
    first = run_distributed(layout, 4, model_parallel_size=2)
    assert [place[:3] for place in first] == [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]
    second = run_distributed(layout, 2)
    assert [place[:3] for place in second] == [(0, 0, 0), (1, 0, 1)]
    assert [place[3] for place in second] == [place[3] for place in first[:2]]


def test_arguments_and_results_are_tensors() -> None:
    results = run_distributed(sum_of_ranks, 2, torch.tensor([1.0, 2.0], requires_grad=False))
    assert all(torch.equal(result, torch.tensor([3.0, 5.0])) for result in results)


def test_the_first_failure_is_raised_with_its_traceback_and_the_pool_recovers() -> None:
    with pytest.raises(ValueError, match="--flag=7 is wrong") as caught:
        run_distributed(fail_on_rank_one, 2)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "fail_on_rank_one" in str(caught.value.__cause__)
    assert [place[0] for place in run_distributed(layout, 2)] == [0, 1]


def test_a_hung_rank_ends_by_timeout_with_its_stack() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0\] of 2(.|\n)*hang_on_rank_zero"):
        run_distributed(hang_on_rank_zero, 2, timeout=1.0)


def test_a_dead_worker_is_named() -> None:
    with pytest.raises(RuntimeError, match="died with exit code 3"):
        run_distributed(die, 1)


def test_without_process_group_only_the_environment_is_set() -> None:
    assert run_distributed(environment, 2, process_group=False) == [(False, "0", "2"), (False, "1", "2")]


def test_fresh_processes() -> None:
    shared = run_distributed(layout, 1)[0][3]
    assert run_distributed(layout, 1, fresh=True)[0][3] != shared
