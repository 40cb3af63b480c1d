"""The published command lines, tried out with ``--fast-dev-run`` in processes that run side by side."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import run_commands
from tests.helpers import command_runs, sweep_runs
from tests.helpers.command_runs import Result, count_terms, judge, num_ranks, run_reshard
from tests.helpers.shared import require_shared
from tests.run_commands import END, START, TRAINING, chosen, markdown_table, published, run_all, write_markdown

#: Those of the first methods; ``python -m tests.run_commands`` runs all.
METHODS = ("KD", "PD", "TinyBERT", "LogitsDistil (old form)", "LogitsDistil (new form)", "Prefix-pretrain (004)",
           "Example: TinyBERT 340M-66M")
OK = "  term  first  last\n  loss                1.5      1.4\nfast-dev-run ok: the command starts\n"


def test_the_list_is_the_published_one() -> None:
    source = require_shared("spec") / "seed_commands.json"
    ours = {command["id"]: command for command in published()}
    assert ours == {command["id"]: command for command in published(source)} and len(ours) == 129
    raw = json.loads(source.read_text(encoding="utf-8"))
    assert {command["id"]: command["args_runnable"] for command in raw} == {
        name: command["args"] for name, command in ours.items()}


def test_commands_are_chosen_by_kind_id_and_method(tmp_path: Path) -> None:
    assert {command["kind"] for command in published()} == {"pretrain", "finetune", "tune", "reshard"}
    assert {command["kind"] for command in published(kinds=TRAINING)} == set(TRAINING)
    some = chosen(published(), ["change-mp"], ["PD"])
    assert {command["id"] for command in some} == {"change-mp", "pd-1", "pd-2", "004-pd-1", "004-pd-2"}
    with pytest.raises(ValueError, match="no command with the id kd-9; known: glmd-vc-1"):
        chosen(published(), ["kd-9"], [])
    bad = tmp_path / "list.json"
    for text, message in (("{", "JSONDecodeError"), ('[{"id": "x"}]', "KeyError: 'method'"),
                          ('[{"id": "x", "method": "y", "kind": "z", "args": []}]', "unknown kind z")):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            published(bad)


@pytest.mark.slow
def test_the_commands_start() -> None:
    results = run_all(chosen(published(kinds=TRAINING), [], METHODS))
    assert len(results) >= 27
    assert [(result.command["id"], result.verdict) for result in results if result.problem] == []
    assert all(result.terms >= "1" for result in results)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_command_starts_by_its_launcher() -> None:
    pytest.importorskip("deepspeed")
    result, = run_all(chosen(published(), ["tinybert-1"], []), ["deepspeed"])
    assert (result.problem, result.terms, result.ranks) == ("", "13", 2), result.output


def test_resharding_is_judged_by_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    command, = chosen(published(), ["change-mp"], [])
    result = run_reshard(command)
    assert (result.problem, result.terms, result.verdict) == ("", "", "ok"), result.output

    true_execute = command_runs.execute

    def with_a_wrong_part(words: list[str], work: Path, temporary: Path, timeout: float) -> tuple[int | str, str]:
        answer = true_execute(words, work, temporary, timeout)
        first, second = sorted((work / "path_to_the_checkpoint_MP2").rglob("mp_rank_*"))
        shutil.copy(first, second)
        return answer

    monkeypatch.setattr(command_runs, "execute", with_a_wrong_part)
    assert run_reshard(command).problem.endswith(" differ")
    monkeypatch.setattr(command_runs, "execute", lambda *words: (0, "said nothing"))
    assert "path_to_the_checkpoint_MP2 is missing" in run_reshard(command).problem


def test_a_sweep_is_printed_understood_and_judged_by_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    command, = chosen(published(), ["example-glmd-al-110m-66m-tune"])
    printed = sweep_runs.run_sweep(command, print_only=True)
    assert (printed.problem, printed.ranks) == ("", 2) and printed.verdict == "ok, 18 commands printed and understood"
    wrong = {**command, "args": [*command["args"], "--tinybert_layers=3"]}
    assert "--tinybert_layers" in sweep_runs.run_sweep(wrong, print_only=True).problem

    def run(states: Sequence[str], log: str = OK) -> Result:
        """A sweep of four runs, of which only the results are made."""

        def pretend(words: Sequence[str], work: Path, *args: Any, **kwargs: Any) -> tuple[int | str, str]:
            if words[-1] != command_runs.FLAG:
                return true_execute(words, work, *args, **kwargs)
            study = work.parent / "GLM" / "data" / "tmp" / "tune_1"
            study.mkdir(parents=True)
            (study / "log").write_text(log)
            trials = [{"trial": "copa", "stage": i, "state": state, "reason": "no memory", "seconds": 10.0 * i,
                       "log": "log"} for i, state in enumerate(states)]
            (study / "results.json").write_text(json.dumps({"trials": trials}))
            return 0, ""

        monkeypatch.setattr(sweep_runs, "execute", pretend)
        short = ["--tasks=copa,cb", "--ds_train_micro_batch_size_per_gpu=16", "--ds_optimizer__params__lr=1e-5"]
        return sweep_runs.run_sweep({**command, "args": [*command["args"], *short]})

    true_execute = sweep_runs.execute
    good = run(["done"] * 4)
    assert (good.problem, good.terms, good.verdict) == ("", "1", "ok, 4 runs, longest 30.0 s")
    assert run(["done", "failed", "done", "done"]).problem == "copa stage 1: failed no memory"
    assert "3 of 4 planned runs" in run(["done"] * 3).problem
    assert "copa stage 0: done" in run(["done"] * 4, log="no verdict").problem


def test_the_judge() -> None:
    command = {"id": "x", "method": "y"}
    assert judge(command, 0, OK, []) == "" and judge(command, 1, "error: bad", []) == "error: bad"
    assert judge(command, 0, OK, ["runs"]) == "left behind: runs"
    assert "without 'fast-dev-run ok'" in judge(command, 0, "", [])
    failing = {**command, "expect": "error:equal hidden sizes (student 384, teacher 768)"}
    assert judge(failing, 2, "error: X needs equal hidden sizes: …", []) == ""
    assert "expected an error" in judge(failing, 0, "", []) and "expected an error" in judge(failing, 2, "error: y", [])
    assert "traceback" in judge(failing, 1, "Traceback …\nequal hidden sizes", [])
    for text, line in (("n=1 names a repeat that never runs", "warning: --n=1 names a pass that never runs"),
                       ("no agent is built", "warning: rl_kd: no agent is built; give …")):
        warning = {**command, "expect": f"warn:{text}"}
        assert judge(warning, 0, f"{line}\n{OK}", []) == ""
        assert judge(warning, 0, OK, []) == f"expected the warning {text!r}"


def test_terms_and_ranks_are_counted() -> None:
    assert count_terms("") is None and count_terms(OK) == 1
    rows = "  inter_loss/hidden_states.0_t0   1.3  1.2\n  pre_loss/pt_hard_t0   2  1\n  Train/hard_loss  2 1\n"
    assert count_terms(OK + rows) == 2
    for words, ranks in (([], 1), (["--include=localhost:0,7", "--hostfile="], 2), (["--num_gpus=3"], 3),
                         (["--include=localhost:4"], 1), (["--nproc-per-node=2"], 2)):
        assert num_ranks({"kind": "pretrain", "launcher": words}) == ranks
    assert num_ranks({"kind": "tune", "args": ["--gpus=2,3"]}) == 2


def test_the_table_goes_to_its_place(tmp_path: Path) -> None:
    command = {"id": "a|b", "method": "KD", "kind": "finetune", "args": []}
    results = [Result(command, "deepspeed", 12.345, "", OK, ranks=2, terms="1"),
               Result(command, "deepspeed", 61, "bad\nworse")]
    table = markdown_table(results, 70)
    assert "| `a\\|b` | KD | 2 | 12.3 | 1 | ok |" in table and "FAILED: bad |" in table and "worse" not in table
    assert "2 commands, 1 failed, 1 over 60 s a run" in table and "| launcher |" not in table
    assert Result(command, "x", 61, "").verdict == "ok, SLOW"
    page = tmp_path / "page.md"
    write_markdown(page, table)
    assert page.read_text() == table
    with pytest.raises(ValueError, match="has no place"):
        write_markdown(page, table)
    page.write_text(f"# Title\n{START}old\n{END}end\n")
    write_markdown(page, table)
    write_markdown(page, table)
    assert page.read_text() == f"# Title\n{START}{table}{END}end\n"


def test_a_bad_command_line_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_commands.signal, "signal", lambda *words: None)
    assert run_commands.main(["--id", "kd-9"]) == 2 and "no command with the id kd-9" in capsys.readouterr().err
    assert run_commands.main(["--commands", "nowhere.json"]) == 2 and "nowhere.json" in capsys.readouterr().err


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import subprocess, sys, time\n"
             "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
             "print(child.pid, flush=True); time.sleep(60)"]
    code, output = command_runs.execute(words, tmp_path, tmp_path, 2.5)
    assert code == "no end within 2.5 s" and has_ended(output.strip())


def test_a_sweep_that_hangs_may_end_its_runs(tmp_path: Path) -> None:
    """They are no part of its process group."""
    words = [sys.executable, "-c", "import signal, subprocess, sys, time\n"
             "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
             "signal.signal(signal.SIGTERM, lambda *_: (child.kill(), child.wait(), sys.exit(1)))\n"
             "print(child.pid, flush=True); time.sleep(60)"]
    code, output = command_runs.execute(words, tmp_path, tmp_path, 2.5, ends_others=True)
    assert code == "no end within 2.5 s" and has_ended(output.strip())


def has_ended(process: str) -> bool:
    """Whether it ends soon: a signal is not obeyed at once on a busy machine."""
    state, deadline = Path(f"/proc/{process}/stat"), time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if state.read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
