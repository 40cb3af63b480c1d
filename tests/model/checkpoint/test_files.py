"""Files are whole or absent; reading runs no code unless it is asked for."""

from __future__ import annotations

import argparse
import collections
import random
from pathlib import Path

import numpy
import pytest
import torch

from model.checkpoint.files import atomic_save, atomic_write_text, safe_load
from model.checkpoint.rng import capture_rng_states, restore_rng_states


class RunsCode:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "code ran")


def test_round_trip(tmp_path: Path) -> None:
    payload = {"module": {"x": torch.randn(3)}, "iteration": 5, "nested": [1, 2.0, None, "text"],
               "ordered": collections.OrderedDict(a=1)}
    atomic_save(payload, tmp_path / "deep" / "file.pt")
    read = safe_load(tmp_path / "deep" / "file.pt")
    assert torch.equal(read["module"]["x"], payload["module"]["x"])
    assert (read["iteration"], read["nested"], read["ordered"]) == (5, [1, 2.0, None, "text"], {"a": 1})
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["file.pt"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    atomic_save({"x": 1}, path)
    with pytest.raises((AttributeError, TypeError)):
        atomic_save({"x": lambda: None}, path)
    assert safe_load(path) == {"x": 1} and [file.name for file in tmp_path.iterdir()] == ["file.pt"]


def test_text_is_replaced_in_one_step(tmp_path: Path) -> None:
    atomic_write_text("100", tmp_path / "tracker.txt")
    atomic_write_text("best\n", tmp_path / "tracker.txt")
    assert (tmp_path / "tracker.txt").read_text() == "best\n"
    assert [file.name for file in tmp_path.iterdir()] == ["tracker.txt"]


def test_pickled_objects_only_on_request(tmp_path: Path) -> None:
    path, proof = tmp_path / "old.pt", tmp_path / "proof"
    torch.save({"module": {}, "args": argparse.Namespace(lr=1.0)}, path)
    with pytest.raises(ValueError, match=r"old\.pt holds objects of argparse\.Namespace.*--trust-checkpoint"):
        safe_load(path)
    assert safe_load(path, trust_pickle=True)["args"].lr == 1.0
    assert safe_load(path, safe_classes=[argparse.Namespace])["args"].lr == 1.0
    torch.save(RunsCode(proof), path)
    with pytest.raises(ValueError, match="can run code"):
        safe_load(path)
    assert not proof.exists()
    safe_load(path, trust_pickle=True)
    assert proof.read_text() == "code ran"


@pytest.mark.parametrize("trust_pickle", [False, True])
@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:len(data) // 2], lambda data: data[:-30], lambda data: b"\x93" * 500,
    lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", lambda data: b"some text\n" * 20])
def test_a_damaged_file_is_named(tmp_path: Path, damage: object, trust_pickle: bool) -> None:
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {"x": torch.arange(1000.0)}}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt \(\d+ bytes\) is damaged") as caught:
        safe_load(path, trust_pickle)
    assert "weights_only" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        safe_load(tmp_path / "none.pt")


def test_random_states_survive_in_the_safe_mode(tmp_path: Path) -> None:
    atomic_save(capture_rng_states({"model-parallel-rng": torch.get_rng_state()}), tmp_path / "rng.pt")
    expected = [random.random(), numpy.random.rand(), torch.rand(3).tolist(), random.gauss(0, 1)]
    states = safe_load(tmp_path / "rng.pt")
    restore_rng_states(states)
    assert [random.random(), numpy.random.rand(), torch.rand(3).tolist(), random.gauss(0, 1)] == expected
    assert states["rng_tracker_states"].keys() == {"model-parallel-rng"}


def test_random_states_as_old_programs_stored_them(tmp_path: Path) -> None:
    torch.save({"random_rng_state": random.getstate(), "np_rng_state": numpy.random.get_state(),
                "torch_rng_state": torch.get_rng_state(), "lr": numpy.float64(0.5)}, tmp_path / "old.pt")
    expected = [random.random(), numpy.random.rand(), torch.rand(3).tolist()]
    states = safe_load(tmp_path / "old.pt")
    restore_rng_states(states)
    assert [random.random(), numpy.random.rand(), torch.rand(3).tolist()] == expected and states["lr"] == 0.5


def test_missing_random_states() -> None:
    with pytest.raises(ValueError, match="np_rng_state.*--no-load-rng"):
        restore_rng_states({"random_rng_state": random.getstate(), "torch_rng_state": torch.get_rng_state()})
