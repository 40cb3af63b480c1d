"""Which of many command lines the training scripts would refuse; they are parsed and checked, nothing is run.

    python -m distill.command_check < commands.json

Reads a JSON list of objects: ``stage`` ("pretrain" or "finetune"), ``words`` and ``processes`` (that the command will
have). Writes a JSON list: for each the ``unknown`` flags (with the ``known`` ones, if there are any), the
``problem`` it would end with ("" for none), and the ``metrics`` of its scores (of fine-tuning, where there is no
problem).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from distill.arguments import FINETUNE, build_parser, parse_args
from tasks.registry import find_task


def check_command(stage: str, words: Sequence[str], processes: int) -> dict[str, Any]:
    """What is wrong with one command line."""
    said = io.StringIO()
    os.environ["WORLD_SIZE"] = str(processes)
    try:
        with contextlib.redirect_stderr(said):
            parser = build_parser(stage)
            unknown = parser.parse_known_args(list(words))[1]
            if unknown:
                return {"unknown": unknown, "known": list(parser._option_string_actions), "problem": ""}
            args = parse_args(words, stage)
        return {"unknown": [], "problem": "", "metrics": [*find_task(args.task, args).metrics] if stage == FINETUNE
                else []}
    except SystemExit:
        return {"unknown": [], "problem": said.getvalue().strip()}
    except (ValueError, OSError) as error:
        return {"unknown": [], "problem": str(error)}


def main() -> None:
    """Check all commands of the standard input."""
    logging.disable(logging.WARNING)
    json.dump([check_command(**command) for command in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
