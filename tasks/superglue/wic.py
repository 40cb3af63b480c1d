"""WiC (Pilehvar and Camacho-Collados 2019, in SuperGLUE): does a word have the same sense in two sentences?"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.examples import Example, Line, Split, standard_punctuation
from tasks.patterns import MASK, SLOT, Cloze, cut
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

LABELS = ("false", "true")


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    """A missing label counts as false in a test file; such an example takes no part in metrics."""
    examples = []
    for line in lines:
        label = line.label(LABELS, split)
        examples.append(Example(
            f"{split.name}-{line.idx()}", standard_punctuation(line.text("sentence1")),
            standard_punctuation(line.text("sentence2")), label or LABELS[0], line.idx(),
            {"word": line.text("word")}, is_labelled=label is not None))
    return examples


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    first, second, word = example.text_a, example.text_b or "", example.meta["word"]
    if options.pattern_id == 0:
        return [Cloze((SLOT, cut(f'"{first}" / "{second}"'), SLOT, f' Similar sense of "{word}"?', SLOT, MASK, "."))]
    if options.pattern_id == 1:
        question = f" Does {word} have the same meaning in both sentences?"
        return [Cloze((cut(first), SLOT, cut(f" {second}"), SLOT, question, SLOT, MASK))]
    return [Cloze((SLOT, word, " .", SLOT, ' Sense (1) (a) "', cut(first), '"', SLOT, " (", MASK, ') "', second, '"'))]


def _classifier_rows(example: Example) -> list[ClassifierRow]:
    return [ClassifierRow(f"{example.meta['word']}: {example.text_a}", example.text_b or "")]


TASK = TaskSpec(
    name="wic",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=_classifier_rows,
    pattern_ids=(0, 1, 2),
    verbalizers={0: (" No", " Yes"), 1: (" No", " Yes"), 2: ("2", "b")},
)
