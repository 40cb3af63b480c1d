"""CB and RTE questions: attitude verbs, what follows from a class or a region, and paraphrases of facts."""

from __future__ import annotations

import random

from data_utils.world import lists
from data_utils.world.facts import Fact, World
from data_utils.world.templates import CONSEQUENCE_TEMPLATES, FACT_TEMPLATES, capitalised, render
from data_utils.world.text import event_text

IMPLIED_LABEL = {"true": "entailment", "false": "contradiction", "unknown": "neutral"}
CB_LABELS = ("entailment", "contradiction", "neutral")
RTE_LABELS = ("entailment", "not_entailment")


def cb_question(world: World, rng: random.Random, splits: tuple[str, ...], label: str) -> dict:
    """Half attitude verbs (*denies that p*), half consequences (a robin is a bird, Dalby lies in the north)."""
    if rng.random() < 0.5:
        verbs = [v for v in world.verbs if v.split in splits and IMPLIED_LABEL[v.implies] == label]
        chain = rng.choice(world.chains)
        event = event_text(chain, rng.choice(chain.events), rng)
        premise = f"{rng.choice(lists.PEOPLE)} {rng.choice(verbs).verb} {event}."
        hypothesis = capitalised(event) + "."
    else:
        fact, person = _consequence(world, rng, splits), rng.choice(lists.PEOPLE)
        premise_form, consequence, neutral = CONSEQUENCE_TEMPLATES[fact.relation]
        premise = render(premise_form, fact.subject, fact.value, p=person)
        form = rng.choice(neutral) if label == "neutral" else consequence
        value = fact.value if label == "entailment" else other_value(world, fact, rng)
        hypothesis = render(form, fact.subject, value, p=person)
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def rte_question(world: World, rng: random.Random, splits: tuple[str, ...], label: str) -> dict:
    """Half paraphrases of a fact about a person, half consequences."""
    true = label == "entailment"
    if rng.random() < 0.5:
        fact = rng.choice([f for f in world.facts if f.kind == "person" and f.split in splits])
        premise_form, hypothesis_form = rng.sample(FACT_TEMPLATES[fact.relation], 2)
        premise = render(premise_form, fact.subject, fact.value)
        hypothesis = render(hypothesis_form, fact.subject, fact.value if true else other_value(world, fact, rng))
    else:
        fact, person = _consequence(world, rng, splits), rng.choice(lists.PEOPLE)
        premise_form, consequence, _ = CONSEQUENCE_TEMPLATES[fact.relation]
        premise = render(premise_form, fact.subject, fact.value, p=person)
        value = fact.value if true else other_value(world, fact, rng)
        hypothesis = render(consequence, fact.subject, value, p=person)
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def _consequence(world: World, rng: random.Random, splits: tuple[str, ...]) -> Fact:
    relation = rng.choice(tuple(CONSEQUENCE_TEMPLATES))
    return rng.choice([f for f in world.facts if f.relation == relation and f.split in splits])


def other_value(world: World, fact: Fact, rng: random.Random) -> str:
    """A wrong value for `fact`: any other value of its relation."""
    return rng.choice([value for value in world.values(fact.relation) if value != fact.value])
