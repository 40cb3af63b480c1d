"""The quick start without its minutes: the plan against the real parsers, the runner with small children, the table."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from distill.arguments import FINETUNE, PRETRAIN, parse_args
from scripts.quickstart import __main__ as entry
from scripts.quickstart.plan import ALONE, MODELS, SCRATCH, quickstart
from scripts.quickstart.report import Experiment, make_report, mean_and_spread, summary, write_report
from scripts.quickstart.runner import (
    Runner,
    StepFailed,
    checkpoint_of,
    child_environment,
    launch_command,
    read_records,
)
from scripts.quickstart.steps import DISTILLED, TEACHER, Recipe, Source, Step, command_of, step_folder
from tests.scripts.made_up_run import write_done_step, write_questions


def experiment(run: Path, seeds: int) -> Experiment:
    return quickstart(run, Recipe(), Source.generated(run / "world"), seeds)


def step(name: str, *, needs: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> Step:
    return Step(name, name.capitalize(), "a test", words or (name,), needs)


def runner(run: Path, plan: list[Step], code: dict[str, str], jobs: int = 2) -> Runner:
    """A runner whose step `name` runs the Python program `code[name]`."""
    return Runner(
        run,
        plan,
        jobs=jobs,
        console=Console(file=io.StringIO()),
        command=lambda step, words: [sys.executable, "-c", code[step.name], *words],
    )


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_every_step_comes_after_what_it_needs(tmp_path: Path) -> None:
    plan = experiment(tmp_path, 3).steps
    assert len(plan) == 3 + 3 * 6 and len({s.name for s in plan}) == len(plan)
    for i, one in enumerate(plan):
        assert set(one.needs) <= {s.name for s in plan[:i]}
    assert {s.model for s in plan} == {"", *MODELS}
    assert [s.name for s in plan if s.model == TEACHER] == ["teacher-pretrain", "teacher-finetune"]


def test_the_real_parsers_take_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for one in experiment(tmp_path, 1).steps:
        if one.training is None:
            continue
        folder = step_folder(tmp_path, one.name)
        folder.mkdir(parents=True)
        (folder / "deepspeed.json").write_text(json.dumps(one.training.deepspeed_file()))
        script, *words = command_of(one, {name: tmp_path / name for name in one.needs})
        assert not any("{" in word for word in words)
        args = parse_args(words, PRETRAIN if script.endswith("pretrain.py") else FINETUNE)
        assert args.batch_size == one.training.batch_size and args.lr == one.training.lr
        assert bool(args.teacher_load_pretrained) == (one.model == DISTILLED)
        assert (getattr(args, "train_split", "train") == "unlabeled") == ("stage" in one.name)


def test_both_students_are_pretrained_equally(tmp_path: Path) -> None:
    plan = {one.name: one for one in experiment(tmp_path, 1).steps}
    alone, distilled = plan["alone-pretrain-1"], plan["distilled-pretrain-1"]
    assert alone.training == distilled.training

    def common(one: Step) -> list[str]:
        words = [word.replace(one.name, "NAME") for word in one.command]
        return [
            word for word in words if "distil" not in word and "teacher" not in word and "student_model" not in word
        ]

    assert common(alone) == common(distilled)


# --- the runner -------------------------------------------------------------------------------------------------------


def test_steps_run_in_order_and_are_skipped_when_done(tmp_path: Path) -> None:
    plan = [step("world"), step("one", needs=("world",)), step("two", needs=("world",))]
    trace = tmp_path / "trace"
    code = {s.name: f"open({str(trace)!r}, 'a').write('{s.name} ')" for s in plan}
    runner(tmp_path, plan, code, jobs=1).run_all()
    assert trace.read_text() == "world one two "
    runner(tmp_path, plan, code, jobs=1).run_all()
    assert trace.read_text() == "world one two "

    changed = [plan[0], step("one", needs=("world",), words=("one", "--more")), plan[2]]
    runner(tmp_path, changed, code, jobs=1).run_all()
    assert trace.read_text() == "world one two one ", "only the step whose command changed runs again"
    changed[0] = step("world", words=("world", "--seed=2"))
    runner(tmp_path, changed, code, jobs=1).run_all()
    assert trace.read_text() == "world one two one world one two ", "and everything that builds on a changed step"


def test_a_failure_shows_the_log_ends_the_others_and_is_tried_again(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    code = {
        "world": f"{started}; open({str(pid_file)!r}, 'w').write(str(child.pid)); time.sleep(60)",
        "bad": (
            f"import os, time\nwhile not os.path.exists({str(pid_file)!r}): time.sleep(0.05)\n"
            "raise SystemExit('no luck')"
        ),
    }
    with pytest.raises(StepFailed, match="(?s)step bad ended with exit code 1.*no luck"):
        runner(tmp_path, [step("world"), step("bad")], code).run_all()
    assert not (step_folder(tmp_path, "world") / "done.json").exists()
    deadline = time.monotonic() + 5
    while _is_running(int(pid_file.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(int(pid_file.read_text())), "a grandchild outlived the run"

    runner(tmp_path, [step("world"), step("bad")], {"world": "pass", "bad": "pass"}).run_all()
    assert (step_folder(tmp_path, "bad") / "done.json").exists()


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_folder_is_used_by_one_run_at_a_time(tmp_path: Path) -> None:
    inner: list[str] = []

    class Second(Runner):
        def _line(self, child: object) -> str:
            with pytest.raises(StepFailed, match="another quick start is at work") as error:
                runner(tmp_path, [step("world")], {"world": "pass"}).run_all()
            inner.append(str(error.value))
            return ""

    first = Second(
        tmp_path,
        [step("world")],
        jobs=1,
        console=Console(file=io.StringIO()),
        command=lambda *_: [sys.executable, "-c", "import time; time.sleep(0.5)"],
    )
    first.run_all()
    assert inner and (step_folder(tmp_path, "world") / "done.json").exists()


def test_commands_get_the_checkpoint_of_the_step_they_need(tmp_path: Path) -> None:
    (step_folder(tmp_path, "teacher") / "checkpoints/teacher_240101").mkdir(parents=True)
    one = step("student", needs=("teacher",), words=("x.py", "--load-pretrained={teacher}"))
    words = command_of(one, {"teacher": checkpoint_of(tmp_path, "teacher")})
    assert words[1].endswith("steps/teacher/checkpoints/teacher_240101")
    with pytest.raises(StepFailed, match="0 checkpoints"):
        checkpoint_of(tmp_path, "nothing")


def test_training_steps_start_under_the_launcher_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = experiment(tmp_path, 1).steps
    words = launch_command(plan[1], ["distill/pretrain.py", "--x"])
    assert (
        Path(words[1]).name == "deepspeed"
        and "--include=localhost:0" in words
        and words[-2:] == ["distill/pretrain.py", "--x"]
    )
    assert launch_command(plan[0], ["data_utils.world", "w"])[1:] == ["-m", "data_utils.world", "w"]
    environment = child_environment(jobs=1000)
    assert environment["DS_ACCELERATOR"] == "cpu" and environment["LOCAL_SIZE"] == "8"
    assert environment["OMP_NUM_THREADS"] == "1" and set(os.environ) - {"OMP_NUM_THREADS"} <= set(environment)


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Experiment]:
    """A run of two seeds whose records were made up."""
    whole = experiment(tmp_path, 2)
    accuracy = {TEACHER: 90.0, ALONE: 60.0, DISTILLED: 75.0, SCRATCH: 50.0}
    write_questions(tmp_path, 300)
    for one in whole.steps:
        records = [{"kind": "start", "parameters": 900 if one.model == TEACHER else 100, "iterations": 2}]
        for iteration in (1, 2):
            records.append({"kind": "train", "iteration": iteration, "loss": 2.0, "mean_loss": 3.0 / iteration})
        if one.stage == "pretraining":
            records.append({"kind": "validation", "iteration": 2, "loss": 1.5 - 0.5 * (one.model == DISTILLED)})
        elif one.stage:
            extra = 4.0 * (one.seed == 2)
            records.append({"kind": "metrics", "iteration": 2, "epoch": -1, "accuracy": accuracy[one.model] + extra})
        write_done_step(tmp_path, one, records, tail='{"kind": "tr')
    return tmp_path, whole


def test_report_table_and_curves(finished: tuple[Path, Experiment]) -> None:
    run, whole = finished
    assert len(read_records(step_folder(run, "teacher-pretrain") / "records")) == 4
    report = make_report(run, whole)
    rows = {row.model: row for row in report.rows}
    assert rows[TEACHER].accuracies == [90.0] and rows[TEACHER].parameters == 900
    assert rows[DISTILLED].accuracies == [75.0, 79.0] and rows[DISTILLED].losses == [1.0, 1.0]
    assert rows[DISTILLED].seconds == [30.0, 30.0] and rows[SCRATCH].losses == []
    assert report.gain == [15.0, 15.0] and report.num_questions == 600
    assert any("15.0 ± 0.0 points" in line for line in summary(whole, report))
    write_report(run, whole, report)
    table = (run / "table.md").read_text()
    assert "| student distilled | 100 | 1.000 ± 0.000 | 77.0 ± 2.8 | 30 ± 0 |" in table
    assert json.loads((run / "table.json").read_text())["gain"] == [15.0, 15.0]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_mean_and_spread() -> None:
    assert mean_and_spread([], 1) == "–" and mean_and_spread([2.0], 1) == "2.0"
    assert mean_and_spread([1.0, 3.0], 2) == "2.00 ± 1.41"


def test_entry_point_reports_a_failure_and_a_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Runner) -> None:
        raise StepFailed("step x ended with exit code 1")

    monkeypatch.setattr(Runner, "run_all", fail)
    monkeypatch.setattr(entry.signal, "signal", lambda *_: None)
    (tmp_path / "steps/old").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("kept")
    assert entry.main([f"--run={tmp_path}"]) == 1 and (tmp_path / "steps/old").exists()
    assert entry.main([f"--run={tmp_path}", "--fresh"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]
    with pytest.raises(SystemExit):
        entry.main(["--seeds=0"])
