"""The world itself: who lives where, what things are, what causes what; and which facts are held out.

Every fact and every chain pattern has a split. `train` ones make the labelled training questions, `heldout` ones the
questions of val and test. All of them are told in the text, so a model answers held-out questions from what it read,
never from labels that it saw.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from data_utils.world import lists

TRAIN, HELDOUT = "train", "heldout"
TRAIN_SHARE = 0.6


@dataclass(frozen=True)
class Fact:
    """`relation(subject) = value`, e.g. town(Anna) = Dalby. All facts about one subject share its split."""

    kind: str  # person, town, animal, object
    subject: str
    relation: str
    value: str
    split: str


@dataclass(frozen=True)
class Chain:
    """Three events, each the cause of the next; `{x}` in an event is any of `fillers` (things or people)."""

    pattern: str
    group: str  # the object group, or `people`
    events: tuple[str, str, str]
    fillers: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Verb:
    """What `somebody <verb> p` says about p: `true`, `false` or `unknown`."""

    verb: str
    implies: str
    split: str


@dataclass(frozen=True)
class World:
    """All facts, in a fixed order."""

    facts: tuple[Fact, ...]
    chains: tuple[Chain, ...]
    verbs: tuple[Verb, ...]

    def about(self, subject: str) -> list[Fact]:
        """The facts about one subject."""
        return [fact for fact in self.facts if fact.subject == subject]

    def subjects(self, kind: str, split: str | None = None) -> list[str]:
        """The names of one kind in the order of the lists, of one split only where one is named."""
        found = (f.subject for f in self.facts if f.kind == kind and split in (None, f.split))
        return list(dict.fromkeys(found))

    def values(self, relation: str) -> list[str]:
        """The different values of a relation, sorted."""
        return sorted({fact.value for fact in self.facts if fact.relation == relation})

    def records(self) -> Iterator[dict]:
        """One JSON-ready object a fact, chain or verb, as in facts.jsonl."""
        for fact in self.facts:
            yield asdict(fact)
        for chain in self.chains:
            yield {"kind": "chain", **asdict(chain)}
        for verb in self.verbs:
            yield {"kind": "verb", **asdict(verb)}


def make_world(seed: int) -> World:
    """Draw the world of one seed: towns, jobs and colours are dealt out, causes and animal classes are fixed."""
    rng = random.Random(f"world-{seed}")
    facts = [*_people(rng), *_towns(rng), *_animals(rng), *_objects(rng)]
    return World(tuple(facts), tuple(_chains(rng)), tuple(_verbs(rng)))


def _splits(rng: random.Random, count: int) -> list[str]:
    num_train = round(TRAIN_SHARE * count)
    splits = [TRAIN] * num_train + [HELDOUT] * (count - num_train)
    rng.shuffle(splits)
    return splits


def _dealt(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """`count` values in random order, each as often as the others (to within one)."""
    dealt = [values[i % len(values)] for i in range(count)]
    rng.shuffle(dealt)
    return dealt


def _rows(kind: str, names: tuple[str, ...], columns: dict[str, list[str]], splits: list[str]) -> Iterator[Fact]:
    for i, name in enumerate(names):
        for relation, values in columns.items():
            yield Fact(kind, name, relation, values[i], splits[i])


def _people(rng: random.Random) -> Iterator[Fact]:
    names, n = lists.PEOPLE, len(lists.PEOPLE)
    columns = {
        "town": _dealt(rng, lists.TOWNS, n),
        "job": _dealt(rng, lists.JOBS, n),
        "pet": _dealt(rng, lists.PETS, n),
        "food": _dealt(rng, lists.FOODS, n),
        "owns": _dealt(rng, tuple(lists.OBJECTS), n),
    }
    return _rows("person", names, columns, _splits(rng, n))


def _towns(rng: random.Random) -> Iterator[Fact]:
    names, n = lists.TOWNS, len(lists.TOWNS)
    columns = {
        "region": _dealt(rng, lists.REGIONS, n),
        "river": _dealt(rng, lists.RIVERS, n),
        "product": _dealt(rng, lists.PRODUCTS, n),
    }
    return _rows("town", names, columns, _splits(rng, n))


def _animals(rng: random.Random) -> Iterator[Fact]:
    names = tuple(lists.ANIMALS)
    columns = {
        relation: [lists.ANIMALS[name][k] for name in names] for k, relation in enumerate(("class", "habitat", "diet"))
    }
    columns["colour"] = _dealt(rng, lists.COLOURS, len(names))
    return _rows("animal", names, columns, _splits(rng, len(names)))


def _objects(rng: random.Random) -> Iterator[Fact]:
    names = tuple(lists.OBJECTS)
    relations = ("material", "size", "place", "use")
    columns = {relation: [lists.OBJECTS[name][k] for name in names] for k, relation in enumerate(relations)}
    return _rows("object", names, columns, _splits(rng, len(names)))


def _chains(rng: random.Random) -> Iterator[Chain]:
    """The split is by pattern, and by group: the same event with another object is the same knowledge."""
    for group, patterns in lists.OBJECT_PATTERNS.items():
        splits = _splits(rng, len(patterns))
        for (name, events), split in zip(patterns.items(), splits, strict=True):
            yield Chain(name, group, events, lists.OBJECT_GROUPS[group], split)
    splits = _splits(rng, len(lists.PERSON_PATTERNS))
    for (name, events), split in zip(lists.PERSON_PATTERNS.items(), splits, strict=True):
        yield Chain(name, "people", events, lists.PEOPLE, split)


def _verbs(rng: random.Random) -> Iterator[Verb]:
    for implies, verbs in lists.VERBS.items():
        for verb, split in zip(verbs, _splits(rng, len(verbs)), strict=True):
            yield Verb(verb, implies, split)
