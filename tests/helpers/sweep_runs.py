"""Runs a published sweep: its commands are printed and understood, then each is tried with ``--fast-dev-run``."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.command_runs import (
    FLAG,
    ROOT,
    SCRIPTS,
    TIMEOUT,
    VERDICT,
    Command,
    Result,
    count_terms,
    execute,
    leftovers,
    num_ranks,
    scratch,
)


def run_sweep(command: Command, processes: int | None = None, *, print_only: bool = False) -> Result:
    """Run a sweep in an empty folder; it starts ``deepspeed`` by itself.

    Args:
        processes: ranks of each run; None for as many as its ``--gpus`` name.
        print_only: let it print its commands, and only give them to the parser.
    """
    words = [sys.executable, str(ROOT / SCRIPTS["tune"]), *command["args"]]
    if processes is not None:
        words.append(f"--gpus={','.join(map(str, range(processes)))}")
    ranks = processes or num_ranks(command)
    with scratch() as (work, temporary):
        began = time.monotonic()
        planned, problem = _planned(words, work, temporary)
        output, runs, terms = "", (0.0,) * len(planned), ""
        if not problem and not print_only:
            code, output = execute([*words, FLAG], work, temporary, TIMEOUT * len(planned), ends_others=True)
            problem, runs, terms = _judge(code, output, work, len(planned))
            problem = problem or _left(leftovers(work, temporary, "GLM"))
        return Result(command, "python" if print_only else "deepspeed", time.monotonic() - began, problem, output,
                      ranks, runs, terms)


def _planned(words: Sequence[str], work: Path, temporary: Path) -> tuple[list[dict[str, Any]], str]:
    """The commands that a sweep prints, and what is wrong with them. Printing may not leave anything behind."""
    code, output = execute([*words, "--print_only=json"], work, temporary, TIMEOUT)
    if code != 0:
        return [], f"--print_only ended with {code}: {output[-300:]}"
    planned = json.loads(output[output.index("["):])
    if left := leftovers(work, temporary):
        return planned, _left(left)
    problems = (misunderstood(one, temporary) for one in planned)
    return planned, next(filter(None, problems), "" if planned else "no command was planned")


def misunderstood(planned: dict[str, Any], temporary: Path) -> str:
    """Why the training script would not understand a planned command with the DeepSpeed file that is to be written.

    Args:
        planned: as ``--print_only=json`` prints it. temporary: a folder for that file.
    """
    from distill.arguments import parse_args

    words = planned["command"]
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    flags = words[place + 1:]
    if planned["deepspeed_config"] is not None:
        derived = temporary / "deepspeed.json"
        derived.write_text(json.dumps(planned["deepspeed_config"]), encoding="utf-8")
        flags = [*flags, f"--deepspeed_config={derived}"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parse_args(flags, Path(words[place]).stem)
    except (ValueError, SystemExit) as error:
        return f"{planned['task']}, stage {planned['stage']}: {said.getvalue() or error}"
    return ""


def _judge(code: int | str, output: str, work: Path, planned: int) -> tuple[str, tuple[float, ...], str]:
    """What is wrong with the results of a sweep, the seconds of its runs, and their numbers of loss terms."""
    studies = list((work.parent / "GLM" / "data" / "tmp").glob("tune_*/results.json"))
    if code != 0 or len(studies) != 1:
        return f"exit code {code}, {len(studies)} studies: {output[-300:]}", (), ""
    trials = json.loads(studies[0].read_text(encoding="utf-8"))["trials"]
    logs = [(studies[0].parent / trial["log"]).read_text(encoding="utf-8") for trial in trials]
    bad = [f"{trial['trial']} stage {trial['stage']}: {trial['state']} {trial['reason']}".strip()
           for trial, log in zip(trials, logs, strict=True) if trial["state"] != "done" or VERDICT not in log]
    if len(trials) != planned:
        bad.append(f"{len(trials)} of {planned} planned runs are in the results")
    counts = sorted({count_terms(log) or 0 for log in logs})
    return "; ".join(bad), tuple(trial["seconds"] for trial in trials), "-".join(
        map(str, dict.fromkeys((counts[0], counts[-1]))))


def _left(names: Sequence[str]) -> str:
    return f"left behind: {', '.join(names)}" if names else ""
