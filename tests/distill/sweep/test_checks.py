"""What is found out before the first run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from distill import auto_tune
from distill.command_check import check_command
from distill.sweep import checks
from distill.sweep.checks import check_plans
from distill.sweep.flags import parse
from distill.sweep.plan import plan_tasks
from distill.sweep.types import render_flag
from tests.distill.sweep.planning import command


def check(*words: str, is_example: bool = False) -> None:
    sweep = parse(words)
    check_plans(sweep, plan_tasks(sweep), is_example=is_example)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What the script is made to say, by task; nothing is wrong with the others."""
    said: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(checks, "_ask", lambda stage, commands: [
        said.get(command.task, {"unknown": [], "problem": ""}) for command, _ in commands])
    return said


def test_the_parser_of_the_script_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, with the DeepSpeed file that the command will have."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    message = "--studnet_model is a flag neither of the launcher nor of distill/finetune.py: did you mean --student_"
    with pytest.raises(ValueError, match=message):
        check("--tasks=copa,cb", "--studnet_model=kd", "--fast-dev-run", "--ds_gradient_accumulation_steps=2")


def answer(*words: str) -> dict[str, Any]:
    found = command("--tasks=copa", *words)
    return check_command("finetune", [render_flag(*pair) for pair in found.flags], 2)


def test_answers_of_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert answer("--student_model=kd", "--task_t_load=base", "--distill_ft_soft") == {
        "unknown": [], "problem": "", "metrics": ["accuracy"]}
    assert answer("--task=MultiRC")["metrics"] == ["f1a", "em", "acc"]
    assert check_command("pretrain", [], 1).get("metrics", []) == []
    assert answer("--student_modle=kd", "--x")["unknown"] == ["--student_modle=kd", "--x"]
    assert "--student_model" in answer("--x")["known"]
    assert "is not divisible by --num-attention-heads 7" in answer("--num-attention-heads=7")["problem"]
    assert "invalid int value: 'many'" in answer("--num-layers=many")["problem"]
    assert "kdd" in answer("--student_model=kdd")["problem"]


def test_a_flag_of_the_launcher_may_be_the_nearest(answers: dict[str, dict[str, Any]]) -> None:
    answers["copa"] = {"unknown": ["--taks=cb"], "known": ["--task-mask"], "problem": ""}
    with pytest.raises(ValueError, match="--taks is a flag neither .*: did you mean --tasks"):
        check("--tasks=copa", "--taks=cb", "--fast-dev-run")


def test_one_impossible_task_does_not_stop_the_others(answers: dict[str, dict[str, Any]],
                                                      caplog: pytest.LogCaptureFixture) -> None:
    answers["cb"] = {"unknown": [], "problem": "cannot be"}
    with caplog.at_level(logging.WARNING):
        check("--tasks=copa,cb", "--fast-dev-run")
    assert caplog.messages == ["cb: cannot be"]
    answers["copa"] = {"unknown": [], "problem": "nor this"}
    with pytest.raises(ValueError, match="none of the runs can work:\n  copa: nor this\n  cb: cannot be"):
        check("--tasks=copa,cb", "--fast-dev-run")
    check("--tasks=copa,cb", "--fast-dev-run", is_example=True)


def test_an_objective_that_is_no_score_is_refused(answers: dict[str, dict[str, Any]]) -> None:
    answers["copa"] = {"unknown": [], "problem": "", "metrics": ["accuracy"]}
    answers["multirc"] = {"unknown": [], "problem": "", "metrics": ["f1a", "em", "acc"]}
    with pytest.raises(ValueError, match="--objective=accuracy: the scores of multirc are f1a, em, acc"):
        check("--tasks=copa,multirc", "--fast-dev-run", "--objective=accuracy", is_example=True)
    check("--tasks=copa", "--fast-dev-run", "--objective=accuracy")


