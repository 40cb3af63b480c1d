"""What a finished run of the quick start leaves, made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.quickstart.runner import DONE_FILE
from scripts.quickstart.steps import Step, step_folder


def write_questions(run: Path, number: int) -> None:
    """As many held-out COPA questions in each part."""
    for part in ("val", "test"):
        path = run / f"world/tasks/COPA/{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n" * number)


def write_done_step(run: Path, step: Step, records: Sequence[dict[str, Any]], tail: str = "") -> None:
    """A step that took ten seconds and left these records; ``tail`` stands behind them."""
    folder = step_folder(run, step.name)
    (folder / "records").mkdir(parents=True)
    (folder / DONE_FILE).write_text(json.dumps({"fingerprint": "", "seconds": 10.0}))
    (folder / "records/metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
