"""Flags of the training script that the DeepSpeed file replaces: whoever searches them runs the same trial again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from distill.sweep import deepspeed_files, stages
from distill.sweep.checks import find_script, script_stage
from distill.sweep.flags import SweepArgs
from distill.sweep.search import Space
from distill.sweep.types import DEEPSPEED_FLAG, FlagPair

#: Flag -> entry of the file. The training scripts do the same in ``distill/training/ds_config.py``.
_ENTRIES = {"--lr": "optimizer__params__lr", "--weight-decay": "optimizer__params__weight_decay",
            "--batch-size": "train_micro_batch_size_per_gpu",
            "--gradient-accumulation-steps": "gradient_accumulation_steps", "--clip-grad": "gradient_clipping",
            "--adam-beta1": "optimizer__params__betas", "--adam-beta2": "optimizer__params__betas",
            "--adam-eps": "optimizer__params__eps"}
#: The file wins without the entry, too: there its default counts.
_ALWAYS = ("--gradient-accumulation-steps", "--clip-grad")
_STAGE = re.compile(r"--again_(\d+)__(\S+)")
_ARGS_WIN, _OF_ARGS = "--args_to_ds_config", ("--batch-size", "--gradient-accumulation-steps")


def overruled(sweep: SweepArgs, flags: Iterable[str]) -> dict[str, str]:
    """Those of ``flags`` (a stage's as ``--again_K__name``) that have no effect, each with what has one.

    Empty for a script that is not ours, and where the DeepSpeed file cannot be read: planning says so.
    """
    try:
        if script_stage(find_script(sweep.script)) is None:
            return {}
        return {flag: way for flag in flags if (way := _way_out(sweep, flag)) is not None}
    except ValueError:
        return {}


def refuse_searched(sweep: SweepArgs, space: Space) -> None:
    """Refuse a search of flags without effect.

    Raises:
        ValueError: naming the flag and what to search instead.
    """
    for flag, way in overruled(sweep, space).items():
        raise ValueError(f"{flag} is searched, but the DeepSpeed file replaces it, so all trials would be the same: "
                         f"{way}")


def _way_out(sweep: SweepArgs, flag: str) -> str | None:
    name, given, way = flag, list(sweep.forwarded), "write --ds_{entry} instead"
    if match := _STAGE.fullmatch(flag):
        number, name = int(match[1]), f"--{match[2]}"
        given = stages.joined(given, dict(stages.stages_of(sweep.stage_flags)).get(number, []))
        way = f"a stage has a value of its own by --again_{number}__deepspeed_config=FILE only (the entry is {{entry}})"
    if name not in _ENTRIES or not _is_replaced(name, given, _config(sweep, given)):
        return None
    ways = [way.format(entry=_ENTRIES[name])]
    if name in _OF_ARGS:
        ways.append(f"or add {_ARGS_WIN}, with which the command line wins for batch and accumulation")
    return ", ".join(ways)


def _is_replaced(name: str, given: list[FlagPair], config: dict[str, Any]) -> bool:
    if name in _OF_ARGS and _ARGS_WIN in dict(given):
        return False
    block: Any = config
    for key in _ENTRIES[name].split("__"):
        if not isinstance(block, dict) or key not in block:
            return name in _ALWAYS
        block = block[key]
    return True


def _config(sweep: SweepArgs, given: list[FlagPair]) -> dict[str, Any]:
    """The file without ``--ds_*`` values, which only replace what is there."""
    preset = sweep.presets.models[sweep.known.model].deepspeed.replace("{suffix}", "")
    return deepspeed_files.read_file(deepspeed_files.find_file(dict(given).get(DEEPSPEED_FLAG) or preset))
