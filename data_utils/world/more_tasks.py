"""WiC, WSC and MultiRC questions of the world, and the text that tells the senses of its ambiguous words.

WiC: two contexts of one word; which contexts share a sense stands in the text, where a document keeps to one sense.
WSC: ``it`` is one of two things or animals, and only a fact about them says which. Its examples have ``candidates``,
which the folder ``WSC-negative`` keeps and ``WSC`` leaves out. MultiRC: some facts about a person are told, others must
be known, and so must what follows from them (a robin is a bird, Dalby lies in the north).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from data_utils.world import lists
from data_utils.world.entailment import other_value
from data_utils.world.facts import HELDOUT, TRAIN, Fact, World
from data_utils.world.templates import FACT_TEMPLATES, capitalised, fill, render

MENTIONS_OF_CONTEXTS = 15
_CONTEXTS_IN_DOCUMENT = 3
_HELDOUT_WORDS = ("crane", "wave", "light", "bat", "note")

# word: contexts of its first and of its second sense; `{p}` is a person. Each names the word once, in this form.
_CONTEXTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bank": (
        ("{p} sat on the green bank", "a duck slept on the bank", "the bank of the river was damp",
         "weeds grew on the bank", "{p} climbed up the bank from the boat"),
        ("{p} saved coins in the bank", "a clerk of the bank counted money", "the bank received the gold",
         "{p} asked the bank for a loan", "the bank opened at noon"),
    ),
    "spring": (
        ("{p} planted flowers in spring", "birds sang loudly in spring", "the snow was gone in spring",
         "the days of spring were warm", "{p} was born in spring"),
        ("{p} drank from the spring", "the spring came out of the rock", "water of the spring was cold",
         "{p} filled a bottle at the spring", "the spring never ran dry"),
    ),
    "bark": (
        ("the bark of the dog was loud", "{p} heard a bark at night", "a bark woke the baby",
         "the thief was afraid of the bark", "{p} knew the bark of the old dog"),
        ("the bark of the tree was brown", "ants lived under the bark", "{p} cut a name into the bark",
         "moss covered the bark", "{p} burned dry bark in the stove"),
    ),
    "ring": (
        ("{p} wore a gold ring", "the ring was too small for the finger", "the smith polished the ring",
         "{p} lost the ring of the queen", "a ring lay in the box"),
        ("{p} heard the ring of the bell", "the ring of the clock came at noon", "a loud ring woke the cat",
         "{p} waited for the ring at the door", "the ring ended the lesson"),
    ),
    "match": (
        ("{p} burned a match", "the match was damp", "a match fell into the straw",
         "{p} needed a match for the candle", "the fire came from one match"),
        ("{p} won the match", "the match ended without goals", "a crowd watched the match",
         "{p} played well in the match", "the second match was on Sunday"),
    ),
    "seal": (
        ("the seal swam in the sea", "{p} fed fish to the seal", "a seal slept on the ice",
         "the fat seal caught a trout", "{p} saw a seal near the boat"),
        ("{p} broke the seal of the letter", "the seal was made of red wax", "a seal closed the paper",
         "the king used the seal", "{p} put a seal on the box"),
    ),
    "trunk": (
        ("the trunk of the tree was strong", "{p} sat against the trunk", "an owl lived in the hollow trunk",
         "the axe hit the trunk", "{p} carved a heart into the trunk"),
        ("{p} packed the trunk for the journey", "the trunk was full of clothes", "a lock was on the trunk",
         "the driver carried the heavy trunk", "{p} kept dresses in the trunk"),
    ),
    "crane": (
        ("the crane flew over the lake", "a crane caught a frog", "{p} watched the white crane",
         "the nest of the crane was empty", "{p} heard the cry of a crane"),
        ("the crane lifted the heavy stones", "{p} worked on a crane", "the builder needed a crane",
         "the hook of the crane was iron", "{p} repaired the motor of the crane"),
    ),
    "wave": (
        ("a wave hit the boat", "the wave came from the sea", "{p} jumped over the wave",
         "the wave was high and cold", "{p} lost a shoe in the wave"),
        ("{p} said goodbye with a wave", "the friendly wave was for the baby", "a wave of the hand was enough",
         "{p} saw the wave of the old woman", "the queen gave a short wave"),
    ),
    "light": (
        ("{p} turned on the light", "the light of the lamp was yellow", "the room had no light",
         "moths flew around the light", "{p} read a book by the light"),
        ("the light basket was easy to carry", "{p} wore a light jacket", "a light pillow is full of feathers",
         "{p} lifted the light box with one finger", "straw is light and clay is heavy"),
    ),
    "bat": (
        ("a bat flew out of the cave", "the bat slept by day", "{p} was afraid of the bat",
         "the bat ate moths at night", "{p} found a bat in the attic"),
        ("{p} hit the ball with the bat", "the bat was made of wood", "the player dropped the bat",
         "the bat cracked in the game", "{p} bought a new bat for the team"),
    ),
    "note": (
        ("{p} sang a high note", "the first note of the song was wrong", "the flute played a low note",
         "{p} could not reach the note", "every note was loud"),
        ("{p} wrote a note for the baker", "the note lay on the table", "a short note was at the door",
         "{p} read the note again", "the teacher found the note"),
    ),
}  # fmt: skip

_WSC_OPENINGS = (
    "{p} saw the {a} near the {b} and noticed that it",
    "{p} knows the {a} and the {b} and remembers that it",
    "{p} asks about the {a} and the {b} because it",
)
# relation: how a sentence on "it" ends
_WSC_ENDS = {
    "material": "is made of {v}", "size": "is {v}", "place": "belongs in the {v}", "use": "is good for {v}",
    "class": "is {av}", "habitat": "lives in the {v}", "diet": "eats {v}", "colour": "is {v}",
}  # fmt: skip
_KINDS = {"object": ("material", "size", "place", "use"), "animal": ("class", "habitat", "diet", "colour")}

# relation of a person: (question, answer, relation of the value, answer that follows from it)
_MULTIRC = {
    "town": ("Where does {s} live?", "in {v}", "region", "in the {v}"),
    "pet": ("What is the pet of {s}?", "{av}", "class", "{av}"),
    "owns": ("What does {s} own?", "{av}", "material", "a thing made of {v}"),
}
_MULTIRC_SENTENCES = 4


@dataclass(frozen=True)
class Sense:
    """One sense of an ambiguous word; both senses of a word share its split."""

    word: str
    sense: int
    contexts: tuple[str, ...]
    split: str


def make_senses() -> tuple[Sense, ...]:
    """All senses; the same in every world."""
    return tuple(
        Sense(word, number, contexts, HELDOUT if word in _HELDOUT_WORDS else TRAIN)
        for word, senses in _CONTEXTS.items()
        for number, contexts in enumerate(senses)
    )


def sense_documents(seed: int, *, mentions: int = MENTIONS_OF_CONTEXTS, part: str = "train") -> list[str]:
    """Documents of three contexts of one sense, each context about ``mentions`` times; shuffled."""
    rng, documents = random.Random(f"senses-{part}-{seed}"), []
    for sense in make_senses():
        for _ in range(-(-mentions * len(sense.contexts) // _CONTEXTS_IN_DOCUMENT)):
            told = rng.sample(sense.contexts, _CONTEXTS_IN_DOCUMENT)
            documents.append(" ".join(_sentence(context, rng) for context in told))
    rng.shuffle(documents)
    return documents


def _sentence(context: str, rng: random.Random) -> str:
    return capitalised(context.format(p=rng.choice(lists.PEOPLE))) + "."


def wic_question(world: World, rng: random.Random, splits: tuple[str, ...], label: bool) -> dict:
    """Two different contexts of a word of ``splits``, of one sense or of both; character offsets, the end exclusive."""
    senses = [sense for sense in make_senses() if sense.split in splits]
    first = rng.choice(senses)
    second = first if label else next(s for s in senses if s.word == first.word and s.sense != first.sense)
    contexts = rng.sample(first.contexts, 2) if label else [rng.choice(first.contexts), rng.choice(second.contexts)]
    sentences = [_sentence(context, rng) for context in contexts]
    starts = [f" {sentence.lower()}".index(f" {first.word}") for sentence in sentences]
    return {
        "word": first.word,
        "sentence1": sentences[0],
        "sentence2": sentences[1],
        "start1": starts[0],
        "start2": starts[1],
        "end1": starts[0] + len(first.word),
        "end2": starts[1] + len(first.word),
        "version": 1.1,
        "label": label,
    }


def wsc_question(world: World, rng: random.Random, splits: tuple[str, ...], label: bool) -> dict:
    """``it`` refers to the one of two things of which the sentence is true; asked is that one, or the other."""
    others: list[Fact] = []
    while not others:
        kind = rng.choice(tuple(_KINDS))
        relation = rng.choice(_KINDS[kind])
        facts = [one for one in world.facts if one.kind == kind and one.relation == relation and one.split in splits]
        meant = rng.choice(facts)
        others = [fact for fact in facts if fact.value != meant.value]
    other = rng.choice(others)
    first, second = rng.sample((meant.subject, other.subject), 2)
    person = rng.choice(lists.PEOPLE)
    opening = rng.choice(_WSC_OPENINGS).format(p=person, a=first, b=second)
    words = opening.split()
    end = fill(_WSC_ENDS[relation], meant.subject, meant.value)
    asked, not_asked = (meant.subject, other.subject) if label else (other.subject, meant.subject)
    start = list(zip(words, words[1:])).index(("the", asked))  # "saw" alone may be the verb
    return {
        "text": f"{opening} {end}.",
        "label": label,
        "target": {
            "span1_text": f"the {asked}",
            "span1_index": start,
            "span2_text": "it",
            "span2_index": words.index("it"),
        },
        "candidates": [{"text": f"the {not_asked}"}, {"text": person}],
    }


def multirc_question(world: World, rng: random.Random, splits: tuple[str, ...]) -> dict:
    """Four facts about a person, and two questions with right and wrong answers."""
    person = rng.choice([name for split in splits for name in world.subjects("person", split)])
    facts = world.about(person)
    told = rng.sample(facts, _MULTIRC_SENTENCES)
    asked = rng.sample([fact for fact in facts if fact.relation in _MULTIRC], 2)
    passage = " ".join(render(rng.choice(FACT_TEMPLATES[fact.relation]), person, fact.value) for fact in told)
    return {
        "passage": {"text": passage, "questions": [_question(world, fact, rng, splits) for fact in asked]},
        "version": 1.1,
    }


def _question(world: World, fact: Fact, rng: random.Random, splits: tuple[str, ...]) -> dict:
    question, form, relation, derived_form = _MULTIRC[fact.relation]
    answers = [(fill(form, fact.subject, fact.value), 1), (fill(form, fact.subject, other_value(world, fact, rng)), 0)]
    follows = next((one for one in world.about(fact.value) if one.relation == relation and one.split in splits), None)
    if follows is not None:
        answers += [
            (fill(derived_form, fact.value, follows.value), 1),
            (fill(derived_form, fact.value, other_value(world, follows, rng)), 0),
        ]
    rng.shuffle(answers)
    return {
        "question": question.format(s=fact.subject),
        "answers": [{"text": text, "label": label} for text, label in answers],
    }


def number_answers(example: dict, idx: int) -> None:
    """Gives questions and answers of a MultiRC example numbers that no other example of its file has."""
    questions = example["passage"]["questions"]
    for number, question in enumerate(questions):
        question["idx"] = idx * len(questions) + number
        for place, answer in enumerate(question["answers"]):
            answer["idx"] = question["idx"] * 4 + place


def task_folders(task: str, examples: list[dict]) -> Iterator[tuple[str, list[dict]]]:
    """The folders that hold a task's examples: WSC has one without and one with candidates."""
    if task == "WSC":
        yield "WSC-negative", examples
        examples = [{name: value for name, value in example.items() if name != "candidates"} for example in examples]
    yield task, examples


def all_strings() -> list[str]:
    """Every form of this file, for the vocabulary."""
    strings = [context for senses in _CONTEXTS.values() for contexts in senses for context in contexts]
    strings += [*_WSC_OPENINGS, *_WSC_ENDS.values()]
    for question, answer, _, derived in _MULTIRC.values():
        strings += [question, answer, derived]
    return strings
