from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks.superglue import official, submission
from tasks.superglue.official import OFFICIAL, Official

ANSWERS: dict[str, Any] = {
    "boolq": "true", "cb": "neutral", "copa": 1, "record": "Ann Brown", "rte": "entailment", "wic": "false",
    "wsc": "True", "ax-b": "not_entailment", "ax-g": "entailment"}
MULTIRC = {"idx": 0, "passage": {"questions": [
    {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]}]}}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two predictions of each task, in a folder of its own; the official test files have two examples."""
    for name in OFFICIAL:
        folder = tmp_path / "runs" / f"{name}_run" / "tensorboard"
        folder.mkdir(parents=True)
        rows = [MULTIRC] if name == "multirc" else [{"idx": idx, "label": ANSWERS[name]} for idx in range(2)]
        write(folder / f"{name}-test.jsonl", rows)
        write(folder / f"{name}-dev.jsonl", rows)
        monkeypatch.setitem(official.OFFICIAL, name, Official(OFFICIAL[name].folder, {"test.jsonl": 2}))
    return tmp_path / "runs"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def submit(runs: Path, *words: str) -> int:
    return submission.main([str(runs), "--out", str(runs.parent / "out" / "submission.zip"), *words])


def test_all_ten_files_under_their_official_names(runs: Path) -> None:
    assert submit(runs) == 0
    path = runs.parent / "out" / "submission.zip"
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == {
            "BoolQ.jsonl", "CB.jsonl", "COPA.jsonl", "MultiRC.jsonl", "ReCoRD.jsonl", "RTE.jsonl", "WiC.jsonl",
            "WSC.jsonl", "AX-b.jsonl", "AX-g.jsonl"}
        assert [json.loads(line) for line in archive.read("WSC.jsonl").splitlines()] == [
            {"idx": 0, "label": "True"}, {"idx": 1, "label": "True"}]
        assert json.loads(archive.read("MultiRC.jsonl")) == MULTIRC
    content = path.read_bytes()
    assert submit(runs) == 0 and path.read_bytes() == content  # the same predictions, the same bytes


def test_a_missing_task_needs_partial(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "ax-b_run" / "tensorboard" / "ax-b-test.jsonl").unlink()
    assert submit(runs) == 2
    assert "no predictions of AX-b; SuperGLUE scores all ten files at once" in capsys.readouterr().err
    assert not (runs.parent / "out").exists()
    assert submit(runs, "--partial") == 0 and submit(runs, "--split", "dev") == 0
    assert submission.main([str(runs / "ax-b_run"), "--out", str(runs / "x.zip")]) == 2
    assert "has no prediction file <task>-test.jsonl" in capsys.readouterr().err


def test_two_runs_of_one_task(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = runs / "again" / "rte-test.jsonl"
    second.parent.mkdir()
    write(second, [{"idx": 0, "label": "entailment"}])
    assert submit(runs) == 2
    assert "two prediction files of rte" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "rows", "message"), [
    ("rte", [{"idx": 0, "label": "entailment"}], "has 1 predictions, the official test file of RTE has 2"),
    ("rte", [{"idx": 0, "label": "entailment"}] * 2, "line 2: a second prediction for 0"),
    ("rte", [{"idx": 0, "label": "yes"}], "line 1: label 'yes' is none of 'entailment'"),
    ("copa", [{"idx": 0, "label": True}], "line 1: label True is none of 0, 1"),
    ("wsc", [{"idx": "0", "label": "True"}], "line 1: field 'idx' must be of type int"),
    ("record", [{"idx": 0, "label": 3}], "line 1: label must be the text of an entity, got 3"),
    ("cb", [{"label": "neutral"}], "line 1: field 'idx' is missing"),
    ("multirc", [{**MULTIRC, "passage": {"questions": [{"idx": 0, "answers": [{"idx": 0, "label": 2}]}]}}],
     "line 1: label 2 is none of 0, 1"),
    ("multirc", [MULTIRC, MULTIRC], r"line 2: a second prediction for (0, 0, 0)"),
])
def test_predictions_are_checked(runs: Path, capsys: pytest.CaptureFixture[str], name: str,
                                 rows: list[dict[str, Any]], message: str) -> None:
    path = runs / f"{name}_run" / "tensorboard" / f"{name}-test.jsonl"
    write(path, rows)
    assert submit(runs) == 2
    said = capsys.readouterr().err
    assert message in said and f"{name}-test.jsonl" in said
    assert not (runs.parent / "out").exists()
