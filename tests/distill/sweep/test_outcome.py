"""How a child ended: from its exit status, its result file and its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.sweep.outcome import error_line, judge, log_tail, read_result

TRACE = """Traceback (most recent call last):
  File "distill/finetune.py", line 3, in main
ValueError: something
    with a second line
"""
LAUNCHER = ("[2026-01-01 00:00:00,000] [ERROR] [launch.py:259:sigkill_handler] ['python', 'x.py', '--error: no'] exits "
            "with return code = 1\n")


def result(**changes: Any) -> dict[str, Any]:
    return {"args": {"epochs": 3, "task": "COPA"}, "epoch": -1, "max_score_dict": {
        "accuracy": {"epoch": 1, "iteration": 20, "score_dict": {"accuracy": 0.5}}}, **changes}


def outcome(folder: Path, status: int | None, content: Any = None, log: str = "", **limits: float) -> tuple[str, str]:
    path = folder / "result.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    (folder / "log").write_text(log, encoding="utf-8")
    found = judge(status, path, folder / "log", **limits)
    return found.kind, found.reason


@pytest.mark.parametrize("epoch", [-1, 2])
def test_a_whole_result_and_status_0_are_done(tmp_path: Path, epoch: int) -> None:
    assert outcome(tmp_path, 0, result(epoch=epoch), "ValueError: was caught\n") == ("done", "")


def test_a_run_whose_end_nobody_saw_is_done_with_its_final_scores_only(tmp_path: Path) -> None:
    """A later stage scores the weights it starts from as epoch 0: with one epoch that looks like its end."""
    assert outcome(tmp_path, None, result()) == ("done", "")
    kind, reason = outcome(tmp_path, None, result(args={"epochs": 1, "task": "COPA"}, epoch=0))
    assert kind == "incomplete result" and reason.endswith("its final scores are missing")


@pytest.mark.parametrize(("content", "kind", "reason"), [
    (None, "no result", "without a result file"), (json.dumps(result())[:50], "damaged result", "cut short"),
    ("", "damaged result", "cut short"), ([], "damaged result", "a list, not an object"),
    (result(args=3), "damaged result", "args is 3"),
    ({"args": {}, "epoch": -1}, "damaged result", "max_score_dict is missing"),
    (result(max_score_dict={"a": 1}), "damaged result", "max_score_dict of a has no score_dict"),
    (result(epoch=0), "incomplete result", "epoch 1 of 3"),
    (result(max_score_dict={}), "incomplete result", "no scores")])
def test_what_is_wrong_with_a_result_file_is_said(tmp_path: Path, content: Any, kind: str, reason: str) -> None:
    found = outcome(tmp_path, 0, content)
    assert found[0] == kind and reason in found[1]


@pytest.mark.parametrize(("status", "log", "kind", "reason"), [
    (1, TRACE + LAUNCHER, "crashed", "ValueError: something (exit status 1)"),
    (2, "x.py: error: unknown flag --y\n" + LAUNCHER, "refused", "x.py: error: unknown flag --y (exit status 2)"),
    (1, "[rank1]: RuntimeError: NCCL\n[rank0] error: another rank has ended; see there\n", "crashed",
     "RuntimeError: NCCL (exit status 1)"),
    (1, LAUNCHER, "crashed", "exits with return code = 1"), (7, "all is well\n", "crashed", "exit status 7"),
    (1, "torch.OutOfMemoryError: CUDA out of memory. Tried\n" + TRACE, "memory", "out of memory: torch.OutOf"),
    (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory\n", "memory", "DefaultCPUAllocator"),
    (-9, "", "crashed", "ended by SIGKILL from outside, as the system does when memory runs out"),
    (247, "", "crashed", "ended by SIGKILL"), (137, "", "crashed", "ended by SIGKILL"),
    (143, "", "crashed", "ended by SIGTERM"), (-11, "", "crashed", "ended by SIGSEGV"), (130, "", "crashed", "SIGINT")])
def test_a_failure_has_a_kind_and_the_last_error_of_the_log(tmp_path: Path, status: int, log: str, kind: str,
                                                            reason: str) -> None:
    found = outcome(tmp_path, status, result(), log)
    assert found[0] == kind and reason in found[1]


def test_an_error_in_the_log_explains_a_missing_result(tmp_path: Path) -> None:
    kind, reason = outcome(tmp_path, 0, None, TRACE)
    assert kind == "no result" and reason.endswith("the log says: ValueError: something")
    assert outcome(tmp_path, 0, None, "MemoryError\n")[0] == "memory"


def test_a_timeout_is_named_whatever_else_happened(tmp_path: Path) -> None:
    assert outcome(tmp_path, 1, result(), TRACE, time_limit=90) == ("timeout", "no end within 90 s (--trial_timeout)")


def test_only_what_may_go_better_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("", encoding="utf-8")
    path = tmp_path / "result.json"
    assert judge(1, path, tmp_path / "log").may_be_retried
    assert not judge(2, path, tmp_path / "log").may_be_retried
    assert not judge(0, path, tmp_path / "log", time_limit=1).may_be_retried
    assert read_result(path).may_be_retried


def test_the_last_error_line_is_found_and_cut(tmp_path: Path) -> None:
    assert error_line("no mistake here\n") is None
    assert error_line("error: first\nerror: last\nbye\n") == "error: last"
    assert error_line("KeyboardInterrupt\n") == "KeyboardInterrupt"
    assert error_line(f"ValueError: {'x' * 1000}")[-1] == "…"
    log = tmp_path / "log"
    log.write_bytes(b"x" * 70_000 + b"\nlast\xff\n")
    assert log_tail(log) == "last\ufffd" and log_tail(tmp_path / "none") == ""
