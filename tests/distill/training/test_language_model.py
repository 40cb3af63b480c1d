"""Language-model tasks through the entry script: their numbers, on several ranks, their files, training on texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_utils.tokenizers import make_tokenizer, padded_vocab_size
from model.checkpoint.load import load_backbone
from model.glm import GLMModel
from tests.distill.training.small_runs import (
    NO_DROPOUT,
    exact,
    losses,
    model_flags,
    pretrain_flags,
    records,
    run,
    run_on_ranks,
)
from tests.distill.training.test_task_forms import METHODS, RANDOM_TEACHER, TERMS
from tests.helpers.tiny_model import tiny_config

LENGTH, STRIDE = 24, 5


@pytest.fixture(scope="module")
def texts(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the three tasks: some documents of the corpus."""
    folder = tmp_path_factory.mktemp("texts")
    documents = (world / "corpus.txt").read_text().splitlines()[:6]
    (folder / "documents.txt").write_text("\n".join([documents[0][:60], *documents[1:5]]) + "\n")
    (folder / "lambada.jsonl").write_text("".join(json.dumps({"text": text[:-2]}) + "\n" for text in documents))
    (folder / "wiki.test.tokens").write_text("\n".join(documents) + "\n")
    return folder


FILES = {"language_model": "documents.txt", "lambda": "lambada.jsonl", "wikitext": "wiki.test.tokens"}


