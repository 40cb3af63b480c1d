"""Writes docs/methods.md and the tables of methods in README.md from what the code says of itself.

    python -m scripts.describe_methods

Paper and summary are the first sentence of a method's file, ``Name (authors year, arXiv:number): what is matched.``;
flags come from argparse; commands and stages from distill/readme.md. What a method requires of the sizes is found by
trying: it is built, without memory, with the flags of its first command and unsuitable sizes.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from distill.arguments import parse_args, replace_args
from distill.distill_model import METHODS
from distill.multi_teacher_model import COMBINERS, MultiTeacherModel
from distill.student import GLMStudent
from distill.teachers import TeacherSpec, teacher_specs
from model.config import ModelConfig
from model.glm import GLMModel
from scripts.documented_commands import COMMANDS_PAGE, ROOT, Command, read_commands, shell_blocks

PAGE, README = ROOT / "docs" / "methods.md", ROOT / "README.md"
_FIRST_SENTENCE = re.compile(r"(?P<name>[^:(]+?)(?: \((?P<paper>.+?)\))?: (?P<summary>.+)\.")
_PAPERS = {"arXiv:": "https://arxiv.org/abs/", "aclanthology:": "https://aclanthology.org/"}
_STAGES = {"pretrain": "pretraining", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Description:
    """What the documents say of a method or combiner.

    Attributes:
        names: values of ``--student_model`` or ``--multi_teacher_model``.
        paper, summary, details: from the docstring, as Markdown.
        source: the file, relative to the root.
        flags: its own ones.
        commands: those of its section that use it.
        sizes: what it requires of the sizes.
        coupled: why a sample's loss depends on the other samples of the micro-batch, or "".
        coupled_by: the flag that makes it so, if the published commands do not.
    """

    names: tuple[str, ...]
    title: str
    paper: str
    summary: str
    details: str
    source: str
    flags: tuple[argparse.Action, ...]
    commands: tuple[Command, ...]
    sizes: str
    coupled: str
    coupled_by: str

    @property
    def coupled_cell(self) -> str:
        return f"with `{self.coupled_by}`" if self.coupled_by else "yes" if self.coupled else ""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^\w -]", "", f"{self.title} {' '.join(self.names)}").lower().replace(" ", "-")

    @property
    def stages(self) -> str:
        return ", ".join(text for stage, text in _STAGES.items() if any(c.stage == stage for c in self.commands))

    @property
    def flag_family(self) -> str:
        """``--pkd_*`` for several flags, the flag itself for one."""
        names = [action.option_strings[0] for action in self.flags]
        if len(names) < 2:
            return f"`{names[0]}`" if names else ""
        return f"`{os.path.commonprefix(names)}*`"


@cache
def describe_methods() -> list[Description]:
    """All methods of this version, in the order of distill/readme.md."""
    own = {name: cls for name, cls in METHODS.items() if cls.__module__.startswith("distill.methods.")}
    return _describe(own, "student_model", _student_sizes, _student_coupling)


@cache
def describe_combiners() -> list[Description]:
    """All combiners, in the order of distill/readme.md."""
    own = {name: cls for name, cls in COMBINERS.items() if cls.__module__.startswith("distill.multi_teacher.")}
    return _describe(own, "multi_teacher_model", lambda cls, commands: "", _combiner_coupling)


def methods_page() -> str:
    """The text of docs/methods.md."""
    methods, combiners = describe_methods(), describe_combiners()
    lines = [_PREFACE, "", "## Methods", "",
             "| `--student_model` | paper | stages | sizes | coupled | flags |",
             "| --- | --- | --- | --- | --- | --- |"]
    lines += [_row(f"[`{m.names[0]}`](#{m.anchor})", m.paper, m.stages, m.sizes, m.coupled_cell, m.flag_family)
              for m in methods]
    lines += ["", _COMBINER_PREFACE, "", "| `--multi_teacher_model` | paper | stages | coupled | flags |",
              "| --- | --- | --- | --- | --- |"]
    lines += [_row(f"[{_names(c)}](#{c.anchor})", c.paper, c.stages, c.coupled_cell, c.flag_family) for c in combiners]
    lines += ["", _PREFIX_PREFACE, "", *(f"```shell\n{block}```" for block in _prefix_blocks()), ""]
    blocks = shell_blocks(COMMANDS_PAGE)
    for description in (*methods, *combiners):
        lines += [*_section(description, blocks.get(description.names[0], "")), ""]
    return "\n".join(lines).rstrip() + "\n"


def readme_tables() -> dict[str, str]:
    """Marked place in README.md -> the table that stands there."""
    methods = ["| `--student_model` | paper | what the student learns from its teacher |", "| --- | --- | --- |"]
    methods += [_row(f"[`{m.names[0]}`](docs/methods.md#{m.anchor})", m.paper, m.summary) for m in describe_methods()]
    combiners = ["| `--multi_teacher_model` | paper | how the teachers are combined |", "| --- | --- | --- |"]
    combiners += [_row(f"[{_names(c)}](docs/methods.md#{c.anchor})", c.paper, c.summary) for c in describe_combiners()]
    return {"methods-table": "\n".join(methods), "combiners-table": "\n".join(combiners)}


def with_tables(readme: str) -> str:
    """The README's text with the present tables in their places. Raises ValueError if a place is missing."""
    for place, table in readme_tables().items():
        start, end = f"<!-- {place} -->\n", f"<!-- /{place} -->"
        if readme.count(start) != 1 or readme.count(end) != 1:
            raise ValueError(f"README.md needs one place {start.strip()} … {end}")
        before, _, rest = readme.partition(start)
        readme = f"{before}{start}{table}\n{end}{rest.partition(end)[2]}"
    return readme


