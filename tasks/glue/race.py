"""RACE (Lai et al. 2017): English examinations, a passage with questions of four choices.

``--data-dir`` holds the folders ``train``, ``dev``, ``test``, each with ``middle/*.txt`` and ``high/*.txt``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tasks.examples import Example, Line, Split
from tasks.files import FileFormat, read_folder
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

LABELS = ("A", "B", "C", "D")


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    names = Counter(line.path.name for line in lines)
    return [example for line in lines for example in _questions(line, split, names[line.path.name] > 1)]


def _questions(line: Line, split: Split, is_ambiguous: bool) -> Iterator[Example]:
    """The questions of a file; where both levels have a file of its name, the level stands before the name."""
    file = f"{line.path.parent.name}/{line.path.name}" if is_ambiguous else line.path.name
    questions, options = line.get("questions", list), line.get("options", list)
    answers = line.get("answers", list) if split.kind not in ("test", "unlabeled") else line.fields.get("answers")
    if len(options) != len(questions) or answers is not None and len(answers) != len(questions):
        raise line.error(f"{len(questions)} questions, {len(options)} lists of options and "
                         f"{len(answers or ())} answers; there must be one of each for a question")
    for number, (question, choices) in enumerate(zip(questions, options)):
        if not (isinstance(choices, list) and len(choices) == len(LABELS) and all(isinstance(c, str) for c in choices)):
            raise line.error(f"options[{number}] must be a list of {len(LABELS)} texts, got {choices!r:.80}")
        if not isinstance(question, str):
            raise line.error(f"questions[{number}] must be a text, got {question!r:.80}")
        answer = Line(line.path, line.number, {} if answers is None else {"label": answers[number]},
                      f"answers[{number}].")
        yield Example(f"{split.name}-p{file}-q{number}", line.text("article"), question, answer.label(LABELS, split),
                      [split.name, file, number], {"choices": choices})


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    passage, question = cut(example.text_a), f" {example.text_b}"
    previous = " Based on the previous passage,"
    if "_" in question:
        left, _, right = question.partition("_")
        gap = (cut(left.rstrip()), MASK, cut(right))
        side_b = gap if options.pattern_id == 0 else (previous, *gap)
    elif options.pattern_id == 0:
        side_b = (" Question:", cut(question), " Answer:", MASK)
    else:
        side_b = (previous, cut(question), MASK)
    return [Cloze((passage,), side_b, f" {choice}") for choice in example.meta["choices"]]


def _classifier_rows(example: Example) -> list[ClassifierRow]:
    """One row a choice (the release gives the head four labels and never shows it the choices)."""
    return [ClassifierRow(example.text_a, example.text_b or "", f" {choice}") for choice in example.meta["choices"]]


TASK = TaskSpec(
    name="race",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=_classifier_rows,
    pattern_ids=(0, 1),
    files=FileFormat(read_folder, {name: name for name in ("train", "dev", "test")}),
    choices_are_answers=True,
    variable_num_choices=True,
)
