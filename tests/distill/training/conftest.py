"""The small world, once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.training.small_runs import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))
