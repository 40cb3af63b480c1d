"""Reading JSON files that people write, with errors that say which file or flag is meant.

Without torch: the launcher of sweeps uses it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_KINDS = {dict: "a JSON object", list: "a JSON list"}


def read_json(path: str | Path, kind: type[dict] | type[list] | None = None, name: str | None = None) -> Any:
    """The content of a JSON file.

    Args:
        kind: what it has to hold, an object or a list; None for anything.
        name: of the file in messages, for example ``--flag=path``; default: its path.

    Raises:
        ValueError: it holds something else; its cause tells a damaged file from one that cannot be read.
    """
    name = str(path) if name is None else name
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error
    if kind is not None and not isinstance(content, kind):
        raise ValueError(f"{name} does not hold {_KINDS[kind]}")
    return content
