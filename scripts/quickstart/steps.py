"""The steps that experiments are made of: what each runs, why, and on what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

WORLD, FREQUENCIES = "world", "frequencies"
TEACHER, DISTILLED = "teacher", "student distilled"
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
    """Every number of an experiment. The defaults were chosen for the generated world and two CPU cores."""

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
    vocabulary_multiple: int = 128


#: For text with a real vocabulary of 30,000 tokens, in minutes: too few steps to learn to answer questions.
TEXT_RECIPE = Recipe(
    teacher_iters=300,
    student_iters=160,
    pretrain_student=Training(8, 4e-3),
    teacher_epochs=1,
    label_epochs=1,
    stage2_epochs=1,
    task_length=64,
)


@dataclass(frozen=True)
class Source:
    """What the models read and are asked.

    Attributes:
        train, valid: text, a document a line.
        vocabulary: BERT WordPiece tokens, one a line.
        questions: folder of COPA in SuperGLUE's files, pattern number ``pattern``.
        held_out: its splits that are scored.
        unlabeled: the split that a student is distilled on; its labels, if any, enter no loss.
        world: where the generated world has to be written first; None for files that exist.
    """

    train: Path
    valid: Path
    vocabulary: Path
    questions: Path
    held_out: tuple[str, ...] = ("dev",)
    unlabeled: str = "train"
    pattern: int = 1
    world: Path | None = None

    @staticmethod
    def generated(world: Path) -> Source:
        """The generated world in a folder; its validation and test questions are both held out."""
        text = world / "text"
        return Source(text / "train.jsonl", text / "valid.jsonl", world / "vocab.txt", world / "tasks/COPA",
                      ("dev", "test"), "unlabeled", world=world)

    def num_questions(self) -> int:
        """How many questions are held out."""
        files = {"dev": "val", "test": "test"}
        paths = [self.questions / f"{files[split]}.jsonl" for split in self.held_out]
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


@dataclass(frozen=True)
class Step:
    """One child process.

    Attributes:
        name: also of its folder; ``title`` and ``why`` are for people.
        command: words after the launcher; ``{<step>}`` stands for that step's checkpoint.
        needs: steps that must be done before.
        training: content of its DeepSpeed file; None for a step that does not train.
        model, seed, stage: for the table, e.g. "student distilled", 1, "fine-tuning"; empty for what is no model's.
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


@dataclass(frozen=True)
class Compression:
    """A student's smaller word table: this share of the vocabulary's rows, factorised over this width."""

    share: float
    width: int

    def flags(self, *, unmap: bool = True) -> list[str]:
        """Flags of every stage; ``unmap``: one logit for each row that is kept, not for each token."""
        return [f"--map_vocab_size={self.share:g}", f"--compress_word_emb={self.width}",
                *(["--unmap_vocab_output"] if unmap else [])]


@dataclass(frozen=True)
class Who:
    """The model that a step trains."""

    model: str
    seed: int
    sizes: Sizes
    compression: Compression | None = None


@dataclass(frozen=True)
class Lesson:
    """Distillation in a step: from which step's teacher, by which flags of logitsdistil, at which temperature."""

    teacher: str
    flags: tuple[str, ...]
    temperature: float


