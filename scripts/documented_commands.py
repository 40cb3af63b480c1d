"""Finds the command lines in our Markdown pages and resolves their shell variables.

Read are fenced shell blocks, indented blocks and code spans. A page may define variables (``NAME="…"``), which its
later lines use, and write additions to a command below it as ``# + --flag``; each makes a further command. A page that
goes on from another one has its variables, too; it says ``<!-- variables: other.md -->``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The page with the command of every method; a heading names the method it belongs to: ``### PKD (`pkd`)``.
COMMANDS_PAGE = ROOT / "distill" / "readme.md"
#: Every page with commands for people to type.
PAGES = (ROOT / "README.md", COMMANDS_PAGE, *sorted((ROOT / "docs").rglob("*.md")))
_SCRIPT = re.compile(r"(distill/\w+|change_mp)\.py")
_ASSIGNMENT = re.compile(r"([A-Z_]+)=(\S+|\"[^\"]*\")")
_GOES_ON = re.compile(r"<!-- variables: (\S+) -->")
_HEADING = re.compile(r"### .+ \(`(\w+)`\)")


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        text: the line as written, continuation lines joined.
        script: ``distill/pretrain.py`` …
        args: the words behind the script; "…" and "<…>" are cut.
        has_gaps: whether something was cut, or left open inside a word, here or in a variable.
        section: the method whose section it stands in, or "".
        launcher: the words before the script.
    """

    text: str
    script: str
    args: tuple[str, ...]
    has_gaps: bool
    section: str
    launcher: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """``pretrain``, ``finetune`` …"""
        return self.script.removeprefix("distill/").removesuffix(".py")


def read_commands(page: Path) -> list[Command]:
    """All commands of a page, in order. Raises ValueError for a variable that the page does not define."""
    return _read(page)[0]


def _read(page: Path) -> tuple[list[Command], dict[str, str]]:
    """The commands of a page and its variables."""
    text, commands = page.read_text(encoding="utf-8"), []
    before = _GOES_ON.search(text)
    variables = _read(page.parent / before[1])[1] if before else {}
    base = ""
    for line, section in _code_lines(text):
        if line.startswith("# + "):
            commands.append(_command(f"{base} {line.removeprefix('# + ')}", variables, section, page))
        elif match := _ASSIGNMENT.fullmatch(line):
            variables[match[1]] = _resolve(match[2].strip('"'), variables, page)
        elif _SCRIPT.search(_resolve(line, variables, page)):
            base = line
            commands.append(_command(line, variables, section, page))
    return commands, variables


def shell_blocks(page: Path) -> dict[str, str]:
    """Method or combiner -> the shell blocks of its section, as written."""
    blocks: dict[str, str] = {}
    for section in re.split(r"(?m)^(?=##)", page.read_text(encoding="utf-8")):
        if heading := _HEADING.match(section):
            blocks[heading[1]] = "".join(re.findall(r"```shell\n(.*?)```", section, re.DOTALL))
    return blocks


def _code_lines(text: str) -> list[tuple[str, str]]:
    """Lines of code with the section they stand in; continuation lines are joined."""
    text = re.sub(r"[ \t]*\\\n[ \t]*", " ", text)
    lines: list[tuple[str, str]] = []
    section, fence = "", ""
    for line in text.splitlines():
        if line.strip().startswith("```"):
            fence = "" if fence else line.strip()[3:] or "text"
        elif fence == "shell":
            lines.append((line.strip(), section))
        elif not fence:
            if line.startswith("#"):
                match = _HEADING.match(line)
                section = match[1] if match else ""
            code = [line] if line.startswith("    ") else re.findall(r"`([^`]*\.py [^`]+)`", line)
            lines += [(part.strip(), section) for part in code if _SCRIPT.search(part)]
    return lines


def _resolve(text: str, variables: dict[str, str], page: Path) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"{page.name}: ${match[1]} is not defined above: {text[:80]}")
        return variables[match[1]]

    return re.sub(r"\$([A-Z_]+)\b", value, text)


def _command(line: str, variables: dict[str, str], section: str, page: Path) -> Command:
    resolved = _resolve(line, variables, page)
    words = shlex.split(re.sub(r"<[^>]*>", "…", resolved), comments=True)
    place = next(i for i, word in enumerate(words) if _SCRIPT.fullmatch(word))
    args = tuple(word for word in words[place + 1:] if word != "…")
    has_gaps = any("…" in word for word in words[place + 1:])
    return Command(line, words[place], args, has_gaps, section, tuple(words[:place]))
