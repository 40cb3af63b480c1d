"""The eight tasks of the world in SuperGLUE's own fields, each with a labelled train, val and test part and a pool.

`train` is made from training facts only; `val` and `test` from held-out facts only; `unlabeled` from all facts,
without labels, for distillation. No question stands in two parts. `test` keeps its labels, unlike SuperGLUE's.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator

from data_utils.world.copa import copa_question
from data_utils.world.entailment import CB_LABELS, RTE_LABELS, cb_question, rte_question
from data_utils.world.facts import HELDOUT, TRAIN, World
from data_utils.world.more_tasks import multirc_question, number_answers, wic_question, wsc_question
from data_utils.world.reading import boolq_question, record_question

SPLITS_OF = {"val": (HELDOUT,), "test": (HELDOUT,), "train": (TRAIN,), "unlabeled": (TRAIN, HELDOUT)}
LABELS: dict[str, tuple] = {
    "COPA": (0, 1),
    "CB": CB_LABELS,
    "RTE": RTE_LABELS,
    "BoolQ": (False, True),
    "ReCoRD": (None,),  # the answers are the labels
    "WiC": (False, True),
    "WSC": (False, True),
    "MultiRC": (None,),  # every answer has a label
}
SIZES = {
    "COPA": {"train": 600, "val": 600, "test": 600, "unlabeled": 1200},
    "CB": {"train": 300, "val": 300, "test": 300, "unlabeled": 600},
    "RTE": {"train": 300, "val": 300, "test": 300, "unlabeled": 600},
    "BoolQ": {"train": 300, "val": 300, "test": 300, "unlabeled": 600},
    "ReCoRD": {"train": 300, "val": 300, "test": 300, "unlabeled": 600},
    "WiC": {"train": 300, "val": 300, "test": 300, "unlabeled": 600},
    "WSC": {"train": 300, "val": 300, "test": 300, "unlabeled": 600},
    "MultiRC": {"train": 150, "val": 150, "test": 150, "unlabeled": 300},
}
_MAKERS: dict[str, Callable[..., dict]] = {
    "COPA": copa_question,
    "CB": cb_question,
    "RTE": rte_question,
    "BoolQ": boolq_question,
    "ReCoRD": lambda world, rng, splits, _label: record_question(world, rng, splits),
    "WiC": wic_question,
    "WSC": wsc_question,
    "MultiRC": lambda world, rng, splits, _label: multirc_question(world, rng, splits),
}


def make_task(world: World, task: str, seed: int, limit: int | None = None) -> dict[str, list[dict]]:
    """All parts of one task: part name -> examples. The labels of a part are equally frequent.

    With `limit` only so many examples of each part are made, and no frequencies are promised.
    """
    taken: set[str] = set()
    return {part: list(itertools.islice(_part(world, task, part, seed, taken), limit)) for part in SPLITS_OF}


def _part(world: World, task: str, part: str, seed: int, taken: set[str]) -> Iterator[dict]:
    rng = random.Random(f"{task}-{part}-{seed}")
    labels = [LABELS[task][i % len(LABELS[task])] for i in range(SIZES[task][part])]
    rng.shuffle(labels)
    for idx, label in enumerate(labels):
        example = _new_example(world, task, rng, SPLITS_OF[part], label, taken)
        if part == "unlabeled":
            _remove_labels(example)
        if task == "ReCoRD":
            example["qas"][0]["idx"] = idx
        if task == "MultiRC":
            number_answers(example, idx)
        yield {**example, "idx": idx}


def _new_example(
    world: World, task: str, rng: random.Random, splits: tuple[str, ...], label: object, taken: set[str]
) -> dict:
    while True:
        example = _MAKERS[task](world, rng, splits, label)
        key = question_key(example)
        if key not in taken:
            taken.add(key)
            return example


def question_key(example: dict) -> str:
    """What makes two examples the same question: all texts, whatever the label and the order of two choices."""
    fields = {name: value for name, value in example.items() if name not in ("label", "idx")}
    if "choice1" in fields:
        fields["choice1"], fields["choice2"] = sorted((fields["choice1"], fields["choice2"]))
    if "qas" in fields:
        fields["qas"] = [qa["query"] for qa in fields["qas"]]
    return json.dumps(fields, sort_keys=True)


def _remove_labels(example: dict) -> None:
    example.pop("label", None)
    for qa in example.get("qas", ()):
        qa["answers"] = []
    for question in example["passage"].get("questions", ()) if isinstance(example.get("passage"), dict) else ():
        for answer in question["answers"]:
            answer.pop("label")
