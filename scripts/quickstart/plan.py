"""What the quick start runs: steps, why they are made, and their command lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

WORLD = "world"
POSITIONS = 128
EVAL_BATCHES = 8


@dataclass(frozen=True)
class Sizes:
    """Depth, width and heads of a model."""

    layers: int
    hidden: int
    heads: int

    def flags(self, prefix: str = "") -> list[str]:
        """The flags of the student's (``prefix`` "") or a teacher's sizes."""
        dash = "_" if prefix else "-"
        names = (("num-layers", self.layers), ("hidden-size", self.hidden), ("num-attention-heads", self.heads))
        return [f"--{prefix}{name.replace('-', dash)}={value}" for name, value in names]


@dataclass(frozen=True)
class Training:
    """Batch size, peak learning rate and weight decay: what goes into a DeepSpeed file."""

    batch_size: int
    lr: float
    weight_decay: float = 0.01

    def deepspeed_file(self) -> dict:
        """The content of the file for ``--deepspeed_config``."""
        adam = {"lr": self.lr, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": self.weight_decay}
        return {
            "train_micro_batch_size_per_gpu": self.batch_size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 1.0,
            "steps_per_print": 1000000,
            "optimizer": {"type": "Adam", "params": adam},
        }


@dataclass(frozen=True)
class Recipe:
    """Every number of the quick start. The defaults were chosen for two CPU cores."""

    teacher: Sizes = Sizes(3, 128, 4)
    student: Sizes = Sizes(2, 64, 4)
    teacher_iters: int = 1400
    student_iters: int = 800
    pretrain_teacher: Training = Training(16, 2e-3)
    pretrain_student: Training = Training(16, 4e-3)
    finetune_teacher: Training = Training(16, 3e-4)
    finetune_student: Training = Training(16, 1e-3)
    teacher_epochs: int = 2
    label_epochs: int = 3
    stage1_epochs: int = 1
    stage2_epochs: int = 2
    pretrain_temperature: float = 1.0
    stage1_temperature: float = 1.0
    pretrain_length: int = 64
    task_length: int = 44


@dataclass(frozen=True)
class Step:
    """One child process.

    Attributes:
        name: also of its folder; ``title`` and ``why`` are for people.
        command: words after the launcher; ``{<step>}`` stands for that step's checkpoint.
        needs: steps that must be done before.
        training: content of its DeepSpeed file; None for a step that does not train.
        model, seed, stage: for the table, e.g. "student distilled", 1, "fine-tuning"; empty for the world.
    """

    name: str
    title: str
    why: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    training: Training | None = None
    model: str = ""
    seed: int | None = None
    stage: str = ""


TEACHER, ALONE, DISTILLED, SCRATCH = "teacher", "student alone", "student distilled", "student without pretraining"
MODELS = (TEACHER, ALONE, DISTILLED, SCRATCH)


def make_plan(run: Path, recipe: Recipe, seeds: int, *, first_seed: int = 1) -> list[Step]:
    """All steps, each after those it needs; the teacher is shared by all seeds."""
    plan = _Plan(run, recipe)
    return [
        *plan.shared(first_seed),
        *(step for seed in range(first_seed, first_seed + seeds) for step in plan.of(seed)),
    ]


@dataclass(frozen=True)
class _Who:
    """The model that a step trains."""

    model: str
    seed: int
    sizes: Sizes


@dataclass(frozen=True)
class _Lesson:
    """Distillation in a step: from which step's teacher, by which flags of logitsdistil, at which temperature."""

    teacher: str
    flags: tuple[str, ...]
    temperature: float


