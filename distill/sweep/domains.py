"""Values to search of one flag: a list, or a range of numbers, in the notation of the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SYNTAX = "grid:a,b,c | choice:a,b | float:low..high[:log] | int:low..high[:log]"
_LISTS, _RANGES = ("grid", "choice"), ("float", "int")


@dataclass(frozen=True)
class Domain:
    """What a flag may be set to.

    Attributes:
        kind: "grid" or "choice" (a list of texts), "float" or "int" (a range, both ends included).
        values: of a list, as they are written into the command.
        low, high, log: of a range; log draws evenly on a logarithmic scale.
    """

    kind: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def is_range(self) -> bool:
        return self.kind in _RANGES

    def text(self, value: float | str) -> str:
        """A value as it is written into a command: six digits are enough of a drawn number."""
        if isinstance(value, str):
            return value
        return str(int(value)) if self.kind == "int" else f"{value:.6g}"


def parse_domain(flag: str, text: str) -> Domain | None:
    """The domain that ``text`` describes; None if it is an ordinary value.

    Raises:
        ValueError: it starts like a domain, but is none; ``flag`` is named.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in (*_LISTS, *_RANGES):
        return None
    if kind in _LISTS:
        return Domain(kind, _values(flag, text, rest.split(",")))
    return _range(flag, text, kind, rest)


def _values(flag: str, text: str, words: Sequence[str]) -> tuple[str, ...]:
    values = tuple(word.strip() for word in words)
    if not all(values):
        raise ValueError(f"{flag}={text}: a value is empty; write {SYNTAX}")
    if len(set(values)) < len(values):
        raise ValueError(f"{flag}={text}: a value stands there twice; list each once")
    if any(";" in value for value in values):
        raise ValueError(f"{flag}={text}: values to search are the same for all tasks, a list with ';' is one value a "
                         "task; sweep the tasks one by one to search different values")
    return values


def _range(flag: str, text: str, kind: str, rest: str) -> Domain:
    ends, _, scale = rest.partition(":")
    low_text, dots, high_text = ends.partition("..")
    number = float if kind == "float" else int
    try:
        low, high = number(low_text), number(high_text)
    except ValueError:
        low = high = math.nan
    if not dots or scale not in ("", "log") or not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{flag}={text} is no range; write {kind}:low..high or {kind}:low..high:log")
    if low >= high:
        raise ValueError(f"{flag}={text}: the low end {low:g} is not below the high end {high:g}")
    if scale and low <= 0:
        raise ValueError(f"{flag}={text}: a logarithmic range starts above 0, not at {low:g}")
    return Domain(kind, low=low, high=high, log=bool(scale))
