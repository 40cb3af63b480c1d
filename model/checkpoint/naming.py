"""Where a checkpoint lies, and what its parameters are called.

    <directory>/latest_checkpointed_iteration.txt    tag of the newest checkpoint ("5000", "best", "release")
    <directory>/best_checkpointed_iteration.txt      iteration at which "best" was taken
    <directory>/latest_training_state.txt            tag of the newest checkpoint with optimizer and RNG states
    <directory>/<tag>/mp_rank_00_model_states.pt     one file per model-parallel rank

A folder in the Hugging Face layout (huggingface.py) is a checkpoint too.

While a checkpoint is written there are also <tag>.new and <tag>.old (see save.py); :func:`stored_folder` finds the
whole one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.files import atomic_write_text

LATEST_TRACKER = "latest_checkpointed_iteration.txt"
BEST_TRACKER = "best_checkpointed_iteration.txt"
TRAINING_TRACKER = "latest_training_state.txt"
#: DeepSpeed's own tracker; read only where nothing else names a tag, never written.
DEEPSPEED_TRACKER = "latest"
RELEASE_TAG = "release"
#: The one tag that is replaced again and again.
BEST_TAG = "best"

#: One of these makes a folder one whole model in the Hugging Face layout; the first that is there counts.
MERGED_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_SHARD = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_WRAPPERS = ("module.", "model.", "origin_model.")
_REDUNDANT = re.compile(r"student\.[^.]+\.origin_model\..+")


@dataclass(frozen=True)
class CheckpointLocation:
    """A resolved checkpoint.

    Attributes:
        directory: the run's folder, which holds the trackers.
        tag: name of the checkpoint inside it.
        release: a released model: its iteration counts as 0 and neither optimizer nor RNG state is restored.
        merged: one whole model in the Hugging Face layout instead of a file for each model-parallel rank.
    """

    directory: Path
    tag: str
    release: bool = False
    merged: bool = False

    @property
    def folder(self) -> Path:
        """The folder that holds the files; that of an unfinished replacement if need be."""
        folder = stored_folder(self.directory, self.tag)
        if folder is None:
            raise FileNotFoundError(f"{self.directory} has no checkpoint {self.tag!r}; it holds "
                                    f"{listing(self.directory)}")
        return folder


def shard_path(directory: str | Path, tag: str, mp_rank: int) -> Path:
    """File of one model-parallel rank."""
    return Path(directory) / tag / f"mp_rank_{mp_rank:02d}_model_states.pt"


def shard_files(folder: Path) -> list[Path]:
    """The files of all model-parallel ranks, by the number in the name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the numbers are not 0 .. n-1.
    """
    numbered = sorted((int(match[1]), path) for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name)))
    if not numbered:
        raise FileNotFoundError(f"{folder} holds no mp_rank_*_model_states.pt; it holds {listing(folder)}")
    if [number for number, _ in numbered] != list(range(len(numbered))):
        raise ValueError(f"{folder} has files of the model-parallel ranks {[number for number, _ in numbered]}, "
                         "expected 0, 1, 2 …: some are missing; copy the whole folder")
    return [path for _, path in numbered]


def stored_folder(directory: Path, tag: str) -> Path | None:
    """The whole checkpoint ``tag`` of ``directory``, also after a kill while it was replaced; None if there is none.

    The old checkpoint is moved to ``<tag>.old`` only once ``<tag>.new`` is whole, so with ``<tag>`` missing and
    ``<tag>.old`` present, ``<tag>.new`` is the newest whole one. ``<tag>.new`` alone may be half written.
    """
    folder, new, old = directory / tag, directory / f"{tag}.new", directory / f"{tag}.old"
    if folder.is_dir():
        return folder
    if old.is_dir():
        return new if new.is_dir() else old
    return None


def merged_weights(folder: Path) -> Path | None:
    """The weights, or the index of their shards, of a folder in the Hugging Face layout; None if it is none."""
    return next((folder / name for name in MERGED_WEIGHTS if (folder / name).is_file()), None)


def read_tracker(directory: str | Path, name: str = LATEST_TRACKER) -> str | None:
    """Content of a tracker file without white space, None where there is none."""
    path = Path(directory) / name
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def write_tracker(directory: str | Path, tag: str, name: str = LATEST_TRACKER) -> None:
    """Replace a tracker file in one step. Call it once everything that it names is on disk."""
    atomic_write_text(tag, Path(directory) / name)


def resolve_checkpoint(path: str | Path, *, training_state: bool = False) -> CheckpointLocation:
    """Find the checkpoint that a path means: a run's folder with a tracker, the folder of one checkpoint, or a
    folder in the Hugging Face layout.

    Args:
        training_state: prefer the newest checkpoint that carries training state.

    Raises:
        FileNotFoundError: nothing is there; the message says what was looked for.
        ValueError: a tracker is empty.
    """
    path = Path(path)
    for name in ((TRAINING_TRACKER,) if training_state else ()) + (LATEST_TRACKER,):
        tag = read_tracker(path, name)
        if tag is not None:
            return _with_files(path, tag, path / name)
    absolute = path.absolute()
    folder = stored_folder(absolute.parent, absolute.name)
    if folder is not None and any(_SHARD.fullmatch(child.name) for child in folder.iterdir()):
        return CheckpointLocation(absolute.parent, absolute.name, absolute.name == RELEASE_TAG)
    if folder is not None and merged_weights(folder):
        return CheckpointLocation(absolute.parent, absolute.name, release=True, merged=True)
    tag = read_tracker(path, DEEPSPEED_TRACKER)
    if tag is not None:
        return _with_files(path, tag, path / DEEPSPEED_TRACKER)
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file; give the folder that holds it")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: no such folder (relative paths start at {Path.cwd()})")
    raise FileNotFoundError(
        f"no checkpoint at {path}: it has neither {LATEST_TRACKER} nor mp_rank_*_model_states.pt nor weights of the "
        f"Hugging Face layout, it holds "
        f"{listing(path)}; give the run's folder or the folder of one checkpoint")


def _with_files(directory: Path, tag: str, tracker: Path) -> CheckpointLocation:
    if not tag:
        raise ValueError(f"{tracker} is empty; write the tag of a checkpoint into it, one of {listing(directory)}")
    if stored_folder(directory, tag) is None:
        raise FileNotFoundError(f"{tracker} names the checkpoint {tag!r}, which {directory} does not have; it holds "
                                f"{listing(directory)}")
    return CheckpointLocation(directory, tag, tag == RELEASE_TAG)


def listing(folder: Path) -> str:
    """What a folder holds, for messages."""
    names = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "nothing"


def canonical_name(name: str) -> str:
    """A parameter's name without what wrappers put in front: precision wrapper (``module.``), task head (``model.``),
    student (``origin_model.``). Backbone parameters then have their plain GLM names everywhere."""
    while (prefix := next((w for w in _WRAPPERS if name.startswith(w)), None)) is not None:
        name = name[len(prefix):]
    return name


def is_redundant(name: str) -> bool:
    """Whether a canonical name is the second copy of the backbone that old files of combined methods carry."""
    return _REDUNDANT.fullmatch(name) is not None
