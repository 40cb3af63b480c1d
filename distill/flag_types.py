"""Types of command-line values that argparse does not have."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class PerTeacher:
    """A share of each teacher, ``numerator/teacher_num``; resolved once the teachers have been counted."""

    numerator: float

    def resolve(self, num_teachers: int) -> float:
        return self.numerator / max(1, num_teachers)


def fraction(text: str) -> float | PerTeacher:
    """A number or a simple fraction of numbers (``0.5``, ``1/2``); ``1/teacher_num`` is resolved after parsing.

    Raises:
        argparse.ArgumentTypeError: neither of these.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        if not slash:
            return float(text)
        if denominator.strip() == "teacher_num":
            return PerTeacher(float(numerator))
        return float(numerator) / float(denominator)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor a fraction such as 1/2 or 1/teacher_num") from None


def positive_int(text: str) -> int:
    """An integer above zero.

    Raises:
        argparse.ArgumentTypeError: not an integer, or below one.
    """
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def width(text: str) -> int:
    """An integer that is the width of a layer. The type tells ``--fast-dev-run`` to divide it like ``--hidden-size``.

    Raises:
        argparse.ArgumentTypeError: not an integer.
    """
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