# ---- from the code ----------------------------------------------------------------------------------------------

def _describe(registry: dict[str, type], flag: str, sizes: Callable[[type, tuple[Command, ...]], str],
              coupling: Callable[[type, tuple[Command, ...]], tuple[str, str]]) -> list[Description]:
    page, found = read_commands(COMMANDS_PAGE), []
    for cls in dict.fromkeys(registry.values()):
        names = tuple(name for name, other in registry.items() if other is cls)
        commands = tuple(command for command in page if command.section in names
                         and any(f"--{flag}={name}" in command.args for name in names))
        if not commands:
            raise ValueError(f"distill/readme.md has no section (`{names[0]}`) with a command of --{flag}={names[0]}")
        title, paper, summary, details = _docstring(cls)
        source = f"{cls.__module__.replace('.', '/')}.py"
        found.append(Description(names, title, paper, summary, details, source, _own_flags(cls), commands,
                                 sizes(cls, commands), *coupling(cls, commands)))
    order = list(shell_blocks(COMMANDS_PAGE))
    return sorted(found, key=lambda description: order.index(description.names[0]))


def _docstring(cls: type) -> tuple[str, str, str, str]:
    """Title, paper, summary and the rest of the docstring of a class's file, as Markdown."""
    text = (sys.modules[cls.__module__].__doc__ or "").strip()
    first, _, rest = text.partition("\n\n")
    match = _FIRST_SENTENCE.fullmatch(" ".join(first.split()))
    if match is None:
        raise ValueError(f"{cls.__module__}: the docstring has to begin 'Name (authors year, arXiv:number): summary.'")
    summary = match["summary"][0].upper() + match["summary"][1:]
    return match["name"], _papers(match["paper"] or ""), _markdown(summary), _markdown(rest)


def _papers(text: str) -> str:
    """``Jiao et al. 2020, arXiv:1909.10351`` as a link; several are separated by semicolons."""
    links = []
    for paper in filter(None, text.split("; ")):
        words = paper.split(", ")
        target = next((word for word in words if word.startswith(tuple(_PAPERS))), "")
        kind = next((kind for kind in _PAPERS if target.startswith(kind)), "")
        label = ", ".join(word for word in words if word != target)
        links.append(f"[{label}]({_PAPERS[kind]}{target.removeprefix(kind)})" if target else label)
    return "; ".join(links)


