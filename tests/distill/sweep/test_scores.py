"""Which metrics count, what better is, and how a run's curve is read."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from distill.sweep.scores import Evaluation, Objective, evaluations_of, is_minimised, kept_metrics, read_curve


def entry(epoch: int, **scores: float) -> dict[str, Any]:
    return {"epoch": epoch, "iteration": 10 * epoch, "score_dict": scores}


@pytest.mark.parametrize(("names", "kept"), [
    (("acc", "em", "f1a"), ("f1a", "em")), (("EM", "F1"), ("F1", "EM")),
    (("accuracy", "f1-macro"), ("f1-macro", "accuracy")),
    (("rouge-l", "rouge-1", "rouge-2"), ("rouge-1", "rouge-2", "rouge-l")), (("accuracy",), ("accuracy",)),
    (("mcc", "x"), ("mcc",)), ((), ())])
def test_the_most_telling_metrics_are_kept(names: tuple[str, ...], kept: tuple[str, ...]) -> None:
    assert kept_metrics(names) == kept


def test_losses_and_perplexities_are_minimised() -> None:
    assert all(map(is_minimised, ("loss", "Loss", "ppl", "perplexity", "word_ppl", "valid_loss")))
    assert not any(map(is_minimised, ("accuracy", "f1", "em", "rouge-l")))


def test_the_best_scoring_has_the_largest_mean_of_the_kept_metrics() -> None:
    result = {"max_score_dict": {"accuracy": entry(3, accuracy=0.9, **{"f1-macro": 0.5}),
                                 "f1-macro": entry(5, accuracy=0.8, **{"f1-macro": 0.7})}}
    assert Objective().best(result).epoch == 5
    assert Objective().value(Objective().best(result).scores) == pytest.approx(0.75)
    assert Objective("accuracy").best(result).epoch == 3 and Objective("accuracy").gain({"accuracy": 0.9}) == 0.9
    with pytest.raises(ValueError, match="--objective=em: the scores are accuracy, f1-macro"):
        Objective("em").best(result)
    with pytest.raises(ValueError, match="no scores"):
        Objective().best({"max_score_dict": {}})


def test_the_least_of_a_minimised_metric_is_found_in_the_curve() -> None:
    result = {"max_score_dict": {"ppl": entry(1, ppl=30.0)}}  # as the training script keeps the greatest
    curve = [Evaluation(20, 2, {"ppl": 20.0}), Evaluation(30, 3, {"ppl": 25.0})]
    assert Objective().best(result, curve).epoch == 2 and Objective().gain({"ppl": 20.0}) == -20.0
    result = {"max_score_dict": {"accuracy": entry(1, accuracy=0.5)}}
    assert Objective().best(result, [Evaluation(20, 2, {"accuracy": 0.9})]).epoch == 1  # the file is what counts


def test_metrics_of_opposite_directions_are_not_mixed() -> None:
    good, bad = {"ppl": 8.0, "accuracy": 0.7}, {"ppl": 5.0, "accuracy": 0.4}
    assert Objective().gain(good) == 0.7 > Objective().gain(bad) and not Objective().minimises(good)
    assert Objective("ppl").gain(bad) == -5.0 > Objective("ppl").gain(good)
    assert Objective().metrics(good) == ("accuracy",) and Objective().shown(good) == ("accuracy", "ppl")


def test_scores_that_are_missing_or_not_finite_are_the_worst() -> None:
    assert Objective("f1").gain({"accuracy": 1.0}) == -math.inf and Objective().gain({}) == -math.inf
    assert Objective().gain({"accuracy": math.nan}) == -math.inf
    assert math.isnan(Objective("f1").value({}))


def test_evaluations_of_a_result_file_are_told_once() -> None:
    both = entry(2, em=0.1, f1=0.2)
    assert evaluations_of({"max_score_dict": {"em": both, "f1": both}}) == [Evaluation(20, 2, {"em": 0.1, "f1": 0.2})]


def test_the_curve_is_read_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    known = [Evaluation(1, 0, {"accuracy": 0.1})]
    assert read_curve(file, 0.0, known) == known
    records = [{"kind": "train", "iteration": 1, "loss": 2.0, "note": "metrics"},
               {"kind": "metrics", "iteration": 10, "epoch": 0, "accuracy": 0.5, "name": "x", "bad": None},
               {"kind": "metrics", "iteration": 20, "epoch": -1, "accuracy": 0.75}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    file.write_text(text + '{"kind": "metrics", "iteration": 30, "epoch": 1, "accu', encoding="utf-8")
    assert read_curve(file, 0.0) == [Evaluation(10, 0, {"accuracy": 0.5})]
    os.utime(file, (1000, 1000))
    assert read_curve(file, 2000.0) == []  # of an earlier run
