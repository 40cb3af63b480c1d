"""Run a list of tasks with one model, or search for the best values of flags, and collect the scores.

    python distill/auto_tune.py --model=block_tiny6 --task_t_load=base --tasks=copa,cb --student_model=kd …

Flags that the launcher does not have go to the training script. ``--test`` prints the commands only.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Started by its path, Python puts the folder of this script first, not the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distill.sweep import display, dry
from distill.sweep.checks import check_plans
from distill.sweep.flags import SweepArgs, parse
from distill.sweep.overruled import refuse_searched
from distill.sweep.plan import check_folders, find_search_space, notes, plan_possible, plan_tasks
from distill.sweep.runner import run_sweep
from distill.sweep.search import example_point, neighbours
from distill.sweep.search_flags import parse_seeds
from distill.sweep.teacher_entries import load_teacher_entries

logger = logging.getLogger(__name__)
#: As argparse ends where a command line cannot be read.
REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the words of a command line (default: those of this process); returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(parse(words))
    except (ValueError, OSError) as error:
        print(f"distill/auto_tune.py: error: {error}", file=sys.stderr)
        return REFUSED


def _run(sweep: SweepArgs) -> int:
    known = sweep.known
    if known.show_tune:
        print(display.show_path(known.show_tune))
        return 0
    if known.show_presets:
        print(dry.presets_text(sweep.presets, load_teacher_entries(known.task_t_load_path)))
        return 0
    if known.resume:
        return run_sweep(sweep)
    for note in notes(sweep):
        logger.warning("%s", note)
    if sweep.is_dry:
        print(dry.plan_text(sweep, known.print_only))
        if not sweep.words:
            print(dry.sample_text(sweep.presets))
        return 0
    check(sweep)
    return run_sweep(sweep)


def check(sweep: SweepArgs) -> None:
    """Look for what can be known to go wrong, on one choice of the searched values and those next to it.

    Raises:
        ValueError: nothing of the sweep could work, a flag is searched that has no effect, or trials would share a
            folder.
    """
    space = find_search_space(sweep)
    refuse_searched(sweep, space)
    seeds, point = parse_seeds(sweep.known.seeds, sweep.known.seed_base), example_point(space)
    if not space:
        plan_tasks(sweep, seed=seeds[0])
    plans, problems = plan_possible(sweep, seed=seeds[0], point=point)
    for problem in problems:  # values that no command can be made of are one failed trial
        logger.warning("with the first of the searched values, %s", problem)
    check_folders(plans)
    for seed, other in [*((seed, point) for seed in seeds[1:2]), *((seeds[0], near) for near in neighbours(space))]:
        check_folders([*plans, *plan_possible(sweep, seed=seed, point=other)[0]])
    if plans:
        check_plans(sweep, plans, is_example=bool(space))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
