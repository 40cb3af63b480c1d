"""The generated tasks: labels follow from the facts, no held-out fact is trained on, nothing gives the answer away."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from data_utils.tokenizers import make_tokenizer
from data_utils.world.tasks import LABELS, question_key
from tasks.data import make_split, read_split
from tasks.encoding import TaskEncoder
from tasks.registry import get_task
from tasks.spec import TaskOptions
from tests.data_utils.world.conftest import read_lines
from tests.data_utils.world.judge import PARTS, Judge

TASKS = ("COPA", "CB", "RTE", "BoolQ", "ReCoRD")
FIELDS = {
    "COPA": {"premise", "choice1", "choice2", "question", "label", "idx"},
    "CB": {"premise", "hypothesis", "label", "idx"},
    "RTE": {"premise", "hypothesis", "label", "idx"},
    "BoolQ": {"question", "passage", "label", "idx"},
    "ReCoRD": {"source", "passage", "qas", "idx"},
}


def answer_of(task: str, example: dict) -> object:
    if task == "ReCoRD":
        return {answer["text"] for answer in example["qas"][0]["answers"]}
    return example["label"]


@pytest.mark.parametrize("task", TASKS)
def test_labels_follow_from_facts_of_the_right_split(world: Path, facts: list[dict], task: str) -> None:
    judge = Judge(facts)
    for part, allowed in PARTS.items():
        for example in read_lines(world / f"tasks/{task}/{part}.jsonl"):
            answer, splits = getattr(judge, task.lower())(example)
            assert splits and splits <= allowed, example
            if part != "unlabeled":
                assert answer == answer_of(task, example), example
                assert set(example) == FIELDS[task]
            else:
                assert "label" not in example and not any(qa["answers"] for qa in example.get("qas", ()))


@pytest.mark.parametrize("task", TASKS)
def test_parts_share_no_question_and_labels_are_balanced(world: Path, task: str) -> None:
    parts = {part: read_lines(world / f"tasks/{task}/{part}.jsonl") for part in PARTS}
    keys = [question_key(example) for examples in parts.values() for example in examples]
    assert len(keys) == len(set(keys))
    for part in ("train", "val", "test") if task != "ReCoRD" else ():
        counts = Counter(example["label"] for example in parts[part])
        assert set(counts) == set(LABELS[task]) and max(counts.values()) - min(counts.values()) <= 1
    assert len(parts["val"]) >= (500 if task == "COPA" else 300)


def test_record_offsets_and_entities(world: Path) -> None:
    for example in read_lines(world / "tasks/ReCoRD/val.jsonl"):
        text, qa = example["passage"]["text"], example["qas"][0]
        entities = {(e["start"], e["end"]) for e in example["passage"]["entities"]}
        assert qa["answers"] and qa["query"].count("@placeholder") == 1
        for answer in qa["answers"]:
            assert text[answer["start"] : answer["end"] + 1] == answer["text"]
            assert (answer["start"], answer["end"]) in entities


def test_unlabelled_copa_pool_asks_about_every_pattern(world: Path, facts: list[dict]) -> None:
    judge = Judge(facts)
    asked = {judge.event(e["premise"])[0]["pattern"] for e in read_lines(world / "tasks/COPA/unlabeled.jsonl")}
    assert asked == {chain["pattern"] for chain in judge.chains}


def words(sentence: str) -> set[str]:
    return set(re.findall(r"[a-z]+", sentence.lower()))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_copa_choices_give_nothing_away(world: Path, facts: list[dict], part: str) -> None:
    """Neither words shared with the premise, nor length, nor how often an event is right, finds the right choice."""
    examples, judge = read_lines(world / f"tasks/COPA/{part}.jsonl"), Judge(facts)
    overlap, longer, right, seen = 0.0, 0.0, Counter(), Counter()
    for example in examples:
        choices = [example["choice1"], example["choice2"]]
        shared = [len(words(example["premise"]) & words(choice)) for choice in choices]
        sizes = [len(choice.split()) for choice in choices]
        good, bad = example["label"], 1 - example["label"]
        overlap += (shared[good] > shared[bad]) + 0.5 * (shared[good] == shared[bad])
        longer += (sizes[good] > sizes[bad]) + 0.5 * (sizes[good] == sizes[bad])
        for i, choice in enumerate(choices):
            event = judge.event(choice)[:2]
            key = (event[0]["pattern"], event[1])
            seen[key] += 1
            right[key] += i == good
    assert abs(overlap / len(examples) - 0.5) < 0.06
    assert abs(longer / len(examples) - 0.5) < 0.06
    # The best guess from one choice alone, scored on the very questions that it was made from.
    assert sum(max(right[k], seen[k] - right[k]) for k in seen) / sum(seen.values()) < 0.58


@pytest.mark.parametrize("task", TASKS)
def test_readers_take_every_part(world: Path, task: str) -> None:
    options = TaskOptions(cloze_eval=True, seq_length=96)
    spec = get_task(task, options)
    encoder = TaskEncoder(spec, options, make_tokenizer("BertWordPieceTokenizer", str(world / "vocab.txt")))
    for name, stem in (("train", "train"), ("dev", "val"), ("test", "test"), ("unlabeled", "unlabeled")):
        path = world / f"tasks/{task}/{stem}.jsonl"
        examples = read_split(spec, path, make_split(name), training_form=name == "train")
        assert len(examples) >= len(read_lines(path))
        encoder(examples[0])
