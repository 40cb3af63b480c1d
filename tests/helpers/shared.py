"""Where the material outside the repository lies (golden cases, real text); tests skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def shared_path(*parts: str) -> Path | None:
    """A path below the shared folder (``../shared`` beside the repository, or ``$GLMKD_SHARED``), None if absent."""
    path = Path(os.environ.get("GLMKD_SHARED", REPOSITORY.parent / "shared")).joinpath(*parts)
    return path if path.exists() else None


def require_shared(*parts: str) -> Path:
    """As :func:`shared_path`, but skips the test with a reason where the path is absent."""
    path = shared_path(*parts)
    if path is None:
        pytest.skip(f"no ../shared/{'/'.join(parts)} beside this checkout")
    return path
