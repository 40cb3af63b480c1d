"""Every reader, one by one, on files that are broken somewhere: each complaint names file, line and what is wrong.

The files are those of the generated world, or made-up ones in the published form, broken in one place at a time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data_utils.stand_in import world_task, write_vocabulary, write_world_task
from tasks.data import make_split, read_split
from tasks.examples import Example
from tasks.registry import get_task, task_names
from tasks.samples import write_samples
from tasks.spec import TaskOptions, TaskSpec
from tests.distill.training.small_runs import finetune_flags, run

Path_ = tuple[str | int, ...]
#: Fields of the official files that no form of a task reads: they may be missing or hold anything.
UNREAD = {
    "wic": {"start1", "start2", "end1", "end2", "version"},
    "multirc": {"version"},
    "record": {"source", "answers.start", "answers.end"},
    "squad": {"version", "data.title", "answers.answer_start", "qas.is_impossible"},
    "race": {"id"},
    **dict.fromkeys(("afqmc", "tnews", "cluewsc"), {"idx"}),
}
#: A value of the wrong kind for any field that is read.
WRONG: tuple[Any, ...] = (None, 1.5, [[]], {"": 0})
WORLD_TASKS = tuple(task for task in task_names() if world_task(task))
FORMS = [(task, {}) for task in task_names()] + [("wsc", {"wsc_negative": True})]


class Data(NamedTuple):
    """A whole file of a task: rows of JSON, or of cells; ``path`` is the file that is broken."""

    spec: TaskSpec
    path: Path
    root: Path

    @property
    def is_table(self) -> bool:
        return self.path.suffix in (".tsv", ".csv")

    @property
    def is_document(self) -> bool:
        return self.spec.name in ("squad", "race")

    def read(self) -> list[Example]:
        return read_split(self.spec, self.root, make_split("train", for_training=True), training_form=True)

    def refusal(self, content: bytes | str) -> str:
        """What is said about other content of the file; a message without its name is no ValueError of ours."""
        self.path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError) as caught:
            self.read()
        assert type(caught.value) is ValueError and str(caught.value).startswith(f"{self.path}, line "), caught.value
        return str(caught.value).removeprefix(f"{self.path}, line ")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Data]:
    def make_data(task: str, **options: Any) -> Data:
        spec = get_task(task, TaskOptions(cloze_eval=True, **options))
        name = spec.files.file_name("train")
        if world := world_task(task):
            write_world_task(world, tmp_path, (name,), 3)
        else:
            write_samples(spec, tmp_path, (name,))
        files = sorted((tmp_path / name).rglob("*.txt")) if task == "race" else [tmp_path / name]
        data = Data(spec, files[0], tmp_path / name)
        assert data.read()
        return data
    return make_data


def places(value: Any, start: Path_ = ()) -> Iterator[Path_]:
    """Every field, at any depth; of a list the first entry."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:1]
    for name, inner in items:
        if isinstance(name, str):
            yield (*start, name)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*start, name))


def value_at(row: Any, place: Path_) -> Any:
    for name in place:
        row = row[name]
    return row


def changed(row: Any, place: Path_, change: Callable[[Any, Any], None]) -> Any:
    """A copy of a row in which ``change(container, name)`` was called for the field at a place."""
    row = inner = copy.deepcopy(row)
    for name in place[:-1]:
        inner = inner[name]
    change(inner, place[-1])
    return row


def removed(container: Any, name: Any) -> None:
    del container[name]


def set_to(value: Any) -> Callable[[Any, Any], None]:
    return lambda container, name: container.__setitem__(name, value)


def is_unread(task: str, place: Path_, candidates: bool) -> bool:
    names = ".".join(name for name in place if isinstance(name, str))
    return (not candidates and names.startswith("candidates")) or any(
        names == unread or names.endswith(f".{unread}") for unread in UNREAD.get(task, ()))


def json_rows(data: Data) -> tuple[Any, Callable[[Any], str], int]:
    """A row, how a file looks in which it is another one, and the number of its line."""
    if data.is_document:
        return json.loads(data.path.read_text()), json.dumps, 1
    first, second, *_ = data.path.read_text().splitlines()
    return json.loads(second), lambda row: f"{first}\n{json.dumps(row)}\n", 2


@pytest.mark.parametrize(("task", "options"), FORMS)
def test_every_field_is_needed_and_of_one_kind(task: str, options: dict[str, Any], make: Callable[..., Data]) -> None:
    data = make(task, **options)
    if data.is_table:
        rows = data.path.read_text().splitlines()
        separator = "\t" if data.path.suffix == ".tsv" else ","
        said = data.refusal("\n".join([rows[0], separator.join(rows[1].split(separator)[:-1])]) + "\n") if (
            task != "qqp") else "2: 5 columns instead of 6"  # QQP as published has such rows, which are left out
        assert said.startswith("2: ") and "columns instead of" in said
        return
    row, written, number = json_rows(data)
    assert len(list(places(row))) > 2
    for place in places(row):
        for change in (removed, *map(set_to, WRONG)):
            content = written(changed(row, place, change))
            if is_unread(task, place, bool(options)):
                data.path.write_text(content)
                assert data.read(), place
            else:
                said = data.refusal(content)
                assert said.startswith(f"{number}: ") and str(place[-1]) in said, (place, said)


