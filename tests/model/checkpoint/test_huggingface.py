"""Folders in the Hugging Face layout, written here by hand, loaded as checkpoints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint.load import HEAD_PREFIXES, LoadReport, load_backbone, read_module_state
from model.checkpoint.naming import resolve_checkpoint
from model.checkpoint.reshard import change_mp
from model.heads import SequenceClassification
from model.parallel import groups
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_model import tiny_glm, tiny_lm_batch
from tests.model import test_glm
from tests.model.checkpoint.forms import fresh_model, logits_of

CONFIG = {"architectures": ["GLMModel"], "model_type": "glm", "num_layers": 2, "hidden_size": 32,
          "num_attention_heads": 4, "max_sequence_length": 32, "vocab_size": 64, "embedding_dropout_prob": 0.1,
          "attention_dropout_prob": 0.1, "output_dropout_prob": 0.1, "block_position_encoding": True,
          "attention_scale": 1.0, "relative_encoding": False, "output_predict": True, "pool_token": "cls"}


def published_tensors(**overrides: int) -> dict[str, torch.Tensor]:
    """Weights under the published base names, which are ours without model parallelism."""
    return {name: tensor.clone() for name, tensor in tiny_glm(3, **overrides).state_dict().items()}


def write_folder(folder: Path, tensors: dict[str, torch.Tensor] | None = None, kind: str = "bin", prefix: str = "",
                 **config: Any) -> Path:
    """config.json and weights; ``kind`` is bin or safetensors, with ``sharded`` in front for two files and an index."""
    tensors = published_tensors() if tensors is None else tensors
    tensors = {name if name.split(".")[0] in ("dense", "out_proj") else prefix + name: t for name, t in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    suffix = kind.removeprefix("sharded ")
    stem, write = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    if suffix == kind:
        write(tensors, folder / f"{stem}.{suffix}")
        return folder
    weight_map = {name: f"{stem}-{1 + number % 2:05d}-of-00002.{suffix}" for number, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        write({name: tensors[name] for name, place in weight_map.items() if place == file}, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def load(model: torch.nn.Module, path: str | Path, **options: Any) -> LoadReport:
    return load_backbone(model, path, mp_rank=groups.get_model_parallel_rank(),
                         mp_size=groups.get_model_parallel_world_size(), **options)


@pytest.fixture
def published_logits(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the published code computes of ``published_tensors()``: plain tensor algebra with the exact GELU."""
    monkeypatch.setattr(test_glm, "gelu", lambda x, approximate: 0.5 * x * (1 + torch.erf(x / 2 ** 0.5)))
    state = {name: tensor.double() for name, tensor in published_tensors().items()}
    return test_glm.plain_glm(state, tiny_lm_batch(), num_layers=2, num_heads=4).float()


@pytest.mark.parametrize("prefix", ["", "glm."])
@pytest.mark.parametrize("kind", ["bin", "safetensors", "sharded bin", "sharded safetensors"])
def test_logits_are_those_of_the_published_code(tmp_path: Path, published_logits: torch.Tensor, kind: str,
                                                prefix: str) -> None:
    model = fresh_model(gelu="erf")
    report = load(model, write_folder(tmp_path / "glm-tiny", kind=kind, prefix=prefix))
    assert (report.missing, report.unexpected, report.resized) == ([], [], [])
    torch.testing.assert_close(logits_of(model), published_logits, rtol=1e-5, atol=1e-5)


def logits_at_this_size(folder: str) -> torch.Tensor:
    model = fresh_model(gelu="erf")
    assert load(model, folder).missing == []
    return logits_of(model)


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_any_model_parallel_size(tmp_path: Path, published_logits: torch.Tensor, size: int) -> None:
    folder = str(write_folder(tmp_path / "glm-tiny", prefix="glm."))
    assert change_mp(folder, size) == folder
    for logits in run_distributed(logits_at_this_size, size, folder, model_parallel_size=size):
        torch.testing.assert_close(logits, published_logits, rtol=1e-5, atol=1e-5)


def test_a_location_is_a_release_without_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "glm-tiny")
    monkeypatch.chdir(folder)
    for path in (folder, "."):
        location = resolve_checkpoint(path)
        assert (location.folder, location.release, location.merged) == (folder, True, True)
    state, extras = read_module_state(folder, mp_rank=1, mp_size=2)
    assert state["word_embeddings.weight"].shape == (32, 32) and "iteration" not in extras


# The classification head.

def with_head(gelu: str = "erf", pool_token: str = "cls") -> SequenceClassification:
    torch.manual_seed(7)
    backbone = fresh_model(gelu=gelu)
    backbone.output_predict = False
    return SequenceClassification(backbone, 32, 3, pool_token=pool_token).eval()


def tensors_with_head() -> dict[str, torch.Tensor]:
    torch.manual_seed(8)
    return {**published_tensors(), "dense.weight": torch.randn(32, 32), "dense.bias": torch.randn(32),
            "out_proj.weight": torch.randn(3, 32), "out_proj.bias": torch.randn(3)}


