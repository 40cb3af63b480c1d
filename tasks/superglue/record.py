"""ReCoRD (Zhang et al. 2018, in SuperGLUE): which entity of the passage fills the gap in the query?"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from tasks.examples import Example, Line, Split, standard_punctuation
from tasks.metrics import record_exact_match, record_f1
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

LABELS = ("0", "1")
PLACEHOLDER = "@placeholder"
MAX_TRAINING_CHOICES = 10
#: Seed of the generator that picks wrong candidates: one generator a file, used in file order.
CANDIDATE_SEED = 42


def _read(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    """Training form: one example a distinct answer, at most 10 candidates, the answer first. Unlabelled data: one
    example a query, at most 10 candidates in drawn order. Evaluation form: one example a query, all candidates."""
    generator, examples = random.Random(CANDIDATE_SEED), []
    for line in lines:
        passage = line.child("passage")
        text, entities = _text_and_entities(passage)
        for question in line.children("qas"):
            query = standard_punctuation(question.text("query"))
            if query.count(PLACEHOLDER) != 1:
                raise line.error(f"field {question.prefix}query must contain {PLACEHOLDER} exactly once, "
                                 f"got {query.count(PLACEHOLDER)} in {query!r:.120}")
            guid = f"{split.name}-p{line.idx()}-q{question.idx()}"
            meta = {"passage_idx": line.idx(), "question_idx": question.idx()}
            answers = _answers(question, split)
            if split.kind == "unlabeled":
                candidates = _first_shuffled(entities, MAX_TRAINING_CHOICES, generator)
                examples.append(Example(guid, text, query, LABELS[0], question.idx(),
                                        {**meta, "candidates": candidates, "answers": []}, len(candidates)))
            elif training_form:
                examples += _training_examples(Example(guid, text, query, LABELS[0], None, meta), answers, entities,
                                               generator)
            else:
                examples.append(Example(guid, text, query, LABELS[1], question.idx(),
                                        {**meta, "candidates": entities, "answers": answers}, len(entities)))
    return examples


def _text_and_entities(passage: Line) -> tuple[str, list[str]]:
    text = standard_punctuation(passage.text("text"))
    spans = []
    for entity in passage.children("entities"):
        start, end = entity.get("start", int), entity.get("end", int)
        if not 0 <= start <= end < len(text):
            raise entity.error(f"{entity.prefix}start = {start}, end = {end}: an entity must lie inside its passage of "
                               f"{len(text)} characters (start and end count from 0, end is its last character)")
        spans.append((start, end))
    if not spans:
        raise passage.error("passage.entities is empty: there is no candidate to choose from")
    entities = sorted({text[start:end + 1] for start, end in spans})
    return text.replace("@highlight\n", "- "), entities


def _answers(question: Line, split: Split) -> list[str]:
    """The distinct answers, sorted; a test file has none."""
    if split.kind in ("test", "unlabeled") and not question.fields.get("answers"):
        return []
    answers = sorted({standard_punctuation(answer.text("text")) for answer in question.children("answers")})
    if not answers:
        raise question.error(f"{question.prefix}answers is empty; without answers a file can be scored as a test set "
                             "(--test-data) or trained on with --train-split=unlabeled")
    return answers


def _training_examples(query: Example, answers: Iterable[str], entities: Sequence[str],
                       generator: random.Random) -> list[Example]:
    wrong = [entity for entity in entities if entity not in set(answers)]
    examples = []
    for index, answer in enumerate(answers):
        candidates = [answer, *_first_shuffled(wrong, MAX_TRAINING_CHOICES - 1, generator)]
        meta = {**query.meta, "candidates": candidates, "answers": [answer]}
        idx = [query.meta["passage_idx"], query.meta["question_idx"], index]
        examples.append(Example(f"{query.guid}-a{index}", query.text_a, query.text_b, query.label, idx, meta,
                                len(candidates)))
    return examples


def _first_shuffled(items: Sequence[str], limit: int, generator: random.Random) -> list[str]:
    """All items in order if there are at most ``limit``; otherwise ``limit`` of them, by a shuffle."""
    items = list(items)
    if len(items) > limit:
        generator.shuffle(items)
    return items[:limit]


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    left, _, right = (example.text_b or "").partition(PLACEHOLDER)
    cloze = Cloze((cut(example.text_a), " " + left.rstrip(), MASK, right))
    return [cloze.with_answer(" " + candidate) for candidate in example.meta["candidates"]]


def _classifier_rows(example: Example) -> list[ClassifierRow]:
    return [ClassifierRow(example.text_a, example.text_b or "", " " + candidate)
            for candidate in example.meta["candidates"]]


TASK = TaskSpec(
    name="record",
    labels=LABELS,
    read=_read,
    fill=_fill,
    classifier_rows=_classifier_rows,
    pattern_ids=(0,),
    metrics={"EM": record_exact_match, "F1": record_f1},
    choices_are_answers=True,
    variable_num_choices=True,
    max_num_choices=MAX_TRAINING_CHOICES,
    prediction=lambda example, index: example.meta["candidates"][index],
)
