"""`bash scripts/quickstart.sh [--recipe NAME] [--seeds N] [--run FOLDER] [--fresh]`: see the package's docstring."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from scripts.quickstart.compression import glmd_al
from scripts.quickstart.plan import quickstart
from scripts.quickstart.report import make_report, rich_table, summary, write_report
from scripts.quickstart.runner import ROOT, num_cores, run_plan
from scripts.quickstart.steps import TEXT_RECIPE, WORLD, Recipe, Source

MAX_JOBS = 4
EXPERIMENTS = {"quickstart": quickstart, "glmd-al": glmd_al}
#: Flags for text of one's own, all or none, and what they take.
OWN_FILES = {
    "train-text": "text to pretrain on, a document a line",
    "valid-text": "text for the validation loss",
    "vocabulary": "BERT WordPiece vocabulary of that text",
    "copa": "folder of COPA: train.jsonl and val.jsonl in SuperGLUE's format",
}


def make_parser() -> argparse.ArgumentParser:
    """The quick start's own flags."""
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart.sh",
        description="Pretrain a teacher and students on a generated world, distil, and show what distillation gained. "
        "Runs on the CPU. Started again, it goes on where it stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", choices=tuple(EXPERIMENTS), default="quickstart",
                        help="quickstart: what a teacher is worth; glmd-al: what half of the vocabulary costs")
    parser.add_argument("--seeds", type=int, default=1, help="students to train of each kind (default 1)")
    parser.add_argument("--run", type=Path, default=None, help="folder (default runs/<recipe>)")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier run left in the folder")
    parser.add_argument("--jobs", type=int, default=None, help="steps at a time (default: one a core, at most 4)")
    group = parser.add_argument_group("text of your own instead of the generated world (give all four)")
    for name, text in OWN_FILES.items():
        group.add_argument(f"--{name}", type=Path, default=None, help=text)
    return parser


def source_of(args: argparse.Namespace, run: Path) -> tuple[Source, Recipe]:
    """What is read, and the numbers that suit it. ValueError for files that are missing."""
    files = {name: getattr(args, name.replace("-", "_")) for name in OWN_FILES}
    if not any(files.values()):
        return Source.generated(run / WORLD), Recipe()
    if absent := [f"--{name}" for name, path in files.items() if path is None or not path.exists()]:
        raise ValueError(f"text of your own needs existing files for {', '.join(absent)} too")
    return Source(*(path.resolve() for path in files.values())), TEXT_RECIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything that is not done and show the table; 1 if a step failed, 130 if interrupted."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.seeds < 1 or (args.jobs is not None and args.jobs < 1):
        parser.error("--seeds and --jobs must be at least 1")
    run, console = (args.run or ROOT / "runs" / args.recipe).resolve(), Console(highlight=False)
    try:
        source, recipe = source_of(args, run)
    except ValueError as error:
        parser.error(str(error))
    jobs = args.jobs or min(MAX_JOBS, num_cores())
    if args.fresh:
        _remove_run(run)
    signal.signal(signal.SIGTERM, _interrupt)
    experiment = EXPERIMENTS[args.recipe](run, recipe, source, args.seeds)
    began = time.monotonic()
    if code := run_plan(run, experiment.steps, jobs=jobs, console=console):
        return code
    report = make_report(run, experiment)
    write_report(run, experiment, report)
    console.print()
    console.print(rich_table(report))
    for line in summary(experiment, report):
        console.print(line, soft_wrap=True)
    console.print(
        f"\nall in {time.monotonic() - began:.0f} s; table.md, table.json and curves.png are in {run}", soft_wrap=True
    )
    return 0


def _remove_run(run: Path) -> None:
    """Delete what the quick start itself writes; a folder of another kind is left alone."""
    for name in ("steps", "world"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("table.md", "table.json", "curves.png"):
        (run / name).unlink(missing_ok=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
