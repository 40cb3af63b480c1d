"""Tries command lines with ``--fast-dev-run``, several at a time, and prints a table.

``scripts/check_commands.sh`` sets up the environment and calls it with the same flags.

    python -m tests.run_commands                          every published command, by deepspeed on the CPU
    python -m tests.run_commands --id kd-1 pd-1           some, by id
    python -m tests.run_commands --method KD PD           those of a method
    python -m tests.run_commands --commands FILE.json     another list
    python -m tests.run_commands --docs                   those of our pages that are not published ones
    python -m tests.run_commands --launcher python torchrun deepspeed --processes 2 --id kd-1

A sweep is run with all its stages, which takes minutes; ``--sweeps=print`` only has it print its commands and gives
them to the parser. Exit code 1 if a command did not do what its list expects of it, or left something behind.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from scripts.documented_commands import PAGES, ROOT, read_commands
from tests.helpers.command_runs import (
    LAUNCHERS,
    LIMIT,
    SCRIPTS,
    Command,
    Result,
    end_all,
    num_ranks,
    run_here,
    run_launched,
    run_reshard,
)
from tests.helpers.sweep_runs import run_sweep

LIST = Path(__file__).with_name("seed_commands.json")
TRAINING = ("pretrain", "finetune")
#: Where ``--markdown`` puts the table of a page that has such a place.
START, END = "<!-- commands-table -->\n", "<!-- /commands-table -->\n"
#: Arguments that do not belong to what a command means: the folder of a dry run, and what DIITO could leave out.
NOT_COMPARED = ("start_notes", "checkpoint_activations")


# ---- lists ------------------------------------------------------------------------------------------------------

def published(path: Path = LIST, kinds: Sequence[str] = tuple(SCRIPTS)) -> list[Command]:
    """The commands of a list, by kind. ValueError for a file that is no such list."""
    try:
        commands = [_read(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--commands={path} is no list of commands with id, method, kind and args: "
                         f"{type(error).__name__}: {error}") from error
    if unknown := {command["kind"] for command in commands} - set(SCRIPTS):
        raise ValueError(f"--commands={path}: unknown kind {', '.join(sorted(unknown))}; known: {', '.join(SCRIPTS)}")
    return [command for command in commands if command["kind"] in kinds]


def _read(entry: Command) -> Command:
    """An entry; where placeholders were filled in to make it runnable, that form is taken."""
    launcher = entry.get("launcher", ())
    words = launcher["args"] if isinstance(launcher, dict) else launcher
    is_python = isinstance(launcher, dict) and launcher.get("program") != "deepspeed"
    return {"id": entry["id"], "method": entry["method"], "kind": entry["kind"],
            "args": list(entry.get("args_runnable", entry["args"])), "launcher": [] if is_python else list(words),
            **({"expect": entry["expect"]} if "expect" in entry else {})}


def documented(known: Sequence[Command] = ()) -> list[Command]:
    """The training commands of our pages without gaps, each once; ``known`` ones are left out."""
    seen = {meaning(tuple(command["args"]), command["kind"]) for command in known if command["kind"] in TRAINING}
    commands = []
    for page in PAGES:
        for number, command in enumerate(read_commands(page), 1):
            if command.stage not in TRAINING or command.has_gaps:
                continue
            if (what := meaning(command.args, command.stage)) not in seen:
                seen.add(what)
                words = [f"--num_gpus={num_ranks({'kind': '', 'launcher': command.launcher})}"]
                commands.append({"id": f"{page.relative_to(ROOT)}-{number}", "method": command.section or page.stem,
                                 "kind": command.stage, "args": list(command.args), "launcher": words})
    return commands


@functools.cache
def meaning(args: tuple[str, ...], stage: str) -> frozenset[tuple[str, str]]:
    """Every argument's value, after parsing."""
    from distill.arguments import parse_args

    values = vars(parse_args(args, stage))
    return frozenset({("stage", stage), *((name, repr(value)) for name, value in values.items()
                                          if name not in NOT_COMPARED)})


