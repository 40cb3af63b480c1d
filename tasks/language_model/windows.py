"""Windows over passages: every token is scored once, with as much text before it as the sequence has room for.

The first window of a passage scores all that fits; each further one moves on by ``--overlapping-eval`` tokens, scores
these, and reads what precedes them again. A row is that of the generation mode of pretraining: ``ENC``, the text before
in Part A, where tokens see both directions, a mask, and in Part B what is scored. With ``--unidirectional`` the text
before stands in Part B too, where a token sees what is on its left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from data_utils.block_lm import BlockLM, Row, Sample
from data_utils.tokenizers import Tokenizer
from tasks.language_model.spec import Passage

#: Tokens of a row beside the text: ``ENC`` and the mask. (``sop`` takes the place of the last token.)
SPECIAL_TOKENS = 2


class Window(NamedTuple):
    """Tokens ``start`` to ``start + count`` of a passage, behind ``context`` of the tokens before them."""

    passage: int
    start: int
    context: int
    count: int


def cut_windows(passage: int, first: int, size: int, capacity: int, stride: int) -> Iterator[Window]:
    """The windows of a passage of ``size`` tokens, those from ``first`` on to be scored.

    Args:
        capacity: tokens of a window, context included. stride: at most that many are scored behind a context.
    """
    # Behind an empty context all that fits is scored; behind a given one (a prompt) room is left for a stride.
    context = min(first, capacity - min(size - first, stride))
    count = min(size - first, capacity - context)
    yield Window(passage, first, context, count)
    start = first + count
    while start < size:
        count = min(stride, size - start)
        yield Window(passage, start, min(start, capacity - count), count)
        start += count


class Windows(Dataset):
    """The windows of some passages, laid out when asked for.

    Args:
        objective: lays rows out; its ``max_length`` is that of a row.
        stride: None scores a passage's text in one go, however much of its context has to be left out for it.
        limit: make only so many windows (of the first passages).

    Attributes:
        passages: those that have tokens to be scored.
    """

    def __init__(self, passages: Sequence[Passage], tokenizer: Tokenizer, objective: BlockLM, *, stride: int | None,
                 unidirectional: bool = False, limit: int | None = None) -> None:
        self._objective, self._unidirectional = objective, unidirectional
        capacity = objective.max_length - SPECIAL_TOKENS
        passages = passages[:limit]
        encoded = [tokenizer.encode_batch([getattr(passage, part) for passage in passages])
                   for part in ("context", "text")]
        self.passages: list[Passage] = []
        self.windows: list[Window] = []
        self._tokens: list[np.ndarray] = []
        for passage, context, text in zip(passages, *encoded, strict=True):
            if not text or len(self.windows) == limit:
                continue
            self.windows += list(cut_windows(len(self.passages), len(context), len(context) + len(text), capacity,
                                             capacity if stride is None else stride))[:_left(limit, self.windows)]
            self.passages.append(passage)
            self._tokens.append(np.array([*context, *text], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Row:
        window = self.windows[number]
        tokens = self._tokens[window.passage][window.start - window.context:window.start + window.count]
        text = np.concatenate(([self._objective.enc], tokens))
        loss_mask = (np.arange(len(text)) > window.context).astype(np.int64)
        return self._objective.lay_out_suffix(
            Sample(text, loss_mask), 1 if self._unidirectional else 1 + window.context)


def _left(limit: int | None, windows: Sequence[Window]) -> int | None:
    return None if limit is None else limit - len(windows)
