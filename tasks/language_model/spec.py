"""What a language-model task is: how its files become passages, and what is said about the model's losses on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True)
class Passage:
    """A text to be scored.

    Attributes:
        context: read before it, not scored.
        text: what the model has to continue with; with the blank in front of it, if there is one.
        num_words: words of ``text`` as published results count them, for a loss that does not depend on a tokenizer.
    """

    context: str
    text: str
    num_words: int


@dataclass(frozen=True)
class PassageScore:
    """What a model makes of a passage: the sum of its token losses in nats, over how many tokens, and whether each of
    them was the most probable one."""

    loss: float
    tokens: int
    is_right: bool


Metric = Callable[[Sequence[Passage], Sequence[PassageScore]], float]


@dataclass(frozen=True)
class LanguageModelTask:
    """One task.

    Attributes:
        name: in lower case.
        read: ``read(path, text_key)`` -> its passages in file order; ``text_key`` names the field of JSON lines.
        metrics: name -> function over all passages; the first one decides which epoch is best.
        scores_last_word: a passage's text is one word, which is scored in one go.
    """

    name: str
    read: Callable[[Path, str], Iterator[Passage]]
    metrics: Mapping[str, Metric]
    scores_last_word: bool = False

    #: As for a :class:`tasks.spec.TaskSpec`: token losses, one row a sample, no label words.
    head: ClassVar[str] = "language_model"
    is_multi_choice: ClassVar[bool] = False
    verbalizers: ClassVar[Mapping[int, tuple[str, ...]]] = {}
