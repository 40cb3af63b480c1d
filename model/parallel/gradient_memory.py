"""Memory for gradients of the size of the logits, used again from step to step on a CPU.

What the C library gets from the operating system for so large a tensor goes back with it, and every page of the next
one is cleared and mapped anew: 80 to 150 ms for 250 MB, a third of a distillation loss on 2048 x 30592 logits. So a
block is kept, and handed out again as soon as no tensor refers to it any more; whoever holds on to a gradient keeps
its block, and the next gradient takes another. An accelerator's allocator does this by itself.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
import torch

#: Below this many bytes the C library keeps freed memory by itself (its limit for a mapping of its own grows to it).
SMALLEST_BLOCK = 1 << 25
#: Unused blocks that are kept: a step with a loss on labels and one towards a teacher holds two gradients at once.
KEPT_BLOCKS = 2

_lock = threading.Lock()
_blocks: list[np.ndarray] = []


def gradient_like(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of the shape, dtype and device of ``x``, with any content."""
    size = x.numel() * x.element_size()
    if x.device.type != "cpu" or size < SMALLEST_BLOCK:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    with _lock:
        # A tensor made from an array holds a reference to it, and so does whatever shares the tensor's storage.
        return torch.from_numpy(_block(size)[:size]).view(x.dtype).view(x.shape)


def release_gradient_memory() -> None:
    """Give the unused blocks back to the operating system."""
    with _lock:
        _keep(0)


def _block(size: int) -> np.ndarray:
    """An unused block of ``size`` to twice as many bytes, or a new one."""
    for place in range(len(_blocks)):
        if _is_unused(place) and size <= _blocks[place].nbytes <= 2 * size:
            _blocks.append(_blocks.pop(place))  # the last one used comes last
            break
    else:
        _keep(KEPT_BLOCKS - 1)
        _blocks.append(torch.empty(size, dtype=torch.uint8).numpy())
    return _blocks[-1]


def _keep(count: int) -> None:
    """Let go of unused blocks, those used longest ago first, until at most ``count`` of them are left."""
    unused = [place for place in range(len(_blocks)) if _is_unused(place)]
    for place in reversed(unused[:max(0, len(unused) - count)]):
        del _blocks[place]


def _is_unused(place: int) -> bool:
    return sys.getrefcount(_blocks[place]) <= 2  # the list, and the argument of getrefcount
