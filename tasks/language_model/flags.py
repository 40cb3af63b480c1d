"""The check of a language-model task's command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from tasks.language_model.windows import SPECIAL_TOKENS

#: Flags of tasks that act here too.
_OWN = ("finetune", "task", "unidirectional")


def check_language_model_flags(args: argparse.Namespace, defaults: Mapping[str, object]) -> None:
    """ValueError for options that cannot act.

    Args:
        defaults: of all flags of tasks, by destination.
    """
    name = f"--task={args.task}"
    for dest, default in defaults.items():
        value = getattr(args, dest, default)
        if dest not in _OWN and value != default:
            flag = f"--{dest if dest.startswith('fix_') else dest.replace('_', '-')}"
            given = flag if isinstance(default, bool) else f"{flag}={value}"
            raise ValueError(f"{given} belongs to tasks with patterns or labels; {name} scores texts: leave it out")
    if not args.block_lm or args.masked_lm:
        raise ValueError(f"{name} lets the model continue texts, which needs --block-lm, without --masked-lm")
    if not any(args.valid_data or ()):
        raise ValueError(f"{name} scores the files of --valid-data, and there is none; give --valid-data=FILE")
    if args.epochs and not args.train_data:
        raise ValueError(f"--epochs={args.epochs} trains on the files of --train-data, and {name} has none; give "
                         "--train-data=FILE, or leave --epochs out to evaluate only")
    longest = args.seq_length - SPECIAL_TOKENS
    if not 1 <= args.overlapping_eval <= longest:
        raise ValueError(f"--overlapping-eval={args.overlapping_eval} has to lie between 1 and {longest}: a window of "
                         f"--seq-length={args.seq_length} tokens moves on by so many, and two of them are no text")
