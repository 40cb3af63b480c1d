"""`bash scripts/superglue.sh (--world | --data DIR --text FILE --vocab FILE) [TASK …]`: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from scripts.quickstart.runner import ROOT, num_cores, run_plan
from scripts.quickstart.steps import Step
from scripts.superglue.plan import DIAGNOSTICS, REAL, WORLD_RECIPE, Files, Recipe, make_plan, presets, task_names
from scripts.superglue.report import COMMANDS, put_into_page, report_parts


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="scripts/superglue.sh", allow_abbrev=False,
        description="Pretrain a small teacher and a small student, fine-tune both on the tasks of SuperGLUE (the "
        "student by its teacher), and write a table. On the CPU. Started again, it goes on where it stopped.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"default: all ({', '.join(task_names())})")
    parser.add_argument("--world", action="store_true", help="the text and the tasks of the generated world")
    parser.add_argument("--data", type=Path, help="folder with one folder a task (python -m tasks.superglue.download)")
    parser.add_argument("--text", type=Path, nargs="+", help="text to pretrain on")
    parser.add_argument("--vocab", type=Path, help="WordPiece vocabulary of that text")
    parser.add_argument("--run", type=Path, default=None, help="folder (default runs/superglue[-world])")
    parser.add_argument("--jobs", type=int, default=None, help="steps at a time (default: one a core, at most 4)")
    parser.add_argument("--markdown", type=Path, default=None, help="also put the report into a page, between "
                        "<!-- superglue --> (with --world: superglue-world) and <!-- /superglue -->")
    parser.add_argument("--from", type=Path, default=Path.cwd(), dest="base", help=argparse.SUPPRESS)
    return parser


def files_of(args: argparse.Namespace, run: Path) -> tuple[Files, Recipe]:
    """What is read and the numbers that suit it. ValueError for a missing flag, file or task."""
    if unknown := set(args.tasks) - set(task_names()):
        raise ValueError(f"unknown task {', '.join(sorted(unknown))}; known: {', '.join(task_names())}")
    given = {"--data": args.data, "--text": args.text, "--vocab": args.vocab}
    if args.world:
        if any(given.values()):
            raise ValueError("--world brings its own files: leave --data, --text and --vocab out")
        return Files.generated(run), WORLD_RECIPE
    if absent := [flag for flag, value in given.items() if value is None]:
        raise ValueError(f"{', '.join(absent)} is missing: give all of {', '.join(given)}, or --world alone")
    data, vocab, *text = (_absolute(path, args.base) for path in (args.data, args.vocab, *args.text))
    for path in (data, vocab, *text):
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    return Files(tuple(text), vocab, data), REAL


def chosen_tasks(args: argparse.Namespace, files: Files) -> tuple[list[str], list[str]]:
    """The tasks to run, and those of them without a folder (a task that was asked for must have one).

    Raises:
        ValueError: for such a task; the message says where its files belong.
    """
    wanted, folders = list(args.tasks or task_names()), {name: preset.data for name, preset in presets().items()}
    folders = {**folders, "wsc": folders["wsc_generative"], **DIAGNOSTICS}
    absent = [] if files.is_world else [name for name in wanted if not (files.tasks / folders[name]).is_dir()]
    if args.tasks and absent:
        raise ValueError(f"no folder {files.tasks / folders[absent[0]]} for the task {absent[0]}; "
                         f"python -m tasks.superglue.download {files.tasks} {folders[absent[0]]} makes it")
    return [name for name in wanted if name not in absent], [folders[name] for name in absent]


def start_command(step: Step, words: list[str]) -> list[str]:
    """A script in a process of this Python, without a launcher; a module of ours."""
    return [sys.executable, *([] if words[0].endswith(".py") else ["-m"]), *words]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done and write the report; 1 if a step failed, 130 if interrupted."""
    parser = make_parser()
    args = parser.parse_args(argv)
    run = _absolute(args.run or ROOT / "runs" / run_name(args), args.base)
    try:
        files, recipe = files_of(args, run)
        tasks, absent = chosen_tasks(args, files)
    except ValueError as error:
        parser.error(str(error))
    console, jobs = Console(highlight=False), args.jobs or min(4, num_cores())
    signal.signal(signal.SIGTERM, _interrupt)
    plan = make_plan(run, recipe, files, tasks)
    if code := run_plan(run, plan, jobs=jobs, console=console, command=start_command):
        return code
    text = "\n".join((f"`{command_line(args)}`\n", *report_parts(run, recipe, files, plan, absent, args.base)))
    try:
        (run / "report.md").write_text(text, encoding="utf-8")
        if args.markdown:
            put_into_page(args.base / args.markdown, run_name(args), text)
    except (ValueError, OSError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 1
    console.print(f"\n{escape(text.partition(COMMANDS)[0])}\nreport.md is in {run}", soft_wrap=True)
    return 0


def run_name(args: argparse.Namespace) -> str:
    """Of the folder of a run, and of its place in a page."""
    return "superglue-world" if args.world else "superglue"


def command_line(args: argparse.Namespace) -> str:
    """The command that made the report."""
    files = ["--world"] if args.world else ["--data", str(args.data), "--text", *map(str, args.text), "--vocab",
                                            str(args.vocab)]
    return shlex.join(["bash", "scripts/superglue.sh", *files, *args.tasks])


def _absolute(path: Path, base: Path) -> Path:
    """A path of the command line, which was typed in ``base``; links keep their names."""
    return Path(os.path.abspath(base / path))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
