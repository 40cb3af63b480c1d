"""Export to the Hugging Face layout and to one safetensors file, and back."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint.export import export, main
from model.checkpoint.load import load_backbone, read_module_state
from model.checkpoint.reshard import change_mp
from model.config import ModelConfig
from model.heads import SequenceClassification
from model.parallel.sharding import REPLICATED
from tests.helpers.tiny_model import tiny_glm, tiny_lm_batch
from tests.model import test_glm
from tests.model.checkpoint.forms import FORMS, form_model, fresh_model, logits_of, save_model
from tests.model.checkpoint.synthetic import assert_same_state, write_checkpoint

EXPRESSIBLE = ["plain", "erf", "shared", "compact"]


def load(model: torch.nn.Module, path: Path) -> Any:
    return load_backbone(model, path, mp_rank=0, mp_size=1)


def run_of(form: str, tmp_path: Path, **arguments: Any) -> Path:
    """A run's folder: checkpoint, and the arguments of the run as training writes them."""
    model = form_model(form)
    run = save_model(model, tmp_path / "run")
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "config.json").write_text(json.dumps({
        **{name: getattr(model.config, name) for name in (
            "num_layers", "hidden_size", "num_attention_heads", "unmap_vocab_output", "attention_dropout")},
        "hidden_dropout": 0.25, "pool_token": "cls", "train_iters": 5, **arguments}))
    return run


