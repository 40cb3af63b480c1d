"""Evaluation in every form of a task: one rank, two data-parallel and two model-parallel ranks predict the same, and
score each example once. The weights are enlarged or trained first: fresh ones score all examples alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch

from data_utils.stand_in import write_vocabulary, write_world_task
from distill.training import evaluate
from tests.distill.training.small_runs import NO_DROPOUT, finetune_flags, run
from tests.helpers.distributed import run_distributed

PROMPT = ("--continuous-prompt", "--num-prompt-tokens=3", "--prefix-prompt=2")
NUM_EXAMPLES = {"MultiRC": 2, "WSC": 18}
SIZES = {"hidden-size": 32, "max-position-embeddings": 96, "seq-length": 72, "batch-size": 6, "eval-batch-size": 2}


class Form(NamedTuple):
    """A task, its flags, and how its weights are made: so many epochs, then matrices that many times as large."""

    task: str
    words: tuple[str, ...] = ()
    epochs: int = 1
    factor: float = 20.0


FORMS = {
    "single word": Form("RTE"),
    "single word, three labels": Form("CB"),
    "single word, many answers a question": Form("MultiRC"),
    "label words token by token": Form("RTE", ("--multi-token", "--length-penalty=1")),
    "two choices": Form("COPA"),
    "choices in number as the example has": Form("ReCoRD"),
    "candidates": Form("WSC", ("--wsc-negative", "--loss-func=mix", "--length-penalty=1", "--pattern-id=2")),
    "generated phrase": Form("WSC", epochs=20, factor=1.0),
    "generated phrase, prompt": Form("WSC", PROMPT, epochs=20, factor=1.0),
    "classes": Form("CB", ("no cloze",)),
    "scored choices": Form("COPA", ("no cloze",)),
    "pieces of answers": Form("ReCoRD", ("--segment-length=2",)),
    "one text": Form("ReCoRD", ("--fast-decode",)),
    "one text, prompt": Form("COPA", ("--fast-decode", *PROMPT)),
    "single word, prompt": Form("WiC", ("--pattern-id=1", *PROMPT)),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary and the tasks of the forms; numbers of examples that ranks and batches do not divide."""
    folder = tmp_path_factory.mktemp("tasks")
    write_vocabulary(folder, "BertWordPieceTokenizer")
    for task in {form.task for form in FORMS.values()}:
        write_world_task(task, folder / task, ("train.jsonl",), NUM_EXAMPLES.get(task, 9))
    return folder


def flags(tasks: Path, form: Form, **changes: object) -> list[str]:
    words = finetune_flags(tasks, **{**SIZES, "task": form.task, "data-dir": tasks / form.task,
                                     "valid-data": "train", "experiment-name": "run", **changes})
    if "no cloze" in form.words:
        words.remove("--cloze-eval")
    return [*words, *NO_DROPOUT, *(word for word in form.words if word != "no cloze")]


def trained(tasks: Path, form: Form, save: Path) -> Path:
    """A checkpoint of the form, whose predictions differ between examples."""
    words = flags(tasks, form, epochs=form.epochs, lr=3e-3)
    assert run("finetune", [*words, "--no-validation", "--ft_final_save", f"--save={save}"]) == 0
    (file,) = save.rglob("mp_rank_00_model_states.pt")
    content = torch.load(file, weights_only=True)
    for parameter, tensor in content["module"].items():
        if tensor.dim() > 1 and "embeddings" not in parameter:
            tensor *= form.factor
    torch.save(content, file)
    return save / "run"


def scores_of(jobs: Sequence[Sequence[str]]) -> list[list[list[float]]]:
    """Run commands that only evaluate, on this rank.

    Returns:
        For each of them what each example of this rank got: a score for each choice, or the best token at each place.
    """
    found: list[list[list[float]]] = []
    predict, predict_spans = evaluate.predict, evaluate.predict_spans

    def choices(scores: torch.Tensor, mask: torch.Tensor | None, *others: object) -> torch.Tensor:
        found[-1] += [row[kept.bool()].tolist() for row, kept in zip(
            scores, torch.ones_like(scores) if mask is None else mask)]
        return predict(scores, mask, *others)

    def spans(best: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found[-1] += best.tolist()
        return predict_spans(best, target, mask)

    with mock.patch.multiple(evaluate, predict=choices, predict_spans=spans):
        for words in jobs:
            found.append([])
            assert run("finetune", words) == 0
    return found


def read_results(folder: Path) -> tuple[str, str]:
    """The prediction file and the scores."""
    (predictions,), (scores,) = folder.rglob("*-train.jsonl"), folder.rglob("test_results.json")
    return predictions.read_text(), scores.read_text()


@pytest.mark.distributed
def test_predictions_do_not_depend_on_the_ranks(tasks: Path, tmp_path: Path) -> None:
    jobs: dict[str, list[str]] = {}
    for name, form in FORMS.items():
        checkpoint = trained(tasks, form, tmp_path / name / "trained")
        jobs[name] = flags(tasks, form, **{"epochs": 0, "load-pretrained": checkpoint})

    def saved(ranks: str) -> list[list[str]]:
        return [[*words, f"--save={tmp_path / name / ranks}"] for name, words in jobs.items()]

    alone = scores_of(saved("one"))
    data = run_distributed(scores_of, 2, saved("data"))
    model = run_distributed(scores_of, 2, [[*words, "--model-parallel-size=2"] for words in saved("model")],
                            model_parallel_size=2)
    for number, name in enumerate(jobs):
        one, predictions = alone[number], read_results(tmp_path / name / "one")
        first, second = (rank[number] for rank in data)
        assert 0 <= len(first) - len(second) <= 1 and second, f"{name}: the examples are dealt out in turn, each once"
        dealt = [(first, second)[place % 2][place // 2] for place in range(len(one))]
        for rows in (dealt, *(rank[number] for rank in model)):
            assert len(rows) == len(one) == len(first) + len(second), name
            assert all(row == pytest.approx(other, rel=1e-4, abs=1e-4) for row, other in zip(rows, one)), name
        assert predictions == read_results(tmp_path / name / "data") == read_results(tmp_path / name / "model"), name
        assert len({tuple(round(value, 2) for value in row) for row in one}) > len(one) / 2, (
            f"{name}: most examples get the same scores, so that equality says little")
