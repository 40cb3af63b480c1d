"""Makes one DeepSpeed configuration out of the JSON file and the command line.

``deepspeed.initialize`` gets the finished dict and no arguments, so what it will do is decided, checked and printed
here. The file wins over ``--batch-size``, ``--gradient-accumulation-steps``, ``--lr`` and ``--weight-decay`` (the
published sweeps rely on it); ``--args_to_ds_config`` turns that round for batch, accumulation, fp16, ZeRO and offload.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.json_files import read_json

REPOSITORY = Path(__file__).resolve().parents[2]
_ZERO_BLOCK = {
    "contiguous_gradients": False, "overlap_comm": True, "reduce_scatter": True,
    "reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
_FP16_BLOCK = {"loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1}


@dataclass
class ResolvedConfig:
    """The dict for DeepSpeed, the values of the command line that it replaces, and what has to be told.

    Attributes:
        config: for ``deepspeed.initialize``.
        overrides: argument name -> value that the run uses.
        notes: one line each for everything that differs from what was asked for.
    """

    config: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_config(path: str) -> tuple[Path, str | None]:
    """The file of ``--deepspeed_config``, and a line to print if it was found elsewhere.

    A path is looked up from the working directory, then from the repository; the folder ``config_tasks/`` of older
    command lines is ``config/tasks/``.

    Raises:
        ValueError: there is no such file.
    """
    moved = path.replace("config_tasks/", "config/tasks/", 1)
    for candidate in (Path(path), Path(moved), REPOSITORY / path, REPOSITORY / moved):
        if candidate.is_file():
            note = None if str(candidate) == path else f"--deepspeed_config={path} is read from {candidate}"
            return candidate, note
    raise ValueError(f"--deepspeed_config={path} does not exist (the shipped files are in config/ and config/tasks/)")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises ValueError if there is none."""
    return read_json(path, dict, f"--deepspeed_config={path}")


def resolve(args: Any, config: Mapping[str, Any], *, on_gpu: bool, data_size: int | None = None) -> ResolvedConfig:
    """Merge the file with the command line.

    Args:
        data_size: data-parallel ranks of the run; None if they are not known (a dry run).

    Raises:
        ValueError: ZeRO stage 3, an optimizer that is not Adam, a value of the wrong kind, batch sizes or precisions
            that contradict each other.
    """
    result = ResolvedConfig(copy.deepcopy(dict(config)))
    _check_values(result.config)
    _derive_accumulation(result, data_size)
    if args.args_to_ds_config:
        _write_args_into_config(args, result)
    _override_args(args, result)
    _resolve_precision(args, result, on_gpu)
    _resolve_zero(result, on_gpu)
    _resolve_optimizer(args, result, on_gpu)
    _check_total(args, result, data_size)
    _finish(args, result)
    return result


def _check_values(config: Mapping[str, Any]) -> None:
    """Kinds of the values that are read here, and what the file says against itself."""
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"):
        value = config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key} in the DeepSpeed file must be a whole number above 0, not {value!r}; write one, "
                             "or leave the entry out")
    for key in ("optimizer", "fp16", "bf16", "zero_optimization", "activation_checkpointing", "data_types"):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f"{key} in the DeepSpeed file must be an object in braces, not {config[key]!r}")
    params = config.get("optimizer", {}).get("params", {})
    betas = params.get("betas", [0.0, 0.0])
    if not isinstance(betas, list) or len(betas) != 2:
        raise ValueError(f"betas in the DeepSpeed file must be a list of two numbers, not {betas!r}")
    for key, value in (*((key, params.get(key, 0.0)) for key in ("lr", "weight_decay", "eps")),
                       *(("betas", beta) for beta in betas),
                       ("gradient_clipping", config.get("gradient_clipping", 0.0))):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} in the DeepSpeed file must be a number, not {value!r}")
    if config.get("fp16", {}).get("enabled") and config.get("bf16", {}).get("enabled"):
        raise ValueError("fp16.enabled and bf16.enabled are both true in the DeepSpeed file; keep one")


def _derive_accumulation(result: ResolvedConfig, data_size: int | None) -> None:
    """``train_batch_size`` without ``gradient_accumulation_steps`` says how many there are."""
    config = result.config
    total, micro = config.get("train_batch_size"), config.get("train_micro_batch_size_per_gpu")
    if not (total and micro and data_size) or "gradient_accumulation_steps" in config:
        return
    if total % (micro * data_size):
        raise ValueError(f"train_batch_size {total} in the DeepSpeed file is not divisible by "
                         f"train_micro_batch_size_per_gpu {micro} x {data_size} data-parallel rank(s); change one, or "
                         "leave train_batch_size out")
    config["gradient_accumulation_steps"] = total // (micro * data_size)


