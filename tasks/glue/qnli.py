"""QNLI (Wang et al. 2019, in GLUE): does a sentence answer a question?"""

from __future__ import annotations

from tasks.examples import Example, strip_punctuation
from tasks.glue.tables import classifier_rows, column, glue_files, table_reader
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec

LABELS = ("entailment", "not_entailment")


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    passage, question = example.text_b or "", cut(f" {strip_punctuation(example.text_a)}")
    if options.pattern_id == 0:
        return [Cloze((cut(passage), " Question:", question, "? Do you know the answer?", MASK, "."))]
    if options.pattern_id == 1:
        request = " Based on the previous passage, do you know the answer"
        return [Cloze((cut(passage), request, question, "?", MASK, "."))]
    request = "Based on the following passage, do you know the answer"
    return [Cloze((request, question, "?", MASK, ".", cut(f" {passage}")))]


TASK = TaskSpec(
    name="qnli",
    labels=LABELS,
    read=table_reader(LABELS, column("question"), column("sentence")),
    fill=_fill,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1, 2),
    verbalizers=dict.fromkeys(range(3), (" Yes", " No")),
    files=glue_files(),
)
