from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_utils.tokenizers import Tokenizer
from tasks import evaluation
from tasks.data import EncodedExamples, EvalSet
from tasks.encoding import TaskEncoder
from tasks.examples import Example
from tasks.registry import get_task
from tasks.spec import TaskOptions

OPTIONS = TaskOptions(cloze_eval=True, seq_length=32)


def eval_set(tokenizer: Tokenizer, task: str, *examples: Example) -> EvalSet:
    return EvalSet("dev", EncodedExamples(examples, TaskEncoder(get_task(task, OPTIONS), OPTIONS, tokenizer)),
                   batch_size=2)


def record_example(idx: int, answers: list[str]) -> Example:
    candidates = [f"n{number}" for number in range(23)]
    return Example(f"dev-{idx}", "it", "is @placeholder", "1", idx, {"candidates": candidates, "answers": answers}, 23)


def test_many_choices_are_scored_in_parts(tokenizer: Tokenizer) -> None:
    spec, found = get_task("record", OPTIONS), eval_set(tokenizer, "record", record_example(0, ["n1"]))
    batch = next(iter(found)).tensors
    sizes = []

    def score(part: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes.append(part["text"].shape[1])
        return part["target"].sum(-1).float()

    scores = evaluation.score_batch(score, batch, spec)
    assert sizes == [10, 10, 3] and torch.equal(scores, batch["target"].sum(-1).float())
    single = {"text": torch.zeros(2, 32), "label": torch.zeros(2)}
    assert list(evaluation.choice_chunks(single, get_task("cb", OPTIONS))) == [single]


def test_padding_choices_never_win() -> None:
    scores = torch.tensor([[-5.0, -3.0, -3.0], [-5.0, -3.0, 4.0]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    assert evaluation.predict(scores, mask, get_task("record", OPTIONS)).tolist() == [0, 2]
    assert evaluation.predict(scores, None, get_task("cb", OPTIONS)).tolist() == [1, 2]


def test_pieces_are_summed_before_the_best_is_taken() -> None:
    scores = torch.tensor([[-1.0, -1.0, -1.5, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    segment_id, rows = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert evaluation.predict(scores, rows, get_task("copa", OPTIONS), segment_id).tolist() == [1, 0]


def test_a_span_is_right_only_as_a_whole() -> None:
    target, mask = torch.tensor([[0, 5, 6, 0]] * 3), torch.tensor([[0, 1, 1, 0]] * 3)
    best = torch.tensor([[9, 5, 6, 9], [9, 5, 7, 9], [0, 4, 6, 0]])
    assert evaluation.predict_spans(best, target, mask).tolist() == [1, 0, 0]


def test_parts_of_all_ranks_make_one_list(tokenizer: Tokenizer) -> None:
    found = eval_set(tokenizer, "record", *(record_example(index, ["n1"]) for index in range(3)))
    assert evaluation.merge_predictions(found, [{"dev-0": 4, "dev-2": 6}, {"dev-1": 5}]) == [4, 5, 6]
    with pytest.raises(ValueError, match="1 of 3 examples of dev have no prediction, the first is 'dev-1'"):
        evaluation.merge_predictions(found, [{"dev-0": 4, "dev-2": 6}])


def test_metrics_in_the_order_of_the_task() -> None:
    cb = get_task("cb", OPTIONS)
    examples = [Example("", "", label=label) for label in ("entailment", "neutral")]
    scores = evaluation.compute_metrics(cb, examples, [0, 1])
    assert list(scores.items()) == [("accuracy", 50.0), ("f1-macro", pytest.approx(1 / 3))]
    record = evaluation.compute_metrics(get_task("record", OPTIONS), [record_example(0, ["n1"])], [1])
    assert record == {"EM": 100.0, "F1": 100.0}
    assert evaluation.average_scores([(1, {"EM": 10.0}), (3, {"EM": 50.0})]) == {"EM": 40.0}


def test_which_epoch_is_best() -> None:
    spec = get_task("cb", OPTIONS)
    assert evaluation.validation_metric(spec) == "accuracy"
    assert evaluation.validation_metric(spec, "f1-macro") == "f1-macro"
    with pytest.raises(ValueError, match="--validation-metric=f1: task cb has accuracy, f1-macro"):
        evaluation.validation_metric(spec, "f1")
    for metric, better in (("accuracy", 2.0), ("ppl", 0.5), ("word_ppl", 0.5), ("loss", 0.5)):
        assert evaluation.is_better(metric, 7.0, None) and evaluation.is_better(metric, better, 1.0)
        assert not evaluation.is_better(metric, 1.0, 1.0) and not evaluation.is_better(metric, 1.0, better)


def test_prediction_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = eval_set(tokenizer, "record", record_example(7, ["n1"]), record_example(8, []))
    path = evaluation.write_predictions(tmp_path, get_task("record", OPTIONS), found, [1, 22])
    assert path.name == "record-dev.jsonl" and [one.name for one in tmp_path.iterdir()] == [path.name]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"idx": 7, "label": "n1"}, {"idx": 8, "label": "n22"}]
    rte = evaluation.prediction_lines(get_task("rte", OPTIONS), [Example("", "", idx=3)], [1])
    assert rte == [{"idx": 3, "label": "not_entailment"}]
    assert evaluation.results_line({"EM": 1.0}, "validation", 2) == {"EM": 1.0, "type": "validation", "epoch": 2}
    assert evaluation.results_line({"EM": 1.0}, "test") == {"EM": 1.0, "type": "test"}