class _Plan:
    def __init__(self, run: Path, recipe: Recipe) -> None:
        self.run, self.recipe, self.world = run, recipe, run / WORLD

    def shared(self, seed: int) -> Iterator[Step]:
        """The world and the teacher."""
        recipe, teacher = self.recipe, _Who(TEACHER, seed, self.recipe.teacher)
        why = "a small English world: text to read, and COPA questions that only a reader of the text can answer"
        yield Step(WORLD, "Make the world", why, ("data_utils.world", str(self.world)))
        yield self._pretrain(
            "teacher-pretrain",
            ("Pretrain the teacher", "the larger model reads the text, to have something to teach"),
            teacher,
        )
        yield self._finetune(
            "teacher-finetune",
            (
                "Fine-tune the teacher on COPA",
                "few epochs at a low rate: it learns the form of the questions and keeps what it read",
            ),
            teacher,
            recipe.teacher_epochs,
            start="teacher-pretrain",
        )

    def of(self, seed: int) -> Iterator[Step]:
        """The students of one seed, the longest way to the table first."""
        recipe, at = self.recipe, f"-{seed}"
        distilled, alone, scratch = (_Who(model, seed, recipe.student) for model in (DISTILLED, ALONE, SCRATCH))
        yield self._pretrain(
            f"distilled-pretrain{at}",
            (
                "Pretrain the student with the teacher",
                "GLMD (logitsdistil): same steps and text, but the teacher's word distributions are the targets",
            ),
            distilled,
            _Lesson(
                "teacher-pretrain",
                ("--logitsdistil_mask_pad", "--logitsdistil_mask_a"),
                recipe.pretrain_temperature,
            ),
        )
        yield self._pretrain(
            f"alone-pretrain{at}",
            (
                "Pretrain the student alone",
                "the same student, steps and text without a teacher: what distillation is compared with",
            ),
            alone,
        )
        yield self._finetune(
            f"alone-finetune{at}",
            ("Fine-tune the student alone", "on the labelled questions, as without a teacher"),
            alone,
            recipe.label_epochs,
            start=f"alone-pretrain{at}",
        )
        yield self._finetune(
            f"scratch-finetune{at}",
            (
                "Fine-tune a student without pretraining",
                "the check that the held-out questions need the text: it should be near chance",
            ),
            scratch,
            recipe.label_epochs,
        )
        yield self._finetune(
            f"distilled-stage1{at}",
            (
                "Distil the student on COPA, stage 1",
                "GLMD stage 1 (logitsdistil): the teacher's word distributions on the unlabelled questions",
            ),
            distilled,
            recipe.stage1_epochs,
            start=f"distilled-pretrain{at}",
            lesson=_Lesson("teacher-finetune", ("--logitsdistil_mask_pad",), recipe.stage1_temperature),
        )
        yield self._finetune(
            f"distilled-stage2{at}",
            (
                "Distil the student on COPA, stage 2",
                "GLMD stage 2: the teacher's scores of the choices, still without any label",
            ),
            distilled,
            recipe.stage2_epochs,
            start=f"distilled-stage1{at}",
            lesson=_Lesson("teacher-finetune", ("--distill_ft_soft", "--logitsdistil_wo_inter"), 1.0),
        )

    def _pretrain(self, name: str, text: tuple[str, str], who: _Who, lesson: _Lesson | None = None) -> Step:
        recipe, is_teacher = self.recipe, who.model == TEACHER
        iterations = recipe.teacher_iters if is_teacher else recipe.student_iters
        command = [
            "distill/pretrain.py",
            *self._common(name, who),
            f"--train-data={self.world / 'text/train.jsonl'}",
            f"--valid-data={self.world / 'text/valid.jsonl'}",
            "--split=1",
            "--sample-one-document",
            f"--seq-length={recipe.pretrain_length}",
            # Mostly long blanks: the more targets a row has, the sooner a small model learns from it.
            "--bert-prob=0.15",
            "--gpt-min-ratio=0.7",
            f"--train-iters={iterations}",
            f"--eval-interval={max(1, iterations // 10)}",
            f"--eval-iters={EVAL_BATCHES}",
            "--eval-batch-size=64",
            "--save-interval=0",
            "--lr-decay-ratio=0.05",
            *self._lesson_flags(lesson),
        ]
        needs = (WORLD,) if lesson is None else (WORLD, lesson.teacher)
        training = recipe.pretrain_teacher if is_teacher else recipe.pretrain_student
        return Step(name, *text, tuple(command), needs, training, who.model, who.seed, "pretraining")

    def _finetune(
        self,
        name: str,
        text: tuple[str, str],
        who: _Who,
        epochs: int,
        *,
        start: str | None = None,
        lesson: _Lesson | None = None,
    ) -> Step:
        command = [
            "distill/finetune.py",
            *self._common(name, who),
            "--finetune",
            "--cloze-eval",
            "--task=COPA",
            "--pattern-id=1",
            f"--data-dir={self.world / 'tasks/COPA'}",
            f"--seq-length={self.recipe.task_length}",
            f"--epochs={epochs}",
            "--eval-batch-size=50",
            "--eval-interval=0",
            # The weights after the last step are scored, once, on all held-out questions: nothing is selected on them.
            "--no-validation",
            "--ft_final_save",
            "--save-epoch=100000",
            "--valid-data",
            "dev",
            "test",
            *([f"--load-pretrained={{{start}}}"] if start else []),
            *(["--train-split=unlabeled"] if lesson else []),
            *self._lesson_flags(lesson),
        ]
        needs = tuple(one for one in (WORLD, start, lesson and lesson.teacher) if one)
        training = self.recipe.finetune_teacher if who.model == TEACHER else self.recipe.finetune_student
        return Step(name, *text, tuple(command), needs, training, who.model, who.seed, "fine-tuning")

    def _common(self, name: str, who: _Who) -> list[str]:
        folder = step_folder(self.run, name)
        return [
            "--deepspeed",
            f"--deepspeed_config={folder / 'deepspeed.json'}",
            "--distributed-backend=gloo",
            "--block-lm",
            "--tokenizer-type=BertWordPieceTokenizer",
            f"--tokenizer-model-type={self.world / 'vocab.txt'}",
            *who.sizes.flags(),
            f"--max-position-embeddings={POSITIONS}",
            "--attention-dropout=0",
            "--hidden-dropout=0",
            "--lr-decay-style=linear",
            "--warmup=0.1",
            "--num-workers=0",
            "--log-interval=10",
            f"--seed={who.seed}",
            f"--save={folder / 'checkpoints'}",
            f"--experiment-name={name}",
            f"--log-dir={folder / 'records'}",
        ]

    def _lesson_flags(self, lesson: _Lesson | None) -> list[str]:
        if lesson is None:
            return []
        return [
            "--student_model=logitsdistil",
            *lesson.flags,
            f"--distill_temperature={lesson.temperature:g}",
            f"--teacher_load_pretrained={{{lesson.teacher}}}",
            *self.recipe.teacher.flags("teacher_"),
            f"--teacher_max_position_embeddings={POSITIONS}",
        ]


def step_folder(run: Path, name: str) -> Path:
    """Where a step writes."""
    return run / "steps" / name


def command_of(step: Step, checkpoints: Mapping[str, Path]) -> list[str]:
    """The words of a step's command with the checkpoints of the steps it needs filled in."""
    words = []
    for word in step.command:
        for name in step.needs:
            word = word.replace(f"{{{name}}}", str(checkpoints.get(name, f"{{{name}}}")))
        words.append(word)
    return words


def fingerprint(step: Step, done: Mapping[str, str]) -> str:
    """What decides a step's result: its command, its DeepSpeed file, and the fingerprints of the steps it needs."""
    file = step.training.deepspeed_file() if step.training else None
    parts = [list(step.command), file, [done.get(name) for name in step.needs]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
