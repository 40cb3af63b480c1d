"""Devices, ports and threads for the trials of a sweep."""

from __future__ import annotations

import os
import socket

import pytest

from distill.sweep import devices
from distill.sweep.devices import (
    DevicePool,
    Lease,
    child_environment,
    device_ids,
    free_port,
    has_gpu,
    include_text,
)


def test_devices_are_read_with_and_without_hosts() -> None:
    assert device_ids("2, 3") == ("localhost:2", "localhost:3")
    assert device_ids("a:0,1@b:0") == ("a:0", "a:1", "b:0")
    assert include_text(("a:0", "b:0", "a:1")) == "a:0,1@b:0"
    for text in ("", "x", "0,,1", ":0", "0,0"):
        with pytest.raises(ValueError, match="--gpus="):
            device_ids(text)


def test_all_devices_go_to_one_trial_unless_a_number_is_given() -> None:
    pool = DevicePool([("0,1,2,3", 0)], exclusive=True)
    lease = pool.take("0,1,2,3", 0)
    assert pool.capacity == 1 and lease is not None and lease.include is None and pool.is_full
    pool.give_back(lease)
    pool = DevicePool([("0,1,2,3,4", 2)], exclusive=True)
    first, second = pool.take("0,1,2,3,4", 2), pool.take("0,1,2,3,4", 2)
    assert (first.include, second.include) == ("localhost:0,1", "localhost:2,3")
    assert pool.capacity == 2 and pool.take("0,1,2,3,4", 2) is None
    pool.give_back(first)
    assert pool.take("0,1,2,3,4", 2).devices == ("localhost:0", "localhost:1")


def test_a_big_task_waits_for_its_own_devices() -> None:
    pool = DevicePool([("0,1", 1), ("0,1,2", 0)], exclusive=True)
    small = pool.take("0,1", 1)
    assert pool.take("0,1,2", 0) is None
    assert pool.take("0,1", 1, reserved=device_ids("0,1,2")) is None  # nobody overtakes it
    pool.give_back(small)
    assert pool.take("0,1,2", 0).devices == ("localhost:0", "localhost:1", "localhost:2")


def test_the_same_devices_can_be_asked_for_in_two_ways() -> None:
    pool = DevicePool([("0,1,2,3", 1), ("0,1,2,3", 0)], exclusive=True)
    assert pool.capacity == 4
    small = pool.take("0,1,2,3", 1)
    assert small.devices == ("localhost:0",) and pool.take("0,1,2,3", 0) is None
    pool.give_back(small)
    assert len(pool.take("0,1,2,3", 0).devices) == 4 and pool.take("0,1,2,3", 1) is None


def test_a_bound_and_what_an_earlier_launcher_left_count() -> None:
    pool = DevicePool([("0,1,2", 1)], exclusive=True, parallel=2)
    pool.hold(Lease(("localhost:0",)))
    assert pool.take("0,1,2", 1).devices == ("localhost:1",) and pool.is_full
    assert DevicePool([("0", 0)], exclusive=False).capacity == 1
    on_cpu = DevicePool([("0", 0)], exclusive=False, parallel=2)
    assert on_cpu.take("0", 0) == on_cpu.take("0", 0) == Lease() and on_cpu.take("0", 0) is None


def test_more_devices_a_trial_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="--gpus_per_trial=3, but --gpus=0,1 names 2"):
        DevicePool([("0,1", 3)], exclusive=True)


def test_a_free_port_is_one_that_nobody_listens_on_and_nobody_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("", free_port()))
        busy = server.getsockname()[1]
        monkeypatch.setattr(devices, "PORTS", range(busy, busy + 1))
        with pytest.raises(OSError, match="no free port"):
            free_port()
    assert free_port() == busy
    with pytest.raises(OSError, match="no free port"):
        free_port([busy])


def test_threads_are_shared_and_a_cpu_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    environment = child_environment({"A": "1"}, [("2,3", 0)], on_gpu=False, trials=2)
    assert environment == {"A": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2", "LOCAL_SIZE": "8",
                           "DS_ACCELERATOR": "cpu"}
    environment = child_environment({"OMP_NUM_THREADS": "3"}, [("0,11", 1)], on_gpu=False, trials=1)
    assert (environment["OMP_NUM_THREADS"], environment["LOCAL_SIZE"]) == ("3", "12")
    environment = child_environment({}, [("0,1,2,3", 1)], on_gpu=True, trials=4)
    assert environment["OMP_NUM_THREADS"] == "2" and "DS_ACCELERATOR" not in environment
    assert not has_gpu({"DS_ACCELERATOR": "cpu"}) and has_gpu({"DS_ACCELERATOR": "cuda"})
    assert not has_gpu({"CUDA_VISIBLE_DEVICES": ""})
