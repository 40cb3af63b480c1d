"""Flags of the running side of a sweep: search, seeds, devices, time-outs, resuming."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from distill.sweep.domains import SYNTAX
from distill.sweep.process import GRACE

#: Flags that do not change what is run: they may be others when a sweep is continued.
RUNNING_FLAGS = ("--parallel", "--trial_timeout", "--grace", "--max_retries", "--retry_wait")
_FOLDER_FLAGS, _SWITCHES = ("--study", "--resume"), ("--retry_failed",)
#: Steps of a dry run where ``--fast-dev-run`` has no number, as in the training scripts.
DRY_STEPS = 2
#: More seeds than this are taken for a seed that was meant, not for a number of seeds.
MOST_SEEDS = 100


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of search, running and reporting to the launcher's parser."""
    _add_search(parser.add_argument_group(
        "Search", f"A searched value stands in place of a forwarded flag's, stage flag's or --ds_ flag's: {SYNTAX}"))
    _add_running(parser.add_argument_group("Running"))
    _add_study(parser.add_argument_group("Study and results"))


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--search", choices=("grid", "random", "tpe"), default="grid",
                       help="how configurations are chosen from the searched values: all combinations, at random, or "
                            "by the tree-structured Parzen estimator (the last two need optuna)")
    group.add_argument("--search_space", default=None, metavar="FILE.json",
                       help="searched values by flag name, in the same notation")
    group.add_argument("--n_trials", type=int, default=None,
                       help="configurations for each task (random, tpe; default 20)")
    group.add_argument("--search_seed", type=int, default=0, help="seed of random and tpe")
    group.add_argument("--pruner", choices=("none", "median", "asha"), default="none",
                       help="end a configuration whose scores stay behind those of others after as many evaluations: "
                            "below their median, or not in the best third of a rung (needs optuna)")
    group.add_argument("--pruner_startup", type=int, default=4,
                       help="median: configurations that run to the end before one is pruned")
    group.add_argument("--pruner_warmup", type=int, default=1,
                       help="evaluations of a configuration before it may be pruned")
    group.add_argument("--seeds", default=None, metavar="N|A,B,C",
                       help="repeat every configuration with N seeds from --seed_base on, or with the seeds listed "
                            "(one seed: 'A,'); results are given as mean and standard deviation (n-1)")
    group.add_argument("--seed_base", type=int, default=1234, help="first seed of --seeds=N")
    group.add_argument("--objective", default=None, metavar="METRIC",
                       help="metric that ranks configurations (default: mean of those that are shown for the task "
                            "and have the direction of the first one)")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--parallel", type=int, default=None, metavar="N",
                       help="trials at the same time at most (default: as many as the devices allow; 1 on a CPU)")
    group.add_argument("--gpus_per_trial", type=int, default=None, metavar="N",
                       help="devices of --gpus that a trial gets (default: all of them); big tasks get all of "
                            "--big_task_gpus")
    group.add_argument("--trial_timeout", type=float, default=None, metavar="SECONDS",
                       help="end the processes of a stage that runs longer")
    group.add_argument("--grace", type=float, default=GRACE, metavar="SECONDS",
                       help="time that processes get to save when they are asked to end; then they are killed")
    group.add_argument("--max_retries", type=int, default=1, metavar="N",
                       help="start a stage again after a crash at most N times. A refused command line, a time-out and "
                            "a lack of memory are not tried again")
    group.add_argument("--retry_wait", type=float, default=10.0, metavar="SECONDS",
                       help="pause before a stage is started again; doubled each time")
    group.add_argument("--stage_from", choices=("first", "previous"), default="first",
                       help="which stage the stages of --again_K__ start from")
    group.add_argument("--fast-dev-run", dest="fast_dev_run", nargs="?", type=int, const=DRY_STEPS, default=0,
                       metavar="N", help="pass --fast-dev-run to every training command: a few steps of a small model")


