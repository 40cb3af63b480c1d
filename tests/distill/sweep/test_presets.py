"""Preset files: what is in them, what is refused, presets of the user's own; teacher entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.sweep.deepspeed_files import find_file
from distill.sweep.flags import parse
from distill.sweep.model_size import planned_parameters, preset_parameters
from distill.sweep.presets import fill, load_presets
from distill.sweep.teacher_entries import load_teacher_entries
from tests.distill.sweep.planning import command

PRESETS = load_presets()
ENTRIES = "distill/task_t_load.json"


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_all_presets_are_there() -> None:
    assert {name: sum(1 for _ in script.tasks) for name, script in PRESETS.scripts.items()} == {
        "evaluate_lm": 5, "finetune_blank": 1, "finetune_seq2seq": 4, "finetune_superglue": 9}
    assert [(table["copa"], table["record"], table["multirc"]) for table in PRESETS.epochs.values()] == [
        (50, 5, 15), (100, 3, 12), (0, 0, 0)]
    assert all(find_file(model.deepspeed.replace("{suffix}", "")) for model in PRESETS.models.values())


@pytest.mark.parametrize(("name", "parameters"), [
    ("model_blocklm_base", 109_338_624), ("block_tiny6", 66_811_392), ("block_tiny4", 52_635_648),
    ("block_tiny24_4", 52_635_648), ("model_blocklm_large", 334_688_256), ("model_blocklm_10B", 9_880_682_496),
    ("model_blocklm_10B_chinese", 9_879_633_920)])
def test_parameters_of_the_model_presets(name: str, parameters: int) -> None:
    assert preset_parameters(PRESETS.models[name]) == parameters


def test_parameters_of_a_planned_model() -> None:
    model = PRESETS.models["block_tiny6"]
    found = command("--tasks=copa", "--compress_word_emb=384", "--map_vocab_size=0.5", "--unmap_vocab_output")
    assert planned_parameters(found.flags, model) == 49_805_952
    for changed in ("--tokenizer-model-type=own.txt", "--map_vocab_size=1000", "--num-layers=many"):
        assert planned_parameters(command("--tasks=copa", changed).flags, model) is None


def test_presets_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path, "models.json", {"tiny": {
        "label": "t", "checkpoint": "c", "deepspeed": "d{suffix}.json", "flags": ["--load-pretrained={checkpoint}"]}})
    write(tmp_path, "epochs.json", {"EPOCH_SINGLE": {"axb": 7}, "SHORT": {"copa": 1}})
    write(tmp_path, "scripts/finetune_superglue.json", {"tasks": {"axb": {
        "task": "AXb", "data": "AXb", "flags": ["--x=a b"], "values": {
            "seq_length": 9, "log_interval": 1, "eval_interval": 2}}}})
    sweep = parse([f"--preset_path={tmp_path}", "--model=tiny", "--tasks=axb,copa"])
    assert sweep.presets.epochs["EPOCH_SINGLE"] == {**PRESETS.epochs["EPOCH_SINGLE"], "axb": 7}
    assert preset_parameters(sweep.presets.models["tiny"]) is None
    script = sweep.presets.scripts["finetune_superglue"]
    assert script.tasks["axb"].values["seq_length"] == "9" and script.tasks["copa"] == PRESETS.scripts[
        "finetune_superglue"].tasks["copa"]
    assert parse([f"--preset_path={tmp_path}", "--axb_model_path=y", "--tasks=copa"]).model_paths == {"axb": "y"}


GOOD = {"label": "t", "checkpoint": "c", "deepspeed": "d.json", "flags": ["--a"]}


@pytest.mark.parametrize(("name", "content", "message"), [
    ("models.json", {"m": {**GOOD, "fp16": 1}}, r"models.json: m: unknown key 'fp16'"),
    ("models.json", {"m": {**GOOD, "checkpont": "x"}}, "unknown key 'checkpont': did you mean checkpoint"),
    ("models.json", {"m": {"label": "t"}}, "m has no entry 'checkpoint'"),
    ("models.json", {"m": {**GOOD, "flags": "--a"}}, "m.flags has the wrong type"),
    ("models.json", {"m": {**GOOD, "flags": ["a"]}}, "'a' is no flag"),
    ("models.json", {"m": {**GOOD, "flags": ["--a={save}"]}}, "nothing fills {save}"),
    ("models.json", {"m": {**GOOD, "deepspeed": "{x}"}}, "nothing fills {x}"),
    ("models.json", {"m": []}, "must be a JSON object"),
    ("models.json", "{", "is not valid JSON"),
    ("models.json", "[]", "does not hold a JSON object"),
    ("epochs.json", {"E": {"copa": "5"}}, "E.copa has the wrong type"),
    ("epochs.json", {"E": {"copa": True}}, "E.copa has the wrong type"),
    ("scripts/s.json", {"save_sub": "s", "data": "d", "flags": ["--a={x}"], "tasks": {"t": {
        "task": "T", "data": "T", "flags": []}}}, "{x}"),
    ("scripts/s.json", {"save_sub": "s", "data": "d", "flags": ["--a={batch_size}"], "tasks": {"t": {
        "task": "T", "data": "T", "flags": []}}}, "t.values has no 'batch_size'"),
    ("scripts/finetune_superglue.json", {"tasks": {"t": {"task": "T", "data": "T", "flags": []}}},
     "t.values has no 'eval_interval'"),
    ("scripts/finetune_superglue.json", {"tasks": {}, "epochs": 3}, "has no entry 'save_sub'"),
])
def test_damaged_preset_files(tmp_path: Path, name: str, content: Any, message: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        load_presets(tmp_path)


def test_fill() -> None:
    assert fill(["--a", "--b={x}/{y}", "--c=", "--d=p=q"], {"x": "1", "y": "2"}) == [
        ("--a", None), ("--b", "1/2"), ("--c", ""), ("--d", "p=q")]


def test_shipped_teacher_entries() -> None:
    entries = load_teacher_entries(ENTRIES)
    tasks = parse([]).tasks
    for name in entries.names:
        if name != "10b":
            entries.check(name, tasks)
        assert entries.comments(name)
        flags = dict(entries.flags(name, "record", "/data"))
        counts = {len(value.split(":")) for flag, value in flags.items() if flag.startswith("--mt_")}
        assert len(counts) == (1 if "--mt_load_pretrained" in flags else 0)
        assert ("--teacher_load_pretrained" in flags) != ("--mt_load_pretrained" in flags)
        assert ("--teacher_fp16" in flags) == (name != "large")
    bottleneck = dict(entries.flags("large_ibglm", "copa", "/data"))
    assert bottleneck["--teacher_ib_hidden_size"] == "1024" and bottleneck["--teacher_inverted_bottleneck_mode"] is None
    assert dict(entries.flags("rl_kd_12_18_24", "cb", "D"))["--mt_load_pretrained"].split(":") == [
        "D/checkpoints/pretrain/blocklm-base-blank", "D/checkpoints/distill/student_12/CB",
        "D/checkpoints/distill/student_18/CB",
        "D/checkpoints/pretrain/blocklm-large-blank/finetune/CB/blank-large-CB-220813_125843"]


def test_teacher_entries_are_checked_before_anything_is_composed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--task_t_load=10b: '10b' has no checkpoint for copa, cb. Add them to"):
        command("--tasks=copa,cb", "--task_t_load=10b")
    with pytest.raises(ValueError, match="--task_t_load=bass is no entry .*: 'bass': did you mean base"):
        command("--tasks=copa", "--task_t_load=bass")
    with pytest.raises(ValueError, match="--again_2__task_t_load=10b: '10b' has no checkpoint for copa"):
        command("--tasks=copa", "--task_t_load=base", "--again_2__task_t_load=10b")
    with pytest.raises(ValueError, match="--again_K__task_t_load needs the name"):
        command("--tasks=copa", "--task_t_load=base", "--again_2__task_t_load")
    file = write(tmp_path, "t.json", {"a": {"args": [["--mt_load_pretrained", ["a", "/fixed", "typo"]]], "tasks": {
        "copa": "/x"}}})
    with pytest.raises(ValueError, match="a teacher of 'a' is no entry of .*: 'typo'"):
        command("--tasks=copa", "--task_t_load=a", f"--task_t_load_path={file}")
    file.write_text(file.read_text().replace("typo", "a"))
    found = command("--tasks=copa", "--task_t_load=a", f"--task_t_load_path={file}")
    assert found.flags[-1] == ("--mt_load_pretrained", "../GLM/data/x:../GLM/data/fixed:../GLM/data/x")


@pytest.mark.parametrize(("content", "message"), [
    ({"a": {"tasks": {}}}, "must be an object with 'args'"),
    ({"a": {"args": [], "task": {}}}, "unknown key 'task'"),
    ({"a": {"args": [], "tasks": {"copa": "x"}}}, "'x' has to begin with a slash"),
    ({"a": {"args": [["b"]]}}, r"\['b'\] is no pair"),
    ({"a": {"args": [["b", True]]}}, "the value of 'b' must be text, null or a list"),
    ({"a": {"args": [["b", []]]}}, "the value of 'b'"),
    ("{", "is not valid JSON"),
    ("[]", "does not hold a JSON object"),
])
def test_damaged_teacher_files(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teacher_entries(str(write(tmp_path, "t.json", content)))


def test_a_missing_teacher_file_matters_only_where_it_is_asked_for() -> None:
    assert command("--tasks=copa", "--task_t_load_path=missing.json")
    with pytest.raises(ValueError, match="missing.json does not exist"):
        command("--tasks=copa", "--task_t_load_path=missing.json", "--task_t_load=base")
