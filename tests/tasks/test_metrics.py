from __future__ import annotations

import pytest

from tasks import metrics
from tasks.examples import Example


def test_accuracy_and_f1() -> None:
    predictions, labels = [1, 0, 1, 1, 0], [1, 1, 0, 1, 0]
    assert metrics.accuracy(predictions, labels) == 60.0
    assert metrics.f1(predictions, labels) == pytest.approx(2 * 2 / (3 + 3))
    assert metrics.f1_macro(predictions, labels) == pytest.approx((2 * 1 / (2 + 2) + 4 / 6) / 2)
    assert metrics.f1([0, 0], [0, 0]) == 0.0


def test_matthews() -> None:
    predictions, labels = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1, 1]  # 3 hits, 3 rejections, 1 and 1 wrong
    assert metrics.matthews(predictions, labels) == pytest.approx((3 * 3 - 1 * 1) / 16)
    assert metrics.matthews([1, 0], [1, 0]) == 1.0 and metrics.matthews([0, 1], [1, 0]) == -1.0
    assert metrics.matthews([1, 1], [1, 0]) == 0.0


def test_f1_macro_counts_only_classes_that_occur() -> None:
    assert metrics.f1_macro([0, 0, 2], [0, 0, 2]) == 1.0
    assert metrics.f1_macro([0, 1], [0, 2]) == pytest.approx(1 / 3)


def test_exact_match_of_a_question_needs_all_its_answers() -> None:
    examples = [Example("", "", meta={"question_idx": index}) for index in (1, 2, 1, 2)]
    assert metrics.grouped_exact_match([1, 0, 1, 1], [1, 0, 0, 1], examples) == 0.5


@pytest.mark.parametrize(("text", "normal"), [
    ("The  U.S.A.!", "usa"), ("Café São", "cafe sao"), ("an apple a day", "apple day"), ("Theatre", "theatre"),
    ("東京", "Dong Jing"),  # transliterated after lower-casing
])
def test_normalisation(text: str, normal: str) -> None:
    assert metrics.normalize_answer(text) == normal


def test_token_f1() -> None:
    assert metrics.token_f1("x y y", "y y z") == pytest.approx(2 / 3)
    assert metrics.token_f1("a", "the") == 0.0 and metrics.exact_match("a", "the")


def test_record_takes_the_best_answer() -> None:
    examples = [Example("", "", meta={"candidates": ["Obama", "Barack Obama", "Rome"], "answers": answers})
                for answers in (["obama!", "Rome"], ["Barack Obama"], [])]
    assert metrics.record_exact_match([0, 0, 2], [], examples) == pytest.approx(100 / 3)
    assert metrics.record_f1([0, 0, 2], [], examples) == pytest.approx(100 * (1 + 2 / 3) / 3)


def test_squad_takes_the_first_answer_of_a_question() -> None:
    scores = metrics.squad_scores(["n / A", "Paris", "Rome", "n/a", ""], [["Paris"]] * 3 + [["N/A"]] + [["x"]],
                                  [1, 1, 1, 2, 3])
    assert scores == pytest.approx({"EM": 200 / 3, "F1": 200 / 3})
