"""Work on [n, v] tensors in chunks of rows that stay in a core's cache.

Legend: ``n`` rows (all axes but the last), ``v`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Elements of one chunk of rows: for each CPU thread 512 KiB in float32, so that a chunk stays in the core's cache
#: through all its passes (a fifth to a half less time than 4 MiB); 64 MiB on an accelerator, where a small kernel
#: costs its launch.
CPU_CHUNK_ELEMENTS = 1 << 17
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24


def compute_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype losses compute in: at least float32; float64 stays float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def row_chunks(x: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same rows of ``x`` [n, v] and of the others [n, ...], as views, so that a chunk of ``x`` has at most so many
    elements (or one row). Cut up beforehand: an index at each use would cost as much as the arithmetic."""
    if x.shape[0] == 0:  # which split() makes one chunk of
        return iter(())
    step = _chunk_rows(x)
    return zip(*(tensor.split(step) for tensor in (x, *others)))


def _chunk_rows(x: torch.Tensor) -> int:
    elements = (CPU_CHUNK_ELEMENTS * torch.get_num_threads() if x.device.type == "cpu"
                else ACCELERATOR_CHUNK_ELEMENTS)
    return max(1, elements // max(1, x.shape[-1]))


def scratch_chunks(count: int, dtype: torch.dtype, x: torch.Tensor,
                   *others: torch.Tensor) -> Iterator[tuple[list[torch.Tensor], *tuple[torch.Tensor, ...]]]:
    """:func:`row_chunks`, each after ``count`` tensors of its size to work in: the same memory every time."""
    step = min(x.shape[0], _chunk_rows(x))
    buffers = list(torch.empty((count, step, x.shape[-1]), dtype=dtype, device=x.device).unbind())
    for chunks in row_chunks(x, *others):
        rows = chunks[0].shape[0]
        yield buffers if rows == step else [buffer[:rows] for buffer in buffers], *chunks


def given(*tensors: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Those that are not None."""
    return (tensor for tensor in tensors if tensor is not None)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., v] -> [n, v], a view where the layout allows it."""
    return x.reshape(-1, x.shape[-1])
