"""The file formats of the tasks: which file holds a split, and how its rows become :class:`~tasks.examples.Line`.

Every complaint names the file, the line and the way out. Files are UTF-8, with or without a byte-order mark.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tasks.examples import Line

#: Bytes from which the reading of a file is shown on a terminal.
_SHOWN_BYTES = 20_000_000

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileFormat:
    """The files of a task below ``--data-dir``.

    Attributes:
        read: a file (RACE: a folder) -> its rows.
        names: split -> file name.
        few_shot: the same with ``--few-superglue``.
        suffix: a split of any other name is the file ``<name><suffix>``.
    """

    read: Callable[[Path], list[Line]]
    names: Mapping[str, str]
    few_shot: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""

    def file_name(self, split: str, few_superglue: bool = False) -> str:
        """Where a split stands."""
        names = {**self.names, **self.few_shot} if few_superglue else self.names
        return names.get(split, split + self.suffix)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line; ValueError for bytes that are no UTF-8."""
    with path.open("rb") as stream, _progress(path) as progress:
        for number, line in enumerate(stream, start=1):
            progress.update(len(line))
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: byte {error.start + 1} of the line is not UTF-8; save the "
                                 "file as UTF-8 (for example: iconv -f latin1 -t utf-8)") from error


def _progress(path: Path) -> tqdm:
    """A bar over the bytes of a large file, on the terminal of the first rank alone."""
    size = path.stat().st_size
    is_hidden = size < _SHOWN_BYTES or os.environ.get("RANK", "0") != "0"
    return tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {path.name}", leave=False,
                disable=True if is_hidden else None)


def _object(path: Path, number: int, text: str) -> Mapping[str, Any]:
    """The JSON object of a text."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}); the file "
                         "must hold one JSON object a line") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}, line {number}: one JSON object a line is expected, got {text.strip()!r:.80}")
    _check_characters(path, number, text, fields)
    return fields


def _check_characters(path: Path, number: int, text: str, fields: Mapping[str, Any]) -> None:
    """ValueError for half a character (a surrogate alone), which JSON can escape, but no tokenizer can read."""
    if "\\ud" not in text.lower():
        return
    try:
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}, line {number}: {error.object[error.start:error.end]!a} is half a character (texts "
                         "were cut inside one); remove it") from error


def read_lines(path: Path) -> list[Line]:
    """The JSON lines of a file, empty lines left out; ValueError with the line number where one is malformed."""
    return [Line(path, number, _object(path, number, text)) for number, text in text_lines(path) if text.strip()]


def read_document(path: Path) -> Line:
    """A file that is one JSON object, as one row."""
    text = "\n".join(text for _, text in text_lines(path))
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}); the file "
                         "must hold one JSON object") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}, line 1: one JSON object is expected, got {text.strip()!r:.80}")
    _check_characters(path, 1, text, fields)
    return Line(path, 1, fields)


def read_folder(path: Path) -> list[Line]:
    """All ``.txt`` files below a folder, each one JSON object; in the order of their paths."""
    return [read_document(file) for file in sorted(path.rglob("*.txt"))]


def read_tsv(path: Path, columns: Sequence[str] | None = None, *, skip_broken: bool = False) -> list[Line]:
    """The rows of a table with tabs between its columns, without any quoting; the first line names the columns.

    Args:
        columns: their names where the file has no such line.
        skip_broken: leave out rows with too few or too many columns, with one warning (QQP as published has some);
            otherwise they are a ValueError.
    """
    lines, broken = [], []
    for number, text in text_lines(path):
        cells = text.split("\t")
        if columns is None:
            columns = cells
        elif len(cells) == len(columns):
            lines.append(Line(path, number, dict(zip(columns, cells))))
        elif text.strip():
            broken.append(number)
            if not skip_broken:
                raise ValueError(f"{path}, line {number}: {len(cells)} columns instead of {len(columns)} "
                                 f"({', '.join(columns)}); columns are separated by one tab, texts hold none")
    if broken:
        _LOG.warning("%s: %d rows without all columns are left out, the first is line %d", path, len(broken), broken[0])
    return lines


def read_csv(path: Path, columns: Sequence[str]) -> list[Line]:
    """The rows of a comma-separated table without a line of names; texts may stand in double quotes."""
    lines = []
    rows = csv.reader((text + "\n" for _, text in text_lines(path)), strict=True)
    try:
        for cells in rows:
            if cells and len(cells) != len(columns):
                raise ValueError(f"{path}, line {rows.line_num}: {len(cells)} columns instead of {len(columns)} "
                                 f"({', '.join(columns)}); texts with commas must stand in double quotes")
            if cells:
                lines.append(Line(path, rows.line_num, dict(zip(columns, cells))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}; a text in double quotes must end with one, and "
                         'quotes inside it are written twice ("")') from error
    return lines


_SPLITS = {"train": "train.jsonl", "dev": "val.jsonl", "test": "test.jsonl", "unlabeled": "unlabeled.jsonl"}

#: The layout of SuperGLUE.
JSON_LINES = FileFormat(read_lines, _SPLITS, {"dev": "dev32.jsonl", "test": "val.jsonl"}, ".jsonl")
