"""Token folders (``.lazy``) that the original release wrote. Nothing in them names their tokenizer or source."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)
_CHECKED_TOKENS = 1_000_000


class _LengthsUnpickler(pickle.Unpickler):
    """Reads lists of integers and nothing else: no class and no function is ever looked up."""

    def find_class(self, module: str, name: str) -> object:
        raise ValueError(f"refusing to unpickle {module}.{name}: a length list holds integers only; the file is not a "
                         "token cache, or was tampered with")


def is_legacy_folder(folder: Path) -> bool:
    return (folder / "text").is_file() and (folder / "text.len.pkl").is_file()


def read_lengths(file: Path) -> np.ndarray:
    """int64 array of a pickled list of integers. Raises ValueError on anything else."""
    with open(file, "rb") as stream:
        lengths = _LengthsUnpickler(stream).load()
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError(f"{file} holds no list of lengths")
    return np.array(lengths, dtype=np.int64)


def check_legacy_tokens(folder: Path, tokens: np.ndarray, num_tokens: int) -> None:
    """Look at the first million ids: the only check that an old folder allows. Raises ValueError if one is too big."""
    largest = int(tokens[:_CHECKED_TOKENS].max(initial=0))
    if largest >= num_tokens:
        raise ValueError(f"{folder} holds token {largest}, but the tokenizer has {num_tokens} tokens: the folder was "
                         "written with another tokenizer; give the text itself instead")
    logger.warning("%s was written by the original release: it does not say with which tokenizer, so this cannot be "
                   "checked", folder)
