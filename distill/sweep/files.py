"""Small files of a study: whole or absent, also after a kill.

The writer of checkpoints does the same, but needs torch, which the launcher does without.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, sync, rename; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def tail(path: Path, size: int = 65536) -> str:
    """The last ``size`` bytes of a text file, from the start of a line; empty if there is no file."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            data = file.read()
    except FileNotFoundError:
        return ""
    if length > size:
        data = data[data.find(b"\n") + 1:]
    return data.decode("utf-8", errors="replace")
