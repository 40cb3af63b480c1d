"""The steps: two models are pretrained, then each is fine-tuned on every task by one command, AX-b and AX-g scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.sweep.presets import TaskPreset, load_presets
from scripts.quickstart.steps import DISTILLED, TEACHER, WORLD, Sizes, Step, step_folder

NEGATIVE = "WSC-negative"
#: The diagnostic sets, which the models of RTE answer.
DIAGNOSTICS = {"ax-b": "AX-b", "ax-g": "AX-g"}
ORIGIN = "rte"
MODELS = (TEACHER, DISTILLED)
#: What a model is called in names and sentences.
NAMES = {TEACHER: "teacher", DISTILLED: "student"}
SEED = 1


@dataclass(frozen=True)
class Recipe:
    """Every number of a run.

    Attributes:
        iterations: of pretraining; 16 rows of ``length`` tokens each, at the rate ``pretrain_lr``.
        epochs: of fine-tuning, by task preset; ``epochs[""]`` is that of the others. Each step has ``batch_size`` rows.
        longest: tokens of a row at most, by task preset; ``longest[""]`` is that of the others. The published lengths
            are cut to it, and longer texts with them.
        lr: of fine-tuning, for the teacher and for the student.
        student_split: what the student is trained on; "unlabeled" has no labels, the teacher's answers alone.
        task_flags: further flags by task preset.
    """

    teacher: Sizes
    student: Sizes
    iterations: tuple[int, int]
    epochs: Mapping[str, int]
    longest: Mapping[str, int]
    lr: tuple[float, float]
    student_split: str = "train"
    length: int = 64
    batch_size: int = 8
    pretrain_lr: tuple[float, float] = (2e-3, 4e-3)
    temperature: float = 1.0
    task_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


REAL = Recipe(
    teacher=Sizes(12, 64, 4), student=Sizes(6, 64, 4), iterations=(200, 200),
    epochs={"": 10, "multirc": 3, "record": 4}, lr=(5e-4, 5e-4),
    longest={"": 192, "copa": 64, "wic": 64, "wsc": 96, "wsc_generative": 96, "multirc": 256, "record": 256},
    # Their small development sets: the others alone have more answers than all further tasks have examples.
    task_flags={"multirc": ("--few-superglue",), "record": ("--few-superglue", "--fast-decode")})
WORLD_RECIPE = Recipe(
    teacher=Sizes(3, 128, 4), student=Sizes(2, 64, 4), iterations=(1400, 800),
    epochs={"": 3, "copa": 2, "multirc": 2}, longest={"": 64}, lr=(3e-4, 1e-3), student_split="unlabeled",
    batch_size=16, task_flags={"record": ("--fast-decode",)})


@dataclass(frozen=True)
class Files:
    """What the models read.

    Attributes:
        text: for pretraining, one corpus or several.
        tasks: folder with one folder a task, as the official archives have it.
        is_world: the folder ``world`` below the run, which has to be written first.
    """

    text: tuple[Path, ...]
    vocabulary: Path
    tasks: Path
    is_world: bool = False

    @staticmethod
    def generated(run: Path) -> Files:
        """The generated world."""
        world = run / WORLD
        return Files((world / "text/train.jsonl",), world / "vocab.txt", world / "tasks", is_world=True)


def presets() -> dict[str, TaskPreset]:
    """The task presets of the published protocol: task, folder, pattern and further flags."""
    return dict(load_presets().scripts["finetune_superglue"].tasks)


def task_names() -> tuple[str, ...]:
    """What can be run."""
    return (*presets(), *DIAGNOSTICS)


def step_name(task: str, model: str) -> str:
    """The step in which a model's score on a task is measured."""
    return f"{task}-{NAMES[model]}"


def make_plan(run: Path, recipe: Recipe, files: Files, tasks: Sequence[str]) -> list[Step]:
    """All steps, each after those it needs. A diagnostic set brings RTE with it."""
    plan = _Plan(run, recipe, files)
    trained = [name for name in presets() if name in tasks or name == ORIGIN and set(tasks) & set(DIAGNOSTICS)]
    return [*plan.preparation(trained), *(plan.pretrain(model) for model in MODELS),
            *(plan.finetune(name, model) for name in trained for model in MODELS),
            *(plan.evaluate(name, model) for name in DIAGNOSTICS if name in tasks for model in MODELS)]


