"""What a loader's worker process does first."""

from __future__ import annotations

import os
import signal

import torch

#: Seconds that a worker lives on after SIGTERM, so that the training process can finish its step and save.
GRACE = 30


def start_worker(_: int) -> None:
    """``worker_init_fn`` of every loader.

    A launcher sends SIGTERM to the whole process tree. A worker that obeyed at once would take the training process
    with it before that has saved; so it goes on for a while, and ends with its parent.
    """
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool does not survive a fork
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
