"""Writes docs/flags.md, the reference of every flag, from the parsers and the tables of flags without effect.

    python -m scripts.describe_flags
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_utils.flags import DEAD_FLAGS, REFUSED_FLAGS
from distill.arguments import build_parser
from distill.distill_flags import WITHOUT_EFFECT
from distill.retired_flags import RETIRED_FLAGS
from distill.sweep.flags import build_parser as build_sweep_parser
from distill.sweep.presets import load_presets
from scripts.describe_methods import describe_combiners, describe_methods
from scripts.documented_commands import ROOT

PAGE = ROOT / "docs" / "flags.md"
_TYPES = {"str": "text", "int": "integer", "float": "number", "positive_int": "integer above 0",
          "width": "integer", "fraction": "number or fraction", "factor": "number or fraction"}


@dataclass(frozen=True)
class Flag:
    """A row of the reference.

    Attributes:
        names: all its spellings.
        value: what it takes; "" for a switch.
        default: as it is typed, "" if there is none.
        text: what it does, and whether it does anything.
    """

    names: tuple[str, ...]
    value: str
    default: str
    text: str

    @property
    def row(self) -> str:
        cells = (", ".join(f"`{name}`" for name in self.names), self.value, f"`{self.default}`" if self.default else "",
                 self.text)
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def statuses() -> dict[str, str]:
    """Flag -> "no effect: …" or "refused: …", for those that do nothing."""
    found = {flag.name: f"{'refused' if flag.refused else 'no effect'}: {flag.reason}" for flag in RETIRED_FLAGS}
    found |= {name: f"no effect: {reason}" for name, (_, reason) in DEAD_FLAGS.items()}
    found |= {name: f"refused: {reason}" for name, (_, reason) in REFUSED_FLAGS.items()}
    return found | {f"--{dest}": f"no effect: {reason}" for dest, reason in WITHOUT_EFFECT.items()}


@dataclass
class Group:
    """A section of the reference: what stands above its table, and the rows."""

    title: str
    text: str
    flags: list[Flag]


def read_groups(parser: argparse.ArgumentParser) -> tuple[list[Group], list[Flag]]:
    """The groups of a parser, and the flags that ``--help`` hides. ``--help`` itself is left out."""
    known, groups, hidden = statuses(), [], []
    for group in parser._action_groups:
        title = {"options": "general"}.get(group.title or "", group.title or "")
        found = Group(f"{title[:1].upper()}{title[1:]}", _marked(group.description or ""), [])
        for action in group._group_actions:
            status = next((known[name] for name in action.option_strings if name in known), "")
            if "--help" not in action.option_strings:
                (hidden if action.help == argparse.SUPPRESS else found.flags).append(_flag(action, status))
        groups += [found] if found.flags else []
    return groups, hidden


def _flag(action: argparse.Action, status: str) -> Flag:
    text = "" if action.help in (None, argparse.SUPPRESS) else action.help % {**vars(action), "prog": ""}
    text = _marked(text)
    if status:
        kind, _, reason = status.partition(": ")
        said = re.match(rf"accepted|{kind}\b", text) is not None
        text = f"**{kind}**: {_marked(reason)}" if said or not text else f"{text}; **{kind}**: {_marked(reason)}"
    return Flag(tuple(action.option_strings), _value(action), _default(action), text)


def _marked(text: str) -> str:
    """Help text as Markdown: flags as code."""
    text = text.replace("*", r"\*").replace("<", r"\<")
    return re.sub(r"(?<![`\w])(--[A-Za-z][\w-]*(?:=[\w.]+)?)", r"`\1`", text)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "switch"
    if action.choices:
        value = ", ".join(f"`{choice}`" for choice in action.choices)
    else:
        value = _TYPES[getattr(action.type, "__name__", "str")]
    return {"*": f"{value} …", "+": f"{value} …", "?": f"{value} or nothing"}.get(action.nargs, value)


def _default(action: argparse.Action) -> str:
    default = action.default
    if default is None or default is False or default == "" or default == argparse.SUPPRESS or action.nargs == 0:
        return ""
    return " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)


def flags_page() -> str:
    """The text of docs/flags.md."""
    training, hidden = read_groups(build_parser())
    sweep, _ = read_groups(build_sweep_parser(load_presets(None)))
    links = _links()
    for group in training:
        group.text = links.get(group.flags[0].names[0], "")
    training.append(Group("Accepted or refused without function", _WITHOUT_TEXT, hidden))
    for group in sweep:
        group.title = f"Sweep: {group.title}"
    counts = [sum(len(group.flags) for group in groups) for groups in (training[:-1], sweep)]
    lines = [_PREFACE.format(training=counts[0], sweep=counts[1], without=len(hidden)), "", "## Contents", ""]
    lines += [f"- [{group.title}](#{_anchor(group.title)})" for group in (*training, *sweep)]
    lines += ["", "## Training", ""]
    for group in training:
        lines += _section(group)
    lines += ["## The sweep launcher", "", _SWEEP_TEXT, ""]
    for group in sweep:
        lines += _section(group)
    return "\n".join(lines).rstrip() + "\n"


def _section(group: Group) -> Iterator[str]:
    yield f"### {group.title}\n"
    if group.text:
        yield f"{group.text}\n"
    yield "| flag | value | default | |\n| --- | --- | --- | --- |"
    yield from (flag.row for flag in group.flags)
    yield ""


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def _links() -> dict[str, str]:
    """A flag of a method or combiner -> where that is described."""
    return {action.option_strings[0]: f"Described in [{one.title}](methods.md#{one.anchor})."
            for one in (*describe_methods(), *describe_combiners()) for action in one.flags}


_WITHOUT_TEXT = """Published command lines carry them. Those that change nothing that matters are accepted with a
warning; those without which something else would be trained are refused. Their defaults are always accepted."""
_SWEEP_TEXT = """`distill/auto_tune.py` has these, and passes every other flag on to the training script. What they mean
together is told in [guide/sweeps.md](guide/sweeps.md)."""
_PREFACE = """# Flags

<!-- Written by `python -m scripts.describe_flags` from the parsers; a test compares. -->

`distill/pretrain.py` and `distill/finetune.py` have the same {training} flags and {without} more without function;
`distill/auto_tune.py` has {sweep} of its own. `--help` of each prints them too. No flag can be abbreviated, an unknown
one is answered with the nearest name, and the last value of a flag counts. With `--deepspeed`, learning rate and batch
sizes of the DeepSpeed file win over the command line, with a warning.

An empty default means that the flag is off, or that the value follows from others."""


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(flags_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