class _Plan:
    def __init__(self, run: Path, recipe: Recipe, files: Files) -> None:
        self.run, self.recipe, self.files, self.presets = run, recipe, files, presets()

    def preparation(self, tasks: Sequence[str]) -> Iterator[Step]:
        """Files that have to be made."""
        if self.files.is_world:
            yield Step(WORLD, "Make the world", "a small English world and questions on it",
                       ("data_utils.world", str(self.run / WORLD)))
        elif "wsc" in tasks and self._makes_candidates:
            yield Step(NEGATIVE, "Find candidates for WSC", "other noun phrases than the right one",
                       ("tasks.superglue.wsc_negative", str(self.files.tasks / "WSC"), str(self._folder("wsc"))))

    def pretrain(self, model: str) -> Step:
        """Plain pretraining of one of the two models."""
        recipe, which = self.recipe, MODELS.index(model)
        name = f"pretrain-{NAMES[model]}"
        command = (
            "distill/pretrain.py", *self._common(name, model), "--train-data", *map(str, self.files.text),
            "--split=95,5,0", "--sample-one-document", f"--seq-length={recipe.length}",
            "--bert-prob=0.15", "--gpt-min-ratio=0.7", "--batch-size=16",
            f"--lr={recipe.pretrain_lr[which]:g}", f"--train-iters={recipe.iterations[which]}",
            f"--eval-interval={recipe.iterations[which]}", "--eval-iters=8", "--save-interval=0")
        return Step(name, f"Pretrain the {NAMES[model]}", f"{recipe.iterations[which]} iterations on text", command,
                    (WORLD,) if self.files.is_world else (), model=model, seed=SEED, stage="pretraining")

    def finetune(self, task: str, model: str) -> Step:
        """The one command that fine-tunes a model on a task and scores it."""
        recipe, preset, which = self.recipe, self.presets[task], MODELS.index(model)
        name, start = step_name(task, model), f"pretrain-{NAMES[model]}"
        lesson = self._lesson(task) if model == DISTILLED else []
        length, epochs = self._length(task), recipe.epochs.get(task, recipe.epochs[""])
        command = (
            "distill/finetune.py", *self._common(name, model), "--finetune", "--cloze-eval", f"--task={preset.task}",
            *preset.flags, f"--data-dir={self._folder(task)}", f"--seq-length={length}",
            f"--batch-size={recipe.batch_size}", "--eval-batch-size=16", f"--lr={recipe.lr[which]:g}",
            f"--epochs={epochs}",
            # The weights after the last step are scored: nothing is selected on the development set.
            "--no-validation", "--ft_final_save", "--save-epoch=100000", "--eval-interval=0",
            f"--load-pretrained={{{start}}}", *recipe.task_flags.get(task, ()), *lesson)
        needs = [start, *([step_name(task, TEACHER)] if lesson else []),
                 *([NEGATIVE] if task == "wsc" and self._makes_candidates else [])]
        by = "by its teacher's answers" + (" and the labels" if recipe.student_split != "unlabeled" else "")
        return Step(name, f"Fine-tune the {NAMES[model]} on {preset.label}", by if lesson else "on its labels", command,
                    tuple(needs), model=model, seed=SEED, stage="fine-tuning")

    def evaluate(self, task: str, model: str) -> Step:
        """The score of RTE's model on a diagnostic set."""
        name, origin, folder = step_name(task, model), step_name(ORIGIN, model), DIAGNOSTICS[task]
        preset = self.presets[ORIGIN]
        command = (
            "distill/finetune.py", *self._common(name, model), "--finetune", "--cloze-eval", f"--task={folder}",
            *preset.flags, f"--data-dir={self.files.tasks / folder}",
            f"--seq-length={self._length(ORIGIN)}", "--eval-batch-size=16", "--epochs=0",
            f"--load-pretrained={{{origin}}}")
        return Step(name, f"Score the {NAMES[model]} on {folder}", "the model of RTE", command, (origin,), model=model,
                    seed=SEED, stage="evaluation")

    @property
    def _makes_candidates(self) -> bool:
        """WSC's candidates are made where the folder with them is missing."""
        return not self.files.is_world and not (self.files.tasks / NEGATIVE).is_dir()

    def _folder(self, task: str) -> Path:
        """Where a task's files are."""
        made = step_folder(self.run, NEGATIVE) / NEGATIVE
        return made if task == "wsc" and self._makes_candidates else self.files.tasks / self.presets[task].data

    def _length(self, task: str) -> int:
        longest = self.recipe.longest
        return min(int(self.presets[task].values["seq_length"]), longest.get(task, longest[""]))

    def _lesson(self, task: str) -> list[str]:
        """Distillation by the teacher's answers (KD), from the labels too where there are any."""
        recipe = self.recipe
        labels = ["--train-split=unlabeled"] if recipe.student_split == "unlabeled" else ["--distill_ft_hard"]
        return ["--student_model=kd", "--distill_ft_soft", *labels, f"--distill_temperature={recipe.temperature:g}",
                f"--teacher_load_pretrained={{{step_name(task, TEACHER)}}}", *recipe.teacher.flags("teacher_"),
                f"--teacher_max_position_embeddings={self._positions}"]

    @property
    def _positions(self) -> int:
        return 2 * max(*self.recipe.longest.values(), self.recipe.length)

    def _common(self, name: str, model: str) -> list[str]:
        folder = step_folder(self.run, name)
        sizes = self.recipe.teacher if model == TEACHER else self.recipe.student
        return ["--distributed-backend=gloo", "--block-lm", "--tokenizer-type=BertWordPieceTokenizer",
                f"--tokenizer-model-type={self.files.vocabulary}", *sizes.flags(),
                f"--max-position-embeddings={self._positions}", "--attention-dropout=0", "--hidden-dropout=0",
                "--lr-decay-style=linear", "--warmup=0.1", "--num-workers=0", "--log-interval=10", f"--seed={SEED}",
                f"--save={folder / 'checkpoints'}", f"--experiment-name={name}", f"--log-dir={folder / 'records'}"]