def write_uncut(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A file of size 1 that does not say how its tensors are cut."""
    return write_checkpoint(path, state, specs=dict.fromkeys(state, REPLICATED))


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
@pytest.mark.parametrize("form", EXPRESSIBLE)
def test_what_others_load(tmp_path: Path, form: str, weights: str) -> None:
    """Read with plain torch or safetensors, and computed by plain algebra: the logits are those of our model."""
    folder = main([str(run_of(form, tmp_path)), str(tmp_path / "hub"), "--format", "hf", "--weights", weights])
    config = json.loads((folder / "config.json").read_text())
    tensors = (torch.load(folder / "pytorch_model.bin", weights_only=True) if weights == "bin"
               else load_file(folder / "model.safetensors"))
    model = form_model(form)
    assert (config["num_layers"], config["hidden_size"], config["num_attention_heads"], config["vocab_size"],
            config["max_sequence_length"]) == (model.config.num_layers, 32, 4, 64, 32)
    assert config["block_position_encoding"] is True and config["embedding_dropout_prob"] == 0.25
    if form != "erf":  # the algebra is of the tanh form
        expected = test_glm.plain_glm(
            {name: tensor.double() for name, tensor in tensors.items()}, tiny_lm_batch(), config["num_layers"], 4)
        torch.testing.assert_close(logits_of(model), expected.float(), rtol=1e-5, atol=1e-5)
    plain = fresh_model(num_layers=config["num_layers"], gelu=config["gelu"])
    assert load(plain, folder).missing == []
    torch.testing.assert_close(logits_of(plain), logits_of(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_shards_are_merged(tmp_path: Path, size: int) -> None:
    path = change_mp(run_of("plain", tmp_path), size)
    export(path, tmp_path / "hub", num_attention_heads=4)
    assert_same_state(torch.load(tmp_path / "hub" / "pytorch_model.bin"), dict(form_model("plain").state_dict()))


@pytest.mark.parametrize("form", FORMS)
def test_any_form_as_safetensors(tmp_path: Path, form: str) -> None:
    """The folder alone tells what to build; loaded, it computes the same bits."""
    folder = main([str(run_of(form, tmp_path)), str(tmp_path / "out"), "--format", "safetensors"])
    config = ModelConfig(**json.loads((folder / "sizes.json").read_text()))
    model, original = fresh_model(config), form_model(form)
    assert load(model, folder).missing == []
    assert torch.equal(logits_of(model), logits_of(original))
    forms = ("inverted_bottleneck_mode", "ib_word_emb", "compress_word_emb", "map_vocab_size", "unmap_vocab_output",
             "cross_layer_parameter_sharing", "gelu", "num_layers", "max_position_embeddings", "vocab_size")
    assert all(getattr(config, name) == getattr(original.config, name) for name in forms)
    if config.inverted_bottleneck_mode:
        assert (config.ib_hidden_size, config.ib_ffn_num) == (16, 3)
        with pytest.raises(ValueError, match="ib_ffn_num: the folder has 3, --ib_ffn_num 2"):
            load(fresh_model(**{**FORMS[form], "ib_ffn_num": 2}), folder)
    # An export is a checkpoint, so it can be exported again.
    again = export(folder, tmp_path / "again", format="safetensors")
    assert_same_state(load_file(again / "model.safetensors"), load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(("form", "message"), [
    ("bottleneck", "--inverted_bottleneck_mode: the inverted bottleneck has other layers"),
    ("three-token", "--ib_word_emb: the three-token embedding has an input map"),
    ("factorised", "--compress_word_emb: with a factorised embedding the tied output"),
    ("compact, rows as output", "--unmap_vocab_output: the logits are over the rows"),
    ("bottleneck, three tokens, factorised, compact", "(?s)--inverted.*--ib_word_emb.*--compress_word_emb"),
])
def test_forms_that_the_format_cannot_express(tmp_path: Path, form: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)--format safetensors can:.*{message.removeprefix('(?s)')}"):
        export(run_of(form, tmp_path), tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_classification_head(tmp_path: Path) -> None:
    torch.manual_seed(4)
    backbone = tiny_glm(output_predict=False).eval()
    head = SequenceClassification(backbone, 32, 3).eval()
    run = save_model(head, tmp_path / "run")
    export(run, tmp_path / "hub", num_attention_heads=4)
    tensors = torch.load(tmp_path / "hub" / "pytorch_model.bin")
    assert {name.split(".")[0] for name in tensors} == {"glm", "dense", "out_proj"}
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["architectures"] == ["GLMForSequenceClassification"] and config["num_labels"] == 3
    torch.manual_seed(5)
    other = SequenceClassification(tiny_glm(9, output_predict=False), 32, 3).eval()
    assert load(other, tmp_path / "hub").missing == []
    batch = tiny_lm_batch()
    inputs = batch["tokens"], batch["position_ids"], batch["attention_mask"]
    torch.testing.assert_close(other(*inputs)[0], head(*inputs)[0], rtol=1e-5, atol=1e-5)
    (run / "tensorboard").mkdir()
    (run / "tensorboard" / "config.json").write_text('{"pool_token": "start"}')
    with pytest.raises(ValueError, match="--pool-token=start: its classification head takes the first position"):
        export(run, tmp_path / "other", num_attention_heads=4)


def test_distillation_layers_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {**form_model("plain").state_dict(), "student.fit_dense.weight": torch.ones(3, 32)}
    run = write_uncut(tmp_path / "run", state)
    with caplog.at_level(logging.INFO):
        export(run, tmp_path / "out", format="safetensors", num_attention_heads=4)
    assert "1 tensors of distillation layers (student.*) are left out" in caplog.text
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(form_model("plain").state_dict())


def test_other_gelu_and_expansion_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder = export(run_of("compact", tmp_path), tmp_path / "hub")
    assert "32 rows is written out as 64" in caplog.text
    assert "trained with tanh: there, activations differ by up to 5e-04 each" in caplog.text
    caplog.clear()
    load(fresh_model(), folder)  # our own config.json says tanh
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_sizes_that_the_tensors_do_not_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = save_model(form_model("shared"), tmp_path / "run")
    with pytest.raises(ValueError, match="do not tell --num-attention-heads and --num-layers .*: pass them"):
        export(run, tmp_path / "hub")
    with pytest.raises(ValueError, match="--num-attention-heads=5 does not divide the width 32"):
        export(run, tmp_path / "hub", num_attention_heads=5, num_layers=3)
    export(run, tmp_path / "hub", num_attention_heads=4, num_layers=3)
    assert len(read_module_state(tmp_path / "hub", mp_rank=0, mp_size=1)[0]) == 5 + 3 * 12
    plain = save_model(form_model("plain"), tmp_path / "plain")
    with pytest.raises(ValueError, match="--num-layers=3, but the checkpoint has 2 layers"):
        export(plain, tmp_path / "other", num_attention_heads=4, num_layers=3)
    (plain / "tensorboard").mkdir()
    (plain / "tensorboard" / "config.json").write_text('{"num_attention_heads": 2, "hidden_size": 64}')
    with pytest.raises(ValueError, match="do not tell --num-attention-heads "):
        export(plain, tmp_path / "other")
    assert "it is for --hidden-size=64, the checkpoint has 32" in caplog.text


def test_checkpoints_that_are_not_whole_models(tmp_path: Path) -> None:
    head = {"pool_layer.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="lacks word_embeddings.weight.*frozen parameters"):
        export(write_uncut(tmp_path / "head", head), tmp_path / "hub")
    odd = {**form_model("plain").state_dict(), "prompt_spell.spell_embeddings.weight": torch.ones(2, 32)}
    with pytest.raises(ValueError, match="it has no place for prompt_spell.spell_embeddings.weight"):
        export(write_uncut(tmp_path / "odd", odd), tmp_path / "hub", num_attention_heads=4)


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("plain", tmp_path)
    monkeypatch.setattr(torch, "save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
    monkeypatch.undo()
    export(run, tmp_path / "hub")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["hub", "run"]
    with pytest.raises(ValueError, match="hub exists; nothing was written"):
        export(run, tmp_path / "hub")


def test_command_line_says_errors_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "none"), str(tmp_path / "out")])
    monkeypatch.delitem(sys.modules, "model.checkpoint.export")
    with pytest.raises(SystemExit, match="model.checkpoint.export: no checkpoint at .*: no such folder"):
        runpy.run_module("model.checkpoint.export", run_name="__main__")
