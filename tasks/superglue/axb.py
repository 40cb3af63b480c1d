"""AX-b (in SuperGLUE): the broad-coverage diagnostic set, scored by a model of RTE. It is for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tasks.examples import Example, Line, Split
from tasks.files import FileFormat, read_lines
from tasks.metrics import accuracy, matthews
from tasks.superglue import rte


def diagnostic_files(name: str) -> FileFormat:
    """One file is every split."""
    return FileFormat(read_lines, dict.fromkeys(("train", "dev", "test"), name), suffix=".jsonl")


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    return rte.read_entailment(lines, split, rte.LABELS, ("sentence1", "sentence2"))


TASK = replace(rte.TASK, name="ax-b", read=_read, files=diagnostic_files("AX-b.jsonl"),
               metrics={"accuracy": accuracy, "matthews": matthews})
