"""Devices of a sweep: which a trial may use, which are in use, and ports and threads for the processes on them."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Below the range from which systems give ports to outgoing connections: those could take a port before it is used.
PORTS = range(10_000, 32_768)
_TRIED = 200
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

Asked = tuple[str, int]
"""Devices that a trial may be given, as in ``--gpus``, and how many of them it gets; 0 for all."""


def has_gpu(environ: Mapping[str, str]) -> bool:
    """Whether the training processes will find a GPU; answered without torch."""
    if "DS_ACCELERATOR" in environ:
        return environ["DS_ACCELERATOR"] != "cpu"
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return any(Path(file).exists() for file in _GPU_FILES)


def device_ids(gpus: str) -> tuple[str, ...]:
    """The devices of a ``--gpus`` text, each as ``host:id``: "2,3" and "host1:0,1@host2:0".

    Raises:
        ValueError: it is none.
    """
    found = []
    for part in gpus.split("@"):
        host, colon, ids = part.rpartition(":")
        words = ids.split(",")
        if not all(word.strip().isdigit() for word in words) or bool(colon) != bool(host):
            raise ValueError(f"--gpus={gpus}: give device numbers (0,1) or hosts with numbers (host1:0,1@host2:0,1)")
        found += [f"{host or 'localhost'}:{int(word)}" for word in words]
    if len(set(found)) < len(found):
        raise ValueError(f"--gpus={gpus}: a device stands there twice")
    return tuple(found)


def number_of_devices(gpus: str, count: int) -> int:
    """Devices of a trial that gets ``count`` of ``gpus``, or all of them (0)."""
    return count or len(device_ids(gpus))


def check_devices(gpus: str, count: int) -> None:
    """Refuse a trial that is to get more devices than there are, or fewer than none.

    Raises:
        ValueError: it does, or ``gpus`` cannot be read.
    """
    known = len(device_ids(gpus))
    if count < 0:
        raise ValueError(f"--gpus_per_trial={count}: give at least 1")
    if known < count:
        raise ValueError(f"--gpus_per_trial={count}, but --gpus={gpus} names {known}: name more, or ask for fewer")


@dataclass(frozen=True)
class Lease:
    """Devices that a running trial holds.

    Attributes:
        devices: ``host:id``; empty on a CPU, where trials only share the cores.
        include: for the launcher's ``--include``; None leaves it as it is.
    """

    devices: tuple[str, ...] = ()
    include: str | None = None


class DevicePool:
    """Hands out devices; each is held by one trial at a time."""

    def __init__(self, asked: Sequence[Asked], *, exclusive: bool, parallel: int | None = None) -> None:
        """
        Args:
            asked: what trials ask for.
            exclusive: whether devices are handed out; on a CPU any trial may name any number.
            parallel: trials at the same time at most; None for no bound (on a CPU: 1).

        Raises:
            ValueError: unreadable devices, or fewer than a trial needs.
        """
        self.exclusive, self._asked = exclusive, list(asked)
        self._leases: list[Lease] = []
        self._busy: set[str] = set()
        for gpus, count in asked:
            check_devices(gpus, count)
        self.capacity = self._most_leases() if exclusive else parallel or 1
        if exclusive and parallel is not None:
            self.capacity = min(parallel, self.capacity)

    def _most_leases(self) -> int:
        """Trials for which there are devices at the same time."""
        busy: set[str] = set()
        number = 0
        for gpus, count in self._asked:
            while (lease := self._free_lease(gpus, count, busy)) is not None:
                busy.update(lease.devices)
                number += 1
        return number

    @property
    def is_full(self) -> bool:
        """Whether no further trial can run now."""
        return len(self._leases) >= self.capacity

    def take(self, gpus: str, count: int, *, reserved: Iterable[str] = ()) -> Lease | None:
        """Devices for a trial that asks for ``count`` of ``gpus`` (0: all); None while there are not enough.

        Args:
            reserved: devices that another trial waits for.
        """
        if self.is_full:
            return None
        lease = self._free_lease(gpus, count, set(reserved)) if self.exclusive else Lease()
        if lease is not None:
            self._leases.append(lease)
            self._busy.update(lease.devices)
        return lease

    def _free_lease(self, gpus: str, count: int, reserved: set[str]) -> Lease | None:
        wanted = device_ids(gpus)
        free = [device for device in wanted if device not in self._busy | reserved]
        count = count or len(wanted)
        if len(free) < count:
            return None
        devices = tuple(free[:count])
        return Lease(devices, None if count == len(wanted) else include_text(devices))

    def hold(self, lease: Lease) -> None:
        """Devices that a trial of an earlier launcher still uses."""
        self._leases.append(lease)
        self._busy.update(lease.devices)

    def give_back(self, lease: Lease) -> None:
        """The trial has ended, with all its processes."""
        self._leases.remove(lease)
        self._busy.difference_update(lease.devices)


def include_text(devices: Iterable[str]) -> str:
    """``--include`` of the process launcher for these devices."""
    by_host: dict[str, list[str]] = {}
    for device in devices:
        host, _, number = device.rpartition(":")
        by_host.setdefault(host, []).append(number)
    return "@".join(f"{host}:{','.join(numbers)}" for host, numbers in by_host.items())


def free_port(taken: Iterable[int] = ()) -> int:
    """A port that nobody listens on, and that is not one of ``taken`` (given to a child that has yet to use it)."""
    taken = set(taken)
    for port in random.SystemRandom().sample(PORTS, min(_TRIED, len(PORTS))):
        if port in taken:
            continue
        with socket.socket() as server:
            try:
                server.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port among {_TRIED} tried between {PORTS.start} and {PORTS.stop - 1}")


def child_environment(base: Mapping[str, str], asked: Sequence[Asked], *, on_gpu: bool, trials: int) -> dict[str, str]:
    """The environment of a child.

    Args:
        base: of this process.
        asked: see :class:`DevicePool`. trials: running at the same time at most.
    """
    environment = {**base, "PYTHONUNBUFFERED": "1"}  # the log is read while the child runs
    ranks = max(number_of_devices(gpus, count) for gpus, count in asked)
    if "OMP_NUM_THREADS" not in base:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment["OMP_NUM_THREADS"] = str(max(1, cores // (trials * ranks)))
    if not on_gpu:
        # DeepSpeed's launcher counts devices by LOCAL_SIZE where there is no GPU; unused numbers do no harm.
        most = 1 + max(int(device.rpartition(":")[2]) for gpus, _ in asked for device in device_ids(gpus))
        environment.update(DS_ACCELERATOR="cpu", LOCAL_SIZE=base.get("LOCAL_SIZE", str(max(8, most))))
    return environment
