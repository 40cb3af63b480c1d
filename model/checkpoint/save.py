"""Writing checkpoints, so that a kill at any moment leaves one that can be loaded.

A tag of its own ("5000") is written file by file and becomes the newest when the tracker names it, after all files of
all ranks. "best" is replaced: the new files go to ``best.new``; once they are whole, ``best`` becomes ``best.old``,
``best.new`` becomes ``best``, and the old one is removed. ``naming.stored_folder`` finds the whole one at every moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from model.checkpoint.files import atomic_save, remove_folder, rename_folder
from model.checkpoint.naming import (
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


def begin_replacement(directory: str | Path, tag: str) -> str:
    """Make room for a new checkpoint in place of ``tag``; returns the tag to write the files under.

    For global rank 0, before a barrier. First completes a replacement that was interrupted.
    """
    directory = Path(directory)
    folder, new, old = directory / tag, directory / f"{tag}.new", directory / f"{tag}.old"
    whole = stored_folder(directory, tag)
    if whole is not None and whole != folder:
        rename_folder(whole, folder)
    remove_folder(old)
    remove_folder(new)
    return new.name


def swap_best(directory: str | Path, tag: str = "best") -> None:
    """Put ``<tag>.new`` in place of ``<tag>``. For global rank 0, after a barrier behind the last file."""
    directory = Path(directory)
    folder, new, old = directory / tag, directory / f"{tag}.new", directory / f"{tag}.old"
    shard_files(new)
    if folder.exists():
        remove_folder(old)
        rename_folder(folder, old)
    rename_folder(new, folder)
    remove_folder(old)


def save_checkpoint(directory: str | Path, tag: str, payload: Mapping[str, Any] | None, *, mp_rank: int, mp_size: int,
                    is_first_rank: bool, barrier: Callable[[], Any], replace: bool = False, tracker: bool = True,
                    training_state: bool = False, best_iteration: int | None = None) -> None:
    """All steps of one save, in the order that keeps a whole checkpoint at every moment. Every rank calls it.

    Args:
        payload: this rank's content; None on ranks that do not write (data-parallel ranks above 0).
        is_first_rank: global rank 0, which moves folders and writes trackers.
        barrier: waits for all ranks.
        replace: the tag may exist and is replaced in one step ("best").
        tracker, training_state, best_iteration: as in :func:`publish`.
    """
    staging = f"{tag}.new" if replace else tag
    if replace:
        if is_first_rank:
            begin_replacement(directory, tag)
        barrier()
    if payload is not None:
        save_shard(directory, staging, payload, mp_rank)
    barrier()
    if is_first_rank:
        if replace:
            swap_best(directory, tag)
        publish(directory, tag, tracker=tracker, training_state=training_state, best_iteration=best_iteration,
                mp_size=mp_size)
    barrier()
