"""COPA questions on the causal chains.

Two kinds. *Direction*: the premise is the middle event, the choices are the two ends of its own chain, so only the
direction of cause and effect decides. *Other chain*: the wrong choice is the event in the same place of another chain
of the same group and split, with the same thing or person. Every event is right about as often as wrong, and all
three sentences name the same thing, so neither a choice alone nor a shared word gives the answer away. (That an event
which begins a chain is never an effect is part of what has to be known; a held-out chain does not show it.)
"""

from __future__ import annotations

import random

from data_utils.world import lists
from data_utils.world.facts import Chain, World
from data_utils.world.templates import capitalised

DIRECTION_SHARE = 0.5
PEOPLE_SHARE = 0.25


def copa_question(world: World, rng: random.Random, splits: tuple[str, ...], label: int) -> dict:
    """A random question on a chain of `splits`, in the fields of SuperGLUE (without `idx`)."""
    chains = [chain for chain in world.chains if chain.split in splits]
    chain = rng.choice(_of_one_kind(chains, rng))
    filler = _filler(chain, rng)
    question = rng.choice(("cause", "effect"))
    step = 1 if question == "effect" else -1
    if rng.random() < DIRECTION_SHARE:
        premise, right, wrong = chain.events[1], chain.events[1 + step], chain.events[1 - step]
    else:
        others = [other for other in chains if other.group == chain.group and other.pattern != chain.pattern]
        at = rng.choice((0, 1) if step == 1 else (1, 2))
        premise, right, wrong = chain.events[at], chain.events[at + step], rng.choice(others).events[at + step]
    premise, right, wrong = (capitalised(event.format(x=filler)) + "." for event in (premise, right, wrong))
    choices = (right, wrong) if label == 0 else (wrong, right)
    return {"premise": premise, "choice1": choices[0], "choice2": choices[1], "question": question, "label": label}


def _of_one_kind(chains: list[Chain], rng: random.Random) -> list[Chain]:
    """The chains about people, `PEOPLE_SHARE` of the time, or those about things (which come in more variants)."""
    about_people = rng.random() < PEOPLE_SHARE
    return [chain for chain in chains if (chain.group == "people") == about_people]


def _filler(chain: Chain, rng: random.Random) -> str:
    filler = rng.choice(chain.fillers)
    return filler if chain.group == "people" else f"{rng.choice(lists.COLOURS)} {filler}"
