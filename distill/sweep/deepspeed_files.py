"""DeepSpeed files of a sweep: the base file of a preset, and the copy with ``--ds_*`` values in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from distill.json_files import read_json
from distill.sweep.presets import REPOSITORY, nearest

FOLDER = "tmp_deepspeed_config"
#: As in the shipped files. Half precision needs stage 1: at 0 DeepSpeed takes a hidden step while it is built.
_ZERO_BLOCK = {
    "stage": 1, "contiguous_gradients": False, "overlap_comm": True, "reduce_scatter": True,
    "reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
_FP16 = "fp16__enabled"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list"}


def find_file(path: str, hint: str = "") -> Path:
    """The file, from the working directory or else the repository; ``config_tasks/`` of old lines is ``config/tasks/``.

    Raises:
        ValueError: there is none; ``hint`` says what to do.
    """
    moved = path.replace("config_tasks/", "config/tasks/", 1)
    for candidate in (Path(path), Path(moved), REPOSITORY / path, REPOSITORY / moved):
        if candidate.is_file():
            return candidate
    hint = hint or " (shipped are those in config/ and config/tasks/)"
    raise ValueError(f"the DeepSpeed file {path} does not exist{hint}")


def read_file(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises ValueError if there is none."""
    return read_json(path, dict, f"the DeepSpeed file {path}")


def write_file(path: str | Path, config: Mapping[str, Any]) -> None:
    """Write a derived file, in the published form."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf-8")


def derive(base: Mapping[str, Any], overrides: Mapping[str, str], rates: Mapping[str, Fraction], *, del_fp16: bool,
           where: str) -> dict[str, Any]:
    """The base file with values replaced; equal to it where nothing changes.

    ``fp16.enabled`` becomes the opposite of ``del_fp16``, whatever the base says (as published: the fp32 preset runs
    in fp16 under DeepSpeed unless ``--del_fp16`` is given). ``--ds_fp16__enabled`` and a base file in bf16 come first.

    Args:
        overrides: path with ``__`` between levels -> text, which is converted to the type of the present value.
        rates: path -> factor of the override; whole numbers are rounded down.
        where: the base file, for messages.

    Raises:
        ValueError: a path that the base file does not have, or a text that does not fit its type.
    """
    config = copy.deepcopy(dict(base))
    for path, text in overrides.items():
        block, key = _find(config, path, where)
        block[key] = _convert(path, text, block[key], rates.get(path, Fraction(1)), where)
    fp16 = config.get("fp16")
    if isinstance(fp16, dict) and _FP16 not in overrides and not config.get("bf16", {}).get("enabled"):
        was_on, fp16["enabled"] = fp16.get("enabled"), not del_fp16
        if fp16["enabled"] and not was_on and not config.get("zero_optimization", {}).get("stage"):
            config.update(zero_optimization=dict(_ZERO_BLOCK), zero_allow_untested_optimizer=True)
    if del_fp16:
        config.pop("zero_optimization", None)
        config.pop("zero_allow_untested_optimizer", None)
    return config


def choose(path: str, text: str, index: int, number: int) -> str:
    """The value of task ``index`` of ``number``: of a list with ``;``, or the one value for all.

    Raises:
        ValueError: a list of another length.
    """
    values = [value.strip() for value in text.split(";")]
    if len(values) == 1:
        return values[0]
    if len(values) != number:
        raise ValueError(f"--ds_{path}={text} lists {len(values)} values for the {number} tasks of --tasks; give one "
                         "value for all, or one for each task")
    return values[index]


def _find(config: dict[str, Any], path: str, where: str) -> tuple[dict[str, Any], str]:
    """The block that holds the entry, and its key."""
    *blocks, key = path.split("__")
    block: Any = config
    for depth, name in enumerate([*blocks, key]):
        if not isinstance(block, dict) or name not in block:
            known = list(block) if isinstance(block, dict) else []
            place = ".".join(blocks[:depth]) or "the top level"
            raise ValueError(
                f"--ds_{path}: {where} has no entry {name!r} at {place}{nearest(name, known)}. Only what is there can "
                f"be replaced ({', '.join(known) or 'nothing'}): write the entry into a copy of the file, and name the "
                "copy by --deepspeed_config")
        if depth < len(blocks):
            block = block[name]
    return block, key


def _convert(path: str, text: str, present: Any, rate: Fraction, where: str) -> Any:
    flag = f"--ds_{path}={text}"
    if rate != 1 and (isinstance(present, bool) or not isinstance(present, int | float)):
        raise ValueError(f"--rate_ds_{path}: {path.replace('__', '.')} of {where} is no number ({present!r})")
    if isinstance(present, dict):
        raise ValueError(f"{flag}: {path.replace('__', '.')} of {where} is a block; set one of its entries, such as "
                         f"--ds_{path}__{next(iter(present), 'name')}")
    try:
        if isinstance(present, list):
            words = text.strip("[]").split(",")
            return [_scalar(word.strip(), present[0] if present else "", Fraction(1)) for word in words]
        return _scalar(text, present, rate)
    except ValueError as error:
        kind = _KINDS.get(type(present), "a text")
        raise ValueError(f"{flag}: {where} has {present!r} there, so the value has to be {kind}{error}") from None


def _scalar(text: str, present: Any, rate: Fraction) -> Any:
    """``text`` times ``rate`` in the type of ``present``."""
    if isinstance(present, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError("")
        return text.lower() in ("true", "1")
    if isinstance(present, int):
        number = _number(text)
        if number.denominator != 1:
            raise ValueError("")
        if number and not int(number * rate):
            raise ValueError(f"; {text} x {float(rate):g} rounds to 0")
        return int(number * rate)
    if isinstance(present, float):
        _number(text)
        return float(text) * float(rate)
    return text


def _number(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError("") from None
