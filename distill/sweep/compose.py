"""One command of a sweep: the flags of its presets in their published order, names and places, DeepSpeed file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from distill.sweep import deepspeed_files
from distill.sweep.devices import check_devices, device_ids, include_text, number_of_devices
from distill.sweep.flags import SweepArgs
from distill.sweep.presets import ModelPreset, ScriptPreset, TaskPreset, fill
from distill.sweep.types import DEEPSPEED_FLAG, FlagPair

ENVIRONMENT = (("NCCL_DEBUG", "info"), ("NCCL_IB_DISABLE", "0"), ("NCCL_NET_GDR_LEVEL", "2"))
EPOCHS = "--epochs"


@dataclass(frozen=True)
class TaskSetting:
    """What all stages of a task share.

    Attributes:
        index: place in ``--tasks``.
        gpus: devices that the task may run on, as in ``--gpus``.
        devices: how many of them a trial gets; 0 for all.
        suffix: of the DeepSpeed file's name; empty for all but big tasks.
    """

    sweep: SweepArgs
    model: ModelPreset
    script: ScriptPreset
    task: TaskPreset
    index: int
    gpus: str
    devices: int
    suffix: str

    @property
    def include(self) -> str:
        """``--include`` of the process launcher: of as many devices as a trial gets, the first ones; a trial may be
        given others when it runs."""
        if self.devices:
            return include_text(device_ids(self.gpus)[:self.devices])
        return self.gpus if ":" in self.gpus else f"localhost:{self.gpus}"


def task_setting(sweep: SweepArgs, index: int) -> TaskSetting:
    """The setting of task ``index`` of ``--tasks``.

    Raises:
        ValueError: fewer devices than a trial is to get.
    """
    known, presets = sweep.known, sweep.presets
    script, name = presets.scripts[known.script], sweep.tasks[index]
    is_big = known.big_task_gpus is not None and name in {task.strip() for task in known.big_task.split(",")}
    gpus = known.big_task_gpus if is_big else known.gpus
    devices = 0 if is_big or known.gpus_per_trial is None else known.gpus_per_trial
    check_devices(gpus, devices)
    return TaskSetting(sweep, presets.models[known.model], script, script.tasks[name], index, gpus, devices,
                       known.big_task_dsc_suffix if is_big else "")


def start_checkpoint(setting: TaskSetting) -> str:
    """Where the first stage starts: ``--<task>_model_path``, ``--model_path``, or the model preset's."""
    sweep = setting.sweep
    path = sweep.model_paths.get(setting.task.name) or sweep.known.model_path or setting.model.checkpoint
    return below(sweep.data_root, path)


def below(root: str, path: str) -> str:
    """``path`` below ``root``; an absolute one as it is."""
    return path.rstrip("/") if path.startswith("/") else f"{root}/{path.rstrip('/')}"


def preset_flags(setting: TaskSetting, start: str, stamp: Callable[[], str]) -> list[FlagPair]:
    """The flags of command preset, model and task, with the three of DeepSpeed at the end.

    Args:
        start: checkpoint that the stage starts from.
    """
    sweep, task, script = setting.sweep, setting.task, setting.script
    label = f"{setting.model.label}-{task.label}".replace("{mask_ratio}", sweep.known.mask_ratio)
    values = {
        "checkpoint": start, "task": task.task, "mask_ratio": sweep.known.mask_ratio,
        "experiment": f"{label}-{stamp()}", "save": f"{start}/{_save_sub(setting)}/{task.task}",
        "data": below(sweep.data_root, f"{script.data}/{task.data}"),
        "batch_size": str(max(1, script.batch_size // number_of_devices(setting.gpus, setting.devices))), **task.values}
    words: list[str] = []
    for word in script.flags:
        words += {"<model>": setting.model.flags, "<task>": task.flags}.get(word, (word,))
    if "epochs" not in values and any("{epochs}" in word for word in words):
        values["epochs"] = str(_table_epochs(setting))
    return [*fill(words, values), ("--deepspeed-activation-checkpointing", None), ("--deepspeed", None),
            (DEEPSPEED_FLAG, setting.model.deepspeed.replace("{suffix}", setting.suffix))]


def _save_sub(setting: TaskSetting) -> str:
    student = dict(setting.sweep.forwarded).get("--student_model")
    return setting.sweep.known.save_sub or (f"ft_{student}" if student else setting.script.save_sub)


def _table_epochs(setting: TaskSetting) -> int:
    name = setting.sweep.known.epoch_type
    table = setting.sweep.presets.epochs[name]
    if setting.task.name not in table:
        raise ValueError(f"--epoch_type={name} has no entry for {setting.task.name}; add it to the table, or choose "
                         "another table")
    return math.ceil(table[setting.task.name] * setting.sweep.known.epoch_rate)


def finish_flags(setting: TaskSetting, flags: list[FlagPair]) -> list[FlagPair]:
    """What ``--rate_arg_epochs``, ``--del_*`` and ``--fast-dev-run`` do to a whole command."""
    known, result = setting.sweep.known, []
    dropped = {name for name, is_given in (("--checkpoint-activations", known.del_checkpoint_activations),
                                           ("--fp16", known.del_fp16)) if is_given}
    for name, value in flags:
        if name == EPOCHS and known.rate_arg_epochs != 1:
            value = _scaled_epochs(value, known.rate_arg_epochs)
        if name not in dropped:
            result.append((name, value))
    if known.fast_dev_run:
        result.append(("--fast-dev-run", str(known.fast_dev_run)))
    return result


def _scaled_epochs(text: str | None, rate: Fraction) -> str:
    if not (text or "").isdigit():
        raise ValueError(f"{EPOCHS}={text} is no whole number for --rate_arg_epochs to multiply")
    return str(math.floor(int(text) * rate))


def derived_config(setting: TaskSetting, base: str) -> dict[str, Any] | None:
    """The DeepSpeed file of the task, if it differs from the one at ``base``.

    Raises:
        ValueError: there is no such file, or a ``--ds_*`` flag does not fit it.
    """
    sweep = setting.sweep
    hint = (f": --model={setting.model.name} has none for big tasks; give --big_task_dsc_suffix= for the common file, "
            "or the suffix of another one") if setting.suffix else ""
    file = deepspeed_files.find_file(base, hint)
    config = deepspeed_files.read_file(file)
    overrides = {path: deepspeed_files.choose(path, text, setting.index, len(sweep.tasks))
                 for path, text in sweep.overrides.items()}
    derived = deepspeed_files.derive(config, overrides, sweep.rates, del_fp16=sweep.known.del_fp16, where=base)
    return None if derived == config else derived
