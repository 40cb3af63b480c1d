"""Random state under model parallelism.

The default generators are equal on all ranks of a model-parallel group, so that dropout on replicated tensors drops the
same elements everywhere. Dropout on tensors that are cut (attention probabilities: each rank has other heads) draws
from a second, named state that differs between the ranks. Both states are saved in checkpoints and restored when an
activation checkpoint is recomputed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from model.parallel.groups import parallel_state

#: Distance between the default seed and the one of model-parallel rank 0 (that of Megatron-LM).
MODEL_PARALLEL_SEED_OFFSET = 2718

_tracked: torch.Tensor | None = None


def _get_device_state() -> torch.Tensor:
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.get_rng_state()


def _set_device_state(state: torch.Tensor) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch with ``seed``, and the model-parallel state with ``seed + 2718 + rank``."""
    global _tracked
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    default = _get_device_state()
    _seed_device(seed + MODEL_PARALLEL_SEED_OFFSET + parallel_state().model_rank)
    _tracked = _get_device_state()
    _set_device_state(default)


def _seed_device(seed: int) -> None:
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def model_parallel_rng() -> Iterator[None]:
    """Inside, random numbers come from the model-parallel state; outside, the default one goes on undisturbed.

    Before :func:`seed_everything` (a model used as a library) there is no second state, and the default one serves.
    """
    global _tracked
    if _tracked is None:
        yield
        return
    default = _get_device_state()
    _set_device_state(_tracked)
    try:
        yield
    finally:
        _tracked = _get_device_state()
        _set_device_state(default)


def get_tracker_state() -> torch.Tensor | None:
    """The model-parallel state, a copy; None before seeding."""
    return None if _tracked is None else _tracked.clone()


def set_tracker_state(state: torch.Tensor | None) -> None:
    global _tracked
    _tracked = None if state is None else state.clone()


class _Recompute(AbstractContextManager):
    """Puts the tracker back to where the forward pass found it, for the recomputation only."""

    def __init__(self, state: torch.Tensor | None) -> None:
        self._state, self._after = state, None

    def __enter__(self) -> None:
        self._after = get_tracker_state()
        set_tracker_state(self._state)

    def __exit__(self, *exc: Any) -> None:
        set_tracker_state(self._after)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def checkpoint_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    """``context_fn`` for ``torch.utils.checkpoint``: it saves the default states itself, but not the tracker. Without
    this, the gradients of a recomputed layer with dropout are wrong."""
    return _nothing(), _Recompute(get_tracker_state())
