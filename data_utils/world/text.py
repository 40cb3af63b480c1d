"""The text of the world: short documents, each about one thing.

Every fact is told in at least five forms and every fact and causal link at least thirty times. A story tells both links
of two chains in any order: a reader who meets *the red cup went into the bin because …* has just read of several
events that befell the red cup, and has to know which of them is the cause.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from data_utils.world import lists
from data_utils.world.facts import Chain, World
from data_utils.world.templates import (
    ATTITUDE_TEMPLATES,
    FACT_TEMPLATES,
    LINK_TEMPLATES,
    capitalised,
    render,
)

NUM_MENTIONS = 30
_T = TypeVar("_T")


def make_documents(world: World, seed: int, *, mentions: int = NUM_MENTIONS, part: str = "train") -> list[str]:
    """The shuffled documents of one part; `part` only changes the draws, both parts tell the whole world."""
    rng = random.Random(f"text-{part}-{seed}")
    documents = [
        *_entity_documents(world, rng, mentions),
        *_object_stories(world, rng, mentions),
        *_people_stories(world, rng, mentions),
        *_attitude_documents(world, rng, mentions),
    ]
    rng.shuffle(documents)
    return documents


class _Rounds(Generic[_T]):
    """Deals the items of a list in shuffled rounds, so that each is used equally often."""

    def __init__(self, items: Sequence[_T], rng: random.Random) -> None:
        self._items, self._rng, self._left = items, rng, []

    def next(self) -> _T:
        if not self._left:
            self._left = list(self._items)
            self._rng.shuffle(self._left)
        return self._left.pop()


def _entity_documents(world: World, rng: random.Random, mentions: int) -> Iterator[str]:
    """People, towns, animals and things: all facts of one subject a document."""
    forms = {fact: _Rounds(FACT_TEMPLATES[fact.relation], rng) for fact in world.facts}
    for kind in ("person", "town", "animal", "object"):
        for subject in world.subjects(kind):
            for _ in range(mentions):
                told = [render(forms[fact].next(), fact.subject, fact.value) for fact in world.about(subject)]
                rng.shuffle(told)
                yield " ".join(told)


def link_sentence(form: str, cause: str, effect: str) -> str:
    """A causal link in one of the `LINK_TEMPLATES`."""
    return capitalised(form.format(c=cause, e=effect))


def _story(chains: Sequence[Chain], filler: str, forms: _Rounds[str], rng: random.Random) -> str:
    """Both links of some chains that happened to one thing or person, in any order."""
    told = []
    for chain in chains:
        a, b, c = (event.format(x=filler) for event in chain.events)
        told += [link_sentence(forms.next(), a, b), link_sentence(forms.next(), b, c)]
    rng.shuffle(told)
    return " ".join(told)


def _object_stories(world: World, rng: random.Random, mentions: int) -> Iterator[str]:
    """Two chains that happened to one coloured thing; every thing with every pair of its group's chains in turn."""
    forms = _Rounds(LINK_TEMPLATES, rng)
    for group, things in lists.OBJECT_GROUPS.items():
        chains = [chain for chain in world.chains if chain.group == group]
        pairs = list(itertools.combinations(chains, 2))
        for thing in things:
            for pair in pairs * math.ceil(mentions / (len(chains) - 1)):
                yield _story(pair, f"{rng.choice(lists.COLOURS)} {thing}", forms, rng)


def _people_stories(world: World, rng: random.Random, mentions: int) -> Iterator[str]:
    """Two chains that happened to one person."""
    chains = [chain for chain in world.chains if chain.group == "people"]
    people, forms = _Rounds(lists.PEOPLE, rng), _Rounds(LINK_TEMPLATES, rng)
    for _ in range(2 * mentions):
        rng.shuffle(chains)
        for pair in zip(chains[::2], chains[1::2], strict=True):
            yield _story(pair, people.next(), forms, rng)


def _attitude_documents(world: World, rng: random.Random, mentions: int) -> Iterator[str]:
    """Who knows, denies or wonders what: three a document, on events that are news to the reader."""
    events = [(chain, event) for chain in world.chains for event in chain.events]
    forms = {implies: _Rounds(templates, rng) for implies, templates in ATTITUDE_TEMPLATES.items()}
    for _ in range(mentions):
        verbs = list(world.verbs)
        rng.shuffle(verbs)
        for start in range(0, len(verbs), 3):
            who = rng.choice(lists.PEOPLE)
            told = []
            for verb in verbs[start : start + 3]:
                event = event_text(*rng.choice(events), rng)
                told.append(capitalised(forms[verb.implies].next().format(p=who, verb=verb.verb, q=event)))
            yield " ".join(told)


def event_text(chain: Chain, event: str, rng: random.Random) -> str:
    """An event with a random filler."""
    filler = rng.choice(chain.fillers)
    return event.format(x=filler if chain.group == "people" else f"{rng.choice(lists.COLOURS)} {filler}")
