"""Recorded cases and the real files of SuperGLUE; skipped where the shared folder is absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.data import EncodedExamples, TrainLoader, make_split, read_split, split_file
from tasks.encoding import TaskEncoder, verbalizer_id
from tasks.registry import get_task
from tasks.spec import TaskOptions
from tasks.superglue.wsc_negative import add_candidates
from tests.golden.task_cases import TASK_CASES, NotBuiltYet, case_tokenizer, kind_of
from tests.helpers.shared import require_shared, shared_path

GOLDEN = shared_path("golden_data")
FOLDERS = {"copa": "COPA", "cb": "CB", "rte": "RTE", "boolq": "BoolQ", "record": "ReCoRD", "wic": "WiC",
           "multirc": "MultiRC"}


def differences(ours: Any, recorded: Any, path: str = "") -> list[str]:
    """Where two JSON values differ: numbers beyond 1e-4, sets of answers in any order, all else exactly."""
    if isinstance(ours, dict) and isinstance(recorded, dict):
        if set(ours) != set(recorded):
            return [f"{path}: keys {sorted(set(ours) ^ set(recorded))}"]
        return [one for key in ours for one in differences(ours[key], recorded[key], f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(recorded, list):
        if path.endswith(".meta.answers"):
            ours, recorded = sorted(ours), sorted(recorded)
        if len(ours) != len(recorded):
            return [f"{path}: {len(ours)} against {len(recorded)} entries"]
        return [one for index, pair in enumerate(zip(ours, recorded)) for one in differences(*pair, f"{path}[{index}]")]
    if isinstance(ours, float):
        return [] if ours == pytest.approx(recorded, rel=1e-5, abs=1e-5) else [f"{path}: {ours} against {recorded}"]
    return [] if ours == recorded and type(ours) is type(recorded) else [f"{path}: {ours!r} against {recorded!r}"]


def test_differences_are_found() -> None:
    assert not differences({"a": [1, 2.0]}, {"a": [1, 2.0]})
    assert differences({"a": [1]}, {"a": [1], "b": 0}) and differences([1], [2]) and differences([1.0], [1.1])


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.json")) if GOLDEN else ["none"])
def test_recorded_case(name: str) -> None:
    shared = require_shared()
    recorded = json.loads(require_shared("golden_data", name).read_text(encoding="utf-8"))
    try:
        kind = kind_of(name, recorded)
        if kind is None:
            pytest.skip("not a case of a task")
        ours = TASK_CASES[kind](recorded, shared)
    except NotBuiltYet as reason:
        pytest.skip(f"not built yet: {reason}")
    if kind == "verbalizers":
        recorded = {model: {task: tasks[task] for task in ours[model]} for model, tasks in recorded.items()}
    if kind == "metrics":
        recorded["task_metrics"] = {task: recorded["task_metrics"][task] for task in ours["task_metrics"]}
    assert differences(ours, recorded) == []


@pytest.mark.parametrize("task", FOLDERS)
def test_real_files_are_read_and_encoded(task: str) -> None:
    shared = require_shared("data", "superglue").parents[1]
    tokenizer = case_tokenizer("bert-base-uncased", shared)
    folder: Path = shared / "data" / "superglue" / FOLDERS[task]
    for pattern_id in get_task(task, TaskOptions()).pattern_ids:
        options = TaskOptions(cloze_eval=True, pattern_id=pattern_id, seq_length=256)
        spec = get_task(task, options)
        encoder = TaskEncoder(spec, options, tokenizer)
        for name in ("train", "dev"):
            split = make_split(name)
            path = split_file(folder, split, few_superglue=task == "multirc")  # its val.jsonl has 2,000 answers
            examples = read_split(spec, path, split, training_form=name == "train")
            loader = TrainLoader(EncodedExamples(examples, encoder), batch_size=16, seed=1)
            seen = 0
            for batch in loader.epoch(0):
                rows = batch["text"].flatten(0, -2)
                sep = batch["mask"].flatten()
                assert (rows == encoder.mask_id).any(dim=1).all()
                assert (rows.gather(1, sep.unsqueeze(1)) == encoder.sop_id).all()
                assert (batch["logit_mask"].flatten(0, -2).sum(1) >= 1).all()
                seen += len(batch["label"])
            assert seen == len(examples)


@pytest.mark.parametrize("wsc_negative", [False, True])
def test_real_wsc_files_in_both_forms(wsc_negative: bool, tmp_path: Path) -> None:
    shared = require_shared("data", "superglue").parents[1]
    folder = shared / "data" / "superglue" / "WSC"
    if wsc_negative:
        add_candidates(folder, tmp_path)
        folder = tmp_path
    tokenizer = case_tokenizer("bert-base-uncased", shared)
    for pattern_id in range(3):
        options = TaskOptions(cloze_eval=True, pattern_id=pattern_id, seq_length=128, wsc_negative=wsc_negative)
        spec = get_task("WSC", options)
        encoder = TaskEncoder(spec, options, tokenizer)
        for name, count in (("train", None), ("dev", 100)):
            split = make_split(name)
            examples = read_split(spec, split_file(folder, split), split, training_form=name == "train")
            assert count in (None, len(examples)) and examples
            for example in examples:
                sample = encoder(example)
                assert sample["text"].shape == ((1 + len(example.meta["candidates"]), 128) if wsc_negative else (128,))


def test_verbalizers_of_gpt2() -> None:
    tokenizer = case_tokenizer("gpt2", require_shared("data", "vocab").parents[1])
    assert verbalizer_id(tokenizer, " Yes") == 3363 and verbalizer_id(tokenizer, " Yes", with_blank=False) == 5297
    assert verbalizer_id(tokenizer, " neither") == tokenizer.encode(" neither")[0]
    with pytest.raises(ValueError, match="neither"):
        verbalizer_id(tokenizer, " neither", with_blank=False)
