"""The guide's examples of methods train, and its numbers are those of the pages that they come from."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.arguments import build_parser
from distill.student import METHODS
from scripts.describe_methods import describe_combiners, describe_methods
from scripts.documented_commands import ROOT
from tests.distill.training.small_runs import pretrain_flags, records, run, write_world

GUIDE = ROOT / "docs" / "guide"
TEACHER = {"teacher_load_pretrained": "none", "teacher_num_layers": 4, "teacher_num_attention_heads": 4,
           "teacher_max_position_embeddings": 64}
#: Name of each method on the page, the width of a teacher that suits it, and the terms that it has with 2 layers.
EXAMPLES = (("last_hidden", 32, []), ("directions", 32, ["states.0", "states.1", "states.2"]),
            ("fitted_states", 48, ["hidden_states.0", "hidden_states.1", "hidden_states.2"]))


@pytest.fixture
def examples(tmp_path: Path) -> Iterator[Path]:
    """All Python of the page on new methods, as one file of the user's own; forgotten again afterwards."""
    blocks = re.findall(r"(?s)```python\n(.*?)```", (GUIDE / "new_method.md").read_text(encoding="utf-8"))
    assert len(blocks) == len(EXAMPLES) and len(blocks[0].strip().splitlines()) < 20
    file = tmp_path / "guide_examples.py"
    file.write_text("\n\n".join(blocks))
    yield file
    for name, _, _ in EXAMPLES:
        if name in METHODS:
            sys.modules.pop(METHODS.pop(name).__module__, None)


def train(folder: Path, module: Path, method: str, width: int, *words: str) -> list[dict[str, Any]]:
    """The records of ten steps."""
    flags = pretrain_flags(folder, **TEACHER, **{
        "train-iters": 10, "eval-interval": 0, "log-dir": folder / "logs" / method, "user-module": module,
        "student_model": method, "teacher_hidden_size": width})
    assert run("pretrain", [*flags, "--teacher_random_para", *words]) == 0
    return records(folder / "logs" / method)


def test_the_examples_of_new_methods_train(tmp_path: Path, examples: Path) -> None:
    world = write_world(tmp_path)
    for method, width, terms in EXAMPLES:
        first, *_, last = train(world, examples, method, width)
        assert 0 < last["loss"] < 0.95 * first["loss"], method
        assert [term for term in terms if f"inter_loss/{term}_t0" not in first] == []
        assert method in build_parser()._option_string_actions["--student_model"].help


def test_the_flags_and_checks_of_an_example_act(tmp_path: Path, examples: Path) -> None:
    world = write_world(tmp_path)
    whole, half = (train(world, examples, "directions", 32, f"--directions_weight={weight}")[0]["loss"]
                   for weight in (1, 0.5))
    assert half == pytest.approx(whole / 2, rel=1e-5)
    with pytest.raises(ValueError, match="equal hidden sizes.*--student_model=fitted_states"):
        train(world, examples, "directions", 48)


def costs(page: Path, heading: str, columns: tuple[int, int]) -> dict[str, tuple[str, str]]:
    """Method -> time and memory, from those rows of the first table below a heading that name a method."""
    text = page.read_text(encoding="utf-8")
    table = re.search(r"(?m)(?:^\|.*\n)+", text[text.index(f"{heading}\n"):])[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    found = {}
    for row in rows:
        name = next((match[1] for cell in row[:2] if (match := re.search(r"`(\w+)`", cell))), None)
        if name in METHODS:
            found[name] = (row[columns[0]], row[columns[1]])
    return found


def test_every_method_can_be_chosen_by_its_measured_cost() -> None:
    measured = costs(ROOT / "docs" / "performance.md", "## What a method costs", (2, 4))
    chosen = costs(GUIDE / "choosing.md", "# Choosing a method", (2, 3))
    assert chosen == measured
    assert set(chosen) == {method.names[0] for method in describe_methods()}


def test_every_combiner_can_be_chosen() -> None:
    text = (GUIDE / "choosing.md").read_text(encoding="utf-8")
    names = {combiner.names[0] for combiner in describe_combiners()} - {"mixmt"}
    assert [name for name in sorted(names) if f"[`{name}`]" not in text] == []
