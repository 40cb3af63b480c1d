"""Fine-tune a GLM on a task, alone or distilled from teachers, and score it.

    python distill/finetune.py --finetune --task=COPA --data-dir=superglue/COPA --cloze-eval --epochs=5 …
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # A launcher puts the folder of this script first, where `training` would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distill.arguments import FINETUNE, parse_args
from distill.training.dev_run import dev_run
from distill.training.finetuning import run_finetuning
from distill.training.setup import STOPPED, run_script, running


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the words of a command line (default: those of this process); returns the exit code."""
    args = parse_args(argv, FINETUNE)
    with running(args) as runtime:
        if args.fast_dev_run:
            return dev_run(args, runtime, run_finetuning)
        return 0 if run_finetuning(args, runtime) else STOPPED


if __name__ == "__main__":
    sys.exit(run_script(main))
