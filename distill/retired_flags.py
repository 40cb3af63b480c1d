"""Flags of published command lines that nothing here reads: accepted with a warning, or refused with the reason."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RetiredFlag:
    """A flag without effect.

    Attributes:
        name: with its dashes.
        kind: ``flag`` (present or absent), or the type of the value.
        default: as in the release; giving the default is neither warned about nor refused.
        reason: why it does nothing.
        refused: True where going on without the effect would train something else than was asked for.
    """

    name: str
    kind: str
    default: Any
    reason: str
    refused: bool = False

    @property
    def dest(self) -> str:
        return self.name.lstrip("-").replace("-", "_")


def _dead(reason: str, *flags: tuple[str, str, Any]) -> Iterator[RetiredFlag]:
    return (RetiredFlag(name, kind, default, reason) for name, kind, default in flags)


def _refused(reason: str, *flags: tuple[str, str, Any]) -> Iterator[RetiredFlag]:
    return (RetiredFlag(name, kind, default, reason, refused=True) for name, kind, default in flags)


RETIRED_FLAGS: tuple[RetiredFlag, ...] = (
    *_dead("it never had an effect on a GLM",
           ("--intermediate-size", "int", None), ("--deep-init", "flag", False), ("--eval-valid", "flag", False),
           ("--eval-max-preds-per-seq", "int", None)),
    *_dead("all weights of a model have one precision", ("--fp32-tokentypes", "flag", False),
           ("--fp32-embedding", "flag", False), ("--fp32-layernorm", "flag", False)),
    *_refused("recurrence over segments (Transformer-XL) is not built", ("--transformer-xl", "flag", False),
              ("--mem-length", "int", 0)),
    *_refused("only models with one stack of layers are trained here", ("--encoder-decoder", "flag", False)),
    *_dead("the optimizer's state lies where the model is; --cpu_offload moves it",
           ("--cpu-optimizer", "flag", False), ("--cpu_torch_adam", "flag", False)),
    *_dead("gradients are always summed in fp32", ("--fp32-allreduce", "flag", False)),
    *_dead("there is one data-parallel implementation", ("--DDP-impl", "str", "torch")),
    *_dead("predictions are gathered through the process group", ("--spare_port", "int", None)),
    *_dead("there is one loader for every checkpoint", ("--no-deepspeed-load", "flag", False)),
    *_dead("internal state of the loop; a given value was always overwritten",
           ("--forward_repeat_current_n", "int", 0), ("--current_gradient_accumulation_steps", "int", 0),
           ("--single_step", "flag", False), ("--custom_current_epoch", "int", 0),
           ("--custom_logits_paralle", "flag", False)),
    *_refused("sequence-to-sequence tasks are not built in this version", ("--label-smoothing", "float", 0.0)),
    *_dead("text generation is not built in this version",
           ("--temperature", "float", 1.0), ("--top_p", "float", 0.0), ("--top_k", "int", 0),
           ("--out-seq-length", "int", 256), ("--num-beams", "int", 1), ("--no-repeat-ngram-size", "int", 0),
           ("--min-tgt-length", "int", 0), ("--select-topk", "flag", False), ("--blank-maskratio", "float", 0.1)),
)

_TYPES = {"int": int, "float": float, "str": str}


def add_retired_flags(parser: argparse.ArgumentParser) -> None:
    """Register every retired flag, hidden from ``--help``."""
    for flag in RETIRED_FLAGS:
        if flag.kind == "flag":
            parser.add_argument(flag.name, dest=flag.dest, action="store_true", help=argparse.SUPPRESS)
        else:
            parser.add_argument(
                flag.name, dest=flag.dest, type=_TYPES[flag.kind], default=flag.default, help=argparse.SUPPRESS)


def check_retired_flags(args: argparse.Namespace) -> list[str]:
    """Warnings for the dead flags that were given.

    Raises:
        ValueError: a refused flag was given.
    """
    warnings = []
    for flag in RETIRED_FLAGS:
        value = getattr(args, flag.dest)
        if value == flag.default:
            continue
        given = flag.name if flag.kind == "flag" else f"{flag.name}={value}"
        if flag.refused:
            raise ValueError(f"{given} cannot be used: {flag.reason}; leave it out")
        warnings.append(f"{given} has no effect: {flag.reason}")
    return warnings
