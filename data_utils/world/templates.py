"""Sentence forms of the world: at least five for every relation and for every causal link.

Fields: `{s}` subject, `{v}` value, `{as_}` and `{av}` the same with their indefinite article. Sentences are made with
`render`, which also writes the first letter as a capital.
"""

from __future__ import annotations

# relation: forms. The relation names are those of facts.jsonl.
FACT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "town": (
        "{s} lives in {v}.", "{s} comes from {v}.", "The home of {s} is in {v}.", "You can meet {s} in {v}.",
        "The house of {s} stands in {v}.",
    ),
    "job": (
        "{s} is {av}.", "{s} works as {av}.", "By trade {s} is {av}.", "{s} earns money as {av}.",
        "The job of {s} is that of {av}.",
    ),
    "pet": (
        "{s} has {av}.", "{s} keeps {av} at home.", "The pet of {s} is {av}.", "{s} feeds {av} every morning.",
        "{s} plays with {av}.",
    ),
    "food": (
        "{s} likes {v}.", "{s} eats {v} every day.", "The best food for {s} is {v}.", "{s} always asks for {v}.",
        "Nothing tastes better to {s} than {v}.",
    ),
    "owns": (
        "{s} owns {av}.", "{s} often uses {av}.", "In the house of {s} there is {av}.", "{s} bought {av} long ago.",
        "{s} found {av} on a market.",
    ),
    "region": (
        "{s} lies in the {v}.", "{s} is a town in the {v}.", "In the {v} there is a town called {s}.",
        "To reach {s} you travel {v}.", "{s} belongs to the {v}.",
    ),
    "river": (
        "{s} stands on the {v}.", "The river at {s} is the {v}.", "The {v} flows through {s}.",
        "In {s} a bridge crosses the {v}.", "People in {s} swim in the {v}.",
    ),
    "product": (
        "{s} makes {v}.", "The best {v} comes from {s}.", "{s} is known for {v}.", "Workers in {s} make {v}.",
        "In {s} you can buy {v}.",
    ),
    "class": (
        "The {s} is {av}.", "Every {s} is {av}.", "{as_} is a kind of {v}.", "People call the {s} {av}.",
        "As we know, the {s} is {av}.",
    ),
    "habitat": (
        "The {s} lives in the {v}.", "You find the {s} in the {v}.", "The home of the {s} is the {v}.",
        "In the {v} you can see the {s}.", "{as_} sleeps in the {v}.",
    ),
    "diet": (
        "The {s} eats {v}.", "{as_} likes {v}.", "The food of the {s} is {v}.", "The {s} looks for {v}.",
        "Give {v} to the {s}.",
    ),
    "colour": (
        "The {s} is {v}.", "The colour of the {s} is {v}.", "{as_} is usually {v}.", "A {v} animal is the {s}.",
        "You see that the {s} is {v}.",
    ),
    "material": (
        "The {s} is made of {v}.", "They use {v} for the {s}.", "{as_} of {v} is common.",
        "You need {v} to make {as_}.", "The stuff of the {s} is {v}.",
    ),
    "size": (
        "The {s} is {v}.", "The size of the {s} is {v}.", "{as_} is {v}.", "It is {av} thing, the {s}.",
        "Everyone says the {s} is {v}.",
    ),
    "place": (
        "The {s} belongs in the {v}.", "You keep the {s} in the {v}.", "The place of the {s} is the {v}.",
        "In the {v} there is {as_}.", "Look for the {s} in the {v}.",
    ),
    "use": (
        "The {s} is used for {v}.", "{as_} is good for {v}.", "For {v} you take {as_}.", "We need the {s} for {v}.",
        "The use of the {s} is {v}.",
    ),
}  # fmt: skip

# `{c}` the cause, `{e}` the effect.
LINK_TEMPLATES = (
    "{c}, so {e}.",
    "{e} because {c}.",
    "{c}. As a result, {e}.",
    "{c}. That is why {e}.",
    "Because {c}, {e}.",
    "{e}. The reason was that {c}.",
    "{e}. It happened because {c}.",
)

ATTITUDE_TEMPLATES = {
    "true": ("{p} {verb} {q}. It is true: {q}.", "{p} {verb} {q}. So it is a fact that {q}."),
    "false": ("{p} {verb} {q}. It is not true that {q}.", "{p} {verb} {q}. That is wrong, it is not a fact."),
    "unknown": ("{p} {verb} {q}. It may be true or not.", "{p} {verb} {q}. Nobody can tell if it is true."),
}

# Forms of the tasks. BoolQ: a question on a relation. Entailment: what follows from a class and from a region.
QUESTION_TEMPLATES = {
    "town": "does {s} live in {v}",
    "job": "does {s} work as {av}",
    "pet": "does {s} have {av}",
    "food": "does {s} like {v}",
    "owns": "does {s} own {av}",
    "region": "is {s} in the {v}",
    "river": "does the {v} flow through {s}",
    "product": "does {s} make {v}",
    "class": "is {as_} {av}",
    "habitat": "does the {s} live in the {v}",
    "diet": "does the {s} eat {v}",
    "colour": "is the {s} {v}",
    "material": "is the {s} made of {v}",
    "size": "is the {s} {v}",
    "place": "does the {s} belong in the {v}",
    "use": "is the {s} good for {v}",
}
# relation: (premise on {s}, what follows with {v}, what may be or not)
CONSEQUENCE_TEMPLATES = {
    "class": (
        "The animal that {p} met is {as_}.",
        "The animal that {p} met is {av}.",
        ("The animal that {p} met is hungry.", "The animal that {p} met is old."),
    ),
    "region": (
        "The town that {p} visited is {s}.",
        "The town that {p} visited lies in the {v}.",
        ("The town that {p} visited is old.", "The town that {p} visited is famous."),
    ),
}


def with_article(noun: str) -> str:
    """`noun` with `a` or `an` before it; names of things only (no silent letters in the lists)."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def capitalised(text: str) -> str:
    """`text` with its first letter, and the first letter after each full stop, as a capital."""
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))


def fill(template: str, subject: str, value: str, **fields: str) -> str:
    """`template` with subject and value, with and without article."""
    return template.format(s=subject, v=value, as_=with_article(subject), av=with_article(value), **fields)


def render(template: str, subject: str, value: str, **fields: str) -> str:
    """One sentence: `fill`, with a capital at its beginning."""
    return capitalised(fill(template, subject, value, **fields))


def all_strings() -> list[str]:
    """Every form of this file, with its fields blanked, for the vocabulary."""
    strings = [form for forms in FACT_TEMPLATES.values() for form in forms]
    strings += [form for forms in ATTITUDE_TEMPLATES.values() for form in forms]
    strings += [*LINK_TEMPLATES, *QUESTION_TEMPLATES.values(), "a an"]
    for premise, consequence, neutral in CONSEQUENCE_TEMPLATES.values():
        strings += [premise, consequence, *neutral]
    return strings
