"""MultiRC (Khashabi et al. 2018, in SuperGLUE): is an answer to a question on a passage right? Several may be."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.examples import Example, Line, Split, standard_punctuation, strip_punctuation
from tasks.metrics import accuracy, f1, grouped_exact_match
from tasks.patterns import MASK, SLOT, Cloze, cut
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

LABELS = (0, 1)


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    """One example an answer."""
    return [_example(line, question, answer, split)
            for line in lines
            for question in line.child("passage").children("questions")
            for answer in question.children("answers")]


def _example(line: Line, question: Line, answer: Line, split: Split) -> Example:
    idx = [line.idx(), question.idx(), answer.idx()]
    meta = {"passage_idx": idx[0], "question_idx": idx[1], "answer_idx": idx[2],
            "answer": standard_punctuation(answer.text("text"))}
    return Example(f"{split.name}-p{idx[0]}-q{idx[1]}-a{idx[2]}",
                   standard_punctuation(line.child("passage").text("text")),
                   standard_punctuation(question.text("question")), answer.label(LABELS, split), idx, meta)


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    text, question = (strip_punctuation(part.rstrip()) for part in (example.text_a, example.text_b or ""))
    answer = example.meta["answer"]
    if options.pattern_id == 0:
        parts = (cut(text), ".", SLOT, " Question:", f" {question}?", SLOT, " Is it", f" {answer}", "?", SLOT, MASK,
                 ".")
    elif options.pattern_id == 1:
        parts = (cut(text), ".", SLOT, " Question:", f" {question}", "?", SLOT, ' Is the correct answer "', answer,
                 '"?', SLOT, MASK, ".")
    elif options.pattern_id == 2:
        parts = (cut(text), ". Based on the previous passage,", SLOT, f" {question}", "?", SLOT, ' Is "', answer,
                 '" a correct answer?', SLOT, MASK, ".")
    elif options.pattern_id == 3:
        parts = (SLOT, cut(text), SLOT, f" {question}", "- [", MASK, "]", SLOT, answer)
    else:
        parts = (cut(text), ".", SLOT, " Question:", f" {question}", "?", SLOT, f" {answer}", "?", SLOT, MASK, ".")
    return [Cloze(parts)]


def _classifier_rows(example: Example) -> list[ClassifierRow]:
    return [ClassifierRow(example.text_a, f"{example.text_b} answer: {example.meta['answer']}")]


def _prediction_lines(examples: Sequence[Example], predictions: Sequence[int]) -> list[dict[str, object]]:
    """One line a passage, with all its questions and their answers, in the order of the examples."""
    passages: dict[object, dict[object, list[dict[str, object]]]] = {}
    for example, prediction in zip(examples, predictions, strict=True):
        passage, question, answer = example.idx
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": LABELS[prediction]})
    return [{"idx": passage, "passage": {"questions": [{"idx": question, "answers": answers}
                                                       for question, answers in questions.items()]}}
            for passage, questions in passages.items()]


TASK = TaskSpec(
    name="multirc",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=_classifier_rows,
    pattern_ids=(0, 1, 2, 3, 4),
    verbalizers={**dict.fromkeys((0, 1, 2, 4), (" No", " Yes")), 3: (" False", " True")},
    metrics={"f1a": f1, "em": grouped_exact_match, "acc": accuracy},
    prediction_lines=_prediction_lines,
)