def chosen(commands: Sequence[Command], ids: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Command]:
    """Commands by id and by method, all without either. ValueError for an unknown id or method."""
    for names, key in ((ids, "id"), (methods, "method")):
        if unknown := set(names) - {command[key] for command in commands}:
            raise ValueError(f"no command with the {key} {', '.join(sorted(unknown))}; known: "
                             f"{', '.join(dict.fromkeys(command[key] for command in commands))}")
    return [command for command in commands
            if not (ids or methods) or command["id"] in ids or command["method"] in methods]


# ---- running ----------------------------------------------------------------------------------------------------

def run_all(commands: Sequence[Command], launchers: Sequence[str] = ("none",), *, processes: int | None = None,
            jobs: int | None = None, print_sweeps: bool = False) -> list[Result]:
    """Run commands, each by each launcher, ``jobs`` at a time (default: one a core).

    Those with more ranks than there are cores run one after another. Sweeps and resharding are programs of their own
    under every launcher. Results are in the order of the commands.
    """
    tasks = [(command, launcher) for command in commands
             for launcher in (launchers if command["kind"] in TRAINING else launchers[:1])]
    cores = len(os.sched_getaffinity(0))
    jobs = max(1, min(len(tasks), jobs or cores))
    here = [i for i, (command, launcher) in enumerate(tasks) if launcher == "none" and command["kind"] in TRAINING]
    launched = [i for i in range(len(tasks)) if i not in set(here)]
    wide = [i for i in launched if (processes or num_ranks(tasks[i][0])) > cores]
    results: dict[int, Result] = {}
    with tqdm(total=len(tasks), unit="command", disable=None) as bar:
        if jobs == 1:
            for i in here:
                results[i] = run_here(tasks[i][0])
                bar.update()
        elif here:
            with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
                _collect({pool.submit(run_here, tasks[i][0]): i for i in here}, results, bar)
        for numbers, width in ((sorted(set(launched) - set(wide)), jobs), (wide, 1)):
            _launch({i: partial(_run, *tasks[i], processes, print_sweeps) for i in numbers}, width, results, bar)
    return [results[i] for i in range(len(tasks))]


def _run(command: Command, launcher: str, processes: int | None, print_sweeps: bool) -> Result:
    if command["kind"] == "tune":
        return run_sweep(command, processes, print_only=print_sweeps)
    return run_reshard(command) if command["kind"] == "reshard" else run_launched(command, launcher, processes)


