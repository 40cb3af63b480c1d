"""The one room that knows which devices and optional libraries there are.

DeepSpeed is imported when an engine is built, not before: its import takes a second and prints.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import warnings
from collections.abc import Mapping
from types import ModuleType

import torch
import torch.distributed as dist


def has_gpu() -> bool:
    """Whether CUDA can be used; ``DS_ACCELERATOR=cpu`` turns it off, as it does for DeepSpeed."""
    return os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()


def local_device(local_rank: int) -> torch.device:
    """The device of this process. Raises ValueError if there are fewer GPUs than local processes."""
    if not has_gpu():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} has no GPU: there are {torch.cuda.device_count()}; start at most one process per "
            f"GPU, or set DS_ACCELERATOR=cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def launched_world_size(environ: Mapping[str, str]) -> int:
    """Number of processes: of the process group if there is one, else what the launcher says, else 1."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    if "WORLD_SIZE" in environ:
        return int(environ["WORLD_SIZE"])
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return int(environ["OMPI_COMM_WORLD_SIZE"])
    if "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ:
        return int(environ["SLURM_STEP_NUM_TASKS"])
    return 1


def load_deepspeed() -> ModuleType:
    """Import DeepSpeed, quietly, with the settings this toolkit needs.

    Raises:
        ValueError: it is not installed.
    """
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Deprecation warnings about calls inside DeepSpeed, which nobody here can change.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning, message=r"`torch\.jit\.")
    warnings.filterwarnings("ignore", module="deepspeed")
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(f"--deepspeed: the package cannot be imported ({error}); pip install deepspeed") from None
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not has_gpu():
        # The shared-memory collectives compile for 33 s, and hang for ever on a lock that a killed run left behind.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read afterwards is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """The most memory in MB that this process has held: of the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory_report(device: torch.device) -> dict[str, float]:
    """Memory in MB by kind (allocated, max_allocated, cached, max_cached); empty on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device) / 2**20,
        "max_allocated": torch.cuda.max_memory_allocated(device) / 2**20,
        "cached": torch.cuda.memory_reserved(device) / 2**20,
        "max_cached": torch.cuda.max_memory_reserved(device) / 2**20,
    }
