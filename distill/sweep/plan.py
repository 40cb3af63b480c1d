"""From the launcher's command line to the commands that run. Nothing here writes or starts anything."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from distill.json_files import read_json
from distill.sweep import deepspeed_files, stages
from distill.sweep.commands import records_file
from distill.sweep.compose import (
    ENVIRONMENT,
    TaskSetting,
    derived_config,
    finish_flags,
    preset_flags,
    start_checkpoint,
    task_setting,
)
from distill.sweep.domains import SYNTAX, Domain, parse_domain
from distill.sweep.flags import SweepArgs, flag_names
from distill.sweep.overruled import overruled
from distill.sweep.resplit import resplits_of
from distill.sweep.teacher_entries import TeacherEntries, load_teacher_entries
from distill.sweep.types import DEEPSPEED_FLAG, FlagPair, StageCommand, TaskPlan

Stamp = Callable[[], str]
Port = Callable[[], int]
PORTS = (10_000, 60_000)
_last_stamp = ""


def fresh_stamp() -> str:
    """The time as ``yymmdd_HHMMSS.ffffff``, later than that of any call before."""
    global _last_stamp
    now = _last_stamp
    while now <= _last_stamp:
        now = datetime.now().strftime("%y%m%d_%H%M%S.%f")
    _last_stamp = now
    return now


def random_port() -> int:
    """A port as the printed commands show it; nobody has looked whether it is free."""
    return random.SystemRandom().randint(*PORTS)


def plan_tasks(sweep: SweepArgs, *, seed: int | None = None, point: Mapping[str, str] | None = None,
               only: int | None = None, stamp: Stamp = fresh_stamp, port: Port = random_port) -> list[TaskPlan]:
    """The commands of every task, for one choice of the searched values.

    Args:
        only: plan this task of ``--tasks`` alone: whether there are commands of the others does not matter.
        seed: replaces ``--seed`` of every stage; None leaves it.
        point: searched flag (as in :func:`find_search_space`) -> value.
        stamp: gives a new time at each call, port: a number; both only become part of the commands.

    Raises:
        ValueError: something that no command could be made of; the message names flag and value.
    """
    sweep = with_point(sweep, point or {})
    if seed is not None:
        sweep = replace(sweep, forwarded=tuple(stages.joined(sweep.forwarded, [("--seed", str(seed))])),
                        chosen=sweep.chosen | {"--seed"})
    indices = range(len(sweep.tasks)) if only is None else [only]
    teachers = teacher_entries(sweep, [sweep.tasks[index] for index in indices])
    plans = []
    for index in indices:
        setting = task_setting(sweep, index)
        plans.append(TaskPlan(setting.task.name, tuple(_stages(setting, teachers, stamp, port)), setting.gpus,
                              setting.devices))
    check_folders(plans)
    return plans


def plan_possible(sweep: SweepArgs, *, seed: int | None, point: Mapping[str, str]) -> tuple[list[TaskPlan], list[str]]:
    """The plans of the tasks of which commands can be made, and what is wrong with the others."""
    plans, problems = [], []
    for index, task in enumerate(sweep.tasks):
        try:
            plans += plan_tasks(sweep, seed=seed, point=point, only=index)
        except ValueError as error:
            problems.append(f"{task}: {error}")
    return plans, problems


def teacher_entries(sweep: SweepArgs, tasks: Sequence[str]) -> TeacherEntries | None:
    """The teachers of the sweep, checked for every stage of ``tasks``; None without ``--task_t_load``.

    Raises:
        ValueError: an unknown entry, or one without a checkpoint for a task.
    """
    name = sweep.known.task_t_load
    if name is None:
        return None
    entries = load_teacher_entries(sweep.known.task_t_load_path)
    entries.check(name, tasks)
    for number, flags in stages.stages_of(sweep.stage_flags):
        own = stages.teachers_of(flags, "")
        if own:
            entries.check(own, tasks, f"--again_{number}__task_t_load")
    return entries


def find_search_space(sweep: SweepArgs) -> dict[str, Domain]:
    """Searched flags in the order of the command line (then of ``--search_space``), with their domains.

    Flags of the training script stand as ``--name``, those of a stage as ``--again_K__name``, entries of the DeepSpeed
    file as ``--ds_path``.

    Raises:
        ValueError: a text that starts like a domain and is none, a file that cannot be read, a flag that cannot be
            searched.
    """
    space: dict[str, Domain] = {}
    for flag, text in _searchable(sweep).items():
        if text is not None and (domain := parse_domain(flag, text)) is not None:
            space[flag] = domain
    for flag, text in _search_file(sweep).items():
        domain = parse_domain(flag, text)
        if domain is None:
            raise ValueError(f"--search_space: {flag}: {text!r} is no list or range of values; write {SYNTAX}")
        space[flag] = domain
    if "--seed" in space and sweep.known.seeds is not None:
        raise ValueError(f"--seed is searched, and --seeds={sweep.known.seeds} repeats every configuration with seeds "
                         "of its own: leave out one of both")
    return space


def with_point(sweep: SweepArgs, point: Mapping[str, str]) -> SweepArgs:
    """The same command line with values in place of searched flags; a flag that was not given is added."""
    forwarded, overrides = dict(sweep.forwarded), dict(sweep.overrides)
    stage_flags = {_stage_name(number, name): value for number, (name, value) in sweep.stage_flags}
    for flag, value in point.items():
        if flag.startswith("--ds_"):
            overrides[flag.removeprefix("--ds_")] = value
        elif flag.startswith("--again_"):
            stage_flags[flag] = value
        else:
            forwarded[flag] = value
    numbered = []
    for flag, value in stage_flags.items():
        number, _, name = flag.removeprefix("--again_").partition("__")
        numbered.append((int(number), (f"--{name}", value)))
    return replace(sweep, forwarded=tuple(forwarded.items()), stage_flags=tuple(numbered), overrides=overrides,
                   chosen=sweep.chosen | set(point))


def notes(sweep: SweepArgs) -> list[str]:
    """What a user may not expect of this command line, in sentences."""
    found = []
    if sweep.stage_flags and sweep.known.task_t_load is None:
        found.append(f"{_stage_name(sweep.stage_flags[0][0], sweep.stage_flags[0][1][0])} has no effect: there are "
                     "further stages only with --task_t_load")
    found += [f"--rate_ds_{path} has no effect without --ds_{path}" for path in sweep.rates
              if path not in sweep.overrides]
    found += [f"{flag} has no effect: the DeepSpeed file replaces it; {way}"
              for flag, way in overruled(sweep, _searchable(sweep)).items()]
    model = sweep.presets.models[sweep.known.model]
    if "--fp16" not in model.flags and not sweep.known.del_fp16 and "fp16__enabled" not in sweep.overrides:
        found.append(f"--model={model.name} has no --fp16, but its DeepSpeed file gets fp16 all the same, as "
                     "published; --del_fp16 keeps fp32")
    return found


def _stages(setting: TaskSetting, teachers: TeacherEntries | None, stamp: Stamp, port: Port) -> list[StageCommand]:
    sweep, name = setting.sweep, setting.sweep.known.task_t_load
    start = start_checkpoint(setting)

    def teacher_flags(entry: str) -> list[FlagPair]:
        return teachers.flags(entry, setting.task.name, sweep.data_root) if teachers is not None else []

    first = stages.joined(preset_flags(setting, start, stamp), sweep.forwarded, teacher_flags(name))
    commands = [_command(setting, 0, first, stamp, port)]
    for number, flags in stages.stages_of(sweep.stage_flags) if teachers is not None else ():
        origin = commands[-1 if sweep.known.stage_from == "previous" else 0].checkpoint
        pairs = stages.joined(preset_flags(setting, origin, stamp), teacher_flags(stages.teachers_of(flags, name)),
                              stages.merge(sweep.forwarded, flags, _chosen(sweep, number, flags)))
        commands.append(_command(setting, len(commands), pairs, stamp, port))
    return commands


def _chosen(sweep: SweepArgs, number: int, flags: Iterable[FlagPair]) -> set[str]:
    """Flags of stage ``number`` whose value, here or in the first stage, was chosen for the trial."""
    return {name for name, _ in flags if not sweep.chosen.isdisjoint((name, _stage_name(number, name)))}


def _command(setting: TaskSetting, stage: int, flags: list[FlagPair], stamp: Stamp, port: Port) -> StageCommand:
    flags, resplits = resplits_of(finish_flags(setting, flags))
    values = dict(flags)
    path = values[DEEPSPEED_FLAG] or ""
    config = derived_config(setting, path)
    if config is not None:
        path = f"{deepspeed_files.FOLDER}/{stamp()}_{random.SystemRandom().randrange(10 ** 6):06}.json"
        flags = [(name, path if name == DEEPSPEED_FLAG else value) for name, value in flags]
    launcher = ("deepspeed", f"--master_port={port()}", f"--include={setting.include}", "--hostfile=")
    return StageCommand(setting.task.name, stage, ENVIRONMENT, launcher, setting.sweep.script,
                        tuple(flags), config, path, f"{values['--save']}/{values['--experiment-name']}", resplits)


def check_folders(plans: Iterable[TaskPlan]) -> None:
    """Forwarded --save, --experiment-name or --log-dir may make runs meet in one folder.

    Raises:
        ValueError: they do.
    """
    folders: set[str] = set()
    records: set[Path] = set()
    for command in (command for plan in plans for command in plan.stages):
        if command.checkpoint in folders:
            raise ValueError(f"two runs would write {command.checkpoint}: leave --save and --experiment-name to the "
                             "launcher (--save_sub names the folder for results)")
        if (file := records_file(command)) in records:
            raise ValueError(f"two runs would write their records to {file}: leave out --log-dir, each run has a "
                             "folder of its own")
        folders.add(command.checkpoint)
        records.add(file)


def _stage_name(number: int, flag: str) -> str:
    return f"--again_{number}__{flag.removeprefix('--')}"


def _searchable(sweep: SweepArgs) -> dict[str, str | None]:
    stage_flags = {_stage_name(number, name): value for number, (name, value) in sweep.stage_flags}
    return {**dict(sweep.forwarded), **stage_flags,
            **{f"--ds_{path}": text for path, text in sweep.overrides.items()}}


def _search_file(sweep: SweepArgs) -> dict[str, str]:
    path = sweep.known.search_space
    if path is None:
        return {}
    content = read_json(path, dict, f"--search_space={path}")
    if not all(isinstance(text, str) for text in content.values()):
        raise ValueError(f"--search_space={path} must map flags to texts such as grid:1,2")
    own = flag_names(sweep.presets)
    for flag in content:
        if flag in own and not flag.startswith("--ds_") or not flag.startswith("--"):
            raise ValueError(f"--search_space: {flag} cannot be searched; flags of the training script, --again_K__ "
                             "and --ds_ can")
    return content
