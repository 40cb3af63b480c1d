"""docs/troubleshooting.md: every row of its table is provoked here, before the first step and without loss."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.distill.training.small_runs import finetune_flags, model_flags, pretrain_flags, run, write_world
from tests.helpers.tiny_bert import write_bert

PAGE = Path(__file__).resolve().parents[1] / "docs" / "troubleshooting.md"
TINYBERT = ("--student_model=tinybert", "--teacher_num_layers=3", "--teacher_hidden_size=48",
            "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=64")


class Case(NamedTuple):
    """A command that has to fail: stage and words."""

    stage: str
    words: list[str]


class Place(NamedTuple):
    """What a case can use: a world, checkpoints of it, and a folder of its own."""

    world: Path
    teacher: Path
    folder: Path

    def pretrain(self, *words: str, **changes: Any) -> Case:
        return Case("pretrain", [*pretrain_flags(self.world, **changes), *words])

    def finetune(self, *words: str, **changes: Any) -> Case:
        return Case("finetune", [*finetune_flags(self.world, **changes), *words])

    def language_model(self, *words: str, **changes: Any) -> Case:
        """Perplexity of the corpus."""
        values = {"task": "language_model", "valid-data": self.world / "corpus.txt", **changes}
        return Case("finetune", ["--finetune", *model_flags(self.world, **values), *words])

    def bert(self, folder: Path | str, **changes: Any) -> Case:
        words = [word for word in finetune_flags(self.world, **{"tokenizer-model-type": folder, **changes})
                 if word != "--cloze-eval"]
        return Case("finetune", [*words, "--pretrained-bert"])

    def corpus(self, content: bytes, name: str = "corpus.txt") -> Case:
        (self.folder / name).write_bytes(content)
        return self.pretrain(**{"train-data": self.folder / name})

    def task(self, change: Callable[[Path], object], *words: str, **changes: Any) -> Case:
        data = self.folder / "data"
        shutil.copytree(self.world / "copa", data)
        change(data)
        return self.finetune(*words, **{"data-dir": data, **changes})

    def distilled(self, teacher: Path | str | None = None, *words: str, **changes: Any) -> Case:
        return self.pretrain(*TINYBERT, f"--teacher_load_pretrained={teacher or self.teacher}", *words, **changes)

    def deepspeed(self, text: str, *words: str) -> Case:
        (self.folder / "ds.json").write_text(text)
        return self.pretrain("--deepspeed", f"--deepspeed_config={self.folder / 'ds.json'}", *words)

    def copied_teacher(self) -> tuple[Path, Path]:
        """A copy of the teacher's run and the file of its weights."""
        copy = self.folder / "teacher"
        shutil.copytree(self.teacher, copy)
        return copy, max(copy.rglob("mp_rank_00_model_states.pt"))


def edit_line(name: str, number: int, text: str) -> Callable[[Path], object]:
    def change(data: Path) -> None:
        lines = (data / name).read_text().splitlines()
        lines[number - 1] = text or lines[number - 1].replace('"label": ', '"label": 7')
        (data / name).write_text("\n".join(lines) + "\n")
    return change


