from __future__ import annotations

from pathlib import Path

import pytest

from tasks.examples import Line, Split, lower_first, standard_punctuation, strip_punctuation

TRAIN, TEST, UNLABELED = Split("train", "train"), Split("test", "test"), Split("unlabeled", "unlabeled")


def line(**fields: object) -> Line:
    return Line(Path("x.jsonl"), 7, fields)


def test_text_helpers() -> None:
    assert standard_punctuation("\u201cit\u2019s\u201d 1\u20132 \u2018a\u2014b") == "\"it's\" 1-2 'a\u2014b"
    assert strip_punctuation('He said: "no!?".') == 'He said: "no'
    assert strip_punctuation("end . ") == "end . "  # only what stands at the very end
    assert lower_first("The Man") == "the Man" and lower_first("") == ""


def test_fields_are_checked_also_inside() -> None:
    one = line(passage={"text": 3}, qas=[{"query": "q"}, "bad"])
    with pytest.raises(ValueError, match=r"x\.jsonl, line 7: field 'premise' is missing \(present: 'passage', 'qas'\)"):
        one.text("premise")
    with pytest.raises(ValueError, match=r"'passage\.text' must be of type str, got 3"):
        one.child("passage").text("text")
    with pytest.raises(ValueError, match=r"field qas\[1\] must be an object"):
        list(one.children("qas"))
    with pytest.raises(ValueError, match=r"'qas\[0\]\.idx' is missing"):
        next(iter(one.children("qas"))).get("idx")


def test_labels() -> None:
    labels = ("entailment", "not_entailment")
    assert line(label="entailment").label(labels, TRAIN) == "entailment"
    assert line(label=True).label(("false", "true"), TRAIN) == "true"
    assert line().label(labels, TEST) is None
    assert line(label="entailment").label(labels, TEST) == "entailment"
    assert line(label="not_entailment").label(labels, UNLABELED) == "entailment"
    with pytest.raises(ValueError, match=r"label 'entailed' is none of 'entailment'.*did you mean 'entailment'\?"):
        line(label="entailed").label(labels, TRAIN)
    with pytest.raises(ValueError, match="'label' is missing.*--train-split=unlabeled"):
        line().label(labels, TRAIN)
