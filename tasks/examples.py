"""Lines of a task's file, the examples made of them, and the text helpers that readers and patterns share."""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Label = str | int

_STANDARD_PUNCTUATION = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-"})


def standard_punctuation(text: str) -> str:
    """The text with typographic quotes and dashes in their ASCII form (one character for one: offsets stay valid)."""
    return text.translate(_STANDARD_PUNCTUATION)


def strip_punctuation(text: str) -> str:
    """The text without *all* its trailing ASCII punctuation characters."""
    return text.rstrip(string.punctuation)


def lower_first(text: str) -> str:
    """The text with its first character in lower case."""
    return text[:1].lower() + text[1:]


def nearest(word: object, known: Iterable[object]) -> str:
    """``" (did you mean 'x'?)"`` for the known word nearest to ``word``, or an empty string: the tail of an error."""
    names = {str(name).lower(): str(name) for name in known}
    found = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.5)
    return f" (did you mean {names[found[0]]!r}?)" if found else ""


@dataclass(frozen=True)
class Example:
    """One question of a task.

    ``guid`` is unique in a split: predictions are collected under it. ``label`` is one of the task's labels, None where
    the file has none. ``idx`` goes into the prediction file. ``right_choice`` is the index of the right choice where
    that is not the label's (WSC in training); ``is_labelled`` is False where the label only fills a gap.
    """

    guid: str
    text_a: str
    text_b: str | None = None
    label: Label | None = None
    idx: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    num_choices: int = 1
    right_choice: int | None = None
    is_labelled: bool = True


@dataclass(frozen=True)
class Split:
    """A part of a task's data. ``kind`` train, dev, test or unlabeled says how it is read; ``name`` heads the guids."""

    name: str
    kind: str


@dataclass(frozen=True)
class Line:
    """One JSON object of a file, or an object inside it; every complaint about it names file, line and field."""

    path: Path
    number: int  # from 1
    fields: Mapping[str, Any]
    prefix: str = ""

    def error(self, problem: str) -> ValueError:
        """The exception to raise about this line."""
        return ValueError(f"{self.path}, line {self.number}: {problem}")

    def get(self, name: str, kind: type | tuple[type, ...] = object) -> Any:
        """The value of a field; ValueError if it is missing or of another type than ``kind`` (true is no number)."""
        if name not in self.fields:
            present = ", ".join(map(repr, self.fields)) or "nothing"
            raise self.error(f"field {self.prefix + name!r} is missing (present: {present}); "
                             "the file must have the official fields of its task")
        value = self.fields[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or isinstance(value, bool) and not {bool, object} & set(kinds):
            names = " or ".join(one.__name__ for one in kinds)
            raise self.error(f"field {self.prefix + name!r} must be of type {names}, got {value!r:.80}")
        return value

    def text(self, name: str) -> str:
        """A text field as it stands in the file."""
        return self.get(name, str)

    def idx(self) -> int | str:
        """The field ``idx``: predictions are written under it."""
        return self.get("idx", (int, str))

    def child(self, name: str) -> Line:
        """The object in a field."""
        return Line(self.path, self.number, self.get(name, dict), f"{self.prefix}{name}.")

    def children(self, name: str) -> Iterator[Line]:
        """The objects of a list in a field."""
        for index, item in enumerate(self.get(name, list)):
            if not isinstance(item, dict):
                raise self.error(f"field {self.prefix}{name}[{index}] must be an object, got {item!r:.80}")
            yield Line(self.path, self.number, item, f"{self.prefix}{name}[{index}].")

    def label(self, labels: Sequence[Label], split: Split, name: str = "label") -> Label | None:
        """The label of the line: one of ``labels``, the first for unlabelled data, None where a test file has none."""
        if split.kind == "unlabeled":
            return labels[0]
        value = self.fields.get(name)
        if value is None and split.kind == "test":
            return None
        if value is None:
            raise self.error(f"field {self.prefix + name!r} is missing; data without labels can be trained on with "
                             "--train-split=unlabeled, where no term of the loss needs labels")
        if isinstance(value, bool):  # JSON true and false stand for the words
            value = str(value).lower()
        if value not in labels:
            where = f" (field {self.prefix + name!r})" if self.prefix else ""
            known = ", ".join(map(repr, labels))
            raise self.error(f"label {value!r} is none of {known}{nearest(value, labels)}{where}")
        return value