def _check_total(args: Any, result: ResolvedConfig, data_size: int | None) -> None:
    total = result.config.get("train_batch_size")
    if total is None or args.args_to_ds_config:
        return
    micro = result.overrides.get("batch_size", args.batch_size)
    accumulation = result.overrides["gradient_accumulation_steps"]
    ranks = data_size or total // (micro * accumulation)
    if total != micro * accumulation * ranks or not ranks:
        raise ValueError(f"train_batch_size {total} in the DeepSpeed file contradicts train_micro_batch_size_per_gpu "
                         f"{micro} x gradient_accumulation_steps {accumulation} x {ranks or 'any number of'} "
                         "data-parallel rank(s); change one, or leave train_batch_size out")


def _write_args_into_config(args: Any, result: ResolvedConfig) -> None:
    """``--args_to_ds_config``: five values flow from the command line into the (copied) file."""
    config, changes = result.config, []

    def put(block: dict[str, Any], key: str, value: Any, label: str, default: Any) -> None:
        if block.get(key, default) != value:
            changes.append(f"{label} {block.get(key, default)} -> {value}")
        block[key] = value

    put(config, "train_micro_batch_size_per_gpu", args.batch_size, "batch", None)
    put(config, "gradient_accumulation_steps", args.gradient_accumulation_steps, "accumulation", 1)
    put(config.setdefault("fp16", dict(_FP16_BLOCK)), "enabled", args.fp16, "fp16", False)
    if args.zero_stage > 0 or "zero_optimization" in config:
        block = config.setdefault("zero_optimization", dict(_ZERO_BLOCK))
        config["zero_allow_untested_optimizer"] = True
        put(block, "stage", args.zero_stage, "ZeRO stage", 0)
        if args.zero_stage > 0:
            put(block, "cpu_offload", args.cpu_offload, "offload", False)
    if changes:
        result.notes.append(f"--args_to_ds_config changes the DeepSpeed file: {', '.join(changes)}")


def _override_args(args: Any, result: ResolvedConfig) -> None:
    """What the file says about batch, accumulation, lr, decay and clipping replaces the command line."""
    config = result.config
    params = config.get("optimizer", {}).get("params", {})
    file_values: dict[str, Any] = {"gradient_accumulation_steps": int(config.get("gradient_accumulation_steps", 1))}
    if "train_micro_batch_size_per_gpu" in config:
        file_values["batch_size"] = int(config["train_micro_batch_size_per_gpu"])
    for key, name in (("lr", "lr"), ("weight_decay", "weight_decay"), ("eps", "adam_eps")):
        if key in params:
            file_values[name] = float(params[key])
    if "betas" in params:
        file_values["adam_beta1"], file_values["adam_beta2"] = map(float, params["betas"])
    file_values["clip_grad"] = float(config.get("gradient_clipping", 0.0))
    losers = []
    for name, value in file_values.items():
        given = getattr(args, name)
        if given != value:
            losers.append(f"--{name.replace('_', '-')} {given} -> {value}")
    result.overrides.update(file_values)
    losers += _unread_flags(args, config)
    if losers:
        result.notes.append("the DeepSpeed file replaces values of the command line: " + ", ".join(losers))


def _unread_flags(args: Any, config: Mapping[str, Any]) -> list[str]:
    """Flags that are given, and that the file decides about in other words, where they differ."""
    file_zero, file_fp16 = config.get("zero_optimization", {}), {**_FP16_BLOCK, **config.get("fp16", {})}
    pairs = [("--zero_stage", args.zero_stage, 0, file_zero.get("stage", 0)),
             ("--cpu_offload", args.cpu_offload, False, bool(file_zero.get("cpu_offload", False)))]
    if args.fp16 or file_fp16.get("enabled"):
        pairs += [("--loss-scale", args.loss_scale, None, file_fp16["loss_scale"] or None),
                  ("--loss-scale-window", args.loss_scale_window, 1000, file_fp16["loss_scale_window"]),
                  ("--min-scale", args.min_scale, 1, file_fp16["min_loss_scale"]),
                  ("--hysteresis", args.hysteresis, 2, file_fp16["hysteresis"])]
    return [f"{flag} {given} -> {value}" for flag, given, default, value in pairs if given not in (default, value)]


def _resolve_precision(args: Any, result: ResolvedConfig, on_gpu: bool) -> None:
    config = result.config
    file_fp16 = bool(config.get("fp16", {}).get("enabled", False))
    file_bf16 = bool(config.get("bf16", {}).get("enabled", False))
    fp16, bf16 = file_fp16, args.bf16 or file_bf16
    if bf16 and args.fp16:
        raise ValueError("--fp16 cannot be combined with bf16 (--bf16 or bf16.enabled in the DeepSpeed file)")
    if bf16 and fp16:
        result.notes.append("fp16.enabled in the DeepSpeed file gives way to bf16")
        fp16 = False
    elif fp16 != args.fp16 and not bf16 and on_gpu:
        result.notes.append(
            f"fp16 is {'on' if fp16 else 'off'} in the DeepSpeed file, {'given' if args.fp16 else 'absent'} on the "
            f"command line: the file wins")
    if fp16 and not on_gpu:
        result.notes.append("no GPU: fp16 becomes fp32 (use --bf16 for half precision on a CPU)")
        fp16 = False
    config.pop("fp16" if not fp16 else "bf16", None)
    if fp16:
        config["fp16"] = {**_FP16_BLOCK, **config.get("fp16", {}), "enabled": True}
    if bf16:
        config["bf16"] = {"enabled": True}
    else:
        config.pop("bf16", None)
    result.overrides.update(fp16=fp16, bf16=bf16)


