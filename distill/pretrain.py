"""Pretrain a GLM on text, alone or distilled from teachers.

    python distill/pretrain.py --block-lm --train-data corpus.txt --tokenizer-model-type vocab.txt --train-iters 1000 …
    deepspeed --num_gpus=2 distill/pretrain.py --deepspeed --deepspeed_config=config/config_block_tiny6.json …
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # A launcher puts the folder of this script first, where `training` would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distill.arguments import PRETRAIN, parse_args
from distill.training.dev_run import dev_run
from distill.training.pretraining import run_pretraining
from distill.training.setup import STOPPED, run_script, running


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the words of a command line (default: those of this process); returns the exit code."""
    args = parse_args(argv, PRETRAIN)
    with running(args) as runtime:
        if args.fast_dev_run:
            return dev_run(args, runtime, run_pretraining)
        return 0 if run_pretraining(args, runtime) else STOPPED


if __name__ == "__main__":
    sys.exit(run_script(main))
