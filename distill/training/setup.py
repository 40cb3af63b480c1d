"""Brings a process into the run and out of it again: ranks, device, threads, process groups, seeds, logging.

Works alone (``python distill/pretrain.py``), under ``torchrun``, under ``deepspeed``, and from the variables of OpenMPI
and Slurm. A process group that exists already (a test, a notebook) is used and left alone.
"""

from __future__ import annotations

import dis
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from model.parallel import backend, groups
from model.parallel.random import seed_everything

ROOMS = ("distill", "model", "data_utils", "tasks")
#: Exit code of a run that was asked to stop, as the shell gives it for SIGTERM.
STOPPED = 143
#: Exit code for a mistake in the command or in what it names, as argparse has it.
MISTAKE = 2
#: Exit code of a run that another process has let down.
ABANDONED = 1
#: Seconds that gloo's threads get to let go of the tensors of the last collective. Engines keep the groups, so the
#: threads go on after the groups are destroyed, and one that drops a tensor while the interpreter ends aborts the
#: process (github.com/pytorch/pytorch/pull/179291).
RESTING = 0.1
#: Seconds that a run which has failed may take to leave its process groups.
LEAVING = 30.0
# What Gloo and NCCL say when the process at the other end has ended, and torch's loader of one of its own.
_RANK_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited",
              "Gloo connectFullMesh failed", "wait timeout after")
_WORKER_GONE = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed|exited)")


@dataclass(frozen=True)
class Launch:
    """What the launcher said about this process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


@dataclass(frozen=True)
class Runtime:
    """This process in its run."""

    launch: Launch
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes logs, trackers and results."""
        return self.launch.rank == 0


def detect_launch(environ: Mapping[str, str], local_rank: int | None = None) -> Launch:
    """Ranks from torchrun's / DeepSpeed's variables, else OpenMPI's, else those of a Slurm step, else alone.

    Args:
        local_rank: ``--local_rank``, used where no variable says it.

    Raises:
        ValueError: several processes without ``MASTER_ADDR`` or ``MASTER_PORT``.
    """
    launch = _read_launch(environ, local_rank)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if launch.world_size > 1 and missing:
        raise ValueError(
            f"{launch.world_size} processes, but {' and '.join(missing)} not set: set them to the address and a free "
            f"port of the first node, the same for all (torchrun and deepspeed do)")
    return launch


def _read_launch(environ: Mapping[str, str], local_rank: int | None) -> Launch:
    def number(name: str, default: int) -> int:
        return int(environ.get(name, default))

    if "RANK" in environ and "WORLD_SIZE" in environ:
        rank, size = number("RANK", 0), number("WORLD_SIZE", 1)
        local = number("LOCAL_RANK", local_rank if local_rank is not None else 0)
        local_size = number("LOCAL_WORLD_SIZE", number("LOCAL_SIZE", size))
    elif "OMPI_COMM_WORLD_RANK" in environ:
        rank, size = number("OMPI_COMM_WORLD_RANK", 0), number("OMPI_COMM_WORLD_SIZE", 1)
        local, local_size = number("OMPI_COMM_WORLD_LOCAL_RANK", 0), number("OMPI_COMM_WORLD_LOCAL_SIZE", size)
    elif "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ:
        rank, size = number("SLURM_PROCID", 0), number("SLURM_STEP_NUM_TASKS", 1)
        local, local_size = number("SLURM_LOCALID", 0), size
    else:
        return Launch(local_rank=local_rank or 0)
    return Launch(rank, size, local, max(1, min(local_size, size)))


def run_script(main: Callable[[], int]) -> int:
    """Run an entry script; a mistake of the person who typed the command is told in words instead of a traceback.

    Where another rank or a worker process has gone, that is told too: the traceback is at fault nowhere.

    Returns:
        The exit code of ``main``, :data:`MISTAKE` or :data:`ABANDONED`.
    """
    try:
        return main()
    except (ValueError, OSError) as error:
        if not is_told(error):
            raise
        return _tell(str(error), MISTAKE)
    except RuntimeError as error:
        message = who_is_gone(error)
        if message is None:
            raise
        return _tell(message, ABANDONED)


def _tell(message: str, code: int) -> int:
    rank = _read_launch(os.environ, None).rank
    sys.stdout.flush()
    sys.stderr.write(f"{f'[rank {rank}] ' if rank else ''}error: {' '.join(message.split())}\n")
    return code


def who_is_gone(error: RuntimeError) -> str | None:
    """What to tell if the error comes from another process that has ended; None for any other error."""
    text = str(error)
    if any(part in text for part in _RANK_GONE):
        return ("another rank has ended; its own message says why. The checkpoints are whole: go on from the last one "
                "with --load")
    if match := _WORKER_GONE.search(text):
        return (f"the data worker with process id {match[1]} was ended from outside, as the system does when memory "
                "runs out. The checkpoints are whole: go on from the last one with --load, with fewer --num-workers")
    return None


