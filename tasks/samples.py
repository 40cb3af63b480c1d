"""A few made-up examples of each task, in the fields and files in which it is published.

They say nothing about anything: they stand in for data that is not there when a command is only tried out.
The SuperGLUE tasks have better ones in the generated world (:mod:`data_utils.world`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tasks.examples import Label
from tasks.spec import TaskSpec

#: Examples in a file.
NUM_EXAMPLES = 32

_ENGLISH = ("The cat sits on the table near the door.", "A red cup is in the box.", "The dog sleeps in the garden.",
            "Tom knows the way to the old house.", "The bird sings when the sun is up.")
_CHINESE = ("小猫在桌子上睡觉", "天气很好", "他们在学校里读书", "妈妈做了晚饭")
Row = dict[str, object]


def _english(number: int) -> tuple[str, str]:
    return _ENGLISH[number % len(_ENGLISH)], _ENGLISH[(number * 2 + 1) % len(_ENGLISH)]


def _chinese(number: int) -> tuple[str, str]:
    return _CHINESE[number % len(_CHINESE)], _CHINESE[(number + 1) % len(_CHINESE)]


def _pair(first: str, second: str, label: str = "label",
          texts: Callable[[int], tuple[str, str]] = _english) -> Callable[[int, Label], Row]:
    """Rows of two texts and a label, in columns of these names."""
    def row(number: int, value: Label) -> Row:
        one, two = texts(number)
        return {"idx": number, first: one, second: two, label: value}
    return row


def _sentence(number: int, label: Label) -> Row:
    return {"sentence": _english(number)[0], "label": label}


def _table(*columns: str) -> Callable[[int, Label], Row]:
    """Rows of a label and texts."""
    def row(number: int, label: Label) -> Row:
        return {columns[0]: label, **{name: _english(number + place)[0] for place, name in enumerate(columns[1:])}}
    return row


def _cola(number: int, label: Label) -> Row:
    return {"source": "made", "label": label, "mark": "" if label == "1" else "*", "sentence": _english(number)[0]}


def _race(number: int, label: Label) -> Row:
    article, question = _english(number)
    return {"article": article, "questions": [f"{question[:-1]} because _ ."], "answers": [label],
            "options": [[one[:-1] for one in _ENGLISH[:4]]], "id": f"{number}.txt"}


def _squad(number: int, label: Label) -> Row:
    context, question = _english(number)
    answers = [{"text": context.split()[1], "answer_start": context.index(" ") + 1}]
    return {"title": f"made {number}", "paragraphs": [{"context": context, "qas": [
        {"id": f"made-{number}", "question": question, "answers": answers, "is_impossible": False}]}]}


def _cluewsc(number: int, label: Label) -> Row:
    return {"idx": number, "label": label, "text": "小明说他喜欢读书", "target": {
        "span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 3}}


#: Task -> the row of a number and a label.
_ROWS: Mapping[str, Callable[[int, Label], Row]] = {
    "ax-b": _pair("sentence1", "sentence2"),
    "ax-g": _pair("premise", "hypothesis"),
    "mnli": _pair("sentence1", "sentence2", "gold_label"),
    "mnli-mm": _pair("sentence1", "sentence2", "gold_label"),
    "sst2": _sentence,
    "cola": _cola,
    "mrpc": _pair("#1 String", "#2 String", "Quality"),
    "qqp": _pair("question1", "question2", "is_duplicate"),
    "qnli": _pair("question", "sentence"),
    "agnews": _table("label", "title", "description"),
    "yahoo": _table("label", "title", "body", "answer"),
    "yelp-polarity": _table("label", "review"),
    "yelp-full": _table("label", "review"),
    "race": _race,
    "squad": _squad,
    "afqmc": _pair("sentence1", "sentence2", texts=_chinese),
    "tnews": _pair("sentence", "keywords", texts=_chinese),
    "cluewsc": _cluewsc,
}


def sampled_tasks() -> tuple[str, ...]:
    """The tasks that have samples."""
    return tuple(_ROWS)


def write_samples(spec: TaskSpec, folder: Path, names: Iterable[str]) -> None:
    """Write :data:`NUM_EXAMPLES` examples under each of the file names of a task.

    Raises:
        ValueError: the task has no samples.
    """
    if spec.name not in _ROWS:
        raise ValueError(f"there are no samples of the task {spec.name}; known: {', '.join(_ROWS)}")
    rows = [_ROWS[spec.name](number, spec.labels[number % len(spec.labels)]) for number in range(NUM_EXAMPLES)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if spec.name == "race":
            for number, row in enumerate(rows):
                _write(path / "middle" / f"{number}.txt", json.dumps(row))
        elif spec.name == "squad":
            _write(path, json.dumps({"version": "v2.0", "data": rows}))
        elif path.suffix in (".tsv", ".csv"):
            _write(path, _tsv(rows, spec.name, path) if path.suffix == ".tsv" else _csv(rows))
        else:
            _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _tsv(rows: Sequence[Row], task: str, path: Path) -> str:
    has_names = task != "cola" or path.stem == "test"  # as published
    lines = ([list(rows[0])] if has_names else []) + [list(row.values()) for row in rows]
    return "".join("\t".join(map(str, line)) + "\n" for line in lines)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(row.values() for row in rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
