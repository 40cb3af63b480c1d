"""Set-up of the whole test run. The environment comes first: torch and DeepSpeed read it when they are imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

# One thread a process (several processes run side by side), no network, no messages of C++ libraries below errors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell starts what runs in the background without SIGINT, and so would be what the suite starts; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
import torch  # noqa: E402

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
torch.set_num_threads(1)

from tests.helpers.distributed import close_pool  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped, with a reason, where there is no CUDA device."""
    if HAS_GPU:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def worker_pool() -> Iterator[None]:
    """Ends the processes of :func:`tests.helpers.distributed.run_distributed` with the session."""
    yield
    close_pool()
