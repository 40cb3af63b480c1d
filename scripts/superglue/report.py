"""Table, settings and commands of a finished run as Markdown."""

from __future__ import annotations

import json
import os
import platform
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.quickstart.runner import DONE_FILE, num_cores, read_records
from scripts.quickstart.steps import TEACHER, Step, step_folder
from scripts.superglue.plan import DIAGNOSTICS, MODELS, NAMES, SEED, Files, Recipe, presets, step_name
from tasks.data import make_split, read_split, split_file
from tasks.evaluation import compute_metrics
from tasks.registry import get_task
from tasks.spec import TaskOptions

#: Metrics between 0 and 1; the others are per cent already.
FRACTIONS = ("f1a", "em", "f1-macro", "matthews")
WARNING = ("Small models: they show that every task runs from file to score, and say nothing about the quality of a "
           "method. An accuracy over 100 examples has a standard error of 5 points, over 300 one of 3.")
COMMANDS = "Each score comes from one command, behind the two that pretrain the models:"
#: Variables for flags that all commands of some stages have.
_VARIABLES = {"SMALL": ("pretraining", "fine-tuning", "evaluation"), "TASK": ("fine-tuning", "evaluation")}
_HEADERS = ("task", "metric", "examples", "constant answer", *MODELS,
            *(f"{what}: teacher, student" for what in ("training loss", "seconds")))


@dataclass(frozen=True)
class Row:
    """One task.

    Attributes:
        metrics: names, the first one decides.
        examples: that are scored.
        constant: the best scores that one and the same answer to everything gets.
        scores: model -> value of each metric, per cent.
        losses: model -> training loss at first and at last, each a mean over the steps between two records; empty for
            a model that is only scored.
        seconds: model -> wall time of its one command.
    """

    task: str
    metrics: tuple[str, ...]
    examples: int
    constant: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    losses: Mapping[str, tuple[float, ...]]
    seconds: Mapping[str, float]

    def cells(self) -> tuple[str, ...]:
        """As text."""
        values = [" / ".join(f"{value:.1f}" for value in found) for found in (
            self.constant, *(self.scores[model] for model in MODELS))]
        losses = [" → ".join(f"{loss:.2f}" for loss in self.losses[model]) or "–" for model in MODELS]
        return (self.task, " / ".join(self.metrics), f"{self.examples:,}", *values, ", ".join(losses),
                ", ".join(f"{self.seconds[model]:.0f}" for model in MODELS))


def report_parts(run: Path, recipe: Recipe, files: Files, steps: Sequence[Step], absent: Sequence[str],
                 base: Path) -> list[str]:
    """Warning, settings and table of a run whose steps are all done, the tasks that are ``absent``, and for real files
    the commands (paths as seen from the folder ``base``; all have theirs in ``steps/*/command.txt``)."""
    missing = [f"Not run, for want of files: {', '.join(absent)}.\n"] if absent else []
    parts = [f"{WARNING}\n", f"{settings(run, recipe, steps)}\n", table(make_rows(run, steps)), *missing]
    if files.is_world:
        return parts
    paths = {"RUN": run, "DATA": files.tasks, "VOCABULARY": files.vocabulary, **{
        f"TEXT_{letter}": path for letter, path in zip(string.ascii_uppercase, files.text)}}
    return [*parts, f"{COMMANDS}\n", commands(steps, paths, base)]


def make_rows(run: Path, steps: Sequence[Step]) -> list[Row]:
    """A row for each task of the plan."""
    by_name = {step.name: step for step in steps}
    names = {**{name: preset.label for name, preset in presets().items()}, **DIAGNOSTICS}
    return [_row(run, label.replace("_", ", "), {model: by_name[step_name(task, model)] for model in MODELS})
            for task, label in names.items() if step_name(task, TEACHER) in by_name]


def _row(run: Path, label: str, steps: Mapping[str, Step]) -> Row:
    examples, constant = _constant(steps[TEACHER])
    scores, losses = {}, {}
    for model, step in steps.items():
        records = read_records(step_folder(run, step.name) / "records")
        found = [record for record in records if record["kind"] == "metrics"][-1]
        scores[model] = _per_cent({name: found[name] for name in constant})
        trained = [record["mean_loss"] for record in records if record["kind"] == "train"]
        losses[model] = tuple(trained[place] for place in (0, -1) if trained)
    return Row(label, tuple(constant), examples, _per_cent(constant), scores, losses,
               {model: seconds_of(run, step) for model, step in steps.items()})


