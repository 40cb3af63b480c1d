"""The text of the world tells everything, often enough and in enough forms."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data_utils.world.facts import make_world
from data_utils.world.templates import ATTITUDE_TEMPLATES, FACT_TEMPLATES, LINK_TEMPLATES, capitalised, render
from data_utils.world.text import link_sentence
from tests.data_utils.world.conftest import read_lines
from tests.data_utils.world.judge import coloured

MIN_FORMS, MIN_MENTIONS = 5, 30


def test_every_fact_is_told_in_many_forms(world: Path, facts: list[dict]) -> None:
    told = Counter(
        sentence + "."
        for document in read_lines(world / "text/train.jsonl")
        for sentence in document["text"].rstrip(".").split(". ")
    )
    for fact in facts:
        if fact["kind"] in ("chain", "verb"):
            continue
        forms = FACT_TEMPLATES[fact["relation"]]
        mentions = [told[render(form, fact["subject"], fact["value"])] for form in forms]
        assert sum(count > 0 for count in mentions) >= MIN_FORMS, fact
        assert sum(mentions) >= MIN_MENTIONS, fact


def test_every_link_is_told_often_and_once_a_document(world: Path, facts: list[dict]) -> None:
    links = {}  # sentence: (pattern, thing or people, step, form)
    for chain in (fact for fact in facts if fact["kind"] == "chain"):
        for filler in coloured(chain):
            name = "people" if chain["group"] == "people" else filler.split()[1]
            a, b, c = (event.format(x=filler) for event in chain["events"])
            for form in LINK_TEMPLATES:
                links[link_sentence(form, a, b)] = (chain["pattern"], name, 0, form)
                links[link_sentence(form, b, c)] = (chain["pattern"], name, 1, form)
    told: Counter = Counter()
    for document in read_lines(world / "text/train.jsonl"):
        sentences = [f"{sentence}." for sentence in document["text"].rstrip(".").split(". ")]
        pairs = [f"{first} {second}" for first, second in zip(sentences, sentences[1:], strict=False)]
        found = [links[sentence] for sentence in sentences + pairs if sentence in links]
        assert len({link[:3] for link in found}) == len(found), document
        told.update(found)
    forms = defaultdict(list)
    for (pattern, name, step, _), count in told.items():
        forms[pattern, name, step].append(count)
    assert len(forms) == 2 * (20 * 7 + 20)
    assert min(len(counts) for counts in forms.values()) >= MIN_FORMS
    assert min(sum(counts) for counts in forms.values()) >= MIN_MENTIONS


@pytest.mark.parametrize("implies", ["true", "false", "unknown"])
def test_every_attitude_verb_is_explained_often(world: Path, facts: list[dict], implies: str) -> None:
    text = " ".join(document["text"] for document in read_lines(world / "text/train.jsonl"))
    verbs = [fact["verb"] for fact in facts if fact["kind"] == "verb" and fact["implies"] == implies]
    assert len(verbs) == 3 and len(ATTITUDE_TEMPLATES[implies]) >= 2
    assert all(text.count(f" {verb} ") >= MIN_MENTIONS for verb in verbs)


def test_size_is_as_documented(world: Path) -> None:
    train, valid = (read_lines(world / f"text/{part}.jsonl") for part in ("train", "valid"))
    words = sum(len(document["text"].split()) for document in train)
    assert 150_000 < words < 300_000 and 200 < len(valid) < len(train) / 5
    assert all(set(document) == {"text"} and document["text"].endswith(".") for document in train + valid)


def test_splits_are_by_subject_and_by_pattern_in_every_group() -> None:
    for seed in range(3):
        world = make_world(seed)
        splits = defaultdict(set)
        for fact in world.facts:
            splits[fact.subject].add(fact.split)
        assert all(len(found) == 1 for found in splits.values())
        for group in {chain.group for chain in world.chains}:
            counts = Counter(chain.split for chain in world.chains if chain.group == group)
            assert counts["heldout"] >= 2, "a wrong choice needs a second held-out pattern of the group"
            assert counts["train"] == round(0.6 * sum(counts.values()))


def test_capitals_begin_sentences() -> None:
    assert capitalised("the cup fell. that is why it broke") == "The cup fell. That is why it broke"