@pytest.fixture(scope="module")
def checkpoint(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GLM that has learnt a little."""
    folder = tmp_path_factory.mktemp("glm")
    assert run("pretrain", [*pretrain_flags(world, **{"bert-prob": 0.3}), f"--save={folder}"]) == 0
    path, = folder.iterdir()
    return path


def flags(world: Path, texts: Path, task: str, **changes: Any) -> list[str]:
    """Evaluation as the sweep's presets launch it, in small."""
    return ["--finetune", "--checkpoint-activations", "--overwrite", "--save-epoch=100000", *model_flags(world, **{
        "task": task, "valid-data": texts / FILES[task], "experiment-name": task, "eval-batch-size": 3,
        "seq-length": LENGTH, "overlapping-eval": STRIDE, **changes})]


def result(folder: Path) -> dict[str, Any]:
    path, = folder.rglob("test_results.json")
    return json.loads(path.read_text())


def loss_by_loss(world: Path, checkpoint: Path, text: str, unidirectional: bool) -> tuple[float, int]:
    """Sum of the losses of a document's tokens, each by a forward pass of its own over what precedes it, and their
    number."""
    tokenizer = make_tokenizer("BertWordPieceTokenizer", str(world / "vocab.txt"))
    model = GLMModel(tiny_config(max_position_embeddings=64, vocab_size=padded_vocab_size(tokenizer.num_tokens))).eval()
    load_backbone(model, checkpoint, mp_rank=0, mp_size=1)
    enc, mask, sop = (tokenizer.command_id(name) for name in ("ENC", "MASK", "sop"))
    ids = tokenizer.encode(text)
    room = LENGTH - 2
    total = 0.0
    for place, token in enumerate(ids):
        if place < room:
            first, begin = 0, 0  # the first window: all that fits, behind no context
        else:
            begin = place - (place - room) % STRIDE  # of the stride that this token belongs to
            first = max(0, min(begin + STRIDE, len(ids)) - room)
        before, own = ids[first:begin], ids[begin:place]
        part_a = [enc, mask] if unidirectional else [enc, *before, mask]
        part_b = [sop, *before, *own] if unidirectional else [sop, *own]
        sep, size = len(part_a), len(part_a) + len(part_b)
        positions = torch.zeros(2, size, dtype=torch.long)
        positions[0] = torch.arange(size).clamp(max=sep - 1)
        positions[1, sep:] = torch.arange(1, len(part_b) + 1)
        with torch.no_grad():
            logits, _ = model(torch.tensor([[*part_a, *part_b]]), positions[None], torch.tensor([sep]))
        total -= float(logits[0, -1].double().log_softmax(-1)[token])
    return total, len(ids)


@pytest.mark.parametrize("unidirectional", [False, True])
def test_perplexity_is_that_of_one_token_after_the_other(world: Path, texts: Path, checkpoint: Path, tmp_path: Path,
                                                         unidirectional: bool) -> None:
    words = [*flags(world, texts, "language_model", save=tmp_path), f"--load-pretrained={checkpoint}",
             *(["--unidirectional"] if unidirectional else [])]
    assert run("finetune", words) == 0
    documents = (texts / "documents.txt").read_text().splitlines()
    expected = [loss_by_loss(world, checkpoint, text, unidirectional) for text in documents]
    lines = [json.loads(line) for line in next(tmp_path.rglob("language_model-documents.jsonl")).read_text().split("\n")
             if line]
    assert [line["tokens"] for line in lines] == [count for _, count in expected]
    assert [line["loss"] for line in lines] == pytest.approx([total for total, _ in expected], rel=1e-5)
    assert max(count for _, count in expected) > LENGTH > min(count for _, count in expected)
    total, tokens = (sum(values) for values in zip(*expected))
    num_words = sum(len(text.split()) for text in documents)
    assert result(tmp_path) == {
        "ppl": pytest.approx(math.exp(total / tokens), rel=1e-5), "loss": pytest.approx(total / tokens, rel=1e-5),
        "word_ppl": pytest.approx(math.exp(total / num_words), rel=1e-5), "type": "test"}


def test_the_last_word(world: Path, checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    """The word that the model itself would write next is found, any other is not."""
    tokenizer = make_tokenizer("BertWordPieceTokenizer", str(world / "vocab.txt"))
    model = GLMModel(tiny_config(max_position_embeddings=64, vocab_size=padded_vocab_size(tokenizer.num_tokens))).eval()
    load_backbone(model, checkpoint, mp_rank=0, mp_size=1)
    enc, mask, sop = (tokenizer.command_id(name) for name in ("ENC", "MASK", "sop"))
    rows, is_right = [], []
    for number, line in enumerate((texts / "lambada.jsonl").read_text().splitlines()):
        context = json.loads(line)["text"].rsplit(" ", 1)[0]
        ids = [enc, *tokenizer.encode(context)[-(LENGTH - 3):], mask, sop]
        sep = len(ids) - 1
        positions = torch.tensor([[*range(sep), sep - 1], [0] * sep + [1]])
        with torch.no_grad():
            logits = model(torch.tensor([ids]), positions[None], torch.tensor([sep]))[0][0, -1]
        best = tokenizer.id_to_token(int(logits.argmax()))
        assert tokenizer.encode(best) == [int(logits.argmax())], "one word"
        rows.append({"text": f"{context} {best if number % 2 else 'Q'}"})
        is_right.append(number % 2 > 0)
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*flags(world, tmp_path, "lambda", save=tmp_path), f"--load-pretrained={checkpoint}"]
    assert run("finetune", words) == 0
    lines = [json.loads(line) for line in next(tmp_path.rglob("lambda-lambada.jsonl")).read_text().splitlines()]
    assert [line["correct"] for line in lines] == is_right
    found = result(tmp_path)
    assert found["accuracy"] == 50.0
    assert found["word_ppl"] == pytest.approx(math.exp(sum(line["loss"] for line in lines) / len(lines)))


@pytest.mark.distributed
def test_several_ranks_have_the_numbers_of_one(world: Path, texts: Path, checkpoint: Path, tmp_path: Path) -> None:
    jobs = {f"{task}{word}": [*flags(world, texts, task), f"--load-pretrained={checkpoint}", *([word] if word else [])]
            for task in FILES for word in ("", "--unidirectional")}
    for name, words in jobs.items():
        assert run("finetune", [*words, f"--save={tmp_path / 'one' / name}"]) == 0
    run_on_ranks([("finetune", [*words, f"--save={tmp_path / 'data' / name}"]) for name, words in jobs.items()], 2)
    run_on_ranks([("finetune", [*words, "--model-parallel-size=2", f"--save={tmp_path / 'model' / name}"])
                  for name, words in jobs.items()], 2, model_parallel_size=2)
    for name in jobs:
        one, *others = (result(tmp_path / ranks / name) for ranks in ("one", "data", "model"))
        for other in others:
            assert other.keys() == one.keys() and other["ppl"] == pytest.approx(one["ppl"], rel=1e-5), name
            assert other.get("accuracy") == one.get("accuracy"), name
    assert len({result(tmp_path / "one" / name)["ppl"] for name in jobs}) == len(jobs), "six different evaluations"


def test_files_of_an_evaluation(world: Path, texts: Path, tmp_path: Path) -> None:
    both = [str(texts / "documents.txt"), str(texts / "lambada.jsonl")]
    words = [*flags(world, texts, "language_model", save=tmp_path), "--valid-data", *both,
             "--test-data", str(texts / "documents.txt"), f"--custom_tmp_result={tmp_path / 'tmp.json'}"]
    assert run("finetune", words) == 0
    best = json.loads((tmp_path / "tmp.json").read_text())
    assert best["epoch"] == -1 and best["args"]["task"] == "language_model" and best["args"]["epochs"] == 0
    found = result(tmp_path)
    assert found.pop("type") == "test"
    assert {name: entry["score_dict"] for name, entry in best["max_score_dict"].items()} == dict.fromkeys(found, found)
    lines = {path.name: [json.loads(line) for line in path.read_text().splitlines()]
             for path in tmp_path.rglob("language_model-*.jsonl")}
    assert {name: len(entries) for name, entries in lines.items()} == {
        "language_model-documents.jsonl": 5, "language_model-lambada.jsonl": 6}
    entries = [entry for part in lines.values() for entry in part]
    assert found["loss"] == pytest.approx(sum(entry["loss"] for entry in entries) / sum(
        entry["tokens"] for entry in entries)), "over the tokens of all files"
    test, = records(tmp_path, "test")
    assert test["loss"] == pytest.approx(sum(entry["loss"] for entry in lines["language_model-documents.jsonl"]) / sum(
        entry["tokens"] for entry in lines["language_model-documents.jsonl"]))


def test_the_best_epoch_is_the_one_with_the_least_perplexity(world: Path, texts: Path, tmp_path: Path) -> None:
    words = [*flags(world, texts, "language_model", epochs=4, save=tmp_path, **{"train-data": world / "corpus.txt"}),
             *NO_DROPOUT, "--custom_first_eval", f"--custom_tmp_result={tmp_path / 'tmp.json'}"]
    assert run("finetune", words) == 0
    evaluations = [record for record in records(tmp_path, "metrics") if record["epoch"] >= 0]
    assert len(evaluations) == 5 and losses(tmp_path)[-1] < losses(tmp_path)[0]
    best = min(evaluations, key=lambda record: record["ppl"])
    assert best["iteration"] > 0 and result(tmp_path)["ppl"] == pytest.approx(best["ppl"], rel=1e-6)
    kept = json.loads((tmp_path / "tmp.json").read_text())["max_score_dict"]
    assert kept["word_ppl"]["score_dict"]["word_ppl"] == min(record["word_ppl"] for record in evaluations)
    validation = json.loads(next(tmp_path.rglob("results.json")).read_text())
    assert validation["ppl"] == best["ppl"] and validation["type"] == "validation"


def test_training_on_texts_resumes_exactly(world: Path, texts: Path, tmp_path: Path) -> None:
    words = [*flags(world, texts, "wikitext", **{"train-data": world / "corpus.txt", "epochs": 2, "save-epoch": 1,
                                                 "batch-size": 30})]
    assert run("finetune", [*words, f"--save={tmp_path / 'whole'}"]) == 0
    first = min((path for path in (tmp_path / "whole" / "wikitext").iterdir() if path.name.isdigit()),
                key=lambda path: int(path.name))
    assert run("finetune", [*words, f"--save={tmp_path / 'rest'}", f"--load={first}"]) == 0
    assert exact(tmp_path / "rest") == exact(tmp_path / "whole", after=int(first.name)) != []


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_learns_from_texts(world: Path, texts: Path, tmp_path: Path, method: str) -> None:
    words = flags(world, texts, "lambda", epochs=1, save=tmp_path, **{"train-data": texts / "lambada.jsonl"})
    assert run("finetune", [*words, *NO_DROPOUT, *RANDOM_TEACHER, *METHODS[method]]) == 0
    train = records(tmp_path)
    for term in TERMS[method]:
        assert all(record[term] > 0 for record in train), term
    assert all(record["loss"] > 0 and record["hard_loss"] > 0 for record in train)


def test_epochs_need_not_be_given(world: Path, texts: Path) -> None:
    with pytest.raises(ValueError, match="needs --epochs"):
        run("finetune", ["--finetune", "--cloze-eval", *model_flags(world, task="COPA")])
    with pytest.raises(ValueError, match="--epochs=1 trains on the files of --train-data"):
        run("finetune", flags(world, texts, "lambda", epochs=1))


@pytest.mark.parametrize("task", FILES)
def test_a_dry_run_takes_what_exists_and_makes_up_the_rest(world: Path, texts: Path, task: str,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    words = flags(world, texts, task, **{"seq-length": 64, "overlapping-eval": 60})
    assert run("finetune", [*words, "--fast-dev-run"]) == 0
    assert run("finetune", [*words, f"--valid-data=nowhere/{FILES[task]}", "--train-data=nowhere.jsonl", "--epochs=1",
                            *RANDOM_TEACHER, *METHODS["kd"], "--fast-dev-run"]) == 0
    lines = [record.getMessage() for record in caplog.records]
    assert sum("fast-dev-run ok" in line for line in lines) == 2
    assert f"fast-dev-run: no file nowhere/{FILES[task]}: text of the generated world" in lines
    assert "fast-dev-run: no file nowhere.jsonl: text of the generated world" in lines