def is_told(error: BaseException) -> bool:
    """Whether an exception is a message of ours about what the user gave: a ``raise`` statement of one of our rooms, or
    a file that cannot be used. Anything else is a bug and wants its traceback."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code, root = trace.tb_frame.f_code, Path(__file__).resolve().parents[2]
    is_ours = any(Path(code.co_filename).is_relative_to(root / room) for room in ROOMS)
    return is_ours and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


@contextmanager
def running(args: Any) -> Iterator[Runtime]:
    """Everything that has to be in place before a model is built; undone at the end, also after an error."""
    if dist.is_initialized():
        launch = _from_process_group(os.environ)
    else:
        launch = detect_launch(os.environ, args.local_rank)
    _set_threads(launch)
    undo_logging = _set_up_logging(launch.rank)
    device = backend.local_device(launch.local_rank)
    made_group = _join_process_group(args, launch)
    made_groups, last_resort = False, None
    try:
        made_groups = _make_model_parallel(args.model_parallel_size)
        if args.seed > 0:
            seed_everything(args.seed)
        yield Runtime(launch, device)
    except BaseException:
        last_resort = _last_resort(launch)
        raise
    finally:
        # Ranks that end without this sometimes abort after a correct run.
        if made_groups:
            groups.destroy_model_parallel()
        if made_group and dist.is_initialized():
            has_threads = launch.world_size > 1 and dist.get_backend() == "gloo"
            dist.destroy_process_group()
            if has_threads:
                time.sleep(RESTING)
        if last_resort is not None:
            last_resort.cancel()
        undo_logging()


def _last_resort(launch: Launch) -> threading.Timer | None:
    """Ends the process if leaving its groups takes long: they may wait for ranks that wait for this one, and a launcher
    acts only once it has ended. The error has not been printed by then, so the last resort prints it."""
    if launch.world_size == 1:
        return None
    text = traceback.format_exc()

    def give_up() -> None:
        sys.stderr.write(f"{text}rank {launch.rank} could not leave its process groups within {LEAVING:.0f} s\n")
        sys.stderr.flush()
        os._exit(ABANDONED)

    timer = threading.Timer(LEAVING, give_up)
    timer.daemon = True
    timer.start()
    return timer


def _from_process_group(environ: Mapping[str, str]) -> Launch:
    rank, size = dist.get_rank(), dist.get_world_size()
    return Launch(rank, size, int(environ.get("LOCAL_RANK", rank)), int(environ.get("LOCAL_WORLD_SIZE", size)))


def _set_threads(launch: Launch) -> None:
    """Share the cores among the local processes: without it, four ranks on two cores are ten times slower."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // launch.local_size))


def _join_process_group(args: Any, launch: Launch) -> bool:
    """Make the process group where one is needed; returns whether it was made here."""
    made = False
    if not dist.is_initialized() and (launch.world_size > 1 or args.deepspeed):
        options: dict[str, Any] = {"rank": launch.rank, "world_size": launch.world_size}
        if launch.world_size == 1:
            options["store"] = dist.HashStore()  # alone: no port that could be taken
        groups.join_process_group(args.distributed_backend, **options)
        made = True
    if args.deepspeed:
        os.environ.setdefault("LOCAL_RANK", str(launch.local_rank))
        deepspeed = backend.load_deepspeed()
        # DeepSpeed keeps its own handle, which would still point to the group of an earlier run in this process.
        deepspeed.comm.comm.cdb = None
        deepspeed.init_distributed(args.distributed_backend, auto_mpi_discovery=False, verbose=False)
    return made


def _make_model_parallel(size: int) -> bool:
    if groups.is_initialized():
        if groups.get_model_parallel_world_size() != size:
            raise ValueError(
                f"--model-parallel-size={size}, but this process is in model-parallel groups of "
                f"{groups.get_model_parallel_world_size()}")
        return False
    groups.initialize_model_parallel(size)
    return True


class _ConsoleHandler(logging.Handler):
    """Writes above the progress bar, to whatever ``sys.stdout`` is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


def _set_up_logging(rank: int) -> Any:
    """Rank 0 tells what it does, the others only warn. Returns a function that takes everything back."""
    root, handler = logging.getLogger(), _ConsoleHandler()
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(_LevelFormatter(prefix))
    attach = not root.handlers
    if attach:
        root.addHandler(handler)
    before = {name: logging.getLogger(name).level for name in ROOMS}
    for name in ROOMS:
        logging.getLogger(name).setLevel(logging.INFO if rank == 0 else logging.WARNING)

    def undo() -> None:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        if attach:
            root.removeHandler(handler)

    return undo


class _LevelFormatter(logging.Formatter):
    """The bare message for information, the level in front of it for more."""

    def __init__(self, prefix: str) -> None:
        super().__init__("%(message)s")
        self.prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return self.prefix + level + super().format(record)


class StopSignal:
    """Notes SIGTERM, so that the loop can save at the next iteration instead of dying in the middle of one."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.received = True

    def __exit__(self, *error: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
