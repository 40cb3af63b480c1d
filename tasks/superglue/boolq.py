"""BoolQ (Clark et al. 2019, in SuperGLUE): a yes/no question on a passage."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.examples import Example, Line, Split, standard_punctuation
from tasks.patterns import MASK, SLOT, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec
from tasks.superglue.rte import classifier_rows

LABELS = ("false", "true")


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    return [Example(f"{split.name}-{line.idx()}", standard_punctuation(line.text("passage")),
                    standard_punctuation(line.text("question")), line.label(LABELS, split), line.idx())
            for line in lines]


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    passage, question = example.text_a, cut(f" {example.text_b}")
    if options.pattern_id < 2:
        return [Cloze((SLOT, cut(passage), SLOT, " Question:", question, "? Answer:", SLOT, MASK, "."))]
    if options.pattern_id < 4:
        return [Cloze((SLOT, cut(passage), " Based on the previous passage,", SLOT, question, "?", SLOT, MASK, "."))]
    return [Cloze(("Based on the following passage", SLOT, question, "?", SLOT, MASK, ".", SLOT, cut(" " + passage)))]


TASK = TaskSpec(
    name="boolq",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1, 2, 3, 4, 5),
    verbalizers={pattern_id: (" false", " true") if pattern_id % 2 else (" No", " Yes") for pattern_id in range(6)},
)
