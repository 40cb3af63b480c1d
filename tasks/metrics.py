"""Metrics of the tasks. A metric takes predictions, labels (both as indices) and examples, in the same order.

Scales follow the published results: accuracy, EM and F1 of ReCoRD and SQuAD 0-100, the other F1 and MultiRC EM 0-1.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from text_unidecode import unidecode

from tasks.examples import Example

Metric = Callable[[Sequence[int], Sequence[int], Sequence[Example]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[Example] = ()) -> float:
    """Share of equal predictions, 0-100."""
    return 100.0 * sum(p == y for p, y in zip(predictions, labels, strict=True)) / max(len(labels), 1)


def perplexity(loss: float) -> float:
    """exp of a loss in nats, which is capped at 20."""
    return math.exp(min(20.0, loss))


def class_f1(predictions: Sequence[int], labels: Sequence[int], target: int) -> float:
    """F1 of one class against the others, 0-1; 0 where it is undefined."""
    pairs = Counter(zip(predictions, labels, strict=True))
    hits = pairs[target, target]
    mentions = sum(count * ((p == target) + (y == target)) for (p, y), count in pairs.items())
    return 2.0 * hits / mentions if hits else 0.0


def f1(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[Example] = ()) -> float:
    """F1 of class 1, 0-1."""
    return class_f1(predictions, labels, 1)


def f1_macro(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[Example] = ()) -> float:
    """Mean F1 over the classes that occur in labels or predictions, 0-1."""
    classes = set(predictions) | set(labels)
    return sum(class_f1(predictions, labels, one) for one in classes) / max(len(classes), 1)


def matthews(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[Example] = ()) -> float:
    """Matthews correlation of two classes (Matthews 1975), -1 to 1; 0 where one class has no label or prediction."""
    pairs = Counter((bool(p), bool(y)) for p, y in zip(predictions, labels, strict=True))
    true, false = pairs[True, True], pairs[False, False]
    wrong_true, wrong_false = pairs[True, False], pairs[False, True]
    product = ((true + wrong_true) * (true + wrong_false) * (false + wrong_true) * (false + wrong_false))
    return (true * false - wrong_true * wrong_false) / math.sqrt(product) if product else 0.0


def grouped_exact_match(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[Example]) -> float:
    """MultiRC EM: share of questions (by ``question_idx`` alone) with all their answers judged right, 0-1."""
    right: dict[object, bool] = defaultdict(lambda: True)
    for prediction, label, example in zip(predictions, labels, examples, strict=True):
        right[example.meta["question_idx"]] &= prediction == label
    return sum(right.values()) / max(len(right), 1)


def normalize_answer(text: str) -> str:
    """Lower case, transliteration to ASCII, no punctuation, no articles, single blanks; in this order.

    Transliteration after lower-casing may bring capitals back; kept for equal numbers with published evaluations.
    """
    return " ".join(_ARTICLES.sub(" ", unidecode(text.lower()).translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, truth: str) -> bool:
    """Whether both are equal after normalisation."""
    return normalize_answer(prediction) == normalize_answer(truth)


def token_f1(prediction: str, truth: str) -> float:
    """F1 of the multisets of words after normalisation, 0-1; 0 without overlap, also when both are empty."""
    predicted, true = normalize_answer(prediction).split(), normalize_answer(truth).split()
    overlap = sum((Counter(predicted) & Counter(true)).values())
    return 2.0 * overlap / (len(predicted) + len(true)) if overlap else 0.0


def _best_over_answers(compare: Callable[[str, str], float], predictions: Sequence[int],
                       examples: Sequence[Example]) -> float:
    """Mean over examples of the best score of the predicted candidate over the gold answers, 0-100."""
    best = [max((float(compare(example.meta["candidates"][prediction], answer)) for answer in example.meta["answers"]),
                default=0.0) for prediction, example in zip(predictions, examples, strict=True)]
    return 100.0 * sum(best) / max(len(best), 1)


def record_exact_match(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[Example]) -> float:
    """ReCoRD EM, 0-100; an example without answers counts 0."""
    return _best_over_answers(exact_match, predictions, examples)


def record_f1(predictions: Sequence[int], labels: Sequence[int], examples: Sequence[Example]) -> float:
    """ReCoRD token F1, 0-100; an example without answers counts 0."""
    return _best_over_answers(token_f1, predictions, examples)


def _is_not_available(text: str) -> bool:
    return "".join(text.lower().split()) == "n/a"


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]],
                 indices: Sequence[object]) -> Mapping[str, float]:
    """EM and F1 of generated answers, 0-100.

    Several predictions may share one index (a long text in pieces): its first one that is not ``N/A`` counts. A
    question whose gold answers are exactly ``["N/A"]`` requires ``N/A``.
    """
    chosen: dict[object, str] = {}
    gold: dict[object, Sequence[str]] = {}
    for prediction, answer, index in zip(predictions, answers, indices, strict=True):
        gold[index] = answer
        if _is_not_available(chosen.get(index, "N/A")):
            chosen[index] = "N/A" if _is_not_available(prediction) else prediction
    totals = {"EM": 0.0, "F1": 0.0}
    for index, prediction in chosen.items():
        if list(gold[index]) == ["N/A"]:
            scores = dict.fromkeys(totals, float(prediction == "N/A"))
        else:
            scores = {"EM": max((float(exact_match(prediction, one)) for one in gold[index]), default=0.0),
                      "F1": max((token_f1(prediction, one) for one in gold[index]), default=0.0)}
        for name, score in scores.items():
            totals[name] += 100.0 * score / len(chosen)
    return totals
