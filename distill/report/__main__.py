"""Write a page about runs, which needs nothing but a browser: ``python -m distill.report RUN… [--output report.html]``.

A RUN is a run folder (``<--save>/<experiment>``), its folder of records, or a ``metrics.jsonl``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.report.page import render
from distill.report.records import read_run
from model.checkpoint.files import atomic_write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the words of a command line; returns the exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(prog="python -m distill.report", description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, folder of records, or metrics.jsonl")
    parser.add_argument("--output", default="report.html", help="file to write")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(Path(run)) for run in args.runs]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    atomic_write_text(render(runs), Path(args.output))
    sys.stdout.write(f"{args.output}: {len(runs)} run(s), {sum(len(run.train) for run in runs)} logged steps\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
