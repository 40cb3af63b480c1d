"""Reads what a run has written about itself: ``metrics.jsonl`` and the result files."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

RECORDS = "metrics.jsonl"
RESULTS = ("results.json", "test_results.json")
#: Fields of a record that are no measurements.
POSITION = ("kind", "iteration", "epoch")

Record = dict[str, Any]
Curve = list[tuple[float, float | None]]


@dataclass
class Run:
    """The records of one run, by kind; each in the order of its iterations."""

    name: str
    start: Record = field(default_factory=dict)
    end: Record = field(default_factory=dict)
    train: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    metrics: list[Record] = field(default_factory=list)
    results: dict[str, Record] = field(default_factory=dict)

    def curve(self, kind: str, name: str) -> Curve:
        """(iteration, value) of a field; None where it was not finite. Empty where the run has no such field."""
        records = [record for record in getattr(self, kind) if name in record]
        return [(record.get("iteration", 0), record[name]) for record in records]

    def names(self, kind: str) -> list[str]:
        """Numeric fields of the records of a kind, in the order of their first appearance."""
        found: dict[str, None] = {}
        for record in getattr(self, kind):
            found.update(dict.fromkeys(name for name, value in record.items() if name not in POSITION and (
                value is None or isinstance(value, int | float) and not isinstance(value, bool))))
        return list(found)


def read_run(path: Path) -> Run:
    """The run at ``path``: a run folder, its folder of records, or the file itself.

    A last line that was cut off (the run goes on, or was killed) is left out; of an iteration that was trained twice,
    before and after a kill, the later record counts.

    Raises:
        FileNotFoundError: there are no records. ValueError: a line in the middle is no record (file and line named).
    """
    file = _records_file(path)
    run = Run(_name(file))
    latest: dict[str, dict[Any, Record]] = {"train": {}, "validation": {}, "metrics": {}}
    for record in _read_lines(file):
        kind = record.get("kind")
        if kind == "start":
            run.start = record
        elif kind == "end":
            run.end = record
        elif kind in latest:
            latest[kind][record.get("iteration"), record.get("epoch") if kind == "metrics" else None] = record
    for kind, records in latest.items():
        setattr(run, kind, sorted(records.values(), key=lambda record: record.get("iteration") or 0))
    for name in RESULTS:
        if (file.parent / name).is_file():
            try:
                run.results[name] = json.loads((file.parent / name).read_text(encoding="utf-8"))
            except ValueError as error:
                logger.warning("%s is left out: %s", file.parent / name, error)
    return run


def _records_file(path: Path) -> Path:
    candidates = [path] if path.is_file() else [path / RECORDS, path / "tensorboard" / RECORDS]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path}: no {RECORDS} there (looked for {', '.join(map(str, candidates))}); give a run "
                            "folder, its --log-dir, or the file itself")


def _name(file: Path) -> str:
    folder = file.resolve().parent
    return folder.parent.name if folder.name == "tensorboard" else folder.name


def _read_lines(file: Path) -> list[Record]:
    lines = file.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            if number == len(lines):  # without an end of line: cut off
                logger.warning("%s, line %d is cut off and left out", file, number)
                break
            raise ValueError(f"{file}, line {number}: {error}; remove the line") from error
        records.append(record)
    return records