def _markdown(text: str) -> str:
    """Docstring markup as Markdown: code, references, and formulas set off from the text."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    parts = re.split(r"(`[^`\n]*`|(?m:^    .*$))", text)
    return "".join(part if i % 2 else re.sub(r"([*<])", r"\\\1", part) for i, part in enumerate(parts))


def _own_flags(cls: type[GLMStudent] | type[MultiTeacherModel]) -> tuple[argparse.Action, ...]:
    parser = argparse.ArgumentParser(add_help=False)
    if "add_flags" in vars(cls):
        cls.add_flags(parser)
    return tuple(parser._actions)


# ---- from trying ------------------------------------------------------------------------------------------------

@cache
def _glm(config: ModelConfig) -> nn.Module:
    with torch.device("meta"):
        return GLMModel(config)


def _student(cls: type[GLMStudent], command: Command, words: tuple[str, ...] = (), **changes: Any) -> GLMStudent:
    """A student without memory, from the arguments of a command, more words, and changed values."""
    args = replace_args(_parsed((*command.args, *words), command.stage), **changes)
    config = replace(ModelConfig.from_args(args, vocab_size=128), map_vocab_size=0, unmap_vocab_output=False)
    with torch.device("meta"):
        return cls(_glm(config), args, teachers=teacher_specs(args))


@cache
def _parsed(words: tuple[str, ...], stage: str) -> Any:
    return parse_args(words, stage)


def _student_sizes(cls: type[GLMStudent], commands: tuple[Command, ...]) -> str:
    return ", ".join(rule for rule, words, change in _UNSUITABLE if not _suits(cls, commands[0], words, change))


#: Rule, words that change the student, change of each teacher: sizes that break the rule and no other one.
_UNSUITABLE: tuple[tuple[str, tuple[str, ...], Callable[[TeacherSpec], dict[str, int]]], ...] = (
    ("equal widths", (), lambda t: {"hidden_size": 2 * t.hidden_size}),
    ("equal heads", (), lambda t: {"num_attention_heads": 2 * t.num_attention_heads}),
    ("S ≤ T", ("--num-layers=13",), lambda t: {"num_layers": 12}),
    ("S ≥ 2", ("--num-layers=1",), lambda t: {}),
    ("parts divide the widths", ("--hidden-size=804",), lambda t: {"hidden_size": 804}),
)


def _suits(cls: type[GLMStudent], command: Command, words: tuple[str, ...],
           change: Callable[[TeacherSpec], dict[str, int]]) -> bool:
    student = _student(cls, command, words)
    try:
        for spec in student.teachers:
            student.check_sizes(replace(spec, **change(spec)))
    except ValueError:
        return False
    return True


def _student_coupling(cls: type[GLMStudent], commands: tuple[Command, ...]) -> tuple[str, str]:
    """The reason under the published commands; else under one more flag of the method, and this flag."""
    for command in commands:
        if reason := _student(cls, command).batch_coupled:
            return reason, ""
    for action in _own_flags(cls):
        if action.choices is None and action.type in (None, int, float):
            value = True if action.nargs == 0 else 2 if action.type else "2"
            try:
                reason = _student(cls, commands[0], **{action.dest: value}).batch_coupled
            except ValueError:  # not a value that this flag can have
                continue
            if reason:
                return reason, action.option_strings[0]
    return "", ""


def _combiner_coupling(cls: type[MultiTeacherModel], commands: tuple[Command, ...]) -> tuple[str, str]:
    reasons = [cls(_parsed(command.args, command.stage)).batch_coupled for command in commands]
    return next(filter(None, reasons), ""), ""


# ---- as text ----------------------------------------------------------------------------------------------------

def _section(description: Description, commands: str) -> Iterator[str]:
    yield f"## {description.title} ({_names(description)})\n"
    yield f"{description.paper or 'No paper'}. Code: [{description.source}](../{description.source}).\n"
    yield f"{description.summary}.\n"
    if description.details:
        yield f"{description.details}\n"
    if description.sizes:
        yield f"Sizes: {description.sizes}.\n"
    if description.coupled:
        condition = f" with `{description.coupled_by}`" if description.coupled_by else ""
        yield f"Coupled{condition}: {description.coupled}.\n"
    yield f"```shell\n{commands}```"
    if description.flags:
        yield "\n| flag | default | |\n| --- | --- | --- |"
        yield from (_row(f"`{action.option_strings[0]}`", _default(action), action.help or "")
                    for action in description.flags)


def _default(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "off"
    return "" if action.default in (None, "") else f"`{action.default}`"


def _names(description: Description) -> str:
    return ", ".join(f"`{name}`" for name in description.names)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _prefix_blocks() -> list[str]:
    text = COMMANDS_PAGE.read_text(encoding="utf-8")
    return re.findall(r"```shell\n(.*?)```", text[text.index("## Prefixes"):text.index("## One teacher")], re.DOTALL)


_PREFACE = """# Methods

<!-- Written by `python -m scripts.describe_methods` from the code and distill/readme.md; a test compares. -->

Every method is one class in a file of its own, every combiner of several teachers another. The commands are the
published ones; more of them, and recipes that join methods, stand in [distill/readme.md](../distill/readme.md).

- **stages**: where the published commands use it.
- **sizes**: what a method requires with the flags of its first command, with S layers in the student and T in the
  teacher. An error before the first step gives the numbers, and the flag that does without, where there is one. Where
  nothing is said, any sizes go together. `mixbaseline` has the needs of its members, here TinyBERT, MiniLMv2, MiniLM
  and DistilBERT.
- **coupled**: the loss of a sample depends on the others of its micro-batch, so it matters how a batch is split over
  ranks and accumulation. All other losses are the same for every split; the tests hold them to it.
- **formulas**: `s` and `t` are student and teacher; `seg k` is the teacher's layer that stands for layer k of the
  student (evenly spaced); hidden state 0 is the embedding."""

_COMBINER_PREFACE = """## Combiners

With several teachers (`--mt_load_pretrained=p1:p2 --mt_num_layers=24:12 …`), a combiner makes one loss of theirs. It
goes with every method."""

_PREFIX_PREFACE = """## Prefixes of the commands

The methods share these; [distill/readme.md](../distill/readme.md#prefixes) says how stages and teachers are joined.
`# + flags` are published additions."""


def main() -> None:
    """Rewrite both files."""
    logging.disable(logging.WARNING)
    PAGE.write_text(methods_page(), encoding="utf-8")
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
