"""MRPC (Dolan and Brockett 2005) and QQP, in GLUE: do two sentences, or two questions, mean the same?"""

from __future__ import annotations

from tasks.examples import Example, lower_first, strip_punctuation
from tasks.glue.tables import classifier_rows, column, glue_files, table_reader
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec

LABELS = ("0", "1")
_VERBALIZERS = {0: (" No", " Yes"), 1: (" No", " Yes")}


def _fill_mrpc(example: Example, options: TaskOptions) -> list[Cloze]:
    first, second = cut(example.text_a), lower_first(example.text_b or "")
    if options.pattern_id == 0:
        return [Cloze((first,), (MASK, ", ", cut(second)))]
    return [Cloze((first,), (" Does it mean that", cut(strip_punctuation(second)), "?", MASK))]


def _fill_qqp(example: Example, options: TaskOptions) -> list[Cloze]:
    first, second = cut(example.text_a), cut(lower_first(example.text_b or ""))
    if options.pattern_id == 0:
        return [Cloze((first,), (" Do you mean ", second, MASK, "."))]
    return [Cloze((first,), (MASK, ", ", second))]


MRPC = TaskSpec(
    name="mrpc",
    labels=LABELS,
    read=table_reader(LABELS, column("#1 String"), column("#2 String"), "Quality"),
    fill=_fill_mrpc,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1),
    verbalizers=_VERBALIZERS,
    files=glue_files(),
)
QQP = TaskSpec(
    name="qqp",
    labels=LABELS,
    read=table_reader(LABELS, column("question1"), column("question2"), "is_duplicate"),
    fill=_fill_qqp,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1),
    verbalizers=_VERBALIZERS,
    files=glue_files(skip_broken=True),
)
TASKS = (MRPC, QQP)
