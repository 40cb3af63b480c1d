"""A plan as text: the commands as they would run, with what would be written for them. Nothing is changed on disk."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.sweep import deepspeed_files
from distill.sweep.compose import ENVIRONMENT
from distill.sweep.display import aligned
from distill.sweep.flags import SweepArgs, parse
from distill.sweep.model_size import planned_parameters, preset_parameters
from distill.sweep.plan import find_search_space, fresh_stamp, plan_tasks, random_port
from distill.sweep.presets import Presets, fill
from distill.sweep.resplit import change_mp_words
from distill.sweep.search import example_point, grid_points
from distill.sweep.search_flags import parse_seeds
from distill.sweep.teacher_entries import TeacherEntries
from distill.sweep.types import DEEPSPEED_FLAG, RESULT_FLAG, Point, StageCommand, TaskPlan

PRETRAIN_SCRIPT = "distill/pretrain.py"
#: Command lines whose commands are shown where the launcher is started without arguments.
SAMPLES = (
    ("--model=model_blocklm_10B", "--epoch_type=XXLARGE_EPOCH"),
    ("--model=model_blocklm_10B", "--script=finetune_seq2seq", "--tasks=seq_cnndm_org,seq_xsum,seq_gigaword"))


@dataclass(frozen=True)
class PlannedTrial:
    """The commands of all tasks for one choice of the searched values and one seed."""

    point: Point
    seed: int | None
    plans: Sequence[TaskPlan]


def planned_trials(sweep: SweepArgs) -> list[PlannedTrial]:
    """Every choice of a grid with every seed; of a random or guided search one example.

    Raises:
        ValueError: something that no command could be made of.
    """
    space = find_search_space(sweep)
    points = grid_points(space) if sweep.known.search == "grid" else [example_point(space)]
    seeds = parse_seeds(sweep.known.seeds, sweep.known.seed_base)
    return [PlannedTrial(point, seed, plan_tasks(sweep, seed=seed, point=point)) for point in points for seed in seeds]


def plan_text(sweep: SweepArgs, form: str | None = None) -> str:
    """The commands of a sweep.

    Args:
        form: "shell" for lines to be run, with the files that they need; "json" for everything that is planned; None
            for reading, with remarks after ``#``.
    """
    trials = planned_trials(sweep)
    if form == "json":
        return json.dumps([_as_json(sweep, trial, command) for trial, command in _commands(trials)], indent=2)
    if form == "shell":
        folder = f"mkdir -p {shlex.quote(f'{sweep.data_root}/tmp')}"
        return "\n".join([folder, *(_shell(sweep, command) for _, command in _commands(trials))])
    lines = [line for trial in trials for line in _trial_lines(sweep, trial, is_one_of_many=len(trials) > 1)]
    number = sum(1 for _ in _commands(trials))
    example = "" if sweep.known.search == "grid" else f"; --search={sweep.known.search} will draw other values"
    return "\n".join([*lines, f"# {number} commands, nothing was run{example}"])


def sample_text(presets: Presets) -> str:
    """Sample commands of the presets: the tasks for the 10B model, and pretraining."""
    lines = ["# samples: SuperGLUE and summarisation with the 10B model, pretraining"]
    for words in SAMPLES:
        sweep = parse(words)
        lines += [_with_result(sweep, command).line() for plan in plan_tasks(sweep) for command in plan.stages]
    for name, (deepspeed, flags) in presets.samples.items():
        pairs = (*fill(flags, {}), ("--deepspeed-activation-checkpointing", None), ("--deepspeed", None),
                 (DEEPSPEED_FLAG, deepspeed))
        launcher = ("deepspeed", f"--master_port={random_port()}", "--include=localhost:0,1", "--hostfile=")
        lines.append(StageCommand(name, 0, ENVIRONMENT, launcher, PRETRAIN_SCRIPT, pairs, None, deepspeed, "").line())
    return "\n".join(lines)


def presets_text(presets: Presets, teachers: TeacherEntries) -> str:
    """Tables of models with their numbers of parameters, of tasks with their epochs, and the teacher entries."""
    rows = []
    for name, model in presets.models.items():
        flags, count = dict(fill(model.flags, {"checkpoint": ""})), preset_parameters(model)
        sizes = "/".join(flags.get(f"--{size}") or "?" for size in (
            "num-layers", "hidden-size", "num-attention-heads", "max-position-embeddings"))
        file = model.deepspeed.replace("{suffix}", "")
        rows.append((name, sizes, "" if count is None else f"{count:,}", model.checkpoint, file))
    header = ("--model", "layers/width/heads/positions", "parameters", "start checkpoint", "DeepSpeed file")
    parts = [_table(header, rows)]
    tables = list(presets.epochs)
    for name, script in presets.scripts.items():
        rows = [(task.name, task.task, f"{script.data}/{task.data}", *(
            str(presets.epochs[table].get(task.name, task.values.get("epochs", ""))) for table in tables))
            for task in script.tasks.values()]
        parts.append(f"--script={name}\n" + _table(("--tasks", "task", "data", *tables), rows))
    parts.append(_table(("--task_t_load", ""), [(name, teachers.comments(name)) for name in teachers.names]))
    return "\n\n".join(parts)


def _commands(trials: Sequence[PlannedTrial]) -> Iterator[tuple[PlannedTrial, StageCommand]]:
    return ((trial, command) for trial in trials for plan in trial.plans for command in plan.stages)


def _with_result(sweep: SweepArgs, command: StageCommand) -> StageCommand:
    """The command as it will run: with the file for its scores."""
    result = f"{sweep.data_root}/tmp/result_{fresh_stamp()}.json"
    return replace(command, flags=(*command.flags, (RESULT_FLAG, result)))


def _trial_lines(sweep: SweepArgs, trial: PlannedTrial, *, is_one_of_many: bool) -> Iterator[str]:
    if is_one_of_many or trial.point:
        chosen = [f"{flag}={value}" for flag, value in trial.point.items()]
        yield " ".join(["#", *chosen, *([] if trial.seed is None else [f"--seed={trial.seed}"])])
    model = sweep.presets.models[sweep.known.model]
    for _, command in _commands([trial]):
        remarks = [f"{command.task}, stage {command.stage}"]
        if (count := planned_parameters(command.flags, model)) is not None:
            remarks.append(f"{count:,} parameters")
        if command.deepspeed_config is not None:
            micro, steps, fp16 = (command.deepspeed_config.get(key) for key in (
                "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "fp16"))
            rate = command.deepspeed_config.get("optimizer", {}).get("params", {}).get("lr")
            precision = "fp16" if fp16 and fp16.get("enabled") else "no fp16"
            remarks.append(f"{command.deepspeed_path} will have micro batch {micro} x {steps}, lr {rate}, {precision}")
        remarks += [f"{old} will be cut to {new}" for old, new in command.resplits]
        yield "# " + "; ".join(remarks)
        yield _with_result(sweep, command).line()


def _as_json(sweep: SweepArgs, trial: PlannedTrial, command: StageCommand) -> dict[str, Any]:
    return {"task": command.task, "stage": command.stage, "point": dict(trial.point), "seed": trial.seed,
            "environment": dict(command.environment), "command": _with_result(sweep, command).words(),
            "deepspeed_path": command.deepspeed_path, "deepspeed_config": command.deepspeed_config,
            "checkpoint": command.checkpoint, "resplits": [list(pair) for pair in command.resplits]}


def _shell(sweep: SweepArgs, command: StageCommand) -> str:
    """The command for a shell, after what it needs."""
    lines = [f"# {command.task}, stage {command.stage}"]
    for old, new in command.resplits:
        words = change_mp_words(old, new, sweep.known.fix_module_parameters_mp)
        cut = shlex.join(["python", "change_mp.py", *words])
        if (made := f"{words[0]}_MP{words[1]}") != new:
            cut += f" && {shlex.join(['mv', made, new])}"
        lines.append(f"test -e {shlex.quote(new)} || {{ {cut}; }}")  # other commands may start from the same one
    if command.deepspeed_config is not None:
        content = json.dumps(command.deepspeed_config, sort_keys=True, indent=2)
        file = shlex.quote(command.deepspeed_path)
        lines += [f"mkdir -p {deepspeed_files.FOLDER}", f"cat > {file} <<'JSON'", content, "JSON"]
    variables = [f"{name}={shlex.quote(value)}" for name, value in command.environment]
    return "\n".join([*lines, " ".join([*variables, shlex.join(_with_result(sweep, command).words())])])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(aligned((header, *rows)))
