"""Answers the world's questions again, from facts.jsonl and the sentence forms alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from data_utils.world.lists import COLOURS
from data_utils.world.templates import CONSEQUENCE_TEMPLATES, FACT_TEMPLATES, QUESTION_TEMPLATES

PARTS = {"train": {"train"}, "val": {"heldout"}, "test": {"heldout"}, "unlabeled": {"train", "heldout"}}


class Judge:
    """Looks facts up; each answer comes with the splits of the facts that it needed."""

    def __init__(self, records: list[dict]) -> None:
        self.chains = [r for r in records if r["kind"] == "chain"]
        self.verbs = {r["verb"]: r for r in records if r["kind"] == "verb"}
        facts = [r for r in records if r["kind"] not in ("chain", "verb")]
        self.facts = {(r["subject"], r["relation"]): r for r in facts}
        self._events = {
            f"{event.format(x=filler)}.".lower(): (chain, at, filler.lower())
            for chain in self.chains
            for at, event in enumerate(chain["events"])
            for filler in coloured(chain)
        }

    def event(self, sentence: str) -> tuple[dict, int, str]:
        """Chain, place and filler of an event."""
        return self._events[sentence.lower()]

    def copa(self, example: dict) -> tuple[int, set[str]]:
        chain, at, filler = self.event(example["premise"])
        wanted = at + (1 if example["question"] == "effect" else -1)
        choices = [self.event(example[name]) for name in ("choice1", "choice2")]
        assert {choice[2] for choice in choices} == {filler}
        right = [i for i, (other, place, _) in enumerate(choices) if other is chain and place == wanted]
        assert len(right) == 1, example
        return right[0], {chain["split"]} | {other["split"] for other, _, _ in choices}

    def cb(self, example: dict) -> tuple[str, set[str]]:
        for verb, record in self.verbs.items():
            if f" {verb} " in example["premise"]:
                told = example["premise"].split(f" {verb} ", 1)[1]
                assert told[0].upper() + told[1:] == example["hypothesis"]
                label = {"true": "entailment", "false": "contradiction", "unknown": "neutral"}[record["implies"]]
                return label, {record["split"]}
        return self._consequence(example)

    def rte(self, example: dict) -> tuple[str, set[str]]:
        stated = list(parse_fact(example["premise"]))
        if not stated:
            label, splits = self._consequence(example)
        else:
            claimed = set(parse_fact(example["hypothesis"]))
            (relation, subject, value), *rest = claimed & set(stated) or claimed
            assert not rest and self.facts[subject, relation]["value"] in {v for _, _, v in stated}
            is_true = self.facts[subject, relation]["value"] == value
            label, splits = "entailment" if is_true else "no", {self.facts[subject, relation]["split"]}
        return label if label == "entailment" else "not_entailment", splits

    def boolq(self, example: dict) -> tuple[bool, set[str]]:
        answers = {
            (self.facts[subject, relation]["value"] == value, self.facts[subject, relation]["split"])
            for relation, form in QUESTION_TEMPLATES.items()
            for subject, value in _matches(form, example["question"])
            if (subject, relation) in self.facts and value in self._values(relation)
        }
        ((answer, split),) = answers
        return answer, {split}

    def record(self, example: dict) -> tuple[set[str], set[str]]:
        text, (qa,) = example["passage"]["text"], example["qas"]
        entities = {text[e["start"] : e["end"] + 1] for e in example["passage"]["entities"]}
        right, splits = set(), set()
        for entity in entities:
            for relation, subject, value in parse_fact(qa["query"].replace("@placeholder", entity)):
                if (subject, relation) in self.facts and self.facts[subject, relation]["value"] == value:
                    right.add(entity)
                    splits.add(self.facts[subject, relation]["split"])
        return right, splits

    def _consequence(self, example: dict) -> tuple[str, set[str]]:
        for relation, (premise, consequence, neutral) in CONSEQUENCE_TEMPLATES.items():
            for subject, _ in _matches(premise, example["premise"]):
                fact = self.facts[subject, relation]
                for _, value in _matches(consequence, example["hypothesis"]):
                    if value in self._values(relation):
                        return ("entailment" if value == fact["value"] else "contradiction"), {fact["split"]}
                assert any(list(_matches(form, example["hypothesis"])) for form in neutral), example
                return "neutral", {fact["split"]}
        raise AssertionError(example)

    def _values(self, relation: str) -> set[str]:
        return {fact["value"] for (_, name), fact in self.facts.items() if name == relation}


def coloured(chain: dict) -> list[str]:
    """What may fill the slot of a chain: people, or things in all colours."""
    if chain["group"] == "people":
        return chain["fillers"]
    return [f"{colour} {thing}" for thing in chain["fillers"] for colour in COLOURS]


@cache
def _expression(form: str) -> re.Pattern[str]:
    expression = re.escape(form)
    for field, group in (("s", "s"), ("as_", "s"), ("v", "v"), ("av", "v"), ("p", "p")):
        article = "(?:an?) " if field.startswith("a") else ""
        expression = expression.replace(re.escape(f"{{{field}}}"), rf"{article}(?P<{group}>\w+)", 1)
    return re.compile(expression, re.IGNORECASE)


def parse_fact(sentence: str) -> Iterator[tuple[str, str, str]]:
    """The readings of a sentence as (relation, subject, value), by the sentence forms."""
    for relation, forms in FACT_TEMPLATES.items():
        for form in forms:
            for subject, value in _matches(form, sentence):
                yield relation, subject, value


def _matches(form: str, sentence: str) -> Iterator[tuple[str, str | None]]:
    match = _expression(form).fullmatch(sentence)
    if match:
        groups = match.groupdict()
        yield groups.get("s"), groups.get("v")
