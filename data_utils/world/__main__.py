"""`python -m data_utils.world OUT [--seed N] [--force]`: write the generated world."""

from __future__ import annotations

import argparse
import sys

from data_utils.world.build import write_world


def main(argv: list[str] | None = None) -> int:
    """Write one world and say where it is; 2 for a folder in the way."""
    parser = argparse.ArgumentParser(
        prog="python -m data_utils.world",
        description="Write the generated world: text, vocabularies, eight tasks and the facts behind them.",
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; kept if it holds this very world already")
    parser.add_argument("--seed", type=int, default=0, help="which world (default 0)")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args(argv)
    try:
        sys.stdout.write(f"{write_world(args.out, seed=args.seed, force=args.force)}\n")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
