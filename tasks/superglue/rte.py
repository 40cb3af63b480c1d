"""RTE (Dagan et al. 2006 ff., in SuperGLUE): does the premise entail the hypothesis?"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.examples import Example, Label, Line, Split, standard_punctuation, strip_punctuation
from tasks.patterns import MASK, SLOT, Cloze, cut
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

LABELS = ("entailment", "not_entailment")


def read_entailment(lines: Sequence[Line], split: Split, labels: Sequence[Label],
                    names: tuple[str, str] = ("premise", "hypothesis")) -> list[Example]:
    """Examples of a premise-hypothesis task; ``names`` are the fields of the texts.

    A textual ``idx`` becomes a number, or the line number (from 0).
    """
    examples = []
    for line in lines:
        idx = line.idx()
        if isinstance(idx, str):
            idx = int(idx) if idx.strip().lstrip("-").isdecimal() else line.number - 1
        examples.append(Example(f"{split.name}-{idx}", standard_punctuation(line.text(names[0])),
                                standard_punctuation(line.text(names[1])), line.label(labels, split), idx))
    return examples


def entailment_cloze(example: Example, pattern_id: int) -> Cloze:
    """Patterns 0-3: the hypothesis as a question, the blank as the answer, the premise as its reason."""
    premise, hypothesis = example.text_a, strip_punctuation(example.text_b or "")
    if pattern_id == 0:
        return Cloze((SLOT, '"', cut(hypothesis), '" ?'), (SLOT, MASK, ",", SLOT, ' "', cut(premise), '"'))
    if pattern_id == 1:
        return Cloze((SLOT, cut(hypothesis), "?"), (SLOT, MASK, ",", SLOT, cut(" " + premise)))
    if pattern_id == 2:
        return Cloze((SLOT, '"', cut(hypothesis), '" ?'), (SLOT, MASK, '. "', SLOT, cut(premise), '"'))
    return Cloze((SLOT, cut(hypothesis), "?"), (SLOT, MASK, ".", SLOT, cut(" " + premise)))


def question_cloze(premise: str, hypothesis: str, question: str) -> Cloze:
    """Pattern 4: premise, hypothesis and a question that names the possible answers."""
    return Cloze((SLOT, cut(premise), SLOT, " question:", cut(" " + hypothesis), question, SLOT, " answer:", MASK))


def classifier_rows(example: Example) -> list[ClassifierRow]:
    """Both texts as they are."""
    return [ClassifierRow(example.text_a, example.text_b or "")]


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    return read_entailment(lines, split, LABELS)


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    if options.pattern_id == 4:
        return [question_cloze(example.text_a, strip_punctuation(example.text_b or ""), " True or False?")]
    return [entailment_cloze(example, options.pattern_id)]


TASK = TaskSpec(
    name="rte",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1, 2, 3, 4),
    verbalizers={**dict.fromkeys(range(4), (" Yes", " No")), 4: (" true", " false")},
)
