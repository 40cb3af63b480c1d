"""What our pages tell people to type: commands by the real parsers, links, the example of a new method."""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import change_mp
from distill import vocab_sort
from distill.arguments import build_parser, parse_args
from distill.student import METHODS
from scripts.documented_commands import COMMANDS_PAGE, ROOT, Command, read_commands
from tests.distill.training.small_runs import losses, pretrain_flags, run, write_world
from tests.run_commands import published

README = ROOT / "README.md"
PAGES = (README, COMMANDS_PAGE, *sorted((ROOT / "docs").glob("*.md")))
ALL_PAGES = (*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "tests").rglob("*.md")))
#: What stands in place of "…" and "<…>".
GAPS = {"pretrain": (), "finetune": ("--finetune", "--task=COPA", "--epochs=1"), "vocab_sort": ("--train-data=x",)}
#: Words that stand for a value.
WORDS = {"P": "2"}
#: Not compared with the published commands: the folder of a dry run, and what DIITO no longer has to leave out.
NOT_COMPARED = ("start_notes", "checkpoint_activations")


class Parsed(Exception):
    """Raised in place of a script's work."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def stop(*args: object, **kwargs: object) -> None:
    raise Parsed


def parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a command to the parser of its script; what is wrong with it is raised."""
    words = [WORDS.get(word, word) for word in command.args]
    words += [word for word in GAPS.get(command.stage, ()) if command.has_gaps and word.split("=")[0] not in
              {other.split("=")[0] for other in words}]
    if command.stage in ("pretrain", "finetune"):
        parse_args(words, command.stage)
        return
    module, work = {"change_mp": (change_mp, "change_mp"), "vocab_sort": (vocab_sort, "tokenizer_from_args")}[
        command.stage]
    monkeypatch.setattr(module, work, stop)
    with pytest.raises(Parsed):
        module.main(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = []
    for command in read_commands(page):
        try:
            parse(command, monkeypatch)
        except (Exception, SystemExit) as error:
            problems.append(f"{command.text[:100]}: {type(error).__name__}: {error}")
    assert problems == []


def test_commands_are_found_in_every_form() -> None:
    found = {page.name: {command.stage for command in read_commands(page)} for page in PAGES}
    assert found["README.md"] == {"pretrain", "finetune", "change_mp", "vocab_sort"}
    assert "pretrain" in found["troubleshooting.md"]
    assert len(read_commands(COMMANDS_PAGE)) > 80 and len(read_commands(ROOT / "docs" / "methods.md")) > 50


def test_a_wrong_command_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text('### X (`kd`)\n```shell\nFLAGS="--num-layers=2 …"\n'
                    "python distill/pretrain.py $FLAGS \\\n  --hiden-size=8\n# + --seed=3\n```\n")
    first, second = read_commands(page)
    assert first.args == ("--num-layers=2", "--hiden-size=8") and first.has_gaps and first.section == "kd"
    assert second.args == (*first.args, "--seed=3")
    with pytest.raises(SystemExit):
        parse(first, monkeypatch)
    page.write_text("```shell\npython distill/pretrain.py $FLAGS\n```\n")
    with pytest.raises(ValueError, match="FLAGS is not defined"):
        read_commands(page)


@functools.cache
def meaning(args: tuple[str, ...], stage: str) -> frozenset[tuple[str, str]]:
    """Every argument's value."""
    values = vars(parse_args(args, stage))
    return frozenset((name, repr(value)) for name, value in values.items() if name not in NOT_COMPARED)


def test_the_page_of_commands_has_every_published_one() -> None:
    """Except the two that are published with a mistake (they run with a warning), and a prefix without a method."""
    shown = {meaning((*command.args, *width), command.stage) for command in read_commands(COMMANDS_PAGE)
             for width in ((), ("--hidden-size=384",)) if command.stage in ("pretrain", "finetune")}
    missing = [command["id"] for command in published()
               if not command.get("expect", "").startswith("warn") and command["id"] != "004-prefix-pretrain"
               and meaning(tuple(command["args"]), command["kind"]) not in shown]
    assert missing == []


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
            for line in text.splitlines() if line.startswith("#")}


def test_every_relative_link_leads_somewhere() -> None:
    broken, checked = [], 0
    for page in ALL_PAGES:
        text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            checked += 1
            if not file.exists() or anchor and anchor not in headings(file):
                broken.append(f"{page.name}: {target}")
    assert broken == [] and checked > 50


def test_the_example_of_a_new_method_trains(tmp_path: Path) -> None:
    """The code of the README as it stands, as a file of the user's own."""
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text[text.index("## Add a new method"):], re.DOTALL)
    file = tmp_path / "readme_example.py"
    file.write_text(code)
    flags = pretrain_flags(write_world(tmp_path), **{
        "train-iters": 3, "save": tmp_path, "experiment-name": "x", "user-module": file, "student_model": "last_hidden",
        "teacher_load_pretrained": "none", "teacher_num_layers": 2, "teacher_hidden_size": 32,
        "teacher_num_attention_heads": 4, "teacher_max_position_embeddings": 64})
    try:
        assert run("pretrain", [*flags, "--teacher_random_para"]) == 0
        assert METHODS["last_hidden"].__name__ == "LastHidden"
        assert "last_hidden" in build_parser()._option_string_actions["--student_model"].help
        first, *_, last = losses(tmp_path)
        assert 0 < last < first
    finally:
        sys.modules.pop(METHODS.pop("last_hidden").__module__)
