"""COPA (Roemmele et al. 2011, in SuperGLUE): which of two sentences is the cause, or the effect, of a premise?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tasks.examples import Example, Line, Split, lower_first, nearest, standard_punctuation, strip_punctuation
from tasks.patterns import MASK, SLOT, Cloze, Word, cut
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

LABELS = (0, 1)
QUESTIONS = ("cause", "effect")
#: The answer words of the patterns that ask for the conjunction, for a cause and for an effect.
CONJUNCTIONS = ("because", "so")


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    examples = []
    for line in lines:
        meta = {name: line.text(name) for name in ("choice1", "choice2", "question")}
        if meta["question"] not in QUESTIONS:
            raise line.error(f"field 'question' must be one of {', '.join(map(repr, QUESTIONS))}, "
                             f"got {meta['question']!r}{nearest(meta['question'], QUESTIONS)}")
        idx = line.idx()
        examples.append(Example(f"{split.name}-{idx}", line.text("premise"), label=line.label(LABELS, split), idx=idx,
                                meta=meta))
    if split.kind in ("train", "unlabeled"):
        examples += [_swapped(example, keep_label=split.kind == "unlabeled") for example in examples]
    return examples


def _swapped(example: Example, keep_label: bool) -> Example:
    """The example with its choices exchanged, so that a model sees both orders."""
    meta = {**example.meta, "choice1": example.meta["choice2"], "choice2": example.meta["choice1"]}
    label = example.label if keep_label or example.label is None else 1 - int(example.label)
    return replace(example, guid=example.guid + "m", label=label, idx=-1, meta=meta)


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    choices = [strip_punctuation(lower_first(example.meta[name])) for name in ("choice1", "choice2")]
    first, second = choices
    is_cause = example.meta["question"] == "cause"
    premise, joint = cut(strip_punctuation(" " + example.text_a)), " because" if is_cause else ", so"
    if options.pattern_id == 0:
        cloze = Cloze((SLOT, '"', first, '" or "', second, '"?', SLOT, premise, joint, SLOT, MASK, "."))
    elif options.pattern_id == 1:
        cloze = Cloze((SLOT, first, " or", " " + second, "?", SLOT, premise, joint, SLOT, MASK, "."))
    elif options.continuous_prompt:
        cloze = Cloze((SLOT, '"', first, '" or "', second, '"', SLOT, premise, joint, MASK, ".", SLOT))
    else:  # the blank is the conjunction, and the choices differ in the text behind it
        premise, word = cut(strip_punctuation(example.text_a)), Word(CONJUNCTIONS[0] if is_cause else CONJUNCTIONS[1])
        return [Cloze(('"', first, '" or "', second, '"?', premise, MASK, " " + choice), answer=word)
                for choice in choices]
    return [cloze.with_answer(" " + choice) for choice in choices]


def _classifier_rows(example: Example) -> list[ClassifierRow]:
    joint = " because" if example.meta["question"] == "cause" else " so"
    premise = standard_punctuation(example.text_a) + joint
    return [ClassifierRow(premise, standard_punctuation(example.meta[name])) for name in ("choice1", "choice2")]


TASK = TaskSpec(
    name="copa",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=_classifier_rows,
    pattern_ids=(0, 1, 2, 3),
    choices_are_answers=True,
)
