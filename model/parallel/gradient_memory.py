"""Memory for gradients of the size of the logits, used again from step to step on a CPU.

What the C library gets from the operating system for so large a tensor goes back with it, and every page of the next
one is cleared and mapped anew: 80 to 150 ms for 250 MB, a third of a distillation loss on 2048 x 30592 logits. So a
block is kept, and handed out again as soon as no tensor refers to it any more; whoever holds on to a gradient keeps
its block, and the next gradient takes another. An accelerator's allocator does this by itself.
"""

from __future__ import annotations

import sys
from collections import deque

import numpy as np
import torch

#: Below this many bytes the C library keeps freed memory by itself (its limit for a mapping of its own grows to it).
SMALLEST_BLOCK = 1 << 25
#: Unused blocks that are kept: a step with a loss on labels and one towards a teacher holds two gradients at once.
KEPT_BLOCKS = 2

_blocks: deque[np.ndarray] = deque()


def gradient_like(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of the shape, dtype and device of ``x``, with any content; it may not be resizable."""
    size = x.numel() * x.element_size()
    if x.device.type != "cpu" or size < SMALLEST_BLOCK or type(x) is not torch.Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    block = _block(size)
    # A tensor made from an array holds a reference to it, and so does whatever shares the tensor's storage.
    gradient = torch.from_numpy(block[:size]).view(x.dtype).view(x.shape)
    _blocks.append(block)
    return gradient


def release_gradient_memory() -> None:
    """Give the unused blocks back to the operating system."""
    _unused_block(0, keep=0)


def _block(size: int) -> np.ndarray:
    """An unused block of ``size`` to twice as many bytes, or a new one, that nobody else sees."""
    found = _unused_block(size, keep=KEPT_BLOCKS - 1)
    return torch.empty(size, dtype=torch.uint8, device="cpu").numpy() if found is None else found


def _unused_block(size: int, keep: int) -> np.ndarray | None:
    """Take out an unused block that fits, and let go of the other unused ones but ``keep``.

    A block is looked at only after it has been taken out, which is atomic: no two threads hold the same one.
    """
    found = None
    for _ in range(len(_blocks)):
        try:
            block = _blocks.popleft()
        except IndexError:  # other threads hold the rest
            break
        if sys.getrefcount(block) > 2:  # more than this variable and the argument: in use
            _blocks.append(block)
        elif found is None and 0 < size <= block.nbytes <= 2 * size:
            found = block
        elif keep > 0:
            _blocks.append(block)
            keep -= 1
    return found
