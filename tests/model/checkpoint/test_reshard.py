"""Splitting and merging: identity for every kind of cut, the table by path, change_mp."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import change_mp as command
from model.checkpoint.files import safe_load
from model.checkpoint.load import read_module_state
from model.checkpoint.naming import BEST_TRACKER, LATEST_TRACKER, read_tracker, shard_files, shard_path
from model.checkpoint.reshard import change_mp, default_spec, plan, reshard, reshard_for_rank
from model.parallel.sharding import COLUMNS, QKV_ROWS, REPLICATED, ROWS, ShardSpec
from tests.model.checkpoint.synthetic import (
    EXTENSION_TENSORS,
    assert_same_state,
    glm_tensors,
    specs_of,
    whole_state,
    write_checkpoint,
)

KINDS = {"replicated": REPLICATED, "rows": ROWS, "columns": COLUMNS, "qkv": QKV_ROWS,
         "two column blocks": ShardSpec(1, 2)}


def folder_of(path: str | Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(Path(path).rglob("*")) if file.is_file()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(1, 2, 1), (1, 4, 2, 1), (1, 3, 1), (2, 3, 2), (1, 6, 4, 1)])
def test_split_and_merge_are_inverse(kind: str, sizes: tuple[int, ...]) -> None:
    whole = {"x": torch.randn(36 * 2, 24)}
    first = states = reshard([whole], {"x": KINDS[kind]}, sizes[0])
    for size in sizes[1:]:
        states = reshard(states, {"x": KINDS[kind]}, size)
    assert all(torch.equal(one["x"], other["x"]) for one, other in zip(first, states))


def test_fused_projection_is_cut_third_by_third() -> None:
    whole = torch.arange(12.0).view(12, 1)  # Q 0-3, K 4-7, V 8-11
    parts = reshard([{"x": whole}], {"x": QKV_ROWS}, 2)
    assert [part["x"].flatten().tolist() for part in parts] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


@pytest.mark.parametrize(("source", "target"), [(1, 4), (4, 1), (4, 2), (2, 4), (2, 3), (3, 2), (2, 2)])
def test_plan_gives_each_rank_its_part(source: int, target: int) -> None:
    specs = {"x": QKV_ROWS}
    whole = {"x": torch.randn(36, 4)}
    files = reshard([whole], specs, source)
    for rank, expected in enumerate(reshard([whole], specs, target)):
        needed, parts, part = plan(source, target, rank)
        mine = reshard_for_rank([files[index] for index in needed], specs, parts, part)
        assert torch.equal(mine["x"], expected["x"])


@pytest.mark.parametrize("name", [*glm_tensors(), *EXTENSION_TENSORS])
def test_table_gives_the_specified_cut(name: str) -> None:
    shape, spec = {**glm_tensors(), **EXTENSION_TENSORS}[name]
    for prefix in ("", "module.", "model.", "model.origin_model."):
        assert default_spec(prefix + name, len(shape)) == spec


def test_table_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"my_query_layer.weight.*--fix_module_parameters"):
        default_spec("student.my_query_layer.weight", 2)
    with pytest.raises(ValueError, match="has 1 axes and is cut along axis 1"):
        default_spec("transformer.layers.0.attention.dense.weight", 1)


def test_errors_name_the_tensor() -> None:
    with pytest.raises(ValueError, match="x: cannot cut axis 0 of length 6 in 1 x 4"):
        reshard([{"x": torch.zeros(6)}], {"x": ROWS}, 4)
    with pytest.raises(ValueError, match="ranks 0 and 1 hold different parameters"):
        reshard([{"x": torch.zeros(6)}, {"y": torch.zeros(6)}], {"x": ROWS}, 1)
    with pytest.raises(ValueError, match="x should be the same on every rank.*differ by 1"):
        reshard([{"x": torch.zeros(6)}, {"x": torch.ones(6)}], {"x": REPLICATED}, 1)


def test_replicas_that_drifted_by_rounding_are_merged(caplog: pytest.LogCaptureFixture) -> None:
    merged = reshard([{"x": torch.ones(3)}, {"x": torch.ones(3) + 1e-6}], {"x": REPLICATED}, 1)[0]
    assert torch.equal(merged["x"], torch.ones(3)) and "rank 0 is kept" in caplog.text


def test_change_mp_up_and_down_is_bit_identical(tmp_path: Path) -> None:
    table = {**glm_tensors(), **EXTENSION_TENSORS}
    state = whole_state(table)
    path = write_checkpoint(tmp_path / "run", state, specs=specs_of(table), tag="best", optimizer={"lr": 1.0},
                            important_nonparameters={"glm.map_vocab_paras": {"a": torch.arange(3)}})
    (path / BEST_TRACKER).write_text("70")
    before = folder_of(path)

    two = change_mp(path, 2)
    four = change_mp(two, 4)
    one = change_mp(f"{four}/", 1)

    assert [two, four, one] == [str(tmp_path / f"run_MP{suffix}") for suffix in ("2", "2_MP4", "2_MP4_MP1")]
    assert folder_of(path) == before
    assert (Path(two) / LATEST_TRACKER).read_text() == "best\n" and read_tracker(two, BEST_TRACKER) == "70"
    payload = safe_load(shard_path(one, "best", 0))
    assert_same_state(payload["module"], state)
    assert payload["mp_world_size"] == 1 and payload["iteration"] == 100 and payload["optimizer"] is None
    assert torch.equal(payload["important_nonparameters"]["glm.map_vocab_paras"]["a"], torch.arange(3))
    for rank, expected in enumerate(reshard([state], specs_of(table), 4)):
        assert_same_state(safe_load(shard_path(four, "best", rank))["module"], expected)


def test_change_mp_of_a_bare_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, whole_state(), tag="released", tracker=False)
    output = Path(change_mp(tmp_path / "released", 2))
    assert output == tmp_path / "released_MP2"
    assert sorted(file.name for file in output.iterdir()) == [f"mp_rank_0{rank}_model_states.pt" for rank in (0, 1)]
    state, _ = read_module_state(output, mp_rank=0, mp_size=1)
    assert_same_state(state, whole_state())


def test_change_mp_keeps_half_precision_and_prefixes(tmp_path: Path) -> None:
    state = whole_state(dtype=torch.float16)
    path = write_checkpoint(tmp_path / "run", state, prefix="module.")
    module = safe_load(shard_path(change_mp(path, 2), "100", 1))["module"]
    expected = reshard([state], specs_of(), 2)[1]
    assert_same_state(module, {f"module.{name}": tensor for name, tensor in expected.items()})


def test_saved_parts_do_not_carry_the_whole_tensor(tmp_path: Path) -> None:
    state = {"word_embeddings.weight": torch.randn(4096, 64)}
    path = write_checkpoint(tmp_path / "run", state, specs={"word_embeddings.weight": ROWS})
    assert os.path.getsize(shard_path(change_mp(path, 4), "100", 0)) < 4096 * 64 * 4 / 4 + 10_000


def test_fix_module_parameters(tmp_path: Path) -> None:
    state = {"word_embeddings.weight": torch.randn(4, 2), "student.own.weight": torch.randn(4, 4)}
    path = write_checkpoint(tmp_path / "run", state,
                            specs={"word_embeddings.weight": ROWS, "student.own.weight": REPLICATED})
    with pytest.raises(ValueError, match="student.own.weight"):
        change_mp(path, 2)
    assert command.main([str(path), "2", "--fix_module_parameters", "student.own.weight; word_embeddings.weight"])
    for rank in range(2):
        assert_same_state(safe_load(shard_path(tmp_path / "run_MP2", "100", rank))["module"], state)
    # The result states its cuts itself, so nothing has to be named again.
    assert_same_state(safe_load(shard_path(change_mp(tmp_path / "run_MP2", 1), "100", 0))["module"], state)


def test_equal_size_returns_the_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_checkpoint(tmp_path / "run", whole_state(), size=2)
    with caplog.at_level("INFO"):
        assert change_mp(path, 2) == str(path)
    assert "size 2 already" in caplog.text and [child.name for child in tmp_path.iterdir()] == ["run"]


def test_an_existing_result_is_never_overwritten(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", whole_state())
    output = change_mp(path, 2)
    content = folder_of(output)
    assert change_mp(path, 2) == output
    write_checkpoint(path, whole_state(seed=1))
    with pytest.raises(ValueError, match="run_MP2 exists and does not hold this checkpoint"):
        change_mp(path, 2)
    assert folder_of(output) == content


@pytest.mark.parametrize(("present", "wanted", "message"), [
    (2, 3, "has model-parallel size 2; .* 3 does neither; go by way of 1"),
    (1, 5, "word_embeddings.weight: cannot cut axis 0 of length 16"),
    (1, 0, "at least 1")])
def test_sizes_that_do_not_fit(tmp_path: Path, present: int, wanted: int, message: str) -> None:
    path = write_checkpoint(tmp_path / "run", whole_state(), size=present)
    with pytest.raises(ValueError, match=message):
        change_mp(path, wanted)
    assert not (tmp_path / f"run_MP{wanted}").exists()


def test_an_interrupted_conversion_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "run", whole_state())
    real, calls = torch.save, []

    def save_once(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", save_once)
    with pytest.raises(KeyboardInterrupt):
        change_mp(path, 2)
    assert not (tmp_path / "run_MP2").exists()
    monkeypatch.undo()
    assert len(shard_files(Path(change_mp(path, 2)) / "100")) == 2
    assert sorted(child.name for child in tmp_path.iterdir()) == ["run", "run_MP2"]


def test_command_line_needs_no_deepspeed(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    path = write_checkpoint(tmp_path / "run", whole_state(), size=2)
    script = ("import sys, runpy; sys.modules['deepspeed'] = None; "
              f"sys.argv = ['change_mp.py', {str(path)!r}, '1']; runpy.run_path('change_mp.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run_MP1")


def test_command_line_says_errors_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["change_mp.py", str(tmp_path / "none"), "1"])
    with pytest.raises(SystemExit, match="change_mp.py: no checkpoint at .*: no such folder"):
        runpy.run_path(command.__file__, run_name="__main__")
