"""Tokenized documents: how long they are, and windows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_utils.block_lm import Sample


class Document:
    """Prompt, text and a closing eos, read in windows so that a long document is never copied whole."""

    def __init__(self, prompt: np.ndarray, text: np.ndarray, eos: int) -> None:
        self._prompt, self._text, self._eos = prompt, text, eos

    def __len__(self) -> int:
        return len(self._prompt) + len(self._text) + 1

    def window(self, start: int, end: int) -> Sample:
        """Tokens ``start … end - 1`` with loss mask 0 on the prompt, 1 on text and eos (both int64)."""
        border = len(self._prompt)
        prompt = self._prompt[start:end]
        text = self._text[max(start - border, 0):max(end - border, 0)]
        tail = [self._eos] if start < len(self) == end else []
        tokens = np.concatenate((prompt, text, np.array(tail, dtype=np.int64))).astype(np.int64, copy=False)
        loss_mask = np.ones(len(tokens), dtype=np.int64)
        loss_mask[:len(prompt)] = 0
        return Sample(tokens, loss_mask)


class Documents(Protocol):
    """A corpus, or a part of one."""

    def __len__(self) -> int: ...

    def lengths(self) -> np.ndarray:
        """int64 [documents]: tokens of prompt + text (bytes where text is tokenized on the fly), without eos."""

    def document(self, index: int, eos: int) -> Document:
        """One document, closed by ``eos``."""


class InMemoryDocuments:
    """Documents from lists of ids (tests, tiny corpora)."""

    def __init__(self, texts: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]] | None = None) -> None:
        self._texts = [np.asarray(text, dtype=np.int64) for text in texts]
        self._prompts = [np.asarray(prompt, dtype=np.int64) for prompt in prompts or [()] * len(texts)]

    def __len__(self) -> int:
        return len(self._texts)

    def lengths(self) -> np.ndarray:
        return np.array([len(p) + len(t) for p, t in zip(self._prompts, self._texts)], dtype=np.int64)

    def document(self, index: int, eos: int) -> Document:
        return Document(self._prompts[index], self._texts[index], eos)


class ConcatDocuments:
    """Several corpora one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0] + [len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def lengths(self) -> np.ndarray:
        return np.concatenate([part.lengths() for part in self._parts])

    def document(self, index: int, eos: int) -> Document:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part].document(index - int(self._starts[part]), eos)


class SelectedDocuments:
    """Some documents of a corpus, by index and in that order."""

    def __init__(self, documents: Documents, indices: np.ndarray) -> None:
        self._documents, self._indices = documents, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def lengths(self) -> np.ndarray:
        return self._documents.lengths()[self._indices]

    def document(self, index: int, eos: int) -> Document:
        return self._documents.document(int(self._indices[index]), eos)
