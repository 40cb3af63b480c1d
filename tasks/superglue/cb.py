"""CommitmentBank (de Marneffe et al. 2019, in SuperGLUE): is the writer committed to the embedded clause?"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.examples import Example, Line, Split
from tasks.metrics import accuracy, f1_macro
from tasks.patterns import Cloze
from tasks.spec import TaskOptions, TaskSpec
from tasks.superglue.rte import classifier_rows, entailment_cloze, question_cloze, read_entailment

LABELS = ("entailment", "contradiction", "neutral")


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    return read_entailment(lines, split, LABELS)


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    if options.pattern_id == 4:  # unlike RTE, the hypothesis keeps its punctuation here
        return [question_cloze(example.text_a, example.text_b or "", " true, false or neither?")]
    return [entailment_cloze(example, options.pattern_id)]


TASK = TaskSpec(
    name="cb",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1, 2, 3, 4),
    verbalizers={**dict.fromkeys(range(4), (" Yes", " No", " Maybe")), 4: (" true", " false", " neither")},
    metrics={"accuracy": accuracy, "f1-macro": f1_macro},
)