def without_labels(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    (data / "unlabeled.jsonl").write_text("".join(
        json.dumps({key: value for key, value in row.items() if key != "label"}) + "\n" for row in rows))


def truncated(place: Place) -> Case:
    copy, file = place.copied_teacher()
    file.write_bytes(file.read_bytes()[:-2000])
    return place.distilled(copy)


def two_ranks(place: Place) -> Case:
    copy, file = place.copied_teacher()
    shutil.copyfile(file, file.with_name("mp_rank_01_model_states.pt"))
    return place.pretrain(f"--load={copy}", **{"num-layers": 3, "hidden-size": 48})


def other_vocabulary(place: Place) -> Case:
    words = (place.world / "vocab.txt").read_text().splitlines()
    (place.folder / "vocab.txt").write_text("\n".join([*words, *(f"more{number}" for number in range(200))]) + "\n")
    return place.pretrain(f"--load-pretrained={place.teacher}", **{
        "num-layers": 3, "hidden-size": 48, "tokenizer-model-type": place.folder / "vocab.txt"})


def damaged_cache(place: Place) -> Case:
    shutil.copyfile(place.world / "corpus.txt", place.folder / "corpus.txt")
    case = place.pretrain(**{"train-data": place.folder / "corpus.txt", "train-iters": 1})
    assert run(*case) == 0
    text = next(place.folder.glob("corpus.lazy/*/text"))
    text.write_bytes(text.read_bytes()[:-8])
    return case


def earlier_results(place: Place) -> Case:
    results = place.folder / "save" / "copa" / "tensorboard"
    results.mkdir(parents=True)
    (results / "test_results.json").write_text("{}\n")
    (results / "metrics.jsonl").write_text('{"kind": "train"}\n')
    return place.finetune(f"--save={place.folder / 'save'}")


def stage_three(place: Place) -> Case:
    return place.deepspeed('{"zero_optimization": {"stage": 3}}')


def one_word(place: Place) -> Case:
    (place.folder / "passages.txt").write_text("two words\nword\n")
    return place.language_model(task="lambda", **{"valid-data": place.folder / "passages.txt"})


def two_berts(place: Place) -> Case:
    words = (place.world / "vocab.txt").read_text().splitlines()
    write_bert(place.folder / "small", words)
    write_bert(place.folder / "large", words, hidden_size=32)
    shutil.copyfile(place.folder / "large" / "config.json", place.folder / "small" / "config.json")
    return place.bert(place.folder / "small")


MICRO = '"train_micro_batch_size_per_gpu": 8'
#: The beginning of a row's message -> how to get it.
CASES: dict[str, Callable[[Place], Case]] = {
    "unknown argument": lambda p: p.pretrain("--hiden-size=8"),
    "--student_model=": lambda p: p.pretrain("--student_model=tinybret"),
    "--task=": lambda p: p.finetune(task="COPAA"),
    "no corpus": lambda p: p.pretrain(**{"train-data": p.folder / "nothing.txt"}),
    "corpus …": lambda p: p.pretrain(**{"train-data": "bert-base", "data-root": p.folder}),
    "… holds no document": lambda p: p.corpus(b"\n  \n"),
    "… is no text": lambda p: p.corpus(b"\x1f\x8b\x08\x00\x00rest of an archive"),
    "… is not UTF-8": lambda p: p.corpus("Ä Ö Ü ß é à\n".encode("latin1") * 9),
    "…, line at byte": lambda p: p.corpus(b'{"text": "a b c"}\n{"text": 3}\n', "corpus.jsonl"),
    "… has … bytes": damaged_cache,
    "no vocabulary for": lambda p: p.pretrain(**{"tokenizer-model-type": "bert-base-cased"}),
    "… does not fit the model: word": other_vocabulary,
    "… has parameters": lambda p: p.pretrain(f"--load-pretrained={p.teacher}", **{"hidden-size": 48}),
    "no checkpoint at": lambda p: p.pretrain(f"--load-pretrained={p.folder / 'nothing'}"),
    "teacher 0: … does not": lambda p: p.distilled(None, "--teacher_hidden_size=64"),
    "teacher 0: … is damaged": truncated,
    "--load=… lacks": lambda p: p.pretrain(
        *TINYBERT, f"--teacher_load_pretrained={p.teacher}", f"--load={p.teacher}",
        **{"num-layers": 3, "hidden-size": 48}),
    "--load=… was saved": two_ranks,
    "--hidden-size": lambda p: p.pretrain(**{"hidden-size": 30}),
    "--num-attention-heads": lambda p: p.pretrain("--model-parallel-size=3", "--fast-dev-run"),
    "uniform layer map": lambda p: p.distilled(**{"num-layers": 4}),
    "--loader-scatter": lambda p: p.pretrain("--loader-scatter=2"),
    "…: no loss term": lambda p: p.distilled(None, "--tinybert_wo_inter"),
    "--data-dir=": lambda p: p.finetune(**{"data-dir": p.folder / "nothing"}),
    "… (split": lambda p: p.task(lambda data: (data / "val.jsonl").unlink()),
    "…, line 2": lambda p: p.task(edit_line("train.jsonl", 2, '{"premise": ')),
    "…, line 3": lambda p: p.task(edit_line("train.jsonl", 3, "")),
    "--task=…: sequence": lambda p: p.finetune(task="cnn_dm_original"),
    "--task=… scores": lambda p: p.language_model(**{"valid-data": ""}),
    "--valid-data=…: no": lambda p: p.language_model(**{"valid-data": p.folder / "nothing.txt"}),
    "…, line 2: … is one": one_word,
    "--overlapping-eval": lambda p: p.language_model("--overlapping-eval=63"),
    "… belongs to tasks": lambda p: p.language_model("--cloze-eval"),
    "… does not go with": lambda p: p.finetune("--pretrained-bert"),
    "no BERT": lambda p: p.bert("bert-base-cased"),
    "the weights in": two_berts,
    "--train-split": lambda p: p.task(without_labels, "--train-split=unlabeled"),
    "… exists": earlier_results,
    "--deepspeed_config=… does not": lambda p: p.pretrain("--deepspeed", "--deepspeed_config=nothing.json"),
    "--deepspeed_config=… is not": lambda p: p.deepspeed('{"fp16": {,}'),
    "train_batch_size … in the DeepSpeed file contradicts": lambda p: p.deepspeed(
        f'{{{MICRO}, "gradient_accumulation_steps": 2, "train_batch_size": 24}}'),
    "train_batch_size … in the DeepSpeed file is not": lambda p: p.deepspeed(f'{{{MICRO}, "train_batch_size": 20}}'),
    "… in the DeepSpeed file must": lambda p: p.deepspeed('{"train_micro_batch_size_per_gpu": "auto"}'),
    "fp16.enabled": lambda p: p.deepspeed('{"fp16": {"enabled": true}, "bf16": {"enabled": true}}'),
    "--fp16 cannot": lambda p: p.deepspeed('{"bf16": {"enabled": true}}', "--fp16"),
    "ZeRO stage 3": stage_three,
    "fast-dev-run FAILED": lambda p: p.distilled(
        None, "--distill_pt_soft", "--distill_soft_rate=nan", "--fast-dev-run"),
}


def rows() -> list[str]:
    """The messages of the page's table."""
    found = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found, "the page has no table of messages"
    return found


def case_of(message: str) -> str:
    matches = [start for start in CASES if message.startswith(start)]
    return max(matches, key=len, default="")


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(table) == len(rows()), "a row that is no message, cause and way out"
    assert sorted(map(case_of, rows())) == sorted(CASES)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def teacher(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretrained teacher of 3 layers and width 48."""
    save = tmp_path_factory.mktemp("teachers")
    assert run("pretrain", [*pretrain_flags(world, **{"num-layers": 3, "hidden-size": 48, "train-iters": 1}),
                            f"--save={save}", "--custom_no_summary_writer"]) == 0
    folder, = save.iterdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and ".lazy" not in str(path)}


@pytest.mark.parametrize("message", rows())
def test_row(message: str, world: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
             capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    case = CASES[case_of(message)](Place(world, teacher, tmp_path))
    before, steps = contents(tmp_path), count_steps(monkeypatch)
    save = [] if any(word.startswith("--save=") for word in case.words) else [f"--save={tmp_path / 'save'}"]
    is_verdict = message.startswith("fast-dev-run")
    try:
        code, text = run(case.stage, [*case.words, *save]), caplog.text
    except SystemExit as stop:
        code, text = stop.code, capfd.readouterr().err
    except (ValueError, FileNotFoundError) as error:
        code, text = 2, str(error)
    assert code == (1 if is_verdict else 2)
    assert re.search(".*".join(map(re.escape, message.split("…"))), text, flags=re.DOTALL), text
    assert contents(tmp_path) == before, "something was written"
    assert steps == [] or is_verdict, "a step was taken"


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every backward pass."""
    steps: list[int] = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **kwargs: (steps.append(1), backward(*args, **kwargs)))
    return steps
