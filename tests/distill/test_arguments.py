"""The command line: what is refused, what is told, what is frozen."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.arguments import FINETUNE, PRETRAIN, build_parser, parse_args, replace_args
from distill.distill_model import METHODS
from distill.flag_types import PerTeacher, fraction
from distill.retired_flags import RETIRED_FLAGS

ROOT = Path(__file__).resolve().parents[2]
BASE = ["--block-lm"]
TUNE = [*BASE, "--finetune", "--task=COPA", "--epochs=1", "--cloze-eval"]


def test_arguments_are_read_only() -> None:
    args = parse_args(BASE)
    with pytest.raises(AttributeError, match="args.lr"):
        args.lr = 1.0
    with pytest.raises(AttributeError):
        del args.lr
    assert replace_args(args, lr=1.0).lr == 1.0 and args.lr == 1e-4
    with pytest.raises(AttributeError, match="learning"):
        replace_args(args, learning=1.0)
    assert pickle.loads(pickle.dumps(args)) == copy.deepcopy(args) == args


def test_parsing_twice_gives_the_same() -> None:
    assert parse_args(BASE) == parse_args(BASE)


@pytest.mark.parametrize(("word", "hint"), [("--hiden-size=3", "--hidden-size"), ("--batch-siz=3", "--batch-size"),
                                            ("--num-layer=2", "--num-layers"), ("stray", "stray")])
def test_unknown_and_shortened_flags_are_refused_with_the_nearest(
        word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args([*BASE, word])
    assert stop.value.code == 2 and hint in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "words", "message"), [
    (FINETUNE, ["--block-lm", "--task=COPA", "--epochs=1"], "--finetune"),
    (FINETUNE, ["--block-lm", "--finetune", "--epochs=1"], "--task"),
    (FINETUNE, ["--block-lm", "--finetune", "--task=COPA", "--cloze-eval"], "--epochs"),
    (FINETUNE, [*TUNE[:-3], "--task=COPPA", "--epochs=1"], "copa"),
    (PRETRAIN, [*BASE, "--finetune"], "finetune.py"),
    (PRETRAIN, [*BASE, "--warmup=0.7"], "--warmup"),
    (PRETRAIN, [*BASE, "--lr-decay-ratio=2"], "--lr-decay-ratio"),
    (PRETRAIN, [*BASE, "--seq-length=600"], "--max-position-embeddings 512"),
    (PRETRAIN, [*BASE, "--fp16", "--bf16"], "--bf16"),
    (PRETRAIN, [*BASE, "--deepspeed"], "--deepspeed_config"),
    (PRETRAIN, [*BASE, "--optimizer=adafactor"], "adafactor"),
    (PRETRAIN, [*BASE, "--train-iters=-1"], "--train-iters"),
    (PRETRAIN, [*BASE, "--log-interval=5", "--eval-iters=0"], "--eval-iters"),
    (PRETRAIN, [*BASE, "--student_model=tinibert"], "tinybert"),
    (PRETRAIN, [*BASE, "--transformer-xl"], "leave it out"),
    (PRETRAIN, [*BASE, "--hidden-size=100", "--num-attention-heads=12"], "not divisible"),
])
def test_what_cannot_work_is_refused(stage: str, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_args(words, stage)


def test_dead_flags_are_told_and_their_defaults_are_not() -> None:
    args = parse_args([*BASE, "--DDP-impl=local", "--intermediate-size=7", "--ib_ffn_num=4"])
    notes = [note for note in args.start_notes if "has no effect" in note]
    assert len(notes) == 2 and notes[0].startswith("--intermediate-size=7") and notes[1].startswith("--DDP-impl=local")


def test_every_retired_flag_is_told_or_refused() -> None:
    values = {"flag": None, "int": "77", "float": "0.77", "str": "other"}
    for flag in RETIRED_FLAGS:
        word = flag.name if flag.kind == "flag" else f"{flag.name}={values[flag.kind]}"
        if flag.refused:
            with pytest.raises(ValueError, match=flag.name):
                parse_args([*BASE, word])
        else:
            assert any(flag.name in note for note in parse_args([*BASE, word]).start_notes), flag.name


def test_without_a_gpu_every_fallback_is_one_line() -> None:
    args = parse_args([*BASE, "--fp16", "--teacher_fp16", "--distributed-backend=nccl"])
    assert (args.fp16, args.teacher_fp16, args.distributed_backend) == (False, False, "gloo")
    assert len([note for note in args.start_notes if note.startswith("no GPU:")]) == 3


def test_the_deepspeed_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({
        "train_micro_batch_size_per_gpu": 3, "optimizer": {"type": "Adam", "params": {"lr": 0.5}}}))
    args = parse_args([*BASE, "--deepspeed", f"--deepspeed_config={path}", "--batch-size=7"])
    assert (args.batch_size, args.eval_batch_size, args.lr, args.gradient_accumulation_steps) == (3, 3, 0.5, 1)
    assert args.ds_config["train_micro_batch_size_per_gpu"] == 3
    assert any("--batch-size 7 -> 3" in note for note in args.start_notes)


def test_a_model_is_not_cut_over_more_ranks_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parse_args([*BASE, "--model-parallel-size=4"])
    assert args.model_parallel_size == 1 and any("4 -> 1" in note for note in args.start_notes)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert parse_args([*BASE, "--model-parallel-size=4"]).model_parallel_size == 4


def test_fractions() -> None:
    assert fraction("1/2") == 0.5 and fraction("1e-1") == 0.1 and fraction("1/teacher_num") == PerTeacher(1.0)
    teachers = ["--student_model=kd", "--mt_num_layers=2:3:4:5", "--mt_load_pretrained=a:b:c:d"]
    assert parse_args([*BASE, *teachers, "--distill_hard_rate=1/teacher_num"]).distill_hard_rate == 0.25
    with pytest.raises(SystemExit):
        parse_args([*BASE, "--distill_hard_rate=1/0"])


USER_MODULE = '''
from distill.distill_model import GLMStudent, register_method

@register_method("{name}")
class {cls}(GLMStudent):
    @classmethod
    def add_flags(cls, parser):
        parser.add_argument("--{name}_rate", type=float, default=0.5)
'''


def test_a_user_module_brings_a_method_and_its_flags(tmp_path: Path) -> None:
    path = tmp_path / "brought_along.py"
    path.write_text(USER_MODULE.format(name="brought", cls="Brought"))
    words = [*BASE, f"--user-module={path}", "--student_model=brought", "--brought_rate=0.25"]
    try:
        assert parse_args(words).brought_rate == 0.25
        assert parse_args(words).brought_rate == 0.25, "a second time in one process"
    finally:
        METHODS.pop("brought", None)
    with pytest.raises(ValueError, match="does not exist"):
        parse_args([*BASE, f"--user-module={tmp_path / 'absent.py'}"])


def test_every_flag_has_a_help_text() -> None:
    missing = [action.option_strings for action in build_parser()._actions if not action.help]
    assert missing == []


def test_help_is_quick_and_complete() -> None:
    began = time.process_time()
    output = subprocess.run([sys.executable, str(ROOT / "distill" / "pretrain.py"), "--help"], capture_output=True,
                            text=True, check=True, cwd="/").stdout
    assert "--student_model" in output and "--tinybert_wo_att" in output and "--deepspeed_config" in output
    heavy = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / "distill" / "pretrain.py"), "--help"],
                           capture_output=True, text=True, check=True, cwd="/").stderr
    loaded = {line.rsplit("|", 1)[-1].strip() for line in heavy.splitlines()}
    assert not {"deepspeed", "transformers", "tensorboard", "matplotlib"} & loaded
    assert time.process_time() - began < 3.0
