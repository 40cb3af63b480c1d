"""Readers and patterns of the tasks. A filled pattern is written as text: ``[..]`` shortenable, ``_`` the blank."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tasks.examples import Example, Line, Split
from tasks.patterns import MASK, SLOT, Cloze, Shortenable, Word
from tasks.registry import get_task
from tasks.spec import TaskOptions


def lines(*rows: dict[str, Any]) -> list[Line]:
    return [Line(Path("x.jsonl"), number, row) for number, row in enumerate(rows, start=1)]


def read(task: str, split: str, *rows: dict[str, Any], training: bool | None = None) -> list[Example]:
    kind = Split(split, split)
    return get_task(task, TaskOptions()).read(lines(*rows), kind, split == "train" if training is None else training)


def written(cloze: Cloze) -> str:
    def side(parts: tuple[Any, ...]) -> str:
        return "".join("_" if part is MASK else "" if part is SLOT else f"[{part.text}]" if isinstance(
            part, Shortenable) else part for part in parts)
    return side(cloze.side_a) + (f"‖{side(cloze.side_b)}" if cloze.side_b else "")


def fill(task: str, example: Example, pattern_id: int) -> list[Cloze]:
    options = TaskOptions(cloze_eval=True, pattern_id=pattern_id)
    return get_task(task, options).fill(example, options)


ENTAILMENT = Example("train-1", "It rains.", "The street is wet!?", "entailment", 1)


@pytest.mark.parametrize("task", ["rte", "cb"])
def test_entailment_patterns(task: str) -> None:
    assert [written(fill(task, ENTAILMENT, number)[0]) for number in range(4)] == [
        '"[The street is wet]" ?‖_, "[It rains.]"', "[The street is wet]?‖_,[ It rains.]",
        '"[The street is wet]" ?‖_. "[It rains.]"', "[The street is wet]?‖_.[ It rains.]"]
    last = written(fill(task, ENTAILMENT, 4)[0])
    assert last == {"rte": "[It rains.] question:[ The street is wet] True or False? answer:_",
                    "cb": "[It rains.] question:[ The street is wet!?] true, false or neither? answer:_"}[task]
    words = get_task(task, TaskOptions()).verbalizers
    assert words[0] == words[3] and [word.strip() for word in words[4]][:2] == ["true", "false"]


def test_rte_reads_textual_indices() -> None:
    row = {"premise": "\u201cp\u201d", "hypothesis": "h", "label": "not_entailment"}
    found = read("rte", "dev", {**row, "idx": "12"}, {**row, "idx": "12a"}, {**row, "idx": 5})
    assert [(one.guid, one.idx) for one in found] == [("dev-12", 12), ("dev-1", 1), ("dev-5", 5)]
    assert found[0].text_a == '"p"' and found[0].label == "not_entailment"


def test_boolq() -> None:
    example, = read("boolq", "train", {"passage": "P.", "question": "is it", "idx": 3, "label": True})
    assert (example.guid, example.label) == ("train-3", "true")
    previous = "[P.] Based on the previous passage,[ is it]?_."
    following = "Based on the following passage[ is it]?_.[ P.]"
    assert [written(fill("boolq", example, number)[0]) for number in range(6)] == [
        "[P.] Question:[ is it]? Answer:_."] * 2 + [previous] * 2 + [following] * 2
    words = get_task("boolq", TaskOptions()).verbalizers
    assert words[2] == (" No", " Yes") and words[5] == (" false", " true")


COPA = {"premise": "The man slid.", "choice1": "It grew.", "choice2": "He fell!", "question": "effect", "label": 1,
        "idx": 94}


def test_copa_training_set_has_both_orders() -> None:
    first, second = read("copa", "train", COPA)
    assert (second.guid, second.label, second.idx) == ("train-94m", 0, -1)
    assert (second.meta["choice1"], second.meta["choice2"]) == ("He fell!", "It grew.")
    assert len(read("copa", "dev", COPA)) == 1
    unlabeled = read("copa", "unlabeled", {name: value for name, value in COPA.items() if name != "label"})
    assert [one.label for one in unlabeled] == [0, 0]
    assert first.label == 1


def test_copa_patterns() -> None:
    example = read("copa", "dev", COPA)[0]
    texts = ('"it grew" or "he fell"?[ The man slid], so_.', "it grew or he fell?[ The man slid], so_.")
    for number, text in enumerate(texts):
        clozes = fill("copa", example, number)
        assert [(written(one), one.answer) for one in clozes] == [(text, " it grew"), (text, " he fell")]
    cause = read("copa", "dev", {**COPA, "question": "cause"})[0]
    assert written(fill("copa", cause, 0)[0]) == '"it grew" or "he fell"?[ The man slid] because_.'
    for number in (2, 3):
        clozes = fill("copa", cause, number)
        assert [written(one) for one in clozes] == ['"it grew" or "he fell"?[The man slid]_ it grew',
                                                    '"it grew" or "he fell"?[The man slid]_ he fell']
        assert all(isinstance(one.answer, Word) and one.answer.text.strip() == "because" for one in clozes)


def test_copa_checks_the_question() -> None:
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1: field 'question' must be one of.*did you mean 'cause'"):
        read("copa", "dev", {**COPA, "question": "causes"})


def record_row(num_entities: int, answers: list[str], query: str = "Then @placeholder 's end.") -> dict[str, Any]:
    names = [f"N{index:02d}" for index in range(num_entities)]
    text = " ".join(names) + "\n@highlight\nend"
    entities = [{"start": 4 * index, "end": 4 * index + 2} for index in range(num_entities)]
    return {"idx": 8, "passage": {"text": text, "entities": entities},
            "qas": [{"idx": 9, "query": query, "answers": [{"start": 0, "end": 2, "text": one} for one in answers]}]}


def test_record_training_form() -> None:
    first, second = read("record", "train", record_row(14, ["N03", "N01", "N03"]))
    assert (first.guid, second.guid) == ("train-p8-q9-a0", "train-p8-q9-a1")
    assert (first.idx, first.label, first.num_choices) == ([8, 9, 0], "0", 10)
    assert first.text_a.endswith("N13\n- end")
    wrong = [f"N{index:02d}" for index in range(14) if index not in (1, 3)]
    generator = random.Random(42)
    for example, answer in ((first, "N01"), (second, "N03")):  # one generator, the sorted list anew each time
        order = list(wrong)
        generator.shuffle(order)
        assert example.meta["candidates"] == [answer, *order[:9]] and example.meta["answers"] == [answer]
    few, = read("record", "train", record_row(5, ["N03"]))
    assert few.meta["candidates"] == ["N03", "N00", "N01", "N02", "N04"]


def test_record_evaluation_and_unlabelled_form() -> None:
    dev, = read("record", "dev", record_row(14, ["N03", "N01"]))
    assert (dev.guid, dev.idx, dev.label, dev.num_choices) == ("dev-p8-q9", 9, "1", 14)
    assert dev.meta["answers"] == ["N01", "N03"] and dev.meta["candidates"] == sorted(dev.meta["candidates"])
    validation = read("record", "dev", record_row(14, ["N03", "N01"]), training=True)
    assert [one.guid for one in validation] == ["dev-p8-q9-a0", "dev-p8-q9-a1"]
    row = record_row(14, [])
    del row["qas"][0]["answers"]
    assert read("record", "test", row)[0].meta["answers"] == []
    unlabeled, = read("record", "unlabeled", row, training=True)
    assert unlabeled.num_choices == 10 and unlabeled.meta["answers"] == []
    with pytest.raises(ValueError, match=r"'qas\[0\]\.answers' is missing"):
        read("record", "train", row)


def test_record_pattern_and_placeholder() -> None:
    example, = read("record", "dev", record_row(2, ["N01"]))
    clozes = fill("record", example, 0)
    assert [one.answer for one in clozes] == [" N00", " N01"]
    assert written(clozes[0]) == "[N00 N01\n- end] Then_ 's end."
    for count, query in ((0, "none"), (2, "@placeholder and @placeholder")):
        with pytest.raises(ValueError, match=rf"line 1: .*query must contain @placeholder exactly once, got {count}"):
            read("record", "dev", record_row(2, ["N01"], query))


def test_predictions_are_labels_or_candidates() -> None:
    record, = read("record", "dev", record_row(3, ["N01"]))
    assert get_task("record", TaskOptions()).predicted_label(record, 2) == "N02"
    assert get_task("boolq", TaskOptions()).predicted_label(ENTAILMENT, 1) == "true"
    assert get_task("copa", TaskOptions()).predicted_label(ENTAILMENT, 1) == 1
