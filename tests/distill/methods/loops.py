"""Formulas on lists of numbers, for tests that compute a loss the slow way."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]


def dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(row: Row) -> list[float]:
    highest = max(row)
    weights = [math.exp(value - highest) for value in row]
    return [weight / sum(weights) for weight in weights]


def kl(student: Row, teacher: Row) -> float:
    """KL(softmax(teacher) || softmax(student)); a teacher probability of 0 contributes nothing."""
    return sum(q * math.log(q / p) for p, q in zip(softmax(student), softmax(teacher), strict=True) if q > 0)


def mean_square(a: Row, b: Row) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def relation(vectors: Sequence[Row], scale: float) -> list[list[float]]:
    """``scale * X X^T``."""
    return [[scale * dot(a, b) for b in vectors] for a in vectors]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
