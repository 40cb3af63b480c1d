"""``--fast-dev-run``: what it takes, what it makes up, what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.arguments import PRETRAIN, parse_args
from distill.training import dev_data, dev_sizes
from distill.training.rehearsal import Rehearsal
from distill.training.setup import MISTAKE, is_told, run_script, running
from tests.distill.training.small_runs import deepspeed_flags, finetune_flags, pretrain_flags, run, run_on_ranks

ROOT = Path(__file__).resolve().parents[3]
TEACHER = ("--student_model=tinybert", "--teacher_num_layers=3", "--teacher_hidden_size=48",
           "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=64")


@pytest.fixture(autouse=True)
def empty_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder and a temporary folder of its own; whatever a dry run makes there has to be gone."""
    work, temporary = tmp_path / "work", tmp_path / "tmp"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    assert not list(work.iterdir()) and not list(temporary.glob("glmkd-dev-run*"))


def published(*words: str) -> Any:
    """Arguments of a command with sizes as published."""
    return parse_args(["--block-lm", "--num-layers=6", "--hidden-size=768", "--num-attention-heads=12",
                       "--fast-dev-run", *words], PRETRAIN)


@pytest.mark.parametrize(("words", "divisor", "expected"), [
    ((), 16, {"hidden_size": 48}),
    (("--hidden-size=384",), 8, {"hidden_size": 48}),
    (("--model-parallel-size=4",), 16, {"hidden_size": 48}),
    (("--compress_word_emb=128",), 16, {"hidden_size": 48, "compress_word_emb": 8}),
    (("--hidden-size=512", "--num-attention-heads=4", "--inverted_bottleneck_mode", "--ib_hidden_size=128",
      "--ib_word_emb=128"), 8, {"hidden_size": 64, "ib_hidden_size": 16, "ib_word_emb": 16}),
    (("--hidden-size=12", "--num-attention-heads=6"), 1, {"hidden_size": 12}),
    (("--student_model=kd", "--distill_pt_soft", "--mt_hidden_size=768:1024", "--mt_num_attention_heads=12:16",
      "--mt_num_layers=2:2", "--mt_load_pretrained=a:b"), 16, {"hidden_size": 48, "mt_hidden_size": "48:64"}),
    (("--student_model=kd", "--distill_pt_soft", "--teacher_load_pretrained=a", "--teacher_num_layers=2",
      "--teacher_hidden_size=1024", "--teacher_num_attention_heads=64"), 4,
     {"hidden_size": 192, "teacher_hidden_size": 256}),
])
def test_all_widths_have_one_divisor(words: tuple[str, ...], divisor: int, expected: dict[str, Any]) -> None:
    with running(parse_args(["--block-lm"], PRETRAIN)):
        found, widths = dev_sizes.shrunk_widths(published(*words), 1000, None)
    # Widths that methods own have defaults of their own and shrink along.
    assert (found, {name: width for name, width in widths.items() if not name.startswith("rail_kd")}) == (
        divisor, expected)


def test_given_sizes_come_first(world: Path) -> None:
    with pytest.raises(ValueError, match="--num-attention-heads 4 is not divisible by --model-parallel-size 8"):
        run("pretrain", pretrain_flags(world, **{"model-parallel-size": 8, "fast-dev-run": 2}))


