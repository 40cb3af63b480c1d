"""One generated world for all tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.world import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of world 0."""
    return write_world(tmp_path_factory.mktemp("made") / "world")


@pytest.fixture(scope="session")
def facts(world: Path) -> list[dict]:
    """The lines of facts.jsonl."""
    return read_lines(world / "facts.jsonl")


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
