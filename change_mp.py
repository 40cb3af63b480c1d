"""Change the model-parallel size of a checkpoint: ``python change_mp.py DIR P``.

Writes ``DIR_MP<P>`` beside the input, which is never touched. The work is in model/checkpoint/reshard.py.
"""

from __future__ import annotations

import argparse
import logging
import sys

from model.checkpoint.reshard import change_mp


def main(argv: list[str] | None = None) -> str:
    """Parse ``argv``, convert, print and return the path of the result."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="DIR", help="checkpoint folder: with a tracker file, or the mp_rank_* files")
    parser.add_argument("size", metavar="P", type=int, help="new size: a divisor or a multiple of the present one")
    parser.add_argument("--fix_module_parameters", default="", metavar="A;B",
                        help="parameters, separated by semicolons, that every rank holds whole whatever their name")
    parser.add_argument("--trust-checkpoint", action="store_true",
                        help="also read files that hold arbitrary Python objects (they can run code)")
    args = parser.parse_args(argv)
    fixed = [name.strip() for name in args.fix_module_parameters.split(";") if name.strip()]
    output = change_mp(args.path, args.size, fixed, trust_pickle=args.trust_checkpoint)
    print(output)
    return output


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"change_mp.py: {error}")
