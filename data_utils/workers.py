"""What a worker process does first."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

import torch

#: Seconds that a worker lives on after SIGTERM, so that the training process can finish its step and save.
GRACE = 30
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int | None) -> None:
    """Have the system kill this process when the one that forked it has died, also if it has died already.

    A worker that outlives a killed rank holds copies of its connections, and the other ranks would wait for ever.

    Args:
        parent: process id of the one that forked this process; None if a server in between did.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:  # torch's own watch takes the new parent for the old one
        os.kill(os.getpid(), signal.SIGKILL)


def start_worker(_: int) -> None:
    """``worker_init_fn`` of every loader.

    A launcher sends SIGTERM to the whole process tree. A worker that obeyed at once would take the training process
    with it before that has saved; so it goes on for a while, and ends with its parent.
    """
    parent, is_forked = multiprocessing.parent_process(), multiprocessing.get_start_method() == "fork"
    end_with_parent(parent.pid if parent is not None and is_forked else None)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool does not survive a fork
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
