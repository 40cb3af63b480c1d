"""``--pretrained-bert`` through the entry script: the same loop, checkpoints, metrics and dry run as a GLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.bert import BertOptions, load_bert
from tests.distill.training.small_runs import (
    NO_DROPOUT,
    exact,
    finetune_flags,
    losses,
    model_flags,
    pretrain_flags,
    records,
    run,
    run_on_ranks,
)
from tests.helpers.tiny_bert import write_bert


@pytest.fixture(scope="module")
def bert(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with the vocabulary of the world."""
    folder = tmp_path_factory.mktemp("bert") / "tiny-uncased"
    write_bert(folder, (world / "vocab.txt").read_text().splitlines(), hidden_size=32, intermediate_size=64)
    return folder


@pytest.fixture(scope="module")
def rte(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of sentences; the label is told by the first word of the second one."""
    folder = tmp_path_factory.mktemp("rte")
    words = [word for word in (world / "vocab.txt").read_text().split() if word.isalpha() and len(word) > 3]
    for split, count in (("train", 24), ("val", 9)):
        rows = [{"premise": f"{words[number]} {words[number + 1]} .", "idx": number,
                 "hypothesis": f"{words[number % 2]} {words[number + 2]} .",
                 "label": ("entailment", "not_entailment")[number % 2]} for number in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def flags(world: Path, bert: Path | str, **changes: Any) -> list[str]:
    """COPA for two epochs, without the pattern."""
    words = finetune_flags(world, **{"tokenizer-model-type": bert, "seq-length": 32, "lr": 1e-3, **changes})
    return [*(word for word in words if word not in ("--cloze-eval", "--block-lm")), "--pretrained-bert"]


def test_a_task_is_learnt_and_scored(world: Path, bert: Path, rte: Path, tmp_path: Path) -> None:
    words = flags(world, bert, task="RTE", epochs=8, save=tmp_path, **{"data-dir": rte, "checkpoint-num-layers": 1})
    assert run("finetune", [*words, *NO_DROPOUT, "--checkpoint-activations",
                            f"--custom_tmp_result={tmp_path / 'tmp.json'}"]) == 0
    found = losses(tmp_path)
    assert sum(found[-5:]) < 0.5 * sum(found[:5])
    scores = json.loads(next(tmp_path.rglob("test_results.json")).read_text())
    assert scores["accuracy"] > 80
    lines = [json.loads(line) for line in next(tmp_path.rglob("rte-dev.jsonl")).read_text().splitlines()]
    assert 100 * sum(line["label"] == ("entailment", "not_entailment")[line["idx"] % 2] for line in lines) / 9 == (
        pytest.approx(scores["accuracy"]))
    assert json.loads((tmp_path / "tmp.json").read_text())["max_score_dict"]["accuracy"]["score_dict"]["accuracy"] == (
        scores["accuracy"])
    saved = torch.load(tmp_path / "copa" / "best" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert set(saved) == set(load_bert(bert, 2, BertOptions()).state_dict())


def test_an_earlier_run_is_scored_again(world: Path, bert: Path, tmp_path: Path,
                                        caplog: pytest.LogCaptureFixture) -> None:
    assert run("finetune", flags(world, bert, epochs=1, save=tmp_path)) == 0
    again = flags(world, bert, epochs=0, save=tmp_path, **{"experiment-name": "again"})
    assert run("finetune", [*again, f"--load-pretrained={tmp_path / 'copa'}"]) == 0
    first, second = (next((tmp_path / name).rglob("copa-dev.jsonl")).read_text() for name in ("copa", "again"))
    assert first == second
    assert run("pretrain", [*pretrain_flags(world, **{"train-iters": 1}), f"--save={tmp_path / 'glm'}"]) == 0
    glm, = (tmp_path / "glm").iterdir()
    assert run("finetune", [*again, "--overwrite", f"--load-pretrained={glm}"]) == 0
    assert f"--load-pretrained={glm} is the checkpoint of another kind of model and not read" in caplog.text


def test_a_run_resumes_exactly(world: Path, bert: Path, tmp_path: Path) -> None:
    words = flags(world, bert, **{"save-epoch": 1})
    assert run("finetune", [*words, f"--save={tmp_path / 'whole'}"]) == 0
    assert run("finetune", [*words, f"--save={tmp_path / 'rest'}", f"--load={tmp_path / 'whole' / 'copa' / '9'}"]) == 0
    assert len(exact(tmp_path / "rest")) == 9 and exact(tmp_path / "rest") == exact(tmp_path / "whole", after=9)


@pytest.mark.distributed
def test_two_data_parallel_ranks(world: Path, bert: Path, tmp_path: Path) -> None:
    one = flags(world, bert, **{"batch-size": 4, "eval-batch-size": 2, "epochs": 1})
    assert run("finetune", [*one, *NO_DROPOUT, f"--save={tmp_path / 'one'}"]) == 0
    two = flags(world, bert, **{"batch-size": 2, "eval-batch-size": 2, "epochs": 1})
    run_on_ranks([("finetune", [*two, *NO_DROPOUT, f"--save={tmp_path / 'two'}"])], 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    first, second = (next((tmp_path / name).rglob("copa-dev.jsonl")).read_text() for name in ("one", "two"))
    assert first == second and len(first.splitlines()) == 7


def test_the_classifier_alone(world: Path, bert: Path, tmp_path: Path) -> None:
    words = [*flags(world, bert, epochs=1, save=tmp_path), "--freeze-transformer"]
    assert run("finetune", words) == 0
    (start,) = records(tmp_path, "start")
    assert start["trained_parameters"] == 33 and start["parameters"] > 20_000


@pytest.mark.parametrize(("words", "message"), [
    (["--cloze-eval", "--block-lm"], "--cloze-eval does not go with --pretrained-bert: its classifier reads the texts"),
    (["--student_model=kd"], "--student_model=kd does not go with --pretrained-bert: distillation methods tap"),
    (["--model-parallel-size=2"], "--model-parallel-size=2 does not go with --pretrained-bert"),
    (["--tokenizer-type=GPT2BPETokenizer"], "--tokenizer-type=GPT2BPETokenizer does not go"),
    (["--pool-token=pad"], "--pool-token=pad does not go"),
    (["--map_vocab_size=100"], "--map_vocab_size does not go with --pretrained-bert: that is a form of a GLM"),
    (["--compile"], "--compile does not go"),
    (["--task=lambda"], "--task=lambda does not go with --pretrained-bert: a BERT does not continue texts"),
    (["--seq-length=80", "--max-position-embeddings=80"], "--seq-length=80 is longer than the 64 positions of the"),
    (["--tokenizer-model-type=bert-base-cased"], "no BERT for --tokenizer-model-type=bert-base-cased"),
    (["--load-pretrained=nothing"], "no checkpoint at nothing"),
])
def test_what_a_bert_cannot_do(world: Path, bert: Path, words: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("finetune", [*flags(world, bert), *words])


def test_pretraining_has_none(world: Path, bert: Path) -> None:
    with pytest.raises(ValueError, match="pretraining does not go with --pretrained-bert"):
        run("pretrain", [*pretrain_flags(world), "--pretrained-bert"])


def test_the_epsilon_is_that_of_a_bert(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run("finetune", [*finetune_flags(world, epochs=0), "--layernorm-epsilon=1e-12"]) == 0
    assert "--layernorm-epsilon=1e-12 has no effect without --pretrained-bert" in caplog.text


def test_a_vocabulary_that_is_too_large(world: Path, bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "bert")
    with open(tmp_path / "bert" / "vocab.txt", "a") as stream:
        stream.write("anotherword\n")
    with pytest.raises(ValueError, match=r"the vocabulary of \S+ has \d+ tokens, its config.json says \d+"):
        run("finetune", flags(world, tmp_path / "bert"))


def test_a_dry_run(world: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                   caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(bert.iterdir())
    assert run("finetune", [*flags(world, bert), "--fast-dev-run"]) == 0
    assert f"the BERT of {bert} fits; a narrow one" in caplog.text
    words = [*model_flags(world, task="MultiRC", epochs=1, **{"data-dir": "nowhere", "load-pretrained": "nothing"}),
             "--finetune", "--pretrained-bert", "--tokenizer-model-type=bert-base-uncased", "--fast-dev-run=1"]
    assert run("finetune", words) == 0
    for line in ("no BERT bert-base-uncased: one of 12", "no folder nowhere", "random weights instead of nothing"):
        assert line in caplog.text
    assert caplog.text.count("fast-dev-run ok") == 2
    assert sorted(bert.iterdir()) == before and not list(tmp_path.iterdir())
    shutil.copytree(bert, tmp_path / "cut")
    content = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps({**content, "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"do not fit its config.json: bert.encoder.layer.2.\S+ is missing"):
        run("finetune", [*flags(world, tmp_path / "cut"), "--fast-dev-run"])
