"""Samples of the pre-training data: pieces of documents, packed to a length."""

from __future__ import annotations

from random import Random

import numpy as np

from data_utils.block_lm import Sample
from data_utils.corpora.documents import Document, Documents
from data_utils.tokenizers.base import SENTENCE_END_MARKS, Tokenizer

SAMPLES_PER_DOCUMENT = 1000


class BlockDataset:
    """``1000 x documents`` samples; sample ``i`` depends on ``i`` and the corpus only.

    A sample is ``ENC document eos ENC document eos … ENC beginning``, at most ``max_length`` tokens, documents drawn in
    proportion to their length, long ones cut at sentence borders where possible.

    Args:
        sample_across_documents: keep appending documents until the sample is full (not ``--sample-one-document``).
        non_sentence_start: probability of starting in the middle of a sentence.

    Raises:
        ValueError: there is no document, or the length cannot hold anything.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer, max_length: int, *,
                 sample_across_documents: bool = True, non_sentence_start: float = 0.0) -> None:
        if max_length < 4:
            raise ValueError(f"--seq-length must be at least 4 (got {max_length})")
        if not 0 <= non_sentence_start <= 1:
            raise ValueError(f"--non-sentence-start is a probability (got {non_sentence_start})")
        self._documents, self.max_length = documents, max_length
        self._across, self._non_sentence_start = sample_across_documents, non_sentence_start
        self._enc, self._eos = tokenizer.command_id("ENC"), tokenizer.command_id("eos")
        self._is_end = tokenizer.sentence_ends(SENTENCE_END_MARKS)
        self._cumulated = np.cumsum(documents.lengths(), dtype=np.int64)
        if not len(self._cumulated) or self._cumulated[-1] == 0:
            raise ValueError("the corpus (or this part of --split) holds no text")

    def __len__(self) -> int:
        return SAMPLES_PER_DOCUMENT * len(self._cumulated)

    def sample(self, index: int) -> Sample:
        """Sample ``index``: text and loss mask (0 for ENC and prompts), at most ``max_length`` tokens."""
        words = Random(index)
        rng = np.random.RandomState([words.randint(0, 2 ** 32 - 1) for _ in range(16)])
        document = self._draw_document(rng)
        if len(document) >= self.max_length:
            return self._trim(self._with_enc(self._cut_start(document, rng)), self.max_length)
        parts = [self._with_enc(document.window(0, len(document)))]
        size = len(document) + 1
        while self._across and size < self.max_length:
            document = self._draw_document(rng)
            room = self.max_length - size
            part = self._with_enc(document.window(0, min(len(document), room)))
            parts.append(self._trim(part, room))
            size += len(document) + 1
        return Sample(*(np.concatenate(arrays) for arrays in zip(*parts)))

    def _draw_document(self, rng: np.random.RandomState) -> Document:
        point = rng.randint(self._cumulated[-1])
        return self._documents.document(int(np.searchsorted(self._cumulated, point, side="right")), self._eos)

    def _with_enc(self, sample: Sample) -> Sample:
        return Sample(np.concatenate(([self._enc], sample.text)), np.concatenate(([0], sample.loss_mask)))

    def _cut_start(self, document: Document, rng: np.random.RandomState) -> Sample:
        """A window of a long document, its start moved to a sentence start by at most half the length."""
        start = int(rng.randint(len(document) - self.max_length + 1))
        if rng.random_sample() >= self._non_sentence_start:
            reach = self.max_length // 2
            if rng.random_sample() < 0.5:
                start = self._move_left(document, start, reach)
            else:
                start = self._move_right(document, start, reach)
        return document.window(start, min(start + self.max_length, len(document)))

    def _move_left(self, document: Document, start: int, reach: int) -> int:
        low = max(start - reach, 0)
        before = np.flatnonzero(self._is_end[document.window(max(low - 1, 0), start).text])
        if low == 0:
            return int(before[-1]) + 1 if len(before) else 0
        return low - 1 + int(before[-1]) + 1 if len(before) else low

    def _move_right(self, document: Document, start: int, reach: int) -> int:
        if start == 0:
            return 0
        high = min(start + reach, len(document))
        after = np.flatnonzero(self._is_end[document.window(start - 1, high).text])
        return start + int(after[0]) if len(after) else high

    def _trim(self, sample: Sample, size: int) -> Sample:
        """At most ``size`` tokens, ending with a sentence unless that would cost more than half."""
        text, loss_mask = sample
        if len(text) > size:
            ends = np.flatnonzero(self._is_end[text[:size]])
            keep = int(ends[-1]) + 1 if len(ends) else 0
            if keep < size // 2:
                keep = size
            text, loss_mask = text[:keep], loss_mask[:keep]
        return Sample(text, loss_mask)
