"""AX-b and AX-g of the world, for evaluation by a model of RTE. All facts are held out.

AX-b: further questions of RTE's kind, with the field names of the diagnostic set. AX-g: pairs of questions that differ
in a woman's or a man's name alone, so that both have one answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from data_utils.world.entailment import RTE_LABELS, other_value, rte_question
from data_utils.world.facts import HELDOUT, World
from data_utils.world.tasks import make_task, question_key
from data_utils.world.templates import CONSEQUENCE_TEMPLATES, render

SIZES = {"AX-b": 200, "AX-g": 200}
WOMEN = ("Anna", "Carla", "Elsa", "Greta", "Irene", "Karin", "Mara", "Olga", "Rosa", "Wanda", "Bella", "Dora", "Flora")
MEN = ("Ben", "David", "Felix", "Hugo", "Jonas", "Leo", "Nils", "Paul", "Simon", "Viktor", "Amir", "Emil", "Igor")


def make_diagnostics(world: World, seed: int) -> dict[str, list[dict]]:
    """The examples of both sets by task, half of them entailed; no question of AX-b stands in RTE or comes twice."""
    makers = {"AX-b": _broad_coverage, "AX-g": _gender}
    return {task: [{**example, "idx": idx} for idx, example in enumerate(make(world, seed))]
            for task, make in makers.items()}


def _broad_coverage(world: World, seed: int) -> Iterator[dict]:
    rng = random.Random(f"AX-b-{seed}")
    taken = {question_key(example) for part in make_task(world, "RTE", seed).values() for example in part}
    labels = [RTE_LABELS[number % 2] for number in range(SIZES["AX-b"])]
    rng.shuffle(labels)
    while labels:
        example = rte_question(world, rng, (HELDOUT,), labels[-1])
        key = question_key(example)
        if key not in taken:
            taken.add(key)
            labels.pop()
            yield {"sentence1": example["premise"], "sentence2": example["hypothesis"], "label": example["label"],
                   "logic": "knowledge"}


def _gender(world: World, seed: int) -> Iterator[dict]:
    rng = random.Random(f"AX-g-{seed}")
    facts = [fact for fact in world.facts if fact.relation in CONSEQUENCE_TEMPLATES and fact.split == HELDOUT]
    for number in range(SIZES["AX-g"] // 2):
        fact, label = rng.choice(facts), RTE_LABELS[number % 2]
        value = fact.value if label == "entailment" else other_value(world, fact, rng)
        premise, consequence, _ = CONSEQUENCE_TEMPLATES[fact.relation]
        for person in (rng.choice(WOMEN), rng.choice(MEN)):
            yield {"premise": render(premise, fact.subject, fact.value, p=person),
                   "hypothesis": render(consequence, fact.subject, value, p=person), "label": label, "pair_id": number}
