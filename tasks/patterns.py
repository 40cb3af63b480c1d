"""The pattern language: how an example becomes a text with a blank.

A pattern is two lists of parts, side a and side b. A part is a plain string (never shortened), a :func:`cut` text
(shortened when the sample is too long), ``MASK`` (the blank) or ``SLOT`` (a place for continuous-prompt tokens, empty
without them). Every part is tokenized on its own, so with BPE the blanks inside the strings matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """The parts that are no text."""

    MASK = "mask"
    SLOT = "slot"


MASK, SLOT = Mark.MASK, Mark.SLOT


@dataclass(frozen=True)
class Shortenable:
    """A text that may lose tokens at its end."""

    text: str


Part = str | Shortenable | Mark


def cut(text: str) -> Shortenable:
    """A shortenable text."""
    return Shortenable(text)


@dataclass(frozen=True)
class Word:
    """An answer that is one verbalizer word: looked up, not tokenized."""

    text: str


@dataclass(frozen=True)
class Cloze:
    """A filled pattern. ``answer`` is what one choice puts into the blank; None where label words are compared."""

    side_a: tuple[Part, ...]
    side_b: tuple[Part, ...] = ()
    answer: str | Word | None = None

    def with_answer(self, answer: str | Word) -> Cloze:
        """The same text with another answer."""
        return Cloze(self.side_a, self.side_b, answer)


@dataclass
class Piece:
    """The tokens of one part. Prompt placeholders are id 0 with ``is_prompt``."""

    ids: Sequence[int]
    can_shorten: bool = False
    is_prompt: bool = False


Tokenize = Callable[[str], Sequence[int]]


def tokenize_sides(cloze: Cloze, tokenize: Tokenize, mask_id: int, num_prompt_tokens: int = 0,
                   before_mask: Sequence[int] = ()) -> tuple[list[Piece], list[Piece]]:
    """The pieces of both sides.

    The slots, in order, take ceil(N / slots) prompt placeholders each until all N are used; ValueError where prompt
    tokens find no slot. ``before_mask``: tokens put in front of the blank.
    """
    slots = sum(part is SLOT for part in (*cloze.side_a, *cloze.side_b))
    if num_prompt_tokens and not slots:
        raise ValueError("--continuous-prompt: this pattern has no place for prompt tokens; choose another task or "
                         "--pattern-id, or --prefix-prompt, which puts them in front of any pattern")
    share, left = math.ceil(num_prompt_tokens / slots) if slots else 0, num_prompt_tokens

    def pieces(parts: Iterable[Part]) -> Iterable[Piece]:
        nonlocal left
        for part in parts:
            if part is MASK:
                yield Piece([*before_mask, mask_id])
            elif part is SLOT:
                taken = min(share, left)
                left -= taken
                yield Piece([0] * taken, is_prompt=True)
            elif isinstance(part, Shortenable):
                yield Piece(tokenize(part.text), can_shorten=True)
            else:
                yield Piece(tokenize(part))

    return list(pieces(cloze.side_a)), list(pieces(cloze.side_b))


def truncate(side_a: Sequence[Piece], side_b: Sequence[Piece], excess: int) -> None:
    """Shortens the pieces by ``excess`` tokens in all.

    One token at a time goes: from side a if its shortenable tokens outnumber those of side b, else from b; always the
    last token of the last non-empty shortenable piece of that side. Raises ValueError if too little can be shortened.
    """
    if excess <= 0:
        return
    sides = [[piece for piece in side if piece.can_shorten] for side in (side_a, side_b)]
    totals = [sum(len(piece.ids) for piece in side) for side in sides]
    if excess > sum(totals):
        raise ValueError(f"{excess} tokens too long, and only {sum(totals)} can be removed (texts of the pattern that "
                         "may be shortened)")
    removed = [0, 0]
    for _ in range(excess):
        removed[0 if totals[0] - removed[0] > totals[1] - removed[1] else 1] += 1
    for side, count in zip(sides, removed):
        for piece in reversed(side):
            kept = max(len(piece.ids) - count, 0)
            count -= len(piece.ids) - kept
            piece.ids = piece.ids[:kept]


def check_pattern_id(task: str, pattern_id: int, known: Iterable[int]) -> None:
    """ValueError naming the known ids if the task has no such pattern."""
    known = tuple(known)
    if pattern_id not in known:
        raise ValueError(f"--pattern-id={pattern_id}: task {task} has the patterns {', '.join(map(str, known))}")
