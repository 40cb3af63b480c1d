"""Writing checkpoints, so that a kill or a full disk at any moment leaves one that can be loaded.

All files of all ranks go to ``<tag>.new``. Once they are there, it becomes ``<tag>``: a folder under the name of a tag
is always whole. Where that exists ("best", an iteration that is saved again), it becomes ``<tag>.old`` first and is
removed afterwards; ``naming.stored_folder`` finds the whole one at every moment. The trackers move last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from model.checkpoint.files import atomic_save, remove_folder, rename_folder
from model.checkpoint.naming import (
    BEST_TAG,
    BEST_TRACKER,
    LATEST_TRACKER,
    TRAINING_TRACKER,
    shard_files,
    shard_path,
    stored_folder,
    write_tracker,
)
from model.checkpoint.nonparameters import collect_nonparameters
from model.checkpoint.reshard import compact
from model.parallel.sharding import shard_spec_of


def module_payload(model: nn.Module, *, only_trainable: bool = False) -> dict[str, Any]:
    """``{"module": name -> tensor on the CPU, "shard_specs": name -> [dim, blocks]}`` of this rank, with the vocabulary
    map of a compact GLM (``important_nonparameters``) and its form of GELU.

    Args:
        only_trainable: leave out frozen parameters and all buffers, as "best" checkpoints of fine-tuning do.
    """
    tensors = model.state_dict(keep_vars=True)
    if only_trainable:
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    specs = {name: shard_spec_of(tensor) for name, tensor in tensors.items()}
    return {"module": compact(tensors),
            "shard_specs": {name: [spec.dim, spec.blocks] for name, spec in specs.items()},
            **collect_nonparameters(model)}


def save_shard(directory: str | Path, tag: str, payload: Mapping[str, Any], mp_rank: int) -> Path:
    """Write the file of one model-parallel rank; returns its path."""
    path = shard_path(directory, tag, mp_rank)
    atomic_save(dict(payload), path)
    return path


def publish(directory: str | Path, tag: str, *, tracker: bool = True, training_state: bool = False,
            best_iteration: int | None = None, mp_size: int | None = None) -> None:
    """Name ``tag`` in the trackers, the latest last. For global rank 0, after a barrier behind the last file.

    Args:
        tracker: name it in ``latest_checkpointed_iteration.txt``.
        training_state: name it in ``latest_training_state.txt`` (it has optimizer, schedule and RNG states).
        best_iteration: write it to ``best_checkpointed_iteration.txt``.
        mp_size: check that there are that many files.

    Raises:
        RuntimeError: files are missing, so that the caller published too early.
    """
    directory = Path(directory)
    folder = stored_folder(directory, tag)
    count = len(shard_files(folder)) if folder else 0
    if count == 0 or (mp_size is not None and count != mp_size):
        raise RuntimeError(f"{directory / tag} has {count} model files, expected {mp_size or 'at least 1'}; a "
                           "checkpoint is published after a barrier behind the last file")
    if best_iteration is not None:
        write_tracker(directory, str(best_iteration), BEST_TRACKER)
    if training_state:
        write_tracker(directory, tag, TRAINING_TRACKER)
    if tracker:
        write_tracker(directory, tag, LATEST_TRACKER)


def staging_folder(directory: str | Path, tag: str) -> Path:
    """Where the files of a new checkpoint are written."""
    return Path(directory) / f"{tag}.new"


def begin(directory: str | Path, tag: str) -> None:
    """Complete replacements that were interrupted and remove what killed saves have left. For global rank 0, first."""
    directory = Path(directory)
    interrupted = {path.stem for kind in ("new", "old") for path in directory.glob(f"*.{kind}")
                   if path.is_dir() and (path.stem.isdigit() or path.stem == BEST_TAG)}
    for name in sorted(interrupted | {tag}):
        whole = stored_folder(directory, name)
        if whole is not None and whole != directory / name:
            rename_folder(whole, directory / name)
        remove_folder(directory / f"{name}.old")
        remove_folder(staging_folder(directory, name))


def swap_in(directory: str | Path, tag: str) -> None:
    """Put ``<tag>.new`` in place of ``<tag>``. For global rank 0, once all files are written."""
    directory = Path(directory)
    folder, new, old = directory / tag, directory / f"{tag}.new", directory / f"{tag}.old"
    shard_files(new)
    if folder.exists():
        remove_folder(old)
        rename_folder(folder, old)
    rename_folder(new, folder)
    remove_folder(old)


def save_checkpoint(directory: str | Path, tag: str, payload: Mapping[str, Any] | None, *, mp_rank: int, mp_size: int,
                    is_first_rank: bool, agree: Callable[[str], str], more: Mapping[str, Any] | None = None,
                    tracker: bool = True, training_state: bool = False, best_iteration: int | None = None) -> None:
    """All steps of one save, in the order that keeps a whole checkpoint at every moment. Every rank calls it.

    Args:
        payload: this rank's content; None on ranks that do not write (data-parallel ranks above 0).
        is_first_rank: global rank 0, which moves folders and writes trackers.
        agree: waits for all ranks; takes this rank's problem ("" for none) and returns the first one of all ranks.
        more: further files of this rank in the same folder, name -> content.
        tracker, training_state, best_iteration: as in :func:`publish`.

    Raises:
        OSError: the disk is full or broken, here or on another rank; the earlier checkpoints are as they were, and
            what had been written is removed.
    """
    staging = staging_folder(directory, tag)
    files = dict(more or {})
    if payload is not None:
        files[shard_path(directory, tag, mp_rank).name] = dict(payload)

    def write() -> None:
        for name, content in files.items():
            atomic_save(content, staging / name)

    def finish() -> None:
        swap_in(directory, tag)
        publish(directory, tag, tracker=tracker, training_state=training_state, best_iteration=best_iteration,
                mp_size=mp_size)

    first = is_first_rank
    _together(agree, None)  # nobody reads a checkpoint any more
    _together(agree, partial(begin, directory, tag) if first else None)
    _together(agree, write, clean_up=partial(remove_folder, staging) if first else None)
    _together(agree, finish if first else None)


def _together(agree: Callable[[str], str], work: Callable[[], Any] | None,
              clean_up: Callable[[], Any] | None = None) -> None:
    """Do this rank's part, wait for the others, and fail on all ranks if one of them has failed."""
    error: Exception | None = None
    try:
        if work is not None:
            work()
    except Exception as caught:
        error = caught
    problem = agree("" if error is None else str(error) or type(error).__name__)
    if not problem:
        return
    if clean_up is not None:
        clean_up()
    if error is not None:
        raise error
    raise OSError(f"another rank could not save the checkpoint: {problem}")
