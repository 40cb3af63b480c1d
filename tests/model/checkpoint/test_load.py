"""Finding a checkpoint, reading it at any size, and putting it into a model."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from model.checkpoint.load import HEAD_PREFIXES, iteration_of, load_backbone, load_into, read_module_state
from model.checkpoint.naming import canonical_name, is_redundant, resolve_checkpoint, shard_path
from model.checkpoint.reshard import reshard
from model.checkpoint.save import module_payload, publish, save_shard
from model.parallel.sharding import REPLICATED, ROWS, set_shard_spec
from tests.model.checkpoint.synthetic import (
    assert_same_state,
    glm_tensors,
    specs_of,
    whole_state,
    write_checkpoint,
)


class Holder(nn.Module):
    """A module whose parameters have given dotted names, each with its cut; all of them zero."""

    def __init__(self, layers: int = 2, positions: int = 12, size: int = 1, **extra: list[int]) -> None:
        super().__init__()
        table = glm_tensors(layers, positions)
        whole = {name: torch.zeros(shape) for name, (shape, _) in table.items()}
        for name, tensor in reshard([whole], specs_of(table), size)[0].items():
            self.put(name, set_shard_spec(nn.Parameter(tensor), table[name][1]))
        for name, shape in extra.items():
            self.put(name.replace("__", "."), nn.Parameter(torch.zeros(shape)))

    def put(self, name: str, parameter: nn.Parameter) -> None:
        *path, last = name.split(".")
        module = self
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, parameter)


def load(model: nn.Module, path: Path, **options: object) -> object:
    return load_backbone(model, path, mp_rank=0, mp_size=1, **options)


# Finding.

def test_tracker_tag_folder_and_release(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state(), tag="5000")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(" 5000\n")
    for path in (tmp_path, tmp_path / "5000", str(tmp_path) + "/5000/"):
        location = resolve_checkpoint(path)
        assert (location.directory, location.tag, location.release) == (tmp_path, "5000", False)
    write_checkpoint(tmp_path, whole_state(), tag="release")
    assert resolve_checkpoint(tmp_path).release


def test_deepspeed_tracker_only_if_nothing_else(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state(), tag="7", tracker=False)
    (tmp_path / "latest").write_text("7")
    assert resolve_checkpoint(tmp_path).tag == "7"
    write_checkpoint(tmp_path, whole_state(), tag="8")
    assert resolve_checkpoint(tmp_path).tag == "8"


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, whole_state(), tag="7", tracker=False)
    monkeypatch.chdir(tmp_path / "7")
    assert resolve_checkpoint(".").folder == tmp_path / "7"


def test_paths_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        resolve_checkpoint(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match="it holds notes.txt; give the run's folder"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        resolve_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("300")
    with pytest.raises(FileNotFoundError, match="names the checkpoint '300', which .* does not have"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        resolve_checkpoint(tmp_path)


def test_missing_rank_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state(), size=4)
    shard_path(tmp_path, "100", 2).unlink()
    with pytest.raises(ValueError, match=r"ranks \[0, 1, 3\], expected 0, 1, 2"):
        read_module_state(tmp_path, mp_rank=0, mp_size=4)


# Reading.

@pytest.mark.parametrize(("stored", "wanted"), [(1, 1), (1, 2), (2, 1), (4, 2), (2, 4), (2, 8), (4, 4)])
def test_resharded_while_loading(tmp_path: Path, stored: int, wanted: int) -> None:
    write_checkpoint(tmp_path, whole_state(), size=stored, optimizer={"step": 3})
    for rank, expected in enumerate(reshard([whole_state()], specs_of(), wanted)):
        state, extras = read_module_state(tmp_path, mp_rank=rank, mp_size=wanted)
        assert_same_state(state, expected)
        assert iteration_of(extras) == 100 and ("optimizer" in extras) == (stored == wanted)


def test_sizes_that_do_not_divide_each_other(tmp_path: Path) -> None:
    state = {"word_embeddings.weight": torch.randn(12, 2)}
    specs = {"word_embeddings.weight": ROWS}
    write_checkpoint(tmp_path, state, size=2, specs=specs)
    parts = [read_module_state(tmp_path, mp_rank=rank, mp_size=3)[0]["word_embeddings.weight"] for rank in range(3)]
    assert torch.equal(torch.cat(parts), state["word_embeddings.weight"])
    with pytest.raises(ValueError, match="size 2 and cannot be read at --model-parallel-size=5: word_embeddings"):
        read_module_state(tmp_path, mp_rank=0, mp_size=5)


def test_cuts_come_from_the_file_then_from_the_model(tmp_path: Path) -> None:
    state = {"student.odd.weight": torch.arange(8.0)}
    write_checkpoint(tmp_path, state, specs={"student.odd.weight": ROWS}, size=2)
    with pytest.raises(ValueError, match="does not say how student.odd.weight is cut"):
        read_module_state(tmp_path, mp_rank=0, mp_size=1)
    whole, _ = read_module_state(tmp_path, mp_rank=0, mp_size=1, spec_of={"student.odd.weight": ROWS}.get)
    assert torch.equal(whole["student.odd.weight"], torch.arange(8.0))
    write_checkpoint(tmp_path, state, specs={"student.odd.weight": ROWS}, size=2,
                     shard_specs={"student.odd.weight": [0, 1]})
    whole, _ = read_module_state(tmp_path, mp_rank=0, mp_size=1, spec_of={"student.odd.weight": REPLICATED}.get)
    assert torch.equal(whole["student.odd.weight"], torch.arange(8.0))


def test_names_without_wrappers() -> None:
    for name in ("word_embeddings.weight", "module.word_embeddings.weight", "model.origin_model.word_embeddings.weight",
                 "module.model.word_embeddings.weight"):
        assert canonical_name(name) == "word_embeddings.weight"
    assert canonical_name("student.teacher_model_0.word_embeddings.weight").startswith("student.teacher_model_0.")
    assert is_redundant("student.TinyBERT.origin_model.word_embeddings.weight")
    assert not is_redundant("student.TinyBERT.fit_dense.weight")


def test_one_parameter_under_two_names(tmp_path: Path) -> None:
    torch.save({"module": {"a.weight": torch.ones(1), "model.a.weight": torch.ones(1)}},
               write_checkpoint(tmp_path, {}, specs={}) / "100" / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match="holds a.weight twice, the second time as model.a.weight"):
        read_module_state(tmp_path, mp_rank=0, mp_size=1)


@pytest.mark.parametrize(("content", "message"), [
    ({"state_dict": {}}, r"no entry 'module'.*found: state_dict"), ([1], "found: list"),
    ({"module": {"x": 1}}, "module.x is no tensor")])
def test_files_of_another_kind(tmp_path: Path, content: object, message: str) -> None:
    write_checkpoint(tmp_path, whole_state())
    torch.save(content, shard_path(tmp_path, "100", 0))
    with pytest.raises(ValueError, match=message):
        read_module_state(tmp_path, mp_rank=0, mp_size=1)


# Loading into a model.

@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model.origin_model."])
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    write_checkpoint(tmp_path, whole_state(), prefix=prefix)
    model = Holder()
    report = load(model, tmp_path)
    assert (report.missing, report.unexpected, report.resized) == ([], [], [])
    assert_same_state(dict(model.state_dict()), whole_state())


def test_model_inside_wrappers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state())
    head, student = nn.Module(), nn.Module()
    head.model, student.origin_model = student, Holder()
    assert load(head, tmp_path).missing == []
    assert_same_state(dict(student.origin_model.state_dict()), whole_state())


def test_file_of_an_old_program(tmp_path: Path) -> None:
    """Half precision, RNG states as NumPy makes them, many other entries, layers of a student, ``total_iters``."""
    state = whole_state(dtype=torch.float16)
    table = {**glm_tensors(), "student.fit_dense.weight": ([12, 8], REPLICATED),
             "student.TinyBERT.origin_model.word_embeddings.weight": ([16, 8], ROWS)}
    state |= {name: torch.randn(shape) for name, (shape, _) in table.items() if name not in state}
    path = write_checkpoint(
        tmp_path, state, specs=specs_of(table), size=2, total_iters=70, iteration=None, ds_version="0.3.16",
        np_rng_state=numpy.random.get_state(), param_shapes=[{"x": torch.Size([2])}], optimizer=None, skipped_steps=0)
    model = Holder()
    report = load(model, path)
    assert report.unexpected == ["student.fit_dense.weight"] and iteration_of(report.extras) == 70
    assert_same_state(dict(model.state_dict()), {name: value.float() for name, value in
                                                 whole_state(dtype=torch.float16).items()})


def test_old_file_with_objects_needs_trust(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state(), ds_config=argparse.Namespace(x=1))
    with pytest.raises(ValueError, match="--trust-checkpoint"):
        load(Holder(), tmp_path)
    assert load(Holder(), tmp_path, trust_pickle=True).missing == []


def test_position_tables_grow(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state(glm_tensors(positions=5)))
    model = Holder(positions=12)
    fresh = torch.randn(13, 8)
    model.transformer.position_embeddings.weight.data.copy_(fresh)
    report = load(model, tmp_path)
    table = model.transformer.position_embeddings.weight
    stored = whole_state(glm_tensors(positions=5))["transformer.position_embeddings.weight"]
    assert torch.equal(table[:6], stored) and torch.equal(table[6:], fresh[6:])
    assert report.resized == ["transformer.position_embeddings.weight", "transformer.block_position_embeddings.weight"]


def test_position_tables_do_not_shrink(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state(glm_tensors(positions=20)))
    with pytest.raises(ValueError, match=r"has 21 rows, the model 13(.|\n)*--max-position-embeddings \(at least 20"):
        load(Holder(positions=12), tmp_path)


def test_all_mismatches_in_one_message_and_nothing_is_written(tmp_path: Path) -> None:
    state = whole_state()
    state["word_embeddings.weight"] = torch.randn(24, 8)
    state["transformer.layers.1.attention.dense.weight"] = torch.randn(4, 4)
    write_checkpoint(tmp_path, state)
    model = Holder()
    with pytest.raises(ValueError) as caught:
        load(model, tmp_path)
    message = str(caught.value)
    assert "word_embeddings.weight: the checkpoint has [24, 8], the model [16, 8]" in message
    assert "transformer.layers.1.attention.dense.weight: the checkpoint has [4, 4], the model [8, 8]" in message
    assert "--hidden-size" in message and "--tokenizer-type" in message and str(tmp_path) in message
    assert all(not tensor.any() for tensor in model.state_dict().values())


def test_unexpected_names(tmp_path: Path) -> None:
    deep = glm_tensors(layers=3)
    write_checkpoint(tmp_path / "deep", whole_state(deep), specs=specs_of(deep))
    with pytest.raises(ValueError, match=r"transformer.layers.2.*--num-layers \(at least 3\)"):
        load(Holder(), tmp_path / "deep")
    head = {**glm_tensors(), "pool_layer.weight": ([8, 8], REPLICATED)}
    write_checkpoint(tmp_path / "head", whole_state(head), specs=specs_of(head))
    with pytest.raises(ValueError, match="pool_layer.weight.*classification head"):
        load(Holder(), tmp_path / "head")
    assert load(Holder(), tmp_path / "head", allowed_unexpected=HEAD_PREFIXES).unexpected == ["pool_layer.weight"]
    model = Holder(pool_layer__weight=[8, 8])
    assert load(model, tmp_path / "head").unexpected == [] and model.pool_layer.weight.any()


def test_missing_names_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(tmp_path, whole_state(glm_tensors(layers=1)))
    report = load(Holder(), tmp_path)
    assert len(report.missing) == 12 and all(name.startswith("transformer.layers.1.") for name in report.missing)
    assert "lacks 12 parameters" in caplog.text
    with pytest.raises(ValueError, match="has no parameter of this model"):
        load_into({"other.weight": torch.zeros(1)}, whole_state(), where="run")


def test_own_files_round_trip_over_sizes(tmp_path: Path) -> None:
    """Save at 2, read at 1, 2 and 4: the file says how each tensor is cut."""
    for rank, part in enumerate(reshard([whole_state()], specs_of(), 2)):
        model = Holder(size=2)
        load_into(dict(model.named_parameters()), part, where="memory")
        save_shard(tmp_path, "9", {**module_payload(model), "iteration": 9}, rank)
    publish(tmp_path, "9", mp_size=2)
    for size in (1, 2, 4):
        for rank, expected in enumerate(reshard([whole_state()], specs_of(), size)):
            model = Holder(size=size)
            report = load_backbone(model, tmp_path, mp_rank=rank, mp_size=size)
            assert report.missing == [] and iteration_of(report.extras) == 9
            assert_same_state(dict(model.state_dict()), expected)