def label_of(task: str, row: Any) -> Path_ | None:
    """Where the label stands; SQuAD and ReCoRD have answers instead."""
    return next((place for place in places(row) if place[-1] in ("label", "gold_label")), None)


@pytest.mark.parametrize("task", task_names())
def test_a_label_outside_the_set(task: str, make: Callable[..., Data]) -> None:
    data = make(task)
    if task in ("squad", "record"):
        return  # answers stand in the place of labels
    if data.is_table:
        rows = [row.split("\t" if data.path.suffix == ".tsv" else ",") for row in data.path.read_text().splitlines()]
        labels = set(data.spec.labels)
        (column,) = [number for number, cell in enumerate(rows[1]) if cell.strip('"') in labels][-1:]
        rows[1][column] = "nonsense"
        content, number = "\n".join(("\t" if data.path.suffix == ".tsv" else ",").join(row) for row in rows), 2
    else:
        row, written, number = json_rows(data)
        place = ("answers", 0) if task == "race" else label_of(task, row)
        assert place is not None
        content = written(changed(row, place, set_to("nonsense")))
    said = data.refusal(content)
    wanted = ", ".join(repr(label.lower() if task == "wsc" else label) for label in data.spec.labels)
    assert said.startswith(f"{number}: ") and f"label 'nonsense' is none of {wanted}" in said


@pytest.mark.parametrize("task", task_names())
def test_bytes_and_characters(task: str, make: Callable[..., Data]) -> None:
    data = make(task)
    content = data.path.read_bytes()
    broken = content.count(b"\n") + (not content.endswith(b"\n"))
    said = data.refusal(content.rstrip(b"\n") + b"\xe9\n")
    assert said.startswith(f"{broken}: byte ") and "is not UTF-8; save the file as UTF-8" in said
    assert "is not UTF-8" in data.refusal("\ufeff".encode("utf-16-le") + content.decode().encode("utf-16-le"))
    if data.is_table:
        return
    data.path.write_bytes(content)
    row, written, number = json_rows(data)
    said = data.refusal(content.rstrip(b"\n")[:-1])
    assert said.startswith(f"{broken}: not valid JSON") and "JSON object" in said
    place = next(place for place in places(row) if isinstance(value := value_at(row, place), str) and len(value) > 7)
    whole = value_at(row, place) + "\U0001f600"
    said = data.refusal(written(changed(row, place, set_to(whole.encode("utf-16", "surrogatepass")[:-2].decode(
        "utf-16", "surrogatepass")))))
    assert said.startswith(f"{number}: '\\ud83d' is half a character")
    data.path.write_text(written(changed(row, place, set_to(whole))))
    assert "\\ude00" in data.path.read_text() and data.read(), "a whole character may be escaped"


@pytest.mark.parametrize(("task", "field", "text"), [
    ("record", "end", "an entity must lie inside its passage"), ("wsc", "span1_index", "lies outside the text"),
    ("wsc", "span2_index", "lies outside the text"), ("cluewsc", "span2_index", "does not lie inside the text")])
@pytest.mark.parametrize("value", [-1, 10 ** 6])
def test_offsets_outside_the_text(task: str, field: str, text: str, value: int, make: Callable[..., Data]) -> None:
    data = make(task)
    row, written, _ = json_rows(data)
    place = next(one for one in places(row) if one[-1] == field)
    said = data.refusal(written(changed(row, place, set_to(value))))
    assert said.startswith("2: ") and text in said and f"= {value}" in said


@pytest.mark.parametrize(("task", "place", "value", "text"), [
    ("wsc", ("target", "span2_text"), " ", "target.span2_text is empty"),
    ("record", ("qas", 0, "answers"), [], "qas[0].answers is empty; .*--train-split=unlabeled"),
    ("record", ("passage", "entities"), [], "there is no candidate"),
    ("copa", ("question",), "cuase", "did you mean 'cause'"),
])
def test_what_is_empty_or_misspelt(task: str, place: Path_, value: Any, text: str, make: Callable[..., Data]) -> None:
    data = make(task)
    row, written, _ = json_rows(data)
    said = data.refusal(written(changed(row, place, set_to(value))))
    assert said.startswith("2: ") and all(part in said for part in text.split(".*"))


@pytest.mark.parametrize("task", WORLD_TASKS)
def test_a_run_stops_before_its_first_step_and_leaves_nothing(task: str, make: Callable[..., Data],
                                                              tmp_path: Path) -> None:
    data = make(task)
    lines = data.path.read_text().splitlines()
    (tmp_path / "val.jsonl").write_text("\n".join([*lines[:2], lines[2][:-2]]) + "\n")
    write_vocabulary(tmp_path, "BertWordPieceTokenizer")
    before = sorted(tmp_path.rglob("*"))
    flags = finetune_flags(tmp_path, **{"task": task, "data-dir": tmp_path, "save": tmp_path / "save"})
    with pytest.raises(ValueError, match=r"val\.jsonl, line 3: not valid JSON .*one JSON object a line"):
        run("finetune", flags)
    assert sorted(tmp_path.rglob("*")) == before
