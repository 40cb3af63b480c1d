"""`--recipe glmd-al` without its minutes: the plan against the real parsers, text of one's own, the sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill import vocab_sort
from distill.arguments import FINETUNE, PRETRAIN, parse_args
from scripts.quickstart import __main__ as entry
from scripts.quickstart.compression import COMPRESSED, MODELS, glmd_al
from scripts.quickstart.report import Experiment, Report, Row, make_report, summary
from scripts.quickstart.steps import DISTILLED, FREQUENCIES, TEACHER, Recipe, Source, command_of, step_folder
from tests.scripts.made_up_run import write_done_step, write_questions

#: What names the flags that make a student compact.
COMPACT = ("map_vocab", "unmap_vocab", "compress_word_emb", "distill_logit_mask_map", "student_build_map")


def experiment(run: Path, seeds: int = 1) -> Experiment:
    return glmd_al(run, Recipe(), Source.generated(run / "world"), seeds)


def without_folder(words: tuple[str, ...], kind: str) -> list[str]:
    return [word.replace(kind, "KIND") for word in words if not any(name in word for name in COMPACT)]


def test_both_students_take_the_same_steps(tmp_path: Path) -> None:
    steps = {step.name: step for step in experiment(tmp_path, 2).steps}
    assert len(steps) == 5 + 2 * 8
    for seed in (1, 2):
        for part in ("pretrain", "measure", "stage1", "stage2"):
            plain, compressed = steps[f"distilled-{part}-{seed}"], steps[f"compressed-{part}-{seed}"]
            assert plain.training == compressed.training
            assert without_folder(plain.command, "distilled") == without_folder(compressed.command, "compressed")
    first = steps["compressed-pretrain-1"]
    assert FREQUENCIES in first.needs and "--student_map_vocab_method=decoder" in first.command
    # Losses over all tokens, on the same batches: the student answers for every token, and no seed enters.
    assert "--unmap_vocab_output" not in steps["compressed-measure-2"].command
    assert steps["compressed-measure-2"].command.count("--seed=1") == 1


def test_the_real_parsers_take_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are those of the published stages, in smaller numbers."""
    monkeypatch.chdir(tmp_path)
    for step in experiment(tmp_path).steps:
        script, *words = command_of(step, {name: tmp_path / name for name in step.needs})
        assert not any("{" in word for word in words)
        if script == "distill.vocab_sort":
            monkeypatch.setattr(vocab_sort, "tokenizer_from_args", lambda args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                vocab_sort.main(words)
        if step.training is None:
            continue
        folder = step_folder(tmp_path, step.name)
        folder.mkdir(parents=True)
        (folder / "deepspeed.json").write_text(json.dumps(step.training.deepspeed_file()))
        args = parse_args(words, PRETRAIN if script.endswith("pretrain.py") else FINETUNE)
        is_compressed = step.model == COMPRESSED
        assert (args.map_vocab_size, args.compress_word_emb) == ((0.5, args.hidden_size // 2) if is_compressed
                                                                 else (0, 0))
        is_distilled = is_compressed and step.stage != "evaluation"
        assert args.unmap_vocab_output == args.distill_logit_mask_map == is_distilled
        assert args.student_build_map_vocab == (is_distilled and step.stage == "pretraining")
        assert args.make_vocab_size_divisible_by == 64


def test_the_sentences_and_the_measured_loss(tmp_path: Path) -> None:
    whole = experiment(tmp_path, 2)
    write_questions(tmp_path, 50)
    for step in whole.steps:
        size = {TEACHER: 1000, DISTILLED: 400, COMPRESSED: 300}.get(step.model)
        loss = {"pretraining": 9.0, "evaluation": 2.0 if step.model == COMPRESSED else 1.5}.get(step.stage)
        score = 70.0 - 2 * step.seed if step.model == COMPRESSED else 80.0
        records = [{"kind": "start", "parameters": size}, {"kind": "validation", "loss": loss},
                   {"kind": "metrics", "accuracy": score}] if step.model else []
        write_done_step(tmp_path, step, records)
    report = make_report(tmp_path, whole)
    assert [row.model for row in report.rows] == list(MODELS) and report.row(COMPRESSED).losses == [2.0, 2.0]
    assert report.gain == [-12.0, -14.0] and report.loss_change == [0.5, 0.5]
    text = " ".join(summary(whole, report))
    assert "30.0 % of the teacher's parameters and 75.0 % of the uncompressed student's" in text
    assert "-13.0 ± 1.4 points" in text and "changes by +0.500 ± 0.000 (2 seeds" in text


def test_text_of_ones_own(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in entry.OWN_FILES}
    parser = entry.make_parser()
    (tmp_path / "copa").mkdir()
    (tmp_path / "copa" / "val.jsonl").write_text("{}\n" * 3)
    for name in ("train-text", "valid-text"):
        files[name].write_text("text\n")
    words = [f"--{name}={path}" for name, path in files.items()]
    with pytest.raises(ValueError, match="needs existing files for --vocabulary too"):
        entry.source_of(parser.parse_args(words), tmp_path)
    files["vocabulary"].write_text("[PAD]\n")
    source, recipe = entry.source_of(parser.parse_args(words), tmp_path)
    assert source.world is None and source.num_questions() == 3 and source.unlabeled == "train"
    steps = glmd_al(tmp_path, recipe, source, 1).steps
    assert not any("world" in word for step in steps for word in (*step.needs, step.name))
    assert f"--train-data={files['train-text']}" in steps[0].command
    assert "--make-vocab-size-divisible-by=128" in steps[0].command
    report = Report([Row(model, 10, [1.0], [50.0], [1.0]) for model in MODELS], [0.0], [0.0], 3)
    assert summary(glmd_al(tmp_path, recipe, source, 1), report)[0].startswith("3 held-out questions; chance is 50 %")
