"""The file formats: what they read, and what they say about a file that is not as it should be."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from tasks.data import make_split, read_split, split_file
from tasks.files import JSON_LINES, read_csv, read_document, read_folder, read_lines, read_tsv
from tasks.registry import get_task, task_names
from tasks.spec import TaskOptions

WriteLines = Callable[..., Path]
CLOZE = TaskOptions(cloze_eval=True)


def test_empty_lines_are_skipped_but_counted(write_lines: WriteLines) -> None:
    lines = read_lines(write_lines("a.jsonl", {"idx": 0}, "", {"idx": 1}))
    assert [(one.number, one.fields["idx"]) for one in lines] == [(1, 0), (3, 1)]


def test_malformed_json_names_file_and_line(write_lines: WriteLines) -> None:
    path = write_lines("a.jsonl", {"idx": 0}, '{"idx": 1,}')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not valid JSON.*one JSON object a line"):
        read_lines(path)
    with pytest.raises(ValueError, match=r"line 1: one JSON object a line is expected, got '\[1\]'"):
        read_lines(write_lines("b.jsonl", "[1]"))


def test_wrong_encoding_names_the_line_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"idx": 0}\n{"text": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: byte 14 of the line is not UTF-8; save the file as UTF-8"):
        read_lines(path)
    path.write_bytes("\ufeff".encode() + b'{"idx": 0}\r\n')
    assert read_lines(path)[0].fields == {"idx": 0}


def test_the_reading_of_a_large_file_is_shown_by_one_rank(write_lines: WriteLines,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    path, bars = write_lines("a.jsonl", {"idx": 0}, {"idx": 1}), []

    class Bar(tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "disable": True})
            bars.append(options)

        def update(self, n: float = 1) -> None:
            bars[-1]["read"] = bars[-1].get("read", 0) + n

    monkeypatch.setattr("tasks.files.tqdm", Bar)
    for limit, rank, disabled in ((10, "0", None), (10, "1", True), (10_000, "0", True)):
        monkeypatch.setattr("tasks.files._SHOWN_BYTES", limit)
        monkeypatch.setenv("RANK", rank)
        assert len(read_lines(path)) == 2
        assert bars[-1]["disable"] is disabled, "None: on a terminal"
        assert bars[-1]["read"] == bars[-1]["total"] == path.stat().st_size


def test_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "train.tsv"
    path.write_text('label\tsentence\n1\tsaid "yes\n\n0\tno\n')
    assert [(line.number, dict(line.fields)) for line in read_tsv(path)] == [
        (2, {"label": "1", "sentence": 'said "yes'}), (4, {"label": "0", "sentence": "no"})]
    assert read_tsv(path, ("a", "b"))[0].fields == {"a": "label", "b": "sentence"}
    path.write_text("label\tsentence\n1\tone\n0\n1\ttwo\n")
    with pytest.raises(ValueError, match=r"train\.tsv, line 3: 1 columns instead of 2 \(label, sentence\)"):
        read_tsv(path)
    with caplog.at_level(logging.WARNING):
        assert len(read_tsv(path, skip_broken=True)) == 2
    assert "1 rows without all columns are left out, the first is line 3" in caplog.text


def test_comma_separated_tables(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('"3","A title, long","said ""x""\nand more"\n"1",b,c\n')
    columns = ("label", "title", "description")
    found = read_csv(path, columns)
    assert [dict(line.fields) for line in found] == [
        {"label": "3", "title": "A title, long", "description": 'said "x"\nand more'},
        {"label": "1", "title": "b", "description": "c"}]
    path.write_text("1,a,b\n1,a, b, c\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 2: 4 columns instead of 3.*double quotes"):
        read_csv(path, columns)
    for content in ('1,"open,b\n', '1,"a" b,c\n'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"train\.csv, line 1: .*a text in double quotes must end with one"):
            read_csv(path, columns)


def test_documents_and_folders(tmp_path: Path) -> None:
    (tmp_path / "high").mkdir()
    (tmp_path / "high" / "2.txt").write_text('{"a":\n 1}')
    (tmp_path / "1.txt").write_text('{"a": 0}')
    assert [(line.path.name, line.fields["a"]) for line in read_folder(tmp_path)] == [("1.txt", 0), ("2.txt", 1)]
    (tmp_path / "1.txt").write_text('{"a":\n 1,}')
    with pytest.raises(ValueError, match=r"1\.txt, line 2: not valid JSON"):
        read_document(tmp_path / "1.txt")
    (tmp_path / "1.txt").write_text("[]")
    with pytest.raises(ValueError, match=r"1\.txt, line 1: one JSON object is expected"):
        read_document(tmp_path / "1.txt")


@pytest.mark.parametrize("task", task_names())
def test_every_task_says_which_file_is_missing_and_when_one_is_empty(task: str, tmp_path: Path) -> None:
    spec = get_task(task, CLOZE)
    for name in ("train", "dev", "test"):
        with pytest.raises(FileNotFoundError, match=rf"split '{name}'.*does not exist.*--train-split=STEM"):
            split_file(tmp_path, make_split(name), form=spec.files)
    if task in ("race", "squad"):
        return
    path = tmp_path / spec.files.file_name("train")
    path.write_text("\n")
    with pytest.raises(ValueError, match=rf"{path.name} has no examples of task {task}.*name a file"):
        read_split(spec, split_file(tmp_path, make_split("train"), form=spec.files), make_split("train"),
                   training_form=True)


def test_names_of_files(tmp_path: Path) -> None:
    names = {task: [get_task(task, CLOZE).files.file_name(split) for split in ("train", "dev", "test", "extra")]
             for task in ("wic", "mnli", "mnli-mm", "yahoo", "race", "squad", "afqmc", "ax-b")}
    assert names == {
        "wic": ["train.jsonl", "val.jsonl", "test.jsonl", "extra.jsonl"],
        "mnli": ["train.tsv", "dev_matched.tsv", "test_matched.tsv", "extra.tsv"],
        "mnli-mm": ["train.tsv", "dev_mismatched.tsv", "test_mismatched.tsv", "extra.tsv"],
        "yahoo": ["train.csv", "test.csv", "test.csv", "extra.csv"],
        "race": ["train", "dev", "test", "extra"],
        "squad": ["train-v2.0.json", "dev-v2.0.json", "test-v2.0.json", "extra.json"],
        "afqmc": ["train.json", "dev.json", "test.json", "extra.json"],
        "ax-b": ["AX-b.jsonl", "AX-b.jsonl", "AX-b.jsonl", "extra.jsonl"],
    }
    assert [JSON_LINES.file_name(name, few_superglue=True) for name in ("train", "dev", "test")] == [
        "train.jsonl", "dev32.jsonl", "val.jsonl"]
    (tmp_path / "dev_matched.tsv").write_text("")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'dev_matched'"):
        split_file(tmp_path, make_split("dev_match"), form=get_task("mnli", CLOZE).files)


def test_squad_file(tmp_path: Path) -> None:
    path = tmp_path / "train-v2.0.json"
    questions = [{"id": "q1", "question": "who?", "answers": [{"text": "Ann", "answer_start": 0}, {"text": "A."}]},
                 {"id": "q2", "question": "why?", "answers": [], "is_impossible": True}]
    path.write_text(json.dumps({"version": "v2.0", "data": [
        {"title": "t", "paragraphs": [{"context": "Ann ran.", "qas": questions}]}]}))
    spec = get_task("squad", CLOZE)
    first, second = read_split(spec, path, make_split("train"), training_form=True)
    assert (first.guid, first.meta["answers"], second.meta["answer"]) == ("q1", ["Ann", "A."], "N/A")
    assert [spec.fill(one, CLOZE)[0].answer for one in (first, second)] == [" Ann", " N/A"]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ann ran.", "qas": [{"id": "q1"}]}]}]}))
    with pytest.raises(ValueError, match=r"line 1: field 'data\[0\]\.paragraphs\[0\]\.qas\[0\]\.answers' is missing"):
        read_split(spec, path, make_split("train"), training_form=True)
