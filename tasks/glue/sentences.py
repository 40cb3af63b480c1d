"""SST-2 (Socher et al. 2013) and CoLA (Warstadt et al. 2019), in GLUE: is a sentence positive; is it acceptable?"""

from __future__ import annotations

from pathlib import Path

from tasks.examples import Example, Line
from tasks.files import FileFormat, read_tsv
from tasks.glue.tables import classifier_rows, column, glue_files, table_reader
from tasks.metrics import accuracy, matthews
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec

LABELS = ("0", "1")
_COLA_COLUMNS = ("source", "label", "mark", "sentence")


def _read_cola(path: Path) -> list[Line]:
    """Only the test file names its columns."""
    return read_tsv(path, None if path.stem == "test" else _COLA_COLUMNS)


def _fill_sst2(example: Example, options: TaskOptions) -> list[Cloze]:
    return [Cloze((cut(example.text_a), " It was", MASK, "."))]


def _fill_cola(example: Example, options: TaskOptions) -> list[Cloze]:
    return [Cloze(('"', cut(example.text_a), '"', " This is", MASK, "."))]


SST2 = TaskSpec(
    name="sst2",
    labels=LABELS,
    read=table_reader(LABELS, column("sentence")),
    fill=_fill_sst2,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1),
    verbalizers={0: (" terrible", " great"), 1: (" bad", " good")},
    files=glue_files(),
)
COLA = TaskSpec(
    name="cola",
    labels=LABELS,
    read=table_reader(LABELS, column("sentence")),
    fill=_fill_cola,
    classifier_rows=classifier_rows,
    pattern_ids=(0,),
    verbalizers={0: (" incorrect", " correct")},
    metrics={"accuracy": accuracy, "matthews": matthews},
    files=FileFormat(_read_cola, {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}, suffix=".tsv"),
)
TASKS = (SST2, COLA)
