"""docs/tasks.md: its tables of tasks and options are those of the code."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from tasks.flags import NOT_WIRED, add_task_flags
from tasks.language_model import LANGUAGE_MODEL_TASKS
from tasks.registry import SEQUENCE_TASKS, get_task, task_names
from tasks.spec import TaskOptions

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
#: What is written of labels that are a row of numbers.
SHORT = {"1-4": 4, "1-5": 5, "1-10": 10, "15 numbers": 15}


def rows(heading: str) -> dict[str, list[str]]:
    """The first table below a heading: first word in code type of a row -> its cells."""
    section = PAGE[PAGE.index(f"## {heading}"):]
    table = re.search(r"(?:^\|.*\|$\n)+", section, re.MULTILINE)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {re.search("`(.*?)`", row[0])[1]: row for row in cells}


def test_every_task_has_its_row() -> None:
    assert tuple(rows("Tasks with labels or choices")) == task_names()
    assert list(rows("Language-model evaluation")) == list(LANGUAGE_MODEL_TASKS)


@pytest.mark.parametrize("name", task_names())
def test_labels_patterns_metrics_and_files(name: str) -> None:
    spec = get_task(name, TaskOptions(cloze_eval=True))
    _, labels, patterns, metrics, files = rows("Tasks with labels or choices")[name]
    first, last = spec.pattern_ids[0], spec.pattern_ids[-1]
    assert spec.pattern_ids == tuple(range(first, last + 1))
    assert patterns == (str(first) if first == last else f"{first}-{last}")
    assert metrics == ", ".join(spec.metrics)
    if labels in SHORT:
        assert len(spec.labels) == SHORT[labels]
    else:
        assert labels == ("choices" if spec.choices_are_answers else ", ".join(map(str, spec.labels)))
    names = list(dict.fromkeys(spec.files.names[split] for split in ("train", "dev", "test")))
    if files.startswith("SuperGLUE"):
        assert names == ["train.jsonl", "val.jsonl", "test.jsonl"]
    else:
        assert re.findall("`(.*?)`", files)[:len(names)] == names


@pytest.mark.parametrize("name", LANGUAGE_MODEL_TASKS)
def test_metrics_of_language_model_tasks(name: str) -> None:
    assert rows("Language-model evaluation")[name][3] == ", ".join(LANGUAGE_MODEL_TASKS[name].metrics)


def test_every_flag_of_a_task_is_explained() -> None:
    parser = argparse.ArgumentParser()
    add_task_flags(parser)
    flags = [action.option_strings[0] for action in parser._actions if action.dest not in ("help", *NOT_WIRED)]
    assert [flag for flag in flags if not re.search(rf"`[^`]*{flag}\b", PAGE)] == []


def test_what_is_missing_is_said() -> None:
    last = PAGE.strip().splitlines()[-1]
    assert "not built in this version" in last
    assert set(re.findall("`(.*?)`", last)) == {name for name in SEQUENCE_TASKS if "original" not in name}
