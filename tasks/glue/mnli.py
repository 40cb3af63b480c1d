"""MNLI (Williams et al. 2018, in GLUE): does the premise entail or contradict the hypothesis? Matched, mismatched."""

from __future__ import annotations

from dataclasses import replace

from tasks.examples import Example, strip_punctuation
from tasks.glue.tables import classifier_rows, column, glue_files, table_reader
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec

LABELS = ("contradiction", "entailment", "neutral")


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    first, second = cut(strip_punctuation(example.text_a)), cut(example.text_b or "")
    if options.pattern_id in (0, 2):
        return [Cloze(('"', first, '" ?'), (MASK, ', "', second, '"'))]
    return [Cloze((first, "?"), (MASK, ",", second))]


_WORDS = (" Wrong", " Right", " Maybe"), (" No", " Yes", " Maybe")
_MATCHED = TaskSpec(
    name="mnli",
    labels=LABELS,
    read=table_reader(LABELS, column("sentence1"), column("sentence2"), "gold_label"),
    fill=_fill,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1, 2, 3),
    verbalizers={0: _WORDS[0], 1: _WORDS[0], 2: _WORDS[1], 3: _WORDS[1]},
    files=glue_files("dev_matched.tsv", "test_matched.tsv"),
)
TASKS = (_MATCHED, replace(_MATCHED, name="mnli-mm", files=glue_files("dev_mismatched.tsv", "test_mismatched.tsv")))
