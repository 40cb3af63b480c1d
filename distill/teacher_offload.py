"""Teachers whose weights lie on the CPU and visit the device one at a time (``--teacher_offload``).

The values that are computed with are the same ones, so losses are those of teachers that stay on the device. Frozen
weights need not be copied back: leaving drops the device's copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


class TeacherOffload:
    """Keeps the weights of at most one teacher on the device.

    Args:
        teachers: frozen models on the CPU.
        device: where they run.
        fetch: makes the copy on the device; default: ``tensor.to(device)``.

    Attributes:
        resident: teacher number -> bytes of its weights on the device now.
        peak_bytes: the largest sum of ``resident`` so far.
    """

    def __init__(self, teachers: Sequence[nn.Module], device: torch.device,
                 fetch: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self._teachers = list(teachers)
        self._fetch = fetch or (lambda tensor: tensor.to(device, non_blocking=True))
        self.resident: dict[int, int] = {}
        self.peak_bytes = 0
        if device.type == "cuda":  # from pinned memory the copy overlaps with the student's work
            for tensor in self._tensors(range(len(self._teachers))):
                tensor.data = tensor.data.pin_memory()

    @contextmanager
    def __call__(self, t_no: int) -> Iterator[None]:
        """Inside, teacher ``t_no`` can run. Raises RuntimeError while another one is on the device."""
        if self.resident:
            raise RuntimeError(f"teacher {t_no} cannot visit the device while teacher {next(iter(self.resident))} does")
        homes = [(tensor, tensor.data) for tensor in self._tensors([t_no])]
        try:
            for tensor, home in homes:
                tensor.data = self._fetch(home)
                self.resident[t_no] = self.resident.get(t_no, 0) + tensor.numel() * tensor.element_size()
            self.peak_bytes = max(self.peak_bytes, sum(self.resident.values()))
            yield
        finally:
            for tensor, home in homes:
                tensor.data = home
            self.resident.clear()

    def _tensors(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """Parameters and buffers of some teachers, a shared one once."""
        return list({id(tensor): tensor for number in numbers
                     for tensor in (*self._teachers[number].parameters(), *self._teachers[number].buffers())}.values())
