"""Stages, searched values, seeds, and what is refused before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distill.sweep import plan as planning
from distill.sweep.flags import parse
from distill.sweep.plan import find_search_space, fresh_stamp, notes, random_port, with_point
from distill.sweep.stages import joined, merge, stages_of
from distill.sweep.types import Point
from tests.distill.sweep.planning import command, commands, names, plan

TEACHER = ("--tasks=copa", "--task_t_load=base")


def test_merge_replaces_adds_and_takes_away() -> None:
    forwarded = [("--a", "1"), ("--switch", None), ("--b", "2"), ("--c", "3")]
    stage = [("--b", "5"), ("--switch", None), ("--c", "3"), ("--new", None), ("--task_t_load", "x")]
    assert joined(merge(forwarded, stage)) == [
        ("--a", "1"), ("--b", "5"), ("--new", None), ("--custom_first_eval", None)]
    assert joined([("--a", "1"), ("--b", None)], [("--a", "2")]) == [("--a", "2"), ("--b", None)]


def test_stages_run_by_rising_number() -> None:
    """Numbers with two digits were accepted, but never ran, in the published launcher."""
    flags = [(10, ("--a", None)), (2, ("--b", None)), (10, ("--c", None)), (0, ("--d", None))]
    assert stages_of(flags) == [(0, [("--d", None)]), (2, [("--b", None)]), (10, [("--a", None), ("--c", None)])]
    found = commands(*TEACHER, "--again_10__seed=10", "--again_2__seed=2", "--seed=1")
    assert [(stage.stage, stage.value("--seed")) for stage in found] == [(0, "1"), (1, "2"), (2, "10")]


def test_teacher_flags_win_in_the_first_stage_only() -> None:
    first, second = commands(*TEACHER, "--teacher_num_layers=9", "--again_1__teacher_hidden_size=8")
    assert first.value("--teacher_num_layers") == "12" and first.value("--teacher_hidden_size") == "768"
    assert second.value("--teacher_num_layers") == "9" and second.value("--teacher_hidden_size") == "8"
    assert names(second).index("--teacher_num_layers") < names(second).index("--custom_first_eval")


def test_later_stages_start_from_the_first_or_from_the_one_before() -> None:
    words = (*TEACHER, "--again_1__x=1", "--again_2__x=2", "--save_sub=s")
    first, *later = commands(*words)
    assert [stage.value("--load-pretrained") for stage in later] == [first.checkpoint] * 2
    assert all(stage.checkpoint.startswith(f"{first.checkpoint}/s/COPA/blank-tiny6-COPA-") for stage in later)
    assert len({stage.checkpoint for stage in (first, *later)}) == 3
    first, second, third = commands(*words, "--stage_from=previous")
    assert [stage.value("--load-pretrained") for stage in (second, third)] == [first.checkpoint, second.checkpoint]
    assert third.checkpoint.startswith(f"{second.checkpoint}/s/COPA/")


def test_without_teachers_there_is_one_stage_and_a_note() -> None:
    words = ("--tasks=copa", "--again_1__seed=3")
    assert len(commands(*words)) == 1
    assert notes(parse(words)) == ["--again_1__seed has no effect: there are further stages only with --task_t_load"]


def test_notes() -> None:
    assert notes(parse(["--tasks=copa", "--ds_a=1", "--rate_ds_a=2"])) == []
    assert "--rate_ds_b has no effect without --ds_b" in notes(parse(["--rate_ds_b=2"]))
    assert "fp16 all the same" in notes(parse(["--model=block_tiny24_4"]))[0]
    assert notes(parse(["--model=block_tiny24_4", "--del_fp16"])) == []


SEARCHED = ("--tasks=copa,cb", "--task_t_load=base", "--distill_temperature=grid:1,10", "--seed=5",
            "--again_1__x=int:1..9:log", "--ds_optimizer__params__lr=float:1e-6..1e-4:log", "--note=a:b")


def test_search_space(tmp_path: Path) -> None:
    sweep = parse(SEARCHED)
    space = find_search_space(sweep)
    assert {flag: domain.kind for flag, domain in space.items()} == {
        "--distill_temperature": "grid", "--again_1__x": "int", "--ds_optimizer__params__lr": "float"}
    file = tmp_path / "space.json"
    file.write_text(json.dumps({"--again_2__y": "choice:p,q", "--ds_gradient_accumulation_steps": "grid:1,2"}))
    space = find_search_space(parse([*SEARCHED, f"--search_space={file}"]))
    assert list(space)[3:] == ["--again_2__y", "--ds_gradient_accumulation_steps"]
    for content, message in (
            ('{"--a": "1"}', "'1' is no list or range"), ('{"--gpus": "grid:1,2"}', "--gpus cannot be searched"),
            ('{"a": "grid:1,2"}', "a cannot be searched"), ('{"--a": 1}', "must map flags"),
            ("[]", "does not hold a JSON object"), ("{", "valid JSON")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            find_search_space(parse(["--tasks=copa", f"--search_space={file}"]))
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        find_search_space(parse(["--search_space=missing.json"]))


def test_a_point_takes_the_place_of_the_searched_values() -> None:
    point = Point.of({"--distill_temperature": "10", "--again_1__x": "3", "--ds_optimizer__params__lr": "2e-5",
                      "--again_2__y": "q", "--added": "1"})
    found = commands(*SEARCHED, point=point, seed=77)
    assert len(found) == 6
    for stage in found:
        assert stage.value("--distill_temperature") == "10" and stage.value("--seed") == "77"
        assert stage.deepspeed_config["optimizer"]["params"]["lr"] == 2e-5 and stage.value("--added") == "1"
        assert (stage.value("--x"), stage.value("--y")) == [(None, None), ("3", None), (None, "q")][stage.stage]
    given = names(found[0])
    assert given.index("--distill_temperature") < given.index("--seed") < given.index("--note") < given.index("--added")
    sweep = parse(SEARCHED)
    assert with_point(sweep, {}) == sweep and commands("--tasks=copa", seed=3)[0].value("--seed") == "3"


@pytest.mark.parametrize(("words", "flag", "values"), [
    (("--distill_temperature=15", "--again_1__distill_temperature=grid:1,15"), "--again_1__distill_temperature",
     {"1": ("15", "1"), "15": ("15", "15")}),
    (("--distill_temperature=grid:1,5", "--again_1__distill_temperature=5"), "--distill_temperature",
     {"1": ("1", "5"), "5": ("5", "5")})])
def test_a_searched_value_that_meets_another_takes_no_flag_away(
        words: tuple[str, ...], flag: str, values: dict[str, tuple[str, str]]) -> None:
    for value, expected in values.items():
        found = commands(*TEACHER, *words, point={flag: value})
        assert tuple(stage.value("--distill_temperature") for stage in found) == expected


def test_a_seed_that_a_stage_names_too_takes_no_flag_away() -> None:
    found = commands(*TEACHER, "--again_1__seed=1235", "--again_1__x=1", "--x=1", seed=1235)
    assert [stage.value("--seed") for stage in found] == ["1235", "1235"]
    assert [stage.value("--x") for stage in found] == ["1", None]  # typed twice: left out


def test_points_are_mappings_that_compare() -> None:
    point = Point.of({"--b": "2", "--a": "1"})
    assert point == Point.of({"--a": "1", "--b": "2"}) and dict(point) == {"--a": "1", "--b": "2"} and len(point) == 2
    assert len({point, Point.of({"--a": "1", "--b": "2"}), Point()}) == 2 and "--c" not in point


def test_commands_are_for_the_devices_of_one_trial() -> None:
    words = ("--gpus=0,1,2,3", "--gpus_per_trial=2", "--tasks=copa,record", "--big_task_gpus=0,1,2,3")
    small, big = plan(*words)
    assert (small.gpus, small.devices, big.gpus, big.devices) == ("0,1,2,3", 2, "0,1,2,3", 0)
    assert "--include=localhost:0,1" in small.stages[0].launcher and small.stages[0].value("--batch-size") == "8"
    assert "--include=localhost:0,1,2,3" in big.stages[0].launcher and big.stages[0].value("--batch-size") == "4"
    with pytest.raises(ValueError, match="--gpus_per_trial=3, but --gpus=0,1 names 2"):
        plan("--gpus=0,1", "--gpus_per_trial=3")


def test_a_task_is_planned_whatever_is_wrong_with_the_others(tmp_path: Path) -> None:
    entries = tmp_path / "t.json"
    entries.write_text('{"t": {"tasks": {"copa": "/c"}, "args": [["teacher_load_pretrained", ["t"]]]}}')
    sweep = parse(["--tasks=cb,copa", "--task_t_load=t", f"--task_t_load_path={entries}"])
    found, = planning.plan_tasks(sweep, only=1)
    assert found.task == "copa"
    with pytest.raises(ValueError, match="'t' has no checkpoint for cb"):
        planning.plan_tasks(sweep)
    plans, (problem,) = planning.plan_possible(sweep, seed=None, point={})
    assert plans[0].task == "copa" and problem.startswith("cb: --task_t_load=t: 't' has no checkpoint for cb")


def test_two_runs_in_one_folder_are_refused() -> None:
    with pytest.raises(ValueError, match="two runs would write x/y"):
        commands(*TEACHER, "--save=x", "--experiment-name=y", "--again_1__z")
    found = commands(*TEACHER, "--experiment-name=y", "--again_1__z")
    assert [stage.checkpoint.count("/y") for stage in found] == [1, 2]


def test_two_runs_with_one_file_of_records_are_refused() -> None:
    with pytest.raises(ValueError, match="records to logs/metrics.jsonl: leave out --log-dir"):
        commands(*TEACHER, "--log-dir=logs", "--again_1__z")
    assert commands("--tasks=copa", "--log-dir=logs")[0].value("--log-dir") == "logs"


def test_planning_changes_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = plan(*SEARCHED, "--again_1__y", point={"--ds_optimizer__params__lr": "1e-5", "--again_1__x": "2"})
    assert len(found) == 2 and found[0].gpus == "6" and list(tmp_path.iterdir()) == []
    derived = [stage.deepspeed_path for task in found for stage in task.stages if stage.deepspeed_config is not None]
    assert derived == []  # 1e-5 is what the base file has
    found = plan("--tasks=copa,cb", "--ds_optimizer__params__lr=2e-5")
    paths = [task.stages[0].deepspeed_path for task in found]
    assert len(set(paths)) == 2 and all(path.startswith("tmp_deepspeed_config/t") for path in paths)
    assert list(tmp_path.iterdir()) == []


def test_times_and_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = [fresh_stamp() for _ in range(1000)]
    assert stamps == sorted(set(stamps)) and len(stamps[0]) == len("260102_030405.678901")
    assert all(10_000 <= random_port() <= 60_000 for _ in range(100))
    monkeypatch.setattr(planning, "random_port", lambda: 5)
    assert command("--tasks=copa").launcher == (
        "deepspeed", "--master_port=1", "--include=localhost:6", "--hostfile=")


def test_a_task_without_epochs_is_named(tmp_path: Path) -> None:
    (tmp_path / "epochs.json").write_text('{"SHORT": {"copa": 1}}')
    sweep = parse([f"--preset_path={tmp_path}", "--epoch_type=SHORT", "--tasks=copa"])
    assert planning.plan_tasks(sweep)[0].stages[0].value("--epochs") == "1"
    with pytest.raises(ValueError, match="--epoch_type=SHORT has no entry for cb"):
        planning.plan_tasks(replace(sweep, tasks=("cb",)))
    with pytest.raises(ValueError, match="--epochs=few is no whole number for --rate_arg_epochs"):
        commands("--tasks=copa", "--epochs=few", "--rate_arg_epochs=2")
