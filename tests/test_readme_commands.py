"""What our pages tell people to type: commands by the real parsers, links, the example of a new method."""

from __future__ import annotations

import json
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
from distill.sweep.dry import plan_text
from distill.sweep.flags import parse as parse_sweep
from scripts.documented_commands import COMMANDS_PAGE, PAGES, ROOT, Command, read_commands
from tests.distill.training.small_runs import losses, pretrain_flags, run, write_world
from tests.helpers.sweep_runs import misunderstood
from tests.run_commands import TRAINING, meaning, published

README = ROOT / "README.md"
ALL_PAGES = (*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "tests").rglob("*.md")))
#: What stands in place of "…" and "<…>".
GAPS = {"pretrain": (), "finetune": ("--finetune", "--task=COPA", "--epochs=1"), "vocab_sort": ("--train-data=x",)}
#: Words that stand for a value.
WORDS = {"P": "2"}


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
    if command.stage in TRAINING:
        parse_args(words, command.stage)
        return
    if command.stage == "auto_tune":
        check_sweep(words, command.has_gaps)
        return
    module, work = {"change_mp": (change_mp, "change_mp"), "vocab_sort": (vocab_sort, "tokenizer_from_args")}[
        command.stage]
    monkeypatch.setattr(module, work, stop)
    with pytest.raises(Parsed):
        module.main(words)


def check_sweep(words: list[str], has_gaps: bool) -> None:
    """Compose a sweep's commands and give each to the parser of its script; what is wrong is raised."""
    sweep = parse_sweep(words)
    planned = [] if has_gaps else json.loads(plan_text(sweep, "json"))
    for one in planned:
        if problem := misunderstood(one, Path.cwd()):
            raise ValueError(problem)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The page on sweeps shows the file of teachers that its commands name.
    for block in re.findall(r"(?s)```json\n(.*?)```", page.read_text(encoding="utf-8")):
        (tmp_path / "teachers.json").write_text(block)
    problems = []
    for command in read_commands(page):
        try:
            parse(command, monkeypatch)
        except (Exception, SystemExit) as error:
            problems.append(f"{command.text[:100]}: {type(error).__name__}: {error}")
    assert problems == []


def test_commands_are_found_in_every_form() -> None:
    found = {page.name: {command.stage for command in read_commands(page)} for page in PAGES}
    assert found["README.md"] >= {"pretrain", "finetune", "change_mp", "vocab_sort"}
    assert found["sweeps.md"] == {"auto_tune"} and found["machines.md"] == {"pretrain", "finetune", "change_mp"}
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


def test_the_page_of_commands_has_every_published_one() -> None:
    """Except the two that are published with a mistake (they run with a warning), and a prefix without a method."""
    shown = {meaning((*command.args, *width), command.stage) for command in read_commands(COMMANDS_PAGE)
             for width in ((), ("--hidden-size=384",)) if command.stage in ("pretrain", "finetune")}
    missing = [command["id"] for command in published(kinds=TRAINING)
               if not command.get("expect", "").startswith("warn") and command["id"] != "004-prefix-pretrain"
               and meaning(tuple(command["args"]), command["kind"]) not in shown]
    assert missing == []


def test_the_page_of_commands_has_every_published_sweep() -> None:
    shown = {frozenset(command.args) for command in read_commands(COMMANDS_PAGE) if command.stage == "auto_tune"}
    assert {frozenset(command["args"]) for command in published(kinds=("tune",))} == shown


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"(?ms)^[ \t]*```.*?^[ \t]*```", "", page.read_text(encoding="utf-8"))


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them: of equal headings, the second one gets ``-1``."""
    anchors: list[str] = []
    for line in prose(page).splitlines():
        if line.startswith("#"):
            text = re.sub(r"\]\([^)]*\)", "]", line.lstrip("# "))
            anchors.append(re.sub(r"[^\w -]", "", text).lower().replace(" ", "-"))
    return {anchor + (f"-{anchors[:i].count(anchor)}" if anchor in anchors[:i] else "")
            for i, anchor in enumerate(anchors)}


def problem_of(link: re.Match[str], page: Path) -> str:
    """What is wrong with a link or picture; empty for a good one and for one to another site."""
    is_picture, words, target = link[1] == "!", link[2], link[3]
    if "://" in target:
        return "" if target.startswith("https://") else "no https"
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.exists() or not file.is_relative_to(ROOT):
        return "no such file in the repository"
    if is_picture and (file.suffix not in (".svg", ".png") or not words):
        return "no picture, or one without a description"
    if anchor and (file.suffix != ".md" or anchor not in headings(file)):
        return "no such heading"
    return ""


LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def test_every_link_leads_somewhere() -> None:
    links = [(page, link) for page in ALL_PAGES for link in LINK.finditer(prose(page))]
    assert [f"{page.relative_to(ROOT)}: {link[3]}: {problem}" for page, link in links
            if (problem := problem_of(link, page))] == []
    assert len(links) > 200
    shown = {(page.parent / link[3]).resolve() for page, link in links if link[1]}
    assert set((ROOT / "docs" / "pictures").iterdir()) <= shown


def test_a_broken_link_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_readme_commands.ROOT", tmp_path)
    (tmp_path / "a.svg").write_text("<svg/>")
    page = tmp_path / "page.md"
    page.write_text("# One, two\n## X\n### X\n```shell\n# No heading\n```\n"
                    "[a](#one-two) [b](page.md#x-1) ![c](a.svg) [d](https://example.org) [e `f` [g]](a.svg)\n"
                    "[h](gone.md) [i](#no-heading) ![](a.svg) ![j](page.md) [k](../outside) [l](http://example.org)\n")
    good, bad = ([problem_of(link, page) for link in LINK.finditer(line)] for line in prose(page).splitlines()[-2:])
    assert good == [""] * 5 and len(bad) == 6 and all(bad)


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            files = [(page.parent / link[3].partition("#")[0]).resolve() for link in LINK.finditer(prose(page))]
            waiting += [file for file in files if file.suffix == ".md" and file.is_file()]
    assert [page.name for page in PAGES if page not in reached] == []


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
