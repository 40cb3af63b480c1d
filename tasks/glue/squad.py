"""SQuAD 2.0 (Rajpurkar et al. 2018) in multi-token form: the log-probability of the first answer is trained.

There is one answer and nothing to choose from, so the accuracy of this form is 100 by construction (as published); what
can be learned from is ``--loss-func=generative``. Generated answers are scored by :func:`tasks.metrics.squad_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.examples import Example, Line, Split
from tasks.files import FileFormat, read_document
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec

NO_ANSWER = "N/A"


def _read_file(path: Path) -> list[Line]:
    """One row an article."""
    return list(read_document(path).children("data"))


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    return [_example(paragraph.text("context"), question)
            for line in lines for paragraph in line.children("paragraphs") for question in paragraph.children("qas")]


def _example(context: str, question: Line) -> Example:
    answers = [answer.text("text") for answer in question.children("answers")] or [NO_ANSWER]
    return Example(question.text("id"), context, question.text("question"), 0, -1,
                   {"answer": answers[0], "answers": answers})


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    return [Cloze((cut(example.text_a), f" {example.text_b}", MASK, "."), answer=f" {example.meta['answer']}")]


TASK = TaskSpec(
    name="squad",
    labels=(0,),
    read=_read,
    fill=_fill,
    classifier_rows=None,
    pattern_ids=(0,),
    files=FileFormat(_read_file, {"train": "train-v2.0.json", "dev": "dev-v2.0.json", "test": "test-v2.0.json"},
                     suffix=".json"),
    choices_are_answers=True,
    prediction=lambda example, index: example.meta["answer"],
)