def test_what_exists_is_read_in_part_and_left_alone(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = sorted(world.rglob("*"))
    assert run("pretrain", pretrain_flags(world, **{"fast-dev-run": 3})) == 0
    assert run("finetune", [*finetune_flags(world), "--fast-dev-run"]) == 0
    assert sorted(path for path in world.rglob("*") if ".lazy" not in str(path)) == [
        path for path in before if ".lazy" not in str(path)]
    lines = [record.getMessage() for record in caplog.records]
    assert sum("fast-dev-run ok" in line for line in lines) == 2 and any("3 step(s)" in line for line in lines)
    assert not any("generated world" in line for line in lines)
    task_lines = [line for line in lines if line.startswith("task copa: ")]
    assert task_lines and all(int(line.split()[2]) <= dev_data.MAX_LINES + 1 for line in task_lines[:1])


def test_a_sweep_gets_the_scores_that_it_waits_for(world: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    assert run("finetune", [*finetune_flags(world), "--fast-dev-run=1", f"--custom_tmp_result={scores}"]) == 0
    result = json.loads(scores.read_text(encoding="utf-8"))
    assert result["epoch"] == -1 and 0 <= result["max_score_dict"]["accuracy"]["score_dict"]["accuracy"] <= 100


@pytest.mark.parametrize("tokenizer", ["BertWordPieceTokenizer", "GPT2BPETokenizer", "ChineseSPTokenizer"])
def test_what_is_missing_is_made_up(world: Path, tokenizer: str, caplog: pytest.LogCaptureFixture) -> None:
    words = [word for word in finetune_flags(world)
             if not word.startswith(("--tokenizer-model", "--task", "--data-dir"))]
    task = {"BertWordPieceTokenizer": "MultiRC", "GPT2BPETokenizer": "sst2", "ChineseSPTokenizer": "afqmc"}[tokenizer]
    compact = [] if tokenizer == "ChineseSPTokenizer" else ["--map_vocab_size=10000"]
    assert run("finetune", [*words, f"--tokenizer-type={tokenizer}", f"--task={task}", "--data-dir=nowhere",
                            "--load-pretrained=nothing", "--student_model=kd", "--teacher_load_pretrained=nothing",
                            "--distill_ft_soft", *compact, "--fast-dev-run"]) == 0
    told = "\n".join(record.getMessage() for record in caplog.records)
    for line in ("no vocabulary", "no folder nowhere", "--load-pretrained: no checkpoint nothing",
                 "teacher 0: no checkpoint nothing", "fast-dev-run ok",
                 *(("--map_vocab_size=10000 becomes", "no vocabulary sort file") if compact else ())):
        assert line in told


def test_a_checkpoint_is_compared_with_the_given_sizes(world: Path, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    save = tmp_path / "teachers"
    assert run("pretrain", [*pretrain_flags(world, **{"num-layers": 3, "hidden-size": 48, "train-iters": 1}),
                            f"--save={save}"]) == 0
    path, = save.iterdir()
    words = [*pretrain_flags(world), *TEACHER, f"--teacher_load_pretrained={path}", "--fast-dev-run"]
    assert run("pretrain", words) == 0
    assert any(f"teacher 0: {path} fits" in record.getMessage() for record in caplog.records)
    with pytest.raises(ValueError, match=r"teacher 0: .* the checkpoint has \[256, 48\], the model \[256, 64\]"):
        run("pretrain", [*words, "--teacher_hidden_size=64"])
    max(path.rglob("mp_rank_00*")).write_bytes(b"PK")
    with pytest.raises(ValueError, match="teacher 0: .* is damaged"):
        run("pretrain", words)


def test_complaints_name_the_file_that_was_given(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (data / name).write_text((world / "copa" / name).read_text())
    (data / "val.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=rf"{data}/val\.jsonl, line 1: not valid JSON"):
        run("finetune", [*finetune_flags(world, **{"data-dir": data}), "--fast-dev-run"])


@pytest.mark.distributed
def test_ranks_agree(world: Path, tmp_path: Path) -> None:
    words = [*pretrain_flags(world), *TEACHER, "--teacher_load_pretrained=nothing", "--fast-dev-run"]
    run_on_ranks([("pretrain", [*words, "--model-parallel-size=2"])], 2, model_parallel_size=2)
    run_on_ranks([("pretrain", [*words, *deepspeed_flags(tmp_path, 1, batch_size=8)])], 2)


def test_a_rehearsal_names_what_is_wrong() -> None:
    def problems(*steps: dict[str, Any], declared: list[str] | None = None) -> list[str]:
        base = {"loss": 1.0, "grad_norm": 1.0}
        return Rehearsal(2, steps=[{**base, **step} for step in steps], trains=True,
                         declared=declared or []).problems()

    assert problems({"inter_loss/a.0_t0": 0.0}, {"inter_loss/a.0_t0": 2.0}, declared=["a"]) == []
    assert problems({"inter_loss/a.0_t0": 0.0}, {"inter_loss/a.0_t0": 0.0}) == ["inter_loss/a.0_t0 is 0 in every step"]
    assert problems({}, declared=["a"]) == ["the method has a term a, but no step computed it"]
    assert problems({"grad_norm": 0.0}) == ["the gradient is 0 in every step"]
    assert problems({"grad_norm": float("inf")}) == ["the gradient norm is not finite (inf)"]
    assert problems({"grad_norm": float("inf"), "loss_scale": 2.0 ** 32}) == []
    assert problems({"not_finite": ["pre_loss/x"]}) == ["not finite: pre_loss/x"]
    assert problems({"pre_loss/KD": 0.0, "pre_loss/other": 1.0}) == []
    assert problems({"pre_loss/pt_soft_t0": 0.0, "pre_loss/other": 1.0}) == ["pre_loss/pt_soft_t0 is 0 in every step"]
    assert problems() == ["no step was taken"]
    table = Rehearsal(1, steps=[{"loss": 2.0, "grad_norm": 0.5, "pre_loss/x": 1.0}]).table().splitlines()
    assert [line.split()[0] for line in table] == ["term", "loss", "pre_loss/x", "gradient"]


def test_a_mistake_is_told_and_a_bug_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake() -> int:
        parse_args(["--fp16", "--bf16"], PRETRAIN)
        return 0

    def missing() -> int:
        return len(Path("nothing.txt").read_text())

    assert run_script(lambda: 7) == 7
    assert run_script(mistake) == run_script(missing) == MISTAKE
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: --fp16 and --bf16 exclude each other" and "nothing.txt" in second
    for bug in (lambda: int("x"), lambda: json.loads("{"), lambda: dev_data.text_data(None, None, [], write=False)):
        with pytest.raises((ValueError, AttributeError)) as caught:
            run_script(bug)
        assert not is_told(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_ends_in_words(world: Path, tmp_path: Path, processes: int) -> None:
    script = [str(ROOT / "distill" / "pretrain.py"), *pretrain_flags(world), "--load-pretrained=nothing"]
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([sys.executable, *launcher, *script], cwd=tmp_path / "work", capture_output=True, text=True,
                          timeout=100, env={**os.environ, "DS_ACCELERATOR": "cpu"})
    told = [line for line in done.stderr.splitlines() if "error: no checkpoint at nothing" in line]
    assert 1 <= len(told) <= processes and done.returncode != 0
    if processes == 1:
        assert done.returncode == MISTAKE and done.stderr.splitlines() == told
