"""``--split``: shares of a corpus for training, validation and test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SPLIT_SEED = 1234


def parse_split(text: str, *, has_valid_data: bool = False, has_test_data: bool = False) -> list[float]:
    """Three proportions that add up to 1.

    Args:
        text: numbers separated by commas or slashes; below a sum of 1 the remainder is appended.
        has_valid_data, has_test_data: the part has data of its own, its share becomes 0.

    Raises:
        ValueError: no number, a negative one, or nothing left for training.
    """
    try:
        shares = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError as error:
        raise ValueError(f"--split={text}: expected numbers separated by commas or slashes, like 949,50,1") from error
    if any(not share >= 0 or share == float("inf") for share in shares):
        raise ValueError(f"--split={text}: shares must be finite and not negative")
    if sum(shares) < 1:
        shares.append(1 - sum(shares))
    shares = (shares + [0.0, 0.0])[:3]
    if has_valid_data:
        shares[1] = 0.0
    if has_test_data:
        shares[2] = 0.0
    total = sum(shares)
    if total == 0:
        raise ValueError(f"--split={text} leaves nothing: give at least one positive share")
    return [share / total for share in shares]


def shuffled_indices(num_documents: int) -> np.ndarray:
    """Document indices in the release's fixed random order."""
    indices = np.arange(num_documents)
    np.random.RandomState(SPLIT_SEED).shuffle(indices)
    return indices


def split_indices(proportions: list[float], indices: np.ndarray) -> list[np.ndarray | None]:
    """Cut shuffled document indices in parts, None for a part of share 0.

    A part takes floor(share x N) documents plus the carry of the accumulated fractions, at least one; a document given
    for that reason alone also opens the next part (tiny corpora).
    """
    parts: list[np.ndarray | None] = []
    start, carry = 0, 0.0
    for share in proportions:
        if share == 0:
            parts.append(None)
            continue
        exact = len(indices) * share
        carry += exact % 1
        size = int(int(exact) + carry)
        carry %= 1
        parts.append(indices[start:start + max(size, 1)])
        start += size
    return parts


def load_split_indices(path: str | Path, num_documents: int) -> np.ndarray:
    """``--load-splits``: stored indices. Raises ValueError unless they are a permutation of the corpus."""
    indices = np.load(path, allow_pickle=False)
    if indices.shape != (num_documents,) or not np.array_equal(np.sort(indices), np.arange(num_documents)):
        raise ValueError(f"--load-splits={path} holds {indices.shape} indices, not an order of the {num_documents} "
                         "documents of this corpus; remove the flag or give the file saved for it")
    return indices
