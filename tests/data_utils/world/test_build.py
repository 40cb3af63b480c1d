"""The folder of the world: the same bytes everywhere, whole or absent, never overwritten unasked."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.world import build
from data_utils.world.__main__ import main
from data_utils.world.build import write_world
from data_utils.world.facts import make_world

ROOT = Path(__file__).resolve().parents[3]


def digest(folder: Path) -> str:
    """Hash of all names and contents below a folder."""
    result = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        result.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return result.hexdigest()


def test_the_same_bytes_in_a_process_with_another_hash_seed(world: Path, tmp_path: Path) -> None:
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    command = [sys.executable, "-m", "data_utils.world", str(tmp_path / "world")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, timeout=120)
    assert digest(tmp_path / "world") == digest(world)


def test_another_seed_is_another_world() -> None:
    assert list(make_world(1).records()) == list(make_world(1).records()) != list(make_world(0).records())


def test_the_same_world_is_kept_and_another_folder_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    monkeypatch.setattr(build, "_write_files", lambda out, world, seed: written.append(seed))
    out = tmp_path / "world"
    assert main([str(out)]) == 0 and main([str(out)]) == 0 and written == [0]
    assert main([str(out), "--seed=1"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([str(out), "--seed=1", "--force"]) == 0 and written == [0, 1]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists and is not the world"):
        write_world(tmp_path / "mine")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(out: Path, world: object, seed: int) -> None:
        (out / "half.txt").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(build, "_write_files", fail)
    with pytest.raises(OSError, match="disk full"):
        write_world(tmp_path / "world")
    assert not list(tmp_path.iterdir())