class StepMaker:
    """Makes the steps of a run's folder by a recipe from a source."""

    def __init__(self, run: Path, recipe: Recipe, source: Source) -> None:
        self.run, self.recipe, self.source = run, recipe, source

    def shared(self, seed: int) -> Iterator[Step]:
        """The world, where it is generated, and the teacher."""
        teacher = Who(TEACHER, seed, self.recipe.teacher)
        if self.source.world:
            why = "a small English world: text to read, and COPA questions that only a reader of the text can answer"
            yield Step(WORLD, "Make the world", why, ("data_utils.world", str(self.source.world)))
        why = "the larger model reads the text, to have something to teach"
        yield self.pretrain("teacher-pretrain", ("Pretrain the teacher", why), teacher)
        why = "few epochs at a low rate: it learns the form of the questions and keeps what it read"
        yield self.finetune("teacher-finetune", ("Fine-tune the teacher on COPA", why), teacher,
                            self.recipe.teacher_epochs, start="teacher-pretrain")

    def frequencies(self) -> Step:
        """The count of the text's tokens, by which a compact vocabulary keeps them."""
        why = "the frequency table: a compact vocabulary keeps the tokens at its top"
        return Step(FREQUENCIES, "Count the tokens of the text", why,
                    ("distill.vocab_sort", f"--train-data={self.source.train}", *self._tokenizer(),
                     f"--output={self._frequency_table}"), (WORLD,) if self.source.world else ())

    def distilled(self, kind: str, who: Who) -> Iterator[Step]:
        """A student's way by GLMD (logitsdistil): text, then unlabelled questions in two stages."""
        recipe, student = self.recipe, "the compressed student" if who.compression else "the student"
        names = {part: f"{kind}-{part}-{who.seed}" for part in ("pretrain", "stage1", "stage2")}
        why = "GLMD (logitsdistil): same steps and text, but the teacher's word distributions are the targets"
        flags = ("--logitsdistil_mask_pad", "--logitsdistil_mask_a")
        yield self.pretrain(names["pretrain"], (f"Pretrain {student} with the teacher", why), who,
                            Lesson("teacher-pretrain", flags, recipe.pretrain_temperature))
        why = "GLMD stage 1 (logitsdistil): the teacher's word distributions on the unlabelled questions"
        yield self.finetune(names["stage1"], (f"Distil {student} on COPA, stage 1", why), who, recipe.stage1_epochs,
                            start=names["pretrain"],
                            lesson=Lesson("teacher-finetune", ("--logitsdistil_mask_pad",), recipe.stage1_temperature))
        why = "GLMD stage 2: the teacher's scores of the choices, still without any label"
        yield self.finetune(names["stage2"], (f"Distil {student} on COPA, stage 2", why), who, recipe.stage2_epochs,
                            start=names["stage1"],
                            lesson=Lesson("teacher-finetune", ("--distill_ft_soft", "--logitsdistil_wo_inter"), 1.0))

    def pretrain(self, name: str, text: tuple[str, str], who: Who, lesson: Lesson | None = None) -> Step:
        """Pretraining from scratch."""
        recipe, is_teacher = self.recipe, who.model == TEACHER
        iterations = recipe.teacher_iters if is_teacher else recipe.student_iters
        command = [
            "distill/pretrain.py",
            *self._common(name, who),
            *self._text(iterations),
            "--save-interval=0",
            "--lr-decay-ratio=0.05",
            *self._lesson_flags(lesson, who),
            *self._map_flags(who),
        ]
        needs = (self.source.world and WORLD, lesson and lesson.teacher, who.compression and FREQUENCIES)
        training = recipe.pretrain_teacher if is_teacher else recipe.pretrain_student
        return Step(name, *text, tuple(command), tuple(filter(None, needs)), training, who.model, who.seed,
                    "pretraining")

    def measure(self, name: str, who: Who, start: str) -> Step:
        """The loss on the validation text after step ``start``, the same batches and all tokens for every model.

        A compact vocabulary is mapped back: a token without a row has the logit of the one that it is read as, and all
        logits share one softmax. So the losses of models with different tables can be compared.
        """
        flags = self._common(name, replace(who, seed=1), unmap=False)  # one seed: the same blanks for every model
        command = ("distill/pretrain.py", *flags, *self._text(0), f"--load-pretrained={{{start}}}")
        needs = (self.source.world and WORLD, start)
        return Step(name, f"Measure the {who.model}", "its loss over all tokens on the validation text", command,
                    tuple(filter(None, needs)), self.recipe.pretrain_student, who.model, who.seed, "evaluation")

    def finetune(self, name: str, text: tuple[str, str], who: Who, epochs: int, *, start: str | None = None,
                 lesson: Lesson | None = None) -> Step:
        """Fine-tuning on COPA from the checkpoint of step ``start``, by labels or by a lesson."""
        command = [
            "distill/finetune.py",
            *self._common(name, who),
            "--finetune",
            "--cloze-eval",
            "--task=COPA",
            f"--pattern-id={self.source.pattern}",
            f"--data-dir={self.source.questions}",
            f"--seq-length={self.recipe.task_length}",
            f"--epochs={epochs}",
            "--eval-batch-size=50",
            "--eval-interval=0",
            # The weights after the last step are scored, once, on all held-out questions: nothing is selected on them.
            "--no-validation",
            "--ft_final_save",
            "--save-epoch=100000",
            "--valid-data",
            *self.source.held_out,
            *([f"--load-pretrained={{{start}}}"] if start else []),
            *([f"--train-split={self.source.unlabeled}"] if lesson else []),
            *self._lesson_flags(lesson, who),
        ]
        needs = (self.source.world and WORLD, start, lesson and lesson.teacher)
        training = self.recipe.finetune_teacher if who.model == TEACHER else self.recipe.finetune_student
        return Step(name, *text, tuple(command), tuple(filter(None, needs)), training, who.model, who.seed,
                    "fine-tuning")

    def _text(self, iterations: int) -> list[str]:
        return [
            f"--train-data={self.source.train}",
            f"--valid-data={self.source.valid}",
            "--split=1",
            "--sample-one-document",
            f"--seq-length={self.recipe.pretrain_length}",
            # Mostly long blanks: the more targets a row has, the sooner a small model learns from it.
            "--bert-prob=0.15",
            "--gpt-min-ratio=0.7",
            f"--train-iters={iterations}",
            f"--eval-interval={max(1, iterations // 10)}",
            f"--eval-iters={EVAL_BATCHES}",
            "--eval-batch-size=64",
        ]

    def _common(self, name: str, who: Who, *, unmap: bool = True) -> list[str]:
        folder = step_folder(self.run, name)
        return [
            "--deepspeed",
            f"--deepspeed_config={folder / 'deepspeed.json'}",
            "--distributed-backend=gloo",
            "--block-lm",
            *self._tokenizer(),
            f"--make-vocab-size-divisible-by={self.recipe.vocabulary_multiple}",
            *who.sizes.flags(),
            *(who.compression.flags(unmap=unmap) if who.compression else []),
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

    def _tokenizer(self) -> list[str]:
        return ["--tokenizer-type=BertWordPieceTokenizer", f"--tokenizer-model-type={self.source.vocabulary}"]

    def _lesson_flags(self, lesson: Lesson | None, who: Who) -> list[str]:
        if lesson is None:
            return []
        return [
            "--student_model=logitsdistil",
            *lesson.flags,
            *(["--distill_logit_mask_map"] if who.compression else []),
            f"--distill_temperature={lesson.temperature:g}",
            f"--teacher_load_pretrained={{{lesson.teacher}}}",
            *self.recipe.teacher.flags("teacher_"),
            f"--teacher_max_position_embeddings={POSITIONS}",
        ]

    def _map_flags(self, who: Who) -> list[str]:
        """The first stage builds the map; the others read it from the checkpoint that they start from."""
        if who.compression is None:
            return []
        return ["--student_build_map_vocab", "--student_map_vocab_tn=0", "--student_map_vocab_method=decoder",
                f"--map_vocab_file={self._frequency_table}"]

    @property
    def _frequency_table(self) -> Path:
        return step_folder(self.run, FREQUENCIES) / "frequencies.txt"


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