def _add_study(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--study", default=None, metavar="FOLDER",
                       help="folder of the sweep (default: tmp/tune_<time> below the data root). An interrupted sweep "
                            "with the same arguments is continued")
    group.add_argument("--resume", default=None, metavar="FOLDER",
                       help="continue the sweep of this folder with the arguments stored there, without repeating "
                            f"finished trials; {', '.join(RUNNING_FLAGS)} may be other ones")
    group.add_argument("--retry_failed", action="store_true", help="with --resume: run failed stages again, too")
    group.add_argument("--print_only", choices=("shell", "json"), default=None,
                       help="print the planned commands in this form and stop")


def parse_seeds(text: str | None, base: int) -> tuple[int | None, ...]:
    """The seeds of ``--seeds``; (None,) without it: the commands keep the seed that they have.

    Raises:
        ValueError: not a number or a list of different numbers, or far too many seeds.
    """
    if text is None:
        return (None,)
    words = [word.strip() for word in text.split(",")]
    try:
        numbers = [int(word) for word in words if word]
    except ValueError:
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or any(number < 0 for number in numbers):
        raise ValueError(f"--seeds={text}: give a number of seeds (3) or different seeds (1,2,3; one seed: '7,')")
    if len(words) > 1:
        return tuple(numbers)
    if not 0 < numbers[0] <= MOST_SEEDS:
        raise ValueError(f"--seeds={text} asks for {text} runs of every configuration (1 to {MOST_SEEDS} are allowed); "
                         f"for the one seed {text} write --seeds={text},")
    return tuple(range(base, base + numbers[0]))


def split_words(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of a command line that say what is run, and those that say how (:data:`RUNNING_FLAGS`); those that name
    the folder are in neither."""
    plan, running = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if name not in (*RUNNING_FLAGS, *_FOLDER_FLAGS, *_SWITCHES):
            plan.append(word)
            continue
        value = [] if equals or name in _SWITCHES or not rest else [rest.pop(0)]
        if name in RUNNING_FLAGS:
            running += [word, *value]
    return tuple(plan), tuple(running)


def check_search_flags(args: argparse.Namespace, *, has_space: bool, has_ranges: bool) -> None:
    """Refuse combinations of flags that cannot mean anything.

    Args:
        has_space: whether a flag has searched values. has_ranges: whether one of them is a range.

    Raises:
        ValueError: naming flag, value and way out.
    """
    for name, least in (("parallel", 1), ("gpus_per_trial", 1), ("n_trials", 1), ("max_retries", 0),
                        ("pruner_startup", 0), ("pruner_warmup", 0), ("fast_dev_run", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name}={value}: give at least {least}")
    for name in ("trial_timeout", "retry_wait", "grace"):
        value = getattr(args, name)
        if value is not None and not (value > 0 or name != "trial_timeout" and value == 0):
            raise ValueError(f"--{name}={value:g}: give a number of seconds, 0 or more" if name != "trial_timeout" else
                             f"--trial_timeout={value:g}: give a number of seconds above 0")
    if args.search != "grid" and not has_space:
        raise ValueError(f"--search={args.search}, but no flag has values to search; write for instance "
                         f"--ds_optimizer__params__lr=float:1e-6..5e-5:log ({SYNTAX})")
    if args.search == "grid" and args.n_trials is not None:
        raise ValueError(f"--n_trials={args.n_trials} has no meaning with --search=grid, which runs every combination; "
                         "add --search=random or --search=tpe")
    if args.search == "grid" and has_ranges:
        raise ValueError("a range (float:, int:) has no grid; list values (grid:1e-5,2e-5) or add --search=random or "
                         "--search=tpe")
    if args.pruner != "none" and not has_space:
        raise ValueError(f"--pruner={args.pruner} compares configurations, but no flag has values to search: leave it "
                         f"out, or give some ({SYNTAX})")
    parse_seeds(args.seeds, args.seed_base)
