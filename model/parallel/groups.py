"""Who is in which process group.

With 8 ranks and model-parallel size 2 the model-parallel groups are consecutive ranks, [0 1] [2 3] [4 5] [6 7], and the
data-parallel groups take every second rank, [0 2 4 6] [1 3 5 7]. Neighbouring ranks sit on one node, where the
frequent model-parallel collectives are cheap.

Everything works without a process group: one process is rank 0 of a group of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

#: A collective may wait for the slowest rank's tokenising of a corpus.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
#: For the moment when the ranks find each other: one that has died by then is not waited for as long. (A launcher ends
#: the others at once; not every way of starting ranks has one.)
JOINING_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class ParallelState:
    """Position of this process. The groups are None where torch.distributed is not initialised."""

    model_group: dist.ProcessGroup | None
    model_rank: int
    model_size: int
    data_group: dist.ProcessGroup | None
    data_rank: int
    data_size: int


_SINGLE = ParallelState(None, 0, 1, None, 0, 1)
_state: ParallelState | None = None


def initialize_model_parallel(model_parallel_size: int = 1) -> None:
    """Create the groups. Every rank of the world has to call it; the order of creation is the same on all ranks.

    Raises:
        ValueError: the world size is not a multiple of ``model_parallel_size``.
        RuntimeError: called twice without :func:`destroy_model_parallel`.
    """
    global _state
    if _state is not None:
        raise RuntimeError("the model-parallel groups exist already; call destroy_model_parallel() first")
    _state = make_parallel_state(model_parallel_size)


def make_parallel_state(model_parallel_size: int, flag: str = "--model-parallel-size") -> ParallelState:
    """Groups of any size, beside the current ones: for a model that is cut in another way (see
    :func:`use_parallel_state`). Every rank of the world has to call it.

    Raises:
        ValueError: the world size is not a multiple of ``model_parallel_size``.
    """
    if not dist.is_initialized():
        if model_parallel_size != 1:
            raise ValueError(
                f"{flag}={model_parallel_size} needs {model_parallel_size} processes, there is 1; "
                f"launch with `deepspeed --num_gpus={model_parallel_size} …` or `torchrun`")
        return _SINGLE
    world_size, rank = dist.get_world_size(), dist.get_rank()
    if world_size % model_parallel_size != 0:
        raise ValueError(
            f"{flag}={model_parallel_size} does not divide the number of processes ({world_size}); "
            f"launch a multiple of {model_parallel_size} processes")
    data_group = model_group = None
    for start in range(model_parallel_size):
        ranks = list(range(start, world_size, model_parallel_size))
        group = _new_group(ranks)
        if rank in ranks:
            data_group = group
    for start in range(0, world_size, model_parallel_size):
        ranks = list(range(start, start + model_parallel_size))
        group = _new_group(ranks)
        if rank in ranks:
            model_group = group
    return ParallelState(
        model_group, rank % model_parallel_size, model_parallel_size,
        data_group, rank // model_parallel_size, world_size // model_parallel_size)


def _new_group(ranks: list[int]) -> dist.ProcessGroup:
    group = dist.new_group(ranks, timeout=JOINING_TIMEOUT)
    if dist.get_rank() in ranks:
        distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT, group)
    return group


def join_process_group(backend: str, **options: Any) -> None:
    """:func:`torch.distributed.init_process_group` with the two time limits of this file. NCCL joins at its first
    collective, so there the longer one holds from the beginning."""
    if backend != "gloo":
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, **options)
        return
    dist.init_process_group(backend, timeout=JOINING_TIMEOUT, **options)
    distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT)
    distributed_c10d._get_default_store().set_timeout(COLLECTIVE_TIMEOUT)


@contextmanager
def use_parallel_state(state: ParallelState | None) -> Iterator[None]:
    """Inside, models are built, loaded and run under ``state``; None changes nothing."""
    global _state
    before = _state
    _state = before if state is None else state
    try:
        yield
    finally:
        _state = before


def destroy_model_parallel() -> None:
    """Forget the groups (the process group itself is left to whoever made it)."""
    global _state
    _state = None


def is_initialized() -> bool:
    return _state is not None


def parallel_state() -> ParallelState:
    """The current position; that of a single process before :func:`initialize_model_parallel`."""
    return _state or _SINGLE


# The six names below are what DeepSpeed asks its ``mpu`` object for: this module is that object.

def get_model_parallel_rank() -> int:
    return parallel_state().model_rank


def get_model_parallel_world_size() -> int:
    return parallel_state().model_size


def get_model_parallel_group() -> dist.ProcessGroup | None:
    return parallel_state().model_group


def get_data_parallel_rank() -> int:
    return parallel_state().data_rank


def get_data_parallel_world_size() -> int:
    return parallel_state().data_size


def get_data_parallel_group() -> dist.ProcessGroup | None:
    return parallel_state().data_group


def get_model_parallel_src_rank() -> int:
    """Global rank of the first rank of this model-parallel group, the one that reads data."""
    state = parallel_state()
    return state.data_rank * state.model_size
