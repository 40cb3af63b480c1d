"""Every architecture form, and every layer of a student, through change_mp and back; the vocabulary map on load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint.files import safe_load
from model.checkpoint.load import load_backbone, read_module_state
from model.checkpoint.naming import resolve_checkpoint, shard_files
from model.checkpoint.nonparameters import MAP_ENTRY
from model.checkpoint.reshard import change_mp, default_spec
from model.checkpoint.save import module_payload
from model.heads import MultiTokenCloze
from model.parallel import groups
from model.parallel.sharding import COLUMNS, ShardSpec, shard_specs
from tests.helpers.distributed import run_distributed
from tests.model.checkpoint.forms import FORMS, form_model, fresh_model, logits_of, save_model
from tests.model.checkpoint.synthetic import (
    EXTENSION_TENSORS,
    assert_same_state,
    glm_tensors,
    specs_of,
    whole_state,
    write_checkpoint,
)
from tests.model.test_compressed import example_map


def load(model: torch.nn.Module, path: str | Path) -> object:
    return load_backbone(model, path, mp_rank=groups.get_model_parallel_rank(),
                         mp_size=groups.get_model_parallel_world_size())


@pytest.mark.parametrize("form", FORMS)
def test_change_mp_round_trip_is_bit_identical(tmp_path: Path, form: str) -> None:
    original = form_model(form)
    run = save_model(original, tmp_path / "run")
    before = safe_load(shard_files(run / "10")[0])
    four = change_mp(change_mp(run, 2), 4)
    maps = [safe_load(file)["important_nonparameters"] for file in shard_files(Path(four) / "10")]
    after = safe_load(shard_files(Path(change_mp(four, 1)) / "10")[0])
    assert_same_state(after["module"], before["module"])
    assert after["shard_specs"] == before["shard_specs"] and after["gelu"] == original.config.gelu
    for stored in (before["important_nonparameters"], *maps, after["important_nonparameters"]):
        assert set(stored) == ({MAP_ENTRY} if original.config.map_vocab_size else set())
        assert_same_state(stored.get(MAP_ENTRY, {}), example_map() if stored else {})
    model = fresh_model(original.config)
    assert load(model, f"{four}_MP1").missing == []
    assert torch.equal(logits_of(model), logits_of(original))


@pytest.mark.parametrize("form", FORMS)
def test_the_table_for_old_files_agrees_with_the_parameters(form: str) -> None:
    model = form_model(form)
    assert shard_specs(model) == {name: default_spec(name, p.dim()) for name, p in model.named_parameters()}


def logits_of_all_forms(folder: str) -> dict[tuple[str, str], torch.Tensor]:
    """Each form from its checkpoint of size 1 and of size 4, at the size of this group."""
    result = {}
    for number, (form, overrides) in enumerate(FORMS.items()):
        for suffix in ("", "_MP4"):
            model = fresh_model(**overrides)
            assert load(model, f"{folder}/{number}{suffix}").missing == []
            result[form, suffix] = logits_of(model)
    return result


@pytest.mark.distributed
def test_logits_of_every_form_survive_resharding(tmp_path: Path) -> None:
    expected = {}
    for number, form in enumerate(FORMS):
        model = form_model(form)
        change_mp(save_model(model, tmp_path / str(number)), 4)
        expected[form] = logits_of(model)
    for result in run_distributed(logits_of_all_forms, 2, str(tmp_path), model_parallel_size=2):
        for (form, _), logits in result.items():
            torch.testing.assert_close(logits, expected[form], rtol=1e-5, atol=1e-5, msg=form)


#: Layers that only a file of ours can tell apart: plain or cut by the method's options.
_STATED: dict[str, tuple[list[int], ShardSpec]] = {
    **{name: entry for name, entry in EXTENSION_TENSORS.items() if name.startswith("student.")},
    "student.fit_dense.weight": ([12, 8], ShardSpec(0)), "student.fit_dense.bias": ([12], ShardSpec(0)),
    "student.multi_teacher_model.agent_mt_soft.weight": ([2, 16], COLUMNS),
    "student.multi_teacher_model.agent_mt_soft.bias": ([2], ShardSpec()),
    "student.my_own_layer.weight": ([5, 8], COLUMNS),
}


@pytest.mark.parametrize("states_cuts", [True, False])
def test_student_layers_survive_change_mp(tmp_path: Path, states_cuts: bool) -> None:
    table = {**glm_tensors(), **(_STATED if states_cuts else EXTENSION_TENSORS)}
    stored = {"shard_specs": {name: [spec.dim, spec.blocks] for name, (_, spec) in table.items()}}
    run = write_checkpoint(tmp_path / "run", whole_state(table), specs=specs_of(table), **stored if states_cuts else {})
    path: str | Path = run
    for size in (2, 4):
        path = change_mp(path, size)
        parts = [safe_load(file)["module"] for file in shard_files(Path(path) / "100")]
        for name, (shape, spec) in table.items():
            for part in parts:
                expected = [length // size if axis == spec.dim else length for axis, length in enumerate(shape)]
                assert list(part[name].shape) == expected, name
    back = safe_load(shard_files(Path(change_mp(path, 1)) / "100")[0])
    assert_same_state(back["module"], whole_state(table))


# The vocabulary map.

def test_the_map_comes_with_the_weights(tmp_path: Path) -> None:
    run = save_model(form_model("compact"), tmp_path / "run")
    head = MultiTokenCloze(fresh_model(map_vocab_size=32))
    assert load(head, run).extras["iteration"] == 10
    assert_same_state(head.model.vocab_map.tensors(), example_map())
    assert_same_state(module_payload(head)["important_nonparameters"][MAP_ENTRY], example_map())
    assert module_payload(fresh_model(map_vocab_size=32))["important_nonparameters"] == {}


def test_only_one_of_file_and_model_is_compact(tmp_path: Path) -> None:
    compact = save_model(form_model("compact"), tmp_path / "compact")
    plain = save_model(form_model("plain"), tmp_path / "plain")
    model = fresh_model()
    before = logits_of(model)
    with pytest.raises(ValueError, match="this checkpoint has a compact vocabulary of 32; pass --map_vocab_size=32"):
        load(model, compact)
    assert torch.equal(logits_of(model), before)
    with pytest.raises(ValueError, match=r"full vocabulary of 64 rows, .* compact one of 32 \(--map_vocab_size\): .*"
                                         "--student_truncate_tn and --student_build_map_vocab"):
        load(fresh_model(map_vocab_size=32), plain)


def test_maps_that_do_not_fit(tmp_path: Path) -> None:
    run = save_model(form_model("compact"), tmp_path / "run")
    with pytest.raises(ValueError, match="run: the checkpoint has a compact vocabulary of 32 rows, the model has 16; "
                                         "pass --map_vocab_size=32"):
        load(fresh_model(map_vocab_size=16), run)
    lost = save_model(form_model("compact"), tmp_path / "lost", important_nonparameters={})
    with pytest.raises(ValueError, match="word table of 32 rows for --map_vocab_size=32, but no vocabulary map"):
        load(fresh_model(map_vocab_size=32), lost)
    half = save_model(form_model("compact"), tmp_path / "half", important_nonparameters={
        MAP_ENTRY: {"origin_id_mask_map": example_map()["origin_id_mask_map"]}})
    with pytest.raises(ValueError, match="half: the stored vocabulary map lacks 'origin_id_to_target_pos'"):
        load(fresh_model(map_vocab_size=32), half)
    # A model that has its map already takes the rows alone.
    model = form_model("compact", seed=5)
    load(model, lost)
    assert torch.equal(logits_of(model), logits_of(form_model("compact")))


# The form of GELU.

def test_a_checkpoint_says_its_gelu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = save_model(form_model("erf"), tmp_path / "run")
    load(fresh_model(gelu="erf"), change_mp(run, 2))
    assert not caplog.records
    load(fresh_model(), run)
    assert ("trained with the erf form of GELU, this model computes the tanh form: activations differ by up to 5e-04 "
            "each. Pass --gelu erf (for a teacher --teacher_gelu erf)") in caplog.text
    caplog.clear()
    # Files of older programs say nothing: they are of the tanh form.
    old = write_checkpoint(tmp_path / "old", read_module_state(run, mp_rank=0, mp_size=1)[0])
    assert resolve_checkpoint(old).tag == "100"
    load(fresh_model(gelu="erf"), old)
    assert "Pass --gelu tanh" in caplog.text and len(caplog.records) == 1


def test_the_two_forms_differ_by_what_is_said() -> None:
    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    gelu = torch.nn.functional.gelu
    assert 4.5e-4 < (gelu(x) - gelu(x, approximate="tanh")).abs().max().item() < 5e-4
    assert not torch.equal(logits_of(form_model("plain")), logits_of(form_model("erf")))
    with pytest.raises(ValueError, match="--gelu must be tanh or erf"):
        fresh_model(gelu="relu")