def _per_cent(scores: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(value * (100.0 if name in FRACTIONS else 1.0) for name, value in scores.items())


def _constant(step: Step) -> tuple[int, dict[str, float]]:
    """How many examples are scored, and the scores of the best answer that is the same (label or place) for all."""
    given = dict(word.removeprefix("--").partition("=")[::2] for word in step.command if word.startswith("--"))
    options = TaskOptions(cloze_eval=True, pattern_id=int(given.get("pattern-id", 0)),
                          few_superglue="few-superglue" in given, wsc_negative="wsc-negative" in given)
    spec, split = get_task(given["task"], options), make_split("dev")
    path = split_file(given["data-dir"], split, options.few_superglue, spec.files)
    examples = read_split(spec, path, split, training_form=False)
    fewest = min((example.num_choices for example in examples if example.num_choices > 1), default=len(spec.labels))
    scores = [compute_metrics(spec, examples, [answer] * len(examples))
              for answer in range(min(fewest, len(spec.labels)))]
    return len(examples), max(scores, key=lambda one: next(iter(one.values())))


def seconds_of(run: Path, step: Step) -> float:
    """Wall time of a finished step."""
    return json.loads((step_folder(run, step.name) / DONE_FILE).read_text())["seconds"]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [_HEADERS, ("---", "---", *["---:"] * (len(_HEADERS) - 2)), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def settings(run: Path, recipe: Recipe, steps: Sequence[Step]) -> str:
    """What was run, on which machine, how long, in sentences."""
    lines = []
    for step in (step for step in steps if step.stage == "pretraining"):
        records = read_records(step_folder(run, step.name) / "records")
        start = next(record for record in records if record["kind"] == "start")
        loss = [record for record in records if record["kind"] == "validation"][-1]["loss"]
        sizes = recipe.teacher if step.model == TEACHER else recipe.student
        lines.append(f"The {NAMES[step.model]} has {sizes.layers} layers of width {sizes.hidden} "
                     f"({start['parameters']:,} parameters); {start['iterations']} iterations of "
                     f"{start['global_batch_size']} x {recipe.length} tokens of text left it at a validation loss of "
                     f"{loss:.2f}, after {seconds_of(run, step):.0f} s.")
    torch = next(record["torch"] for record in records if record["kind"] == "start")
    total = sum(seconds_of(run, step) for step in steps)
    learnt = ("from the teacher's answers to unlabelled questions" if recipe.student_split == "unlabeled" else
              "from the teacher's answers and the labels")
    lines.append(f"The student learns each task by KD {learnt}. Seed {SEED}; nothing is selected on the examples that "
                 f"are scored. {total / 60:.0f} minutes in all on {_machine()}, torch {torch}.")
    return "\n".join(lines)


def _machine() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            name = next(line.partition(":")[2].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{num_cores()} cores ({name})"


def commands(steps: Sequence[Step], paths: Mapping[str, Path], base: Path) -> str:
    """The commands as they can be typed; long paths, and flags that many share, stand in shell variables.

    Args:
        paths: name of a variable -> the path that it stands for; ``RUN`` is the folder of the run.
        base: folder from which the paths are written.
    """
    lines = [(step, _words(step, steps, paths)) for step in steps if step.stage]
    text = [f"{name}={shlex.quote(os.path.relpath(path, base))}" for name, path in paths.items()]
    shared: list[str] = []
    for name, stages in _VARIABLES.items():
        members = [words[1:] for step, words in lines if step.stage in stages]
        common = [word for word in members[0] if all(word in words for words in members) and word not in shared]
        shared += common
        text.append(f'{name}="{" ".join(common)}"')
    for step, (script, *words) in lines:
        used = [f"${name}" for name, stages in _VARIABLES.items() if step.stage in stages]
        own = [word for word in words if word not in shared]
        text += [f"# {step.title}", " ".join(["python", script, *used, *own])]
    return "\n".join(["<details>\n<summary>the commands</summary>\n", "```shell", *text, "```\n", "</details>\n"])


def _words(step: Step, steps: Sequence[Step], paths: Mapping[str, Path]) -> list[str]:
    """A command with variables for paths; a pretrained checkpoint has the time in its name."""
    words = []
    for word in step.command:
        for other in steps:
            ending = "_<time>" if other.stage == "pretraining" else ""
            word = word.replace(f"{{{other.name}}}", f"$RUN/steps/{other.name}/checkpoints/{other.name}{ending}")
        for name, path in paths.items():
            word = word.replace(str(path), f"${name}")
        words.append(word)
    return words


def put_into_page(page: Path, place: str, text: str) -> None:
    """Replace what stands between ``<!-- place -->`` and ``<!-- /place -->``. ValueError for a page without them."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- {place} -->\n")
    _, end, after = rest.partition(f"<!-- /{place} -->\n")
    if not start or not end:
        raise ValueError(f"--markdown={page} has no place <!-- {place} --> … <!-- /{place} -->, each on a line")
    page.write_text(f"{before}{start}{text}{end}{after}", encoding="utf-8")
