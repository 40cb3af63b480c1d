"""What the tasks on tables share: one row is one example, called by its number."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.examples import Example, Label, Line, Split
from tasks.files import FileFormat, read_csv, read_tsv
from tasks.spec import ClassifierRow, Reader

Text = Callable[[Line], str]


def column(name: str) -> Text:
    """The text of a column."""
    return lambda line: line.text(name)


def table_reader(labels: Sequence[Label], text_a: Text, text_b: Text | None = None, label: str = "label") -> Reader:
    """A reader of one example a row; the guid is the number of the row (from 0), ``idx`` is -1."""
    def read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
        return [Example(f"{split.name}-{number}", text_a(line), None if text_b is None else text_b(line),
                        line.label(labels, split, label), -1) for number, line in enumerate(lines)]
    return read


def glue_files(dev: str = "dev.tsv", test: str = "test.tsv", *, skip_broken: bool = False) -> FileFormat:
    """GLUE's files: tables with tabs and a line of column names."""
    read = functools.partial(read_tsv, skip_broken=skip_broken)
    return FileFormat(read, {"train": "train.tsv", "dev": dev, "test": test}, suffix=".tsv")


def csv_files(*columns: str) -> FileFormat:
    """``train.csv`` and ``test.csv``, which is the dev split too; without a line of column names."""
    read: Callable[[Path], list[Line]] = functools.partial(read_csv, columns=columns)
    return FileFormat(read, {"train": "train.csv", "dev": "test.csv", "test": "test.csv"}, suffix=".csv")


def classifier_rows(example: Example) -> list[ClassifierRow]:
    """The texts as they are."""
    return [ClassifierRow(example.text_a, example.text_b or "")]
