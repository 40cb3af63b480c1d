"""Random states as tensors and plain numbers, so that a checkpoint can be read in the safe mode.

The keys are the published ones. Files of older programs hold NumPy's state as it comes from NumPy; it is read too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch


def capture_rng_states(tracker_states: Mapping[str, torch.Tensor] | None = None,
                       cuda_state: torch.Tensor | None = None) -> dict[str, Any]:
    """The states of Python, NumPy and torch on this rank, with those that the caller brings."""
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    return {
        "random_rng_state": random.getstate(),
        "np_rng_state": (
            str(name), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": cuda_state,
        "rng_tracker_states": dict(tracker_states or {}),
    }


def restore_rng_states(states: Mapping[str, Any]) -> None:
    """Put back what :func:`capture_rng_states` took from Python, NumPy and torch; the others are the caller's.

    Raises:
        ValueError: an entry is missing (a checkpoint without RNG states; ``--no-load-rng`` goes on without).
    """
    missing = [key for key in ("random_rng_state", "np_rng_state", "torch_rng_state") if states.get(key) is None]
    if missing:
        raise ValueError(f"the checkpoint has no {', '.join(missing)}; add --no-load-rng to go on without")
    version, internal, gauss = states["random_rng_state"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["np_rng_state"]
    keys = keys.numpy() if isinstance(keys, torch.Tensor) else keys
    numpy.random.set_state((name, keys.astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(states["torch_rng_state"])