def test_missing_files(answers: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("start", "english_data/superglue/COPA", "teacher"):
        (tmp_path / folder).mkdir(parents=True)
    entries = tmp_path / "t.json"
    entries.write_text('{"t": {"args": [["teacher_load_pretrained", ["/teacher"]]]}, '
                       '"u": {"args": [["mt_load_pretrained", ["/teacher", "/none"]]]}}')
    words = ("--tasks=copa", f"--data-root={tmp_path}", "--model_path=start", f"--task_t_load_path={entries}")
    check(*words, "--task_t_load=t", "--again_1__x")
    assert caplog.messages == []
    with pytest.raises(ValueError, match=f"--mt_load_pretrained={tmp_path}/none does not exist"):
        check(*words, "--task_t_load=u")
    check(*words, "--task_t_load=u", "--teacher_random_para")
    check(*words, "--task_t_load=u", "--fast-dev-run")
    with pytest.raises(ValueError, match=f"--data-dir={tmp_path}/english_data/superglue/CB does not exist"):
        check(*words, "--tasks=cb")


def test_a_check_is_for_the_devices_of_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask(stage: str, commands: list[tuple[Any, int]]) -> list[dict[str, Any]]:
        asked.extend(processes for _, processes in commands)
        return [{"unknown": [], "problem": ""} for _ in commands]

    monkeypatch.setattr(checks, "_ask", ask)
    check("--tasks=copa", "--gpus=0,1,2,3", "--gpus_per_trial=2", "--fast-dev-run")
    check("--tasks=copa", "--gpus=0,1,2,3", "--fast-dev-run")
    assert asked == [2, 4]


def test_other_scripts(answers: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="--py_file=finetune_glm.py does not exist; the scripts are distill/"):
        check("--tasks=copa", "--py_file=finetune_glm.py")
    script = tmp_path / "own.py"
    script.write_text("")
    check("--tasks=copa", f"--py_file={script}", "--fast-dev-run", "--whatever")
    assert "its flags are not checked" in caplog.messages[0]


@pytest.mark.parametrize("words", [
    ("--seeds=2",), ("--x=grid:1,2",), ("--x=grid:1,2", "--y=1"), ("--x=float:1..2", "--search=tpe")])
@pytest.mark.parametrize(("folder", "message"), [
    ("--experiment-name=one", "two runs would write .*/one: leave --save and --experiment-name"),
    ("--log-dir=logs", "two runs would write their records to logs/metrics.jsonl: leave out --log-dir")])
def test_trials_that_would_share_a_folder_are_refused(answers: dict[str, dict[str, Any]], words: tuple[str, ...],
                                                      folder: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auto_tune.check(parse(["--tasks=copa", "--fast-dev-run", folder, *words]))


def test_trials_with_folders_of_their_own_pass(answers: dict[str, dict[str, Any]]) -> None:
    auto_tune.check(parse(["--tasks=copa", "--fast-dev-run", "--experiment-name=grid:a,b"]))
    with pytest.raises(ValueError, match="two runs would write x/one: leave"):
        auto_tune.check(parse(["--tasks=copa,cb", "--fast-dev-run", "--save=x", "--experiment-name=one",
                               "--y=grid:1,2"]))
    with pytest.raises(ValueError, match="two runs would write .*/a: leave"):
        auto_tune.check(parse(["--tasks=copa", "--fast-dev-run", "--experiment-name=grid:a,b", "--x=grid:1,2"]))
    auto_tune.check(parse(["--tasks=copa,cb", "--fast-dev-run", "--experiment-name=one"]))


def test_a_search_is_checked_with_an_example(answers: dict[str, dict[str, Any]],
                                             caplog: pytest.LogCaptureFixture) -> None:
    words = ["--tasks=copa", "--fast-dev-run", "--num-layers=int:2..4", "--search=random", "--seeds=2"]
    answers["copa"] = {"unknown": [], "problem": "not with 2"}
    auto_tune.check(parse(words))
    assert caplog.messages == ["copa: not with 2"]
    auto_tune.check(parse([*words, "--ds_nothing=choice:1,2"]))
    assert "with the first of the searched values, copa: --ds_nothing" in caplog.messages[1]
    with pytest.raises(ValueError, match="--ds_nothing"):
        auto_tune.check(parse(["--tasks=copa", "--ds_nothing=1"]))
