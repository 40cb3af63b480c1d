"""docs/flags.md is what the parsers say, and marks every flag that does nothing."""

from __future__ import annotations

import argparse

import pytest

from distill.arguments import build_parser, parse_args
from scripts import describe_flags as page
from scripts.describe_flags import PAGE, Flag, flags_page, read_groups, statuses


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == flags_page(), "rewrite it: python -m scripts.describe_flags"


def test_every_flag_has_a_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    options = [name for action in build_parser()._actions for name in action.option_strings if "help" not in name]
    assert [name for name in options if name != "-h" and f"`{name}`" not in text] == []
    assert len(options) > 380


@pytest.mark.parametrize("name", sorted(name for name, text in statuses().items() if text.startswith("refused")))
def test_what_is_said_to_be_refused_is_refused(name: str) -> None:
    action = build_parser()._option_string_actions[name]
    words = [name] if action.nargs == 0 else [f"{name}=1"] if action.nargs is None else [name, "1"]
    with pytest.raises(ValueError, match=name):
        parse_args([*words, "--block-lm"], "pretrain")


def test_a_row() -> None:
    parser = argparse.ArgumentParser()
    group = parser.add_argument_group("some flags", "about --x=1")
    group.add_argument("--x", type=int, default=0, help="up to %(default)s|one; see --y-z")
    group.add_argument("--y-z", "-y", choices=("a", "b"), default="a", help="a *choice*")
    group.add_argument("--on", action="store_true", help="switch")
    group.add_argument("--many", nargs="+", type=float, default=[1.0, 2.0], help="several")
    group.add_argument("--dead", default="d", help=argparse.SUPPRESS)
    found, hidden = read_groups(parser)
    assert [(one.title, one.text) for one in found] == [("Some flags", "about `--x=1`")]
    assert found[0].flags == [
        Flag(("--x",), "integer", "0", "up to 0|one; see `--y-z`"),
        Flag(("--y-z", "-y"), "`a`, `b`", "a", r"a \*choice\*"), Flag(("--on",), "switch", "", "switch"),
        Flag(("--many",), "number …", "1.0 2.0", "several")]
    assert hidden == [Flag(("--dead",), "text", "d", "")]
    assert found[0].flags[0].row == "| `--x` | integer | `0` | up to 0\\|one; see `--y-z` |"


def test_a_flag_without_effect_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "statuses", lambda: {"--a": "no effect: nothing reads it", "--b": "refused: use --a"})
    parser = argparse.ArgumentParser()
    parser.add_argument("--a", help="no effect")
    parser.add_argument("--b", help="makes b")
    found, _ = read_groups(parser)
    assert [flag.text for flag in found[0].flags] == [
        "**no effect**: nothing reads it", "makes b; **refused**: use `--a`"]
