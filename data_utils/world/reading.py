"""BoolQ and ReCoRD questions: a passage, and a question that it answers half of the time; else the world does."""

from __future__ import annotations

import random
import re

from data_utils.world.entailment import other_value
from data_utils.world.facts import Fact, World
from data_utils.world.templates import FACT_TEMPLATES, QUESTION_TEMPLATES, fill, render

NUM_PEOPLE = 3


def boolq_question(world: World, rng: random.Random, splits: tuple[str, ...], label: bool) -> dict:
    """A passage on one subject; the fact that is asked for stands in it or must be known."""
    kind = rng.choice(("person", "town", "animal", "object"))
    subject = rng.choice([name for split in splits for name in world.subjects(kind, split)])
    facts = world.about(subject)
    asked = rng.choice(facts)
    told = [fact for fact in facts if fact != asked]
    told = rng.sample(told, min(len(told), 3))
    if rng.random() < 0.5:
        told = [*told[:2], asked]
        rng.shuffle(told)
    value = asked.value if label else other_value(world, asked, rng)
    return {
        "question": fill(QUESTION_TEMPLATES[asked.relation], subject, value),
        "passage": " ".join(_sentence(fact, rng) for fact in told),
        "label": label,
    }


def record_question(world: World, rng: random.Random, splits: tuple[str, ...]) -> dict:
    """Three people and what is told about them; the query asks which of them, or which of their towns."""
    people = [name for split in splits for name in world.subjects("person", split)]
    while True:
        chosen = rng.sample(people, NUM_PEOPLE)
        facts = {name: world.about(name) for name in chosen}
        name = rng.choice(chosen)
        asked = rng.choice(facts[name])
        if all(asked.value != f.value for other in chosen if other != name for f in facts[other]):
            break
    is_told = asked.relation == "town" or rng.random() < 0.5
    told = []
    for other in chosen:
        known = [f for f in facts[other] if f.relation not in (asked.relation, "town")]
        about = rng.sample(known, 1) + ([f for f in facts[other] if f.relation == asked.relation] if is_told else [])
        told += about if len(about) > 1 else rng.sample(known, 2)
    rng.shuffle(told)
    forms = {fact: rng.choice(FACT_TEMPLATES[fact.relation]) for fact in told}
    passage = " ".join(render(form, fact.subject, fact.value) for fact, form in forms.items())
    ask_town = asked.relation == "town" and rng.random() < 0.5
    answer = asked.value if ask_town else name
    form = rng.choice([f for f in FACT_TEMPLATES[asked.relation] if f != forms.get(asked)])
    subject, value = (name, "@placeholder") if ask_town else ("@placeholder", asked.value)
    return _record(passage, fill(form, subject, value), answer, people + world.values("town"))


def _sentence(fact: Fact, rng: random.Random) -> str:
    return render(rng.choice(FACT_TEMPLATES[fact.relation]), fact.subject, fact.value)


def _record(passage: str, query: str, answer: str, names: list[str]) -> dict:
    """The official fields; offsets are of characters, the end inclusive."""
    entities = [
        (match.start(), match.end() - 1, name) for name in names for match in re.finditer(rf"\b{name}\b", passage)
    ]
    entities.sort()
    answers = [{"start": start, "end": end, "text": name} for start, end, name in entities if name == answer]
    return {
        "source": "world",
        "passage": {"text": passage, "entities": [{"start": start, "end": end} for start, end, _ in entities]},
        "qas": [{"query": query, "answers": answers}],
    }
