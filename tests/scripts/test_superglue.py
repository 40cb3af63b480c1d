"""SuperGLUE with small models, without its minutes: the plan against the real parsers, the report, the errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.stand_in import write_world_task
from distill.arguments import FINETUNE, PRETRAIN, parse_args
from scripts.documented_commands import read_commands
from scripts.quickstart.steps import DISTILLED, TEACHER, Step, command_of, step_folder
from scripts.superglue.__main__ import main, start_command
from scripts.superglue.plan import REAL, WORLD_RECIPE, Files, Recipe, make_plan, presets, task_names
from scripts.superglue.report import Row, make_rows, put_into_page, report_parts, table

PRETRAINED = {"pretrain-teacher", "pretrain-student"}


def real_files(folder: Path) -> Files:
    """Names of real files; WSC has no candidates."""
    return Files((folder / "a.jsonl", folder / "b.txt"), folder / "vocab.txt", folder / "superglue")


@pytest.fixture(params=["real", "world"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Recipe, list[Step]]:
    files, recipe = (real_files(tmp_path), REAL) if request.param == "real" else (
        Files.generated(tmp_path), WORLD_RECIPE)
    return recipe, make_plan(tmp_path / "run", recipe, files, task_names())


def test_every_task_has_one_command_for_each_model(plan: tuple[Recipe, list[Step]]) -> None:
    steps = {step.name: step for step in plan[1]}
    assert len(steps) == len(plan[1]) == 1 + 2 + 2 * 9 + 2 * 2
    for place, step in enumerate(plan[1]):
        assert set(step.needs) <= {other.name for other in plan[1][:place]}
    for task in presets():
        teacher, student = steps[f"{task}-teacher"], steps[f"{task}-student"]
        assert (teacher.model, student.model) == (TEACHER, DISTILLED) and teacher.name in student.needs
        assert set(teacher.needs) & PRETRAINED == {"pretrain-teacher"}
        assert set(student.needs) & PRETRAINED == {"pretrain-student"}
    assert steps["ax-g-student"].needs == ("rte-student",) and "--epochs=0" in steps["ax-g-student"].command


def test_the_real_parsers_take_every_command(plan: tuple[Recipe, list[Step]], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, steps = plan
    for step in steps:
        if not step.stage:
            assert start_command(step, list(step.command))[1] == "-m"
            continue
        script, *words = command_of(step, {name: tmp_path / name for name in step.needs})
        assert not any("{" in word for word in words) and start_command(step, [script])[1:] == [script]
        args = parse_args(words, PRETRAIN if script.endswith("pretrain.py") else FINETUNE)
        is_lesson = step.stage == "fine-tuning" and step.model == DISTILLED
        assert bool(args.teacher_load_pretrained) == is_lesson
        assert args.num_layers == (recipe.teacher if step.model == TEACHER else recipe.student).layers
        if step.name.startswith("wsc-"):
            assert args.wsc_negative and "WSC-negative" in args.data_dir and args.loss_func == "mix"
        if is_lesson:
            assert args.distill_ft_hard == (recipe.student_split == "train") and args.distill_ft_soft
            assert args.train_split == recipe.student_split
        if step.stage != "pretraining":
            assert args.seq_length <= max(recipe.longest.values()) < args.max_position_embeddings


def test_a_part_of_the_tasks(tmp_path: Path) -> None:
    names = [step.name for step in make_plan(tmp_path, REAL, real_files(tmp_path), ("ax-b", "copa"))]
    assert names == ["pretrain-teacher", "pretrain-student", "copa-teacher", "copa-student", "rte-teacher",
                     "rte-student", "ax-b-teacher", "ax-b-student"]
    (tmp_path / "superglue" / "WSC-negative").mkdir(parents=True)
    steps = {step.name: step for step in make_plan(tmp_path, REAL, real_files(tmp_path), ("wsc",))}
    assert "WSC-negative" not in steps, "candidates that are there are taken"
    assert f"--data-dir={tmp_path / 'superglue' / 'WSC-negative'}" in steps["wsc-teacher"].command


def finish(run: Path, steps: list[Step]) -> None:
    """Records as the steps would leave them."""
    for number, step in enumerate(steps):
        folder = step_folder(run, step.name)
        (folder / "records").mkdir(parents=True)
        (folder / "done.json").write_text(json.dumps({"fingerprint": "", "seconds": 10.0 + number}))
        records = [{"kind": "start", "parameters": 1000, "iterations": 5, "global_batch_size": 16, "torch": "2.x"}]
        if step.stage == "pretraining":
            records.append({"kind": "validation", "iteration": 5, "loss": 2.5})
        else:
            records += [{"kind": "train", "iteration": number, "mean_loss": 2.0 - number / 4} for number in (0, 1, 2)]
            scores = {"f1a": 0.5, "em": 0.25, "acc": 60.0} if "multirc" in step.name else {"accuracy": 70.0 + number}
            records.append({"kind": "metrics", "iteration": 5, "epoch": -1, **scores})
        (folder / "records/metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, files = tmp_path / "run", real_files(tmp_path)
    for task, name in (("COPA", "val.jsonl"), ("MultiRC", "dev32.jsonl")):
        write_world_task(task, files.tasks / task, (name,), 9)
    steps = make_plan(run, REAL, files, ("copa", "multirc"))
    finish(run, steps)
    copa, multirc = make_rows(run, steps)
    assert copa == Row("COPA", ("accuracy",), 9, copa.constant, {TEACHER: (72.0,), DISTILLED: (73.0,)},
                       {TEACHER: (2.0, 1.5), DISTILLED: (2.0, 1.5)}, {TEACHER: 12.0, DISTILLED: 13.0})
    labels = [json.loads(line)["label"] for line in (files.tasks / "COPA/val.jsonl").read_text().splitlines()]
    assert copa.constant == (100 * max(labels.count(0), labels.count(1)) / 9,)
    assert multirc.metrics == ("f1a", "em", "acc") and multirc.scores[TEACHER] == (50.0, 25.0, 60.0)
    assert multirc.constant[0] > 50 and f"| {multirc.examples:,} |" in table([multirc])
    parts = report_parts(run, REAL, files, steps, ["AX-b"], tmp_path)
    text = "\n".join(parts)
    for expected in ("12 layers of width 64 (1,000 parameters); 5 iterations of 16 x 64 tokens", "loss of 2.50",
                     "say nothing about the quality of a method", "torch 2.x", "for want of files: AX-b",
                     "| COPA | accuracy | 9 |", "| 2.00 → 1.50, 2.00 → 1.50 | 12, 13 |"):
        assert expected in text
    page = tmp_path / "page.md"
    page.write_text(text)
    commands = read_commands(page)
    assert [command.stage for command in commands] == ["pretrain"] * 2 + ["finetune"] * 4
    for command, step in zip(commands, steps):
        args = parse_args(command.args, command.stage)
        assert args.experiment_name == step.name
    assert "--load-pretrained=run/steps/pretrain-teacher/checkpoints/pretrain-teacher_" in " ".join(commands[2].args)


def test_the_report_has_its_place_in_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a-world -->\n<!-- /a-world -->\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    put_into_page(page, "a", "new\n")
    put_into_page(page, "a-world", "other\n")
    assert page.read_text() == (
        "before\n<!-- a-world -->\nother\n<!-- /a-world -->\n<!-- a -->\nnew\n<!-- /a -->\nafter\n")
    with pytest.raises(ValueError, match="page.md has no place <!-- b -->"):
        put_into_page(page, "b", "new\n")


@pytest.mark.parametrize(("words", "text"), [
    ((), "--data, --text, --vocab is missing: give all of --data, --text, --vocab, or --world alone"),
    (("--data", "d"), "--text, --vocab is missing"),
    (("--world", "--data", "d"), "--world brings its own files"),
    (("--world", "copaa"), "unknown task copaa; known: copa, "),
    (("--data", "d", "--text", "nothing", "--vocab", "v"), "nothing does not exist"),
    (("--data", "d", "--text", "v", "--vocab", "v", "ax-b"), "d/AX-b for the task ax-b; python -m tasks.superglue.dow"),
])
def test_what_is_missing_is_named(words: tuple[str, ...], text: str, tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "v").write_text("")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--from", str(tmp_path), "--run", "run"])
    assert stop.value.code == 2 and text in capsys.readouterr().err and not (tmp_path / "run").exists()
