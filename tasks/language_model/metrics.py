"""Metrics of language-model tasks, over all passages together. Perplexities are of a loss that is capped at 20."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.language_model.spec import Passage, PassageScore
from tasks.metrics import perplexity

Passages, Scores = Sequence[Passage], Sequence[PassageScore]


def loss(passages: Passages, scores: Scores) -> float:
    """Mean loss of a token, in nats."""
    return _total(scores) / sum(score.tokens for score in scores)


def ppl(passages: Passages, scores: Scores) -> float:
    """Perplexity of a token."""
    return perplexity(loss(passages, scores))


def word_ppl(passages: Passages, scores: Scores) -> float:
    """Perplexity of a word, as published for WikiText: comparable between tokenizers."""
    return perplexity(_total(scores) / sum(passage.num_words for passage in passages))


def accuracy(passages: Passages, scores: Scores) -> float:
    """Share of passages of which every token was the most probable one, 0-100."""
    return 100.0 * sum(score.is_right for score in scores) / len(scores)


def _total(scores: Scores) -> float:
    return sum(score.loss for score in scores)
