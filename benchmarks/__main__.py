"""The table of speed and memory: ``python -m benchmarks`` (one thread, dropout 0; ours against the naive formulation).

CPU time is that of the process, so other programs on the machine disturb it little; memory is the growth of the
resident set at its highest point, gradients included. Pin it to a core for the steadiest numbers:
``taskset -c 1 python -m benchmarks``.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Sequence

import torch

from benchmarks.losses import cut_losses, fused_losses, whole_losses
from benchmarks.measure import HEADER, Row
from benchmarks.steps import StepSizes, attention, compiled_steps, glmd_steps
from benchmarks.text import text_lines

PARTS = ("losses", "cut", "fused", "attention", "step", "text")
#: Takes a C++ compiler and minutes: only by name.
FURTHER_PARTS = ("compile",)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", default=",".join(PARTS),
                        help=f"parts, comma-separated: {', '.join(PARTS)}; or {', '.join(FURTHER_PARTS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2048, help="of the logits")
    parser.add_argument("--vocabulary", type=int, default=30592)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--step-layers", default="12,6", help="of teacher and student")
    parser.add_argument("--step-length", type=int, default=512)
    parser.add_argument("--step-batch", type=int, default=4)
    parser.add_argument("--step-repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, default=50, help="of the loader, for each mode and repeat")
    parser.add_argument("--corpus", default=None, help="text for the loader and the token cache; default: generated")
    parser.add_argument("--wordpiece-vocabulary", default=None, help="vocabulary file for --corpus")
    args = parser.parse_args(arguments)
    parts = args.only.split(",")
    known = (*PARTS, *FURTHER_PARTS)
    unknown = set(parts) - set(known)
    if unknown:
        parser.error(f"--only={args.only}: {', '.join(sorted(unknown))} is no part (known: {', '.join(known)})")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, "
          f"{args.repeats} repeats: median, and smallest and largest ratio")
    print(HEADER)
    for row in rows(args, parts):
        print(row.text(), flush=True)
    if "text" in parts:
        for line in text_lines(args.corpus, args.wordpiece_vocabulary, args.batches):
            print(line, flush=True)


def rows(args: argparse.Namespace, parts: list[str]) -> Iterator[Row]:
    """The rows of the parts, measured as they are asked for."""
    if "losses" in parts:
        yield from whole_losses(args.rows, args.vocabulary, args.repeats)
    if "cut" in parts:
        yield from cut_losses(args.rows, args.vocabulary, args.repeats)
    if "fused" in parts:
        for dtype in (torch.float32, torch.bfloat16):
            yield from fused_losses(args.rows, args.vocabulary, args.width, args.repeats, dtype)
    if "attention" in parts:
        yield from attention(args.repeats, length=args.step_length)
    teacher, student = (int(number) for number in args.step_layers.split(","))
    sizes = StepSizes(teacher, student, args.width, args.width // 64, args.step_length, args.step_batch,
                      args.vocabulary)
    if "step" in parts:
        yield from glmd_steps(sizes, args.step_repeats)
    if "compile" in parts:
        yield from compiled_steps(sizes, args.step_repeats)


if __name__ == "__main__":
    main()
