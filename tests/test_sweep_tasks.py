"""The tasks of the sweep examples with every method and form: which commands there are, and that some of them start."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests import sweep_tasks
from tests.distill.training.small_runs import run
from tests.helpers.command_runs import Result
from tests.helpers.shared import require_shared
from tests.sweep_tasks import METHODS, TASKS, task_commands

#: Run here: each method twice, each head and each of both forms; ``python -m tests.sweep_tasks`` runs all.
SAMPLE = ("record-kd-fast", "multirc-kd", "cb-tinybert-fast", "wsc_generative-tinybert", "wsc-logitsdistil-fast",
          "boolq-logitsdistil")
#: What a derived configuration, a later stage or the place of the run adds to a published command.
OTHER = ("--save", "--experiment-name", "--load-pretrained", "--deepspeed_config", "--custom_tmp_result", "--teacher",
         "--seed", "--batch-size", "--num-attention-heads", "--student_model", "--tinybert", "--data-dir",
         "--checkpoint-activations")


def test_every_task_method_and_form_is_there() -> None:
    commands = {command["id"]: command["args"] for command in task_commands()}
    assert len(commands) == len(METHODS) * (2 * len(TASKS) - 1)
    for name, args in commands.items():
        assert ("--fast-decode" in args) == name.endswith("-fast")
        assert sum(word.startswith(("--teacher_load_pretrained=", "--student_model=")) for word in args) == 2
    assert "--multi-token" in commands["rte-kd-fast"] and "--multi-token" not in commands["copa-kd-fast"]


def test_they_are_those_of_the_published_examples() -> None:
    source = json.loads((require_shared("spec") / "seed_tune_expanded.json").read_text(encoding="utf-8"))
    example = next(entry for entry in source if "tinybert" in entry["id"])
    published = [shlex.split(entry["command"]) for entry in example["commands"]][::2]  # the first of two stages
    ours = task_commands(("record", "copa", "wsc", "rte", "boolq", "wic", "cb", "multirc", "wsc_generative"),
                         ("tinybert",))
    ours = [command for command in ours if not command["id"].endswith("-fast")]
    assert len(published) == len(ours) == len(TASKS)

    def compared(words: list[str]) -> set[str]:
        return {word for word in words if word.startswith("--") and not word.startswith(OTHER)}

    for theirs, command in zip(published, ours):
        start = next(place for place, word in enumerate(theirs) if word.endswith(".py"))
        assert compared(theirs[start + 1:]) == compared(command["args"]), command["id"]


@pytest.mark.parametrize("name", SAMPLE)
def test_some_of_them_start(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                            caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = [command for command in task_commands() if command["id"] == name]
    assert run("finetune", [*command["args"], "--fast-dev-run"]) == 0
    assert "every loss term and the gradient are finite" in caplog.text and not list(tmp_path.iterdir())


def test_one_answer_has_nothing_to_decode_fast() -> None:
    (command,) = task_commands(("wsc_generative",), ("kd",))
    with pytest.raises(ValueError, match="--fast-decode=True needs answers of several tokens .*--wsc-negative"):
        run("finetune", [*command["args"], "--fast-decode", "--fast-dev-run"])


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    problems = iter(["", "bad"])
    monkeypatch.setattr(sweep_tasks, "run_all", lambda commands, jobs: [
        Result(command, "none", 1.0, next(problems)) for command in commands])
    assert sweep_tasks.main(["--task", "copa", "--method", "logitsdistil"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["copa-logitsdistil", "copa-logitsdistil-fast"]
    assert lines[2].endswith("FAILED: bad") and lines[-1].startswith("2 commands, 1 failed")
    with pytest.raises(SystemExit):
        sweep_tasks.main(["--task", "copaa"])