def _launch(tasks: dict[int, Callable[[], Result]], jobs: int, results: dict[int, Result], bar: tqdm) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        try:
            _collect({pool.submit(task): i for i, task in tasks.items()}, results, bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise


def _collect(futures: dict[Future[Result], int], results: dict[int, Result], bar: tqdm) -> None:
    for future in as_completed(futures):
        results[futures[future]] = future.result()
        bar.update()


# ---- tables -----------------------------------------------------------------------------------------------------

def text_table(results: Sequence[Result]) -> str:
    """One line for each command."""
    width = max(len(result.command["id"]) for result in results)
    lines = [f"{'id':<{width}}  {'launcher':<9}  {'seconds':>7}  {'terms':>5}  result"]
    lines += [f"{result.command['id']:<{width}}  {result.launcher:<9}  {result.seconds:7.1f}  "
              f"{result.terms or '–':>5}  {result.verdict}" for result in results]
    return "\n".join(lines)


def summary(results: Sequence[Result], seconds: float) -> str:
    """Counts and times in a sentence."""
    failed, slow = sum(bool(result.problem) for result in results), sum(result.is_slow for result in results)
    each = sorted(result.seconds for result in results)
    return (f"{len(results)} commands, {failed} failed, {slow} over {LIMIT} s a run; median "
            f"{statistics.median(each):.1f} s, longest {each[-1]:.1f} s, {seconds:.0f} s in all")


def markdown_table(results: Sequence[Result], seconds: float) -> str:
    """The table as Markdown, below a line of summary; one launcher of all training commands gets no column."""
    launchers = sorted({result.launcher for result in results if result.command["kind"] in TRAINING})
    rows = [{"id": f"`{result.command['id']}`", "method": result.command["method"], "launcher": result.launcher,
             "ranks": str(result.ranks), "seconds": f"{result.seconds:.1f}", "terms": result.terms or "–",
             "result": result.verdict} for result in results]
    head = [name for name in rows[0] if name != "launcher" or len(launchers) > 1]
    by = f"Launcher: {', '.join(launchers)}. " if launchers else ""
    lines = [f"{by}{summary(results, seconds)}.\n", _row(head),
             _row("---:" if name in ("ranks", "seconds", "terms") else "---" for name in head)]
    return "\n".join([*lines, *(_row(row[name].replace("|", "\\|") for name in head) for row in rows)]) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_markdown(path: Path, table: str) -> None:
    """Put a table in its place in a page, or write a file of its own. ValueError for a page without the place."""
    if not path.exists():
        path.write_text(table, encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"--markdown={path} exists and has no place {START.strip()} … {END.strip()}")
    before, _, rest = text.partition(START)
    path.write_text(f"{before}{START}{table}{END}{rest.partition(END)[2]}", encoding="utf-8")


# ---- command line -----------------------------------------------------------------------------------------------

def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(prog="check_commands.sh", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=Path, default=LIST, metavar="FILE.json",
                        help="the list; default: all published ones")
    parser.add_argument("--docs", action="store_true",
                        help="instead, the complete commands of our pages that are not in the list")
    parser.add_argument("--id", nargs="+", action="extend", default=[], metavar="ID", dest="ids", help="only these")
    parser.add_argument("--method", nargs="+", action="extend", default=[], metavar="NAME", dest="methods",
                        help="only those of these methods, as the list names them")
    parser.add_argument("--launcher", nargs="+", choices=LAUNCHERS, default=["deepspeed"], help="default: deepspeed")
    parser.add_argument("--processes", type=int, default=None, metavar="N",
                        help="ranks of a launched command; default: as published")
    parser.add_argument("--sweeps", choices=("run", "print"), default="run",
                        help="what to do with sweeps; default: run")
    parser.add_argument("--jobs", type=int, default=None, metavar="N",
                        help="commands at a time; default: one a core")
    parser.add_argument("--markdown", type=Path, default=None, metavar="FILE.md",
                        help="write the table to a new file, or to its place in a page")
    parser.add_argument("--verbose", action="store_true", help="print what failing commands wrote")
    parser.add_argument("--from", type=Path, default=Path.cwd(), dest="base", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, print the table; 1 if a command failed, 2 for a bad command line."""
    args = make_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.disable(logging.WARNING)  # of the commands that are only compared
    try:
        commands = published(args.base / args.commands)
        commands = chosen(documented(commands) if args.docs else commands, args.ids, args.methods)
        if not commands:
            raise ValueError("no command to run")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        logging.disable(logging.NOTSET)
    began = time.monotonic()
    results = run_all(commands, args.launcher, processes=args.processes, jobs=args.jobs,
                      print_sweeps=args.sweeps == "print")
    seconds = time.monotonic() - began
    for result in results:
        if result.problem and args.verbose:
            sys.stdout.write(f"---- {result.command['id']}\n{result.output}\n")
    sys.stdout.write(f"{text_table(results)}\n{summary(results, seconds)}\n")
    if args.markdown is not None:
        write_markdown(args.base / args.markdown, markdown_table(results, seconds))
    return int(any(result.problem for result in results))


def _stop(number: int, frame: object) -> NoReturn:
    """SIGTERM ends the commands as an interrupt does."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
