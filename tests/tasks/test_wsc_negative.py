from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.superglue import wsc_negative
from tasks.superglue.wsc_negative import candidates, noun_phrases
from tests.tasks.test_superglue_more import wsc_row


@pytest.mark.parametrize(("text", "phrases"), [
    ("The trophy doesn't fit in the brown suitcase because it is too large.", ["The trophy", "the brown suitcase"]),
    ("Mr. Bond gave Anna Brown a book, and she thanked him.", ["Mr. Bond", "Anna Brown", "a book"]),
    ("The city councilmen refused the demonstrators permits.", ["The city councilmen", "the demonstrators permits"]),
    ("Bob paid for Charlie 's new car. The car was red.", ["Bob", "Charlie", "The car"]),
    ("Although they ran, his old dog was slow.", ["his old dog"]),
    ("The dog saw a dog and the Dog.", ["The dog"]),
    ("", []),
])
def test_noun_phrases(text: str, phrases: list[str]) -> None:
    assert noun_phrases(text) == phrases


def test_the_phrase_in_question_and_the_pronoun_are_no_candidates() -> None:
    text = "Ann told the old man that his dog had run to a park."
    assert candidates(text, "old man", "his") == [{"text": "Ann"}, {"text": "his dog"}, {"text": "a park"}]
    assert {"text": "the old man"} in candidates(text, "dog", "his")


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "WSC", tmp_path / "WSC-negative"
    source.mkdir()
    assert wsc_negative.main([str(source), str(target)]) == 2
    assert "has no .jsonl file" in capsys.readouterr().err
    for name in ("train", "dev32"):
        (source / f"{name}.jsonl").write_text(json.dumps(wsc_row()) + "\n")
    assert wsc_negative.main([str(source), str(target)]) == 0
    first = {path.name: path.read_bytes() for path in target.iterdir()}
    assert set(first) == {"train.jsonl", "dev32.jsonl"}
    assert json.loads(first["train.jsonl"]) == {**wsc_row(), "candidates": [{"text": "Ann"}]}
    assert wsc_negative.main([str(source), str(target)]) == 0
    assert first == {path.name: path.read_bytes() for path in target.iterdir()}
    (source / "val.jsonl").write_text('{"text": "x"}\n')
    assert wsc_negative.main([str(source), str(target)]) == 2
    assert "val.jsonl, line 1: field 'target' is missing" in capsys.readouterr().err
    assert not (target / "val.jsonl").exists()
