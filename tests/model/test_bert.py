"""BERT baselines: the numbers of transformers' own classes, and every form in which weights are published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.bert import BertOptions, bert_config, load_bert
from tests.helpers.tiny_bert import write_bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijk"]
NO_DROPOUT = BertOptions(0.0, 0.0, 0.0)


def batch(*leading: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, padding mask and segments of shape [*leading, 9]."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, len(WORDS), (*leading, 9), generator=generator)
    padding = (torch.arange(9) < torch.randint(6, 10, (*leading, 1), generator=generator)).long()
    return ids * padding, padding, (torch.arange(9) > 4).long() * padding


@pytest.mark.parametrize(("kind", "num_classes", "leading"), [
    ("BertForSequenceClassification", 3, (4,)), ("BertForMultipleChoice", None, (2, 3))])
def test_scores_are_those_of_transformers(tmp_path: Path, kind: str, num_classes: int | None,
                                          leading: tuple[int, ...]) -> None:
    options = {"num_labels": num_classes} if num_classes else {}
    original = write_bert(tmp_path, WORDS, kind=kind, **options)
    model = load_bert(tmp_path, num_classes, NO_DROPOUT).eval()
    assert set(model.state_dict()) == set(original.state_dict()), "published names"
    ids, padding, types = batch(*leading)
    with torch.no_grad():
        scores, nothing = model(ids, padding, types)
        expected = original(input_ids=ids, attention_mask=padding, token_type_ids=types).logits
    torch.testing.assert_close(scores, expected)
    assert scores.std() > 0.1 and nothing == ()


def test_padding_and_segments_count(tmp_path: Path) -> None:
    write_bert(tmp_path, WORDS)
    torch.manual_seed(0)
    model = load_bert(tmp_path, 2, NO_DROPOUT).eval()
    ids, padding, types = batch(2)
    scores, _ = model(ids, padding, types)
    changed = torch.where(padding == 0, 7, ids)
    assert torch.equal(model(changed, padding, types)[0], scores) and not torch.equal(changed, ids)
    assert not torch.allclose(model(ids, padding, 1 - types)[0], scores)


def old_names(folder: Path) -> None:
    """As Google's first files: one pickle, layer norms with gamma and beta, buffers, the heads of pretraining."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
               for name, tensor in tensors.items()}
    assert any(name.endswith("gamma") for name in renamed) and any(name.startswith("cls.") for name in renamed)
    renamed["bert.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(renamed, folder / "pytorch_model.bin")


def without_prefix(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name.startswith("bert.")},
              folder / "model.safetensors")


@pytest.mark.parametrize("change", [old_names, without_prefix], ids=lambda change: change.__name__)
def test_other_forms_of_the_same_weights(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write_bert(tmp_path / "new", WORDS)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    change(tmp_path / "old")
    first, second = (load_bert(tmp_path / name, 2, NO_DROPOUT).bert.state_dict() for name in ("new", "old"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_pooler_and_a_classifier_may_be_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bert(tmp_path, WORDS, kind="BertForMaskedLM")  # it has no pooler
    caplog.set_level("INFO")
    load_bert(tmp_path, 2, NO_DROPOUT)
    assert "at random weights: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias" in caplog.text
    write_bert(tmp_path, WORDS, kind="BertForSequenceClassification", num_labels=5)
    load_bert(tmp_path, 2, NO_DROPOUT)
    assert "at random weights: classifier.bias, classifier.weight" in caplog.text


def test_options_reach_the_model(tmp_path: Path) -> None:
    write_bert(tmp_path, WORDS)
    model = load_bert(tmp_path, 2, BertOptions(0.2, 0.3, 0.4, 1e-12))
    config = model.bert.config
    assert (config.attention_probs_dropout_prob, config.hidden_dropout_prob, model.dropout.p) == (0.2, 0.3, 0.4)
    assert {layer.eps for layer in model.modules() if isinstance(layer, torch.nn.LayerNorm)} == {1e-12}
    model.freeze(tune_prefix_layers=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 1)[0] for name in trained if not name.startswith("bert.encoder.layer.0.")} == {
        "classifier"} and any(name.startswith("bert.encoder.layer.0.") for name in trained)


def test_recomputed_layers_have_the_same_gradients(tmp_path: Path) -> None:
    write_bert(tmp_path, WORDS, kind="BertForSequenceClassification")
    gradients = []
    for again in (False, True):
        model = load_bert(tmp_path, 2, BertOptions(0.1, 0.1, 0.1, checkpoint_activations=again)).train()
        torch.manual_seed(3)
        model(*batch(4))[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


def edit_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return change


@pytest.mark.parametrize(("change", "error", "message"), [
    (edit_config(model_type="roberta"), ValueError, "is not that of a BERT .model_type 'roberta'"),
    (lambda folder: (folder / "config.json").write_text("[]"), ValueError, "no JSON object but a list"),
    (lambda folder: (folder / "config.json").write_text("{"), ValueError, "config.json is no JSON"),
    (lambda folder: (folder / "model.safetensors").unlink(), FileNotFoundError, "has no weights .it holds config.json"),
    (edit_config(hidden_size=32), ValueError, r"do not fit its config.json: bert.embeddings.LayerNorm.bias has \[16\] "
     r"instead of \[32\].* and \d+ more"),
    (edit_config(num_hidden_layers=3), ValueError, r"encoder\.layer\.2\.\S+ is missing"),
    (edit_config(num_hidden_layers=1), ValueError, r"encoder\.layer\.1\.\S+ is unknown"),
])
def test_folders_that_cannot_be_read(tmp_path: Path, change: Callable[[Path], None], error: type[Exception],
                                     message: str) -> None:
    write_bert(tmp_path, WORDS)
    change(tmp_path)
    with pytest.raises(error, match=message):
        load_bert(tmp_path, 2, NO_DROPOUT)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bert(tmp_path, WORDS)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match="--pretrained-bert: the package transformers cannot be imported .*pip inst"):
        bert_config(tmp_path, NO_DROPOUT)
