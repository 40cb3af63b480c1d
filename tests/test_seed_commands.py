"""The published command lines, tried out with ``--fast-dev-run`` in processes that run side by side."""

from __future__ import annotations

import json

import pytest

from tests.helpers.shared import require_shared
from tests.run_commands import chosen, judge, published, run_all

#: Those of the first methods; ``python -m tests.run_commands`` runs all.
METHODS = ("KD", "PD", "TinyBERT", "LogitsDistil (old form)", "LogitsDistil (new form)", "Prefix-pretrain (004)",
           "Example: TinyBERT 340M-66M")


def test_the_list_is_the_published_one() -> None:
    source = json.loads((require_shared("spec") / "seed_commands.json").read_text(encoding="utf-8"))
    runnable = [command for command in source if command["kind"] in ("pretrain", "finetune")]
    assert [(command["id"], command["kind"], command["args_runnable"], command.get("expect"))
            for command in runnable] == [
        (command["id"], command["kind"], command["args"], command.get("expect")) for command in published()]


@pytest.mark.slow
def test_the_commands_start() -> None:
    results = run_all(chosen([], METHODS))
    assert len(results) >= 27
    assert [result.line for result in results if result.problem] == []
    assert all("fast-dev-run ok" in result.output for result in results)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_command_starts_by_its_launcher() -> None:
    pytest.importorskip("deepspeed")
    result, = run_all(chosen(["tinybert-1"], []), launcher="deepspeed")
    assert result.problem == "" and "fast-dev-run ok" in result.output, result.output


def test_the_judge() -> None:
    command = {"id": "x", "method": "y"}
    assert judge(command, 0, "", []) == "" and judge(command, 1, "error: bad", []) == "error: bad"
    assert "left" in judge(command, 0, "", ["runs"])
    failing = {**command, "expect": "error:equal hidden sizes (student 384, teacher 768)"}
    assert judge(failing, "ValueError: …", "X needs equal hidden sizes: …", []) == ""
    assert "expected an error" in judge(failing, 0, "", [])