def test_the_classification_head(tmp_path: Path) -> None:
    tensors = tensors_with_head()
    folder = write_folder(tmp_path / "glm-head", tensors, prefix="glm.")
    model, batch = with_head(), tiny_lm_batch()
    assert load(model, folder).missing == []
    inputs = batch["tokens"], batch["position_ids"], batch["attention_mask"]
    first = model.model(*inputs)[0][:, 0]
    expected = (torch.tanh(first @ tensors["dense.weight"].T + tensors["dense.bias"]) @ tensors["out_proj.weight"].T
                + tensors["out_proj.bias"])
    torch.testing.assert_close(model(*inputs)[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="multichoice_head.bias.*classification head"):
        load(fresh_model(gelu="erf"), folder)
    assert len(load(fresh_model(gelu="erf"), folder, allowed_unexpected=HEAD_PREFIXES).unexpected) == 4


def test_a_head_of_another_position_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(with_head(pool_token="start"), write_folder(tmp_path / "head", tensors_with_head()))
    assert "was trained with --pool-token=cls, this run has start" in caplog.text
    caplog.clear()
    load(with_head(pool_token="start"), write_folder(tmp_path / "base"))
    assert "pool-token" not in caplog.text


# Sizes and GELU.

@pytest.mark.parametrize(("config", "model", "message"), [
    (dict(num_layers=3), {}, "num_layers: the folder has 3, --num-layers 2"),
    (dict(hidden_size=64), {}, "hidden_size: the folder has 64, --hidden-size 32"),
    (dict(num_attention_heads=8), {}, "num_attention_heads: the folder has 8, --num-attention-heads 4"),
    (dict(max_sequence_length=512), {}, "the folder has 512, --max-position-embeddings 32"),
    (dict(vocab_size=50048), {}, r"the folder has 50048, --tokenizer-type.*\(which give\) 64"),
    (dict(block_position_encoding=False), {}, "the folder has False, --block-lm True"),
    ({}, dict(compress_word_emb=8), "the folder has 0, --compress_word_emb 8"),
    ({}, dict(cross_layer_parameter_sharing=True), "the folder has False, --cross_layer_parameter_sharing True"),
    ({}, dict(map_vocab_size=32), "the folder has 0, --map_vocab_size 32 .*--student_truncate_tn"),
    (dict(num_layers=3, hidden_size=64), {}, r"(?s)--num-layers 2.*--hidden-size 32.*begin with --teacher_"),
])
def test_sizes_are_compared_before_anything_is_read(tmp_path: Path, config: dict[str, Any], model: dict[str, Any],
                                                    message: str) -> None:
    folder = write_folder(tmp_path / "glm-tiny", **config)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ValueError, match=message):
        load(fresh_model(**model), folder)


def test_position_tables_grow(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "short", published_tensors(max_position_embeddings=20), max_sequence_length=20)
    assert len(load(fresh_model(gelu="erf"), folder).resized) == 2


def test_weights_that_belie_the_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "glm-tiny", published_tensors(hidden_size=16))
    with pytest.raises(ValueError, match=r"has \[64, 16\], the model \[64, 32\]"):
        load(fresh_model(gelu="erf"), folder)


def test_another_gelu_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "glm-tiny")
    load(fresh_model(), folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder} was trained with the erf form of GELU, this model computes the tanh form: activations differ by up "
        "to 5e-04 each. Pass --gelu erf (for a teacher --teacher_gelu erf)"]
    caplog.clear()
    load(fresh_model(gelu="erf"), folder)
    assert not caplog.records


# Folders that cannot be read.

def test_objects_beside_tensors_are_refused_whatever_is_trusted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "glm-tiny")
    torch.save({**published_tensors(), "args": argparse.Namespace(x=1)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="more than tensors.* could run code; take the model.safetensors"):
        load(fresh_model(), folder, trust_pickle=True)
    torch.save({"step": 3, **published_tensors()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"is no dict of tensors \(step\)"):
        load(fresh_model(), folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_damaged_weights(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "glm-tiny")
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"{name} \(43 bytes\) is damaged"):
        load(fresh_model(), folder)


def test_incomplete_shards(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "glm-tiny", kind="sharded bin")
    index = folder / "pytorch_model.bin.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    (folder / "pytorch_model-00002-of-00002.bin").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="00002-of-00002.bin is missing; copy the whole folder"):
        load(fresh_model(), folder)
    torch.save({}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(ValueError, match="names 14 tensors that its files do not hold"):
        load(fresh_model(), folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "../elsewhere")}))
    with pytest.raises(ValueError, match="no 'weight_map' of files beside it"):
        load(fresh_model(), folder)


def test_one_parameter_under_two_names(tmp_path: Path) -> None:
    twice = {**published_tensors(), "glm.word_embeddings.weight": torch.ones(64, 32)}
    folder = write_folder(tmp_path / "twice", twice)
    with pytest.raises(ValueError, match="holds word_embeddings.weight twice, the second time as glm.word_emb"):
        load(fresh_model(), folder)


@pytest.mark.parametrize(("config", "message"), [
    (None, "has weights but no config.json .*holds pytorch_model.bin"),
    ("{", "config.json is no JSON"),
    ("[]", "no JSON object but a list"),
    (json.dumps({"model_type": "glm", "num_hidden_layers": 40, "hidden_size": 4096}),
     "no num_layers, num_attention_heads.*another, newer one shares its model_type 'glm'"),
    (json.dumps({**CONFIG, "relative_encoding": True}), "relative_encoding .* is not available"),
])
def test_configs_of_another_kind(tmp_path: Path, config: str | None, message: str) -> None:
    folder = write_folder(tmp_path / "glm-tiny")
    (folder / "config.json").unlink() if config is None else (folder / "config.json").write_text(config)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(fresh_model(), folder)