def _resolve_zero(result: ResolvedConfig, on_gpu: bool) -> None:
    config = result.config
    stage = int(config.get("zero_optimization", {}).get("stage", 0))
    if stage not in (0, 1, 2):
        raise ValueError(
            f"ZeRO stage {stage} is not supported: with repeated passes it gives wrong losses, and checkpoints have no "
            f"place for it. Use stage 2, with --model-parallel-size for models that do not fit")
    if stage == 0 and (result.overrides["fp16"] or result.overrides["bf16"]):
        # At stage 0 DeepSpeed 0.19 takes a hidden optimizer step while it builds its half-precision wrapper.
        result.notes.append("half precision runs at ZeRO stage 1 (stage 0 would take a hidden optimizer step)")
        stage = 1
    if stage == 0:
        config.pop("zero_optimization", None)
        result.overrides["zero_stage"] = 0
        return
    block = {**_ZERO_BLOCK, **config.get("zero_optimization", {}), "stage": stage}
    offload = block.pop("cpu_offload", False)
    if not on_gpu:
        block.pop("offload_optimizer", None)
        block["overlap_comm"] = False
        if offload:
            result.notes.append("no GPU: cpu_offload has nothing to do and is left out")
    elif offload:
        block["offload_optimizer"] = {"device": "cpu"}
    if stage == 1 and block["overlap_comm"] and result.overrides["gradient_accumulation_steps"] > 1:
        # DeepSpeed 0.19 then reduces only what the last micro-batch has a gradient for: layers drawn by a method would
        # be updated by each rank from its own share.
        block["overlap_comm"] = False
        result.notes.append("overlap_comm is switched off: with accumulation at ZeRO stage 1 it leaves out gradients")
    sum_dtype = config.get("data_types", {}).get("grad_accum_dtype")
    if stage == 1 and result.overrides["bf16"] and sum_dtype not in (None, "bf16"):
        raise ValueError(f"data_types.grad_accum_dtype {sum_dtype!r} in the DeepSpeed file needs ZeRO stage 2 with "
                         "bf16; set zero_optimization.stage to 2")
    config["zero_optimization"] = block
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False
    result.overrides["zero_stage"] = stage


def _resolve_optimizer(args: Any, result: ResolvedConfig, on_gpu: bool) -> None:
    """Torch's Adam always: it resumes bit for bit and compiles nothing. Decoupled weight decay, as everywhere here.

    What the file does not say about it comes from the command line.
    """
    block = result.config.setdefault("optimizer", {"type": "Adam", "params": {}})
    if str(block.get("type", "Adam")).lower() not in ("adam", "adamw"):
        raise ValueError(f"optimizer.type {block['type']!r} in the DeepSpeed file is not supported; use Adam")
    params = block.setdefault("params", {})
    block["type"] = "Adam"
    beta1, beta2 = params.setdefault("betas", [args.adam_beta1, args.adam_beta2])
    params.setdefault("eps", args.adam_eps)
    params.setdefault("weight_decay", args.weight_decay)
    result.overrides.update(adam_beta1=float(beta1), adam_beta2=float(beta2), adam_eps=float(params["eps"]))
    params["torch_adam"] = True
    params["adam_w_mode"] = True
    if on_gpu and "offload_optimizer" not in result.config.get("zero_optimization", {}):
        params["fused"] = True


def _finish(args: Any, result: ResolvedConfig) -> None:
    """Settle what this toolkit does itself: batch size, progress lines, activation checkpointing, timers."""
    config, overrides = result.config, result.overrides
    if config.pop("train_batch_size", None) is not None and args.args_to_ds_config:
        result.notes.append("train_batch_size of the DeepSpeed file is not read: it follows from the command line")
    config["train_micro_batch_size_per_gpu"] = overrides.get("batch_size", args.batch_size)
    config["gradient_accumulation_steps"] = overrides["gradient_accumulation_steps"]
    if any(config.pop("activation_checkpointing", {}).get(key) for key in (
            "partition_activations", "contiguous_memory_optimization", "cpu_checkpointing")):
        result.notes.append("activation_checkpointing of the DeepSpeed file is not used: checkpointing is ours")
    config.pop("steps_per_print", None)
    config["wall_clock_breakdown"] = False
