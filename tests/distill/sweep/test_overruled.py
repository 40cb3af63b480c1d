"""Flags that the DeepSpeed file replaces are not searched, and not given without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill import auto_tune
from distill.arguments import build_parser
from distill.sweep.flags import parse
from distill.sweep.overruled import _ENTRIES, overruled
from distill.sweep.plan import find_search_space, notes
from distill.training import ds_config

ALL = ("--lr", "--weight-decay", "--batch-size", "--gradient-accumulation-steps", "--clip-grad")


@pytest.mark.parametrize(("flag", "instead"), [
    ("--lr", "--ds_optimizer__params__lr"), ("--weight-decay", "--ds_optimizer__params__weight_decay"),
    ("--batch-size", "--ds_train_micro_batch_size_per_gpu instead, or add --args_to_ds_config"),
    ("--gradient-accumulation-steps", "--ds_gradient_accumulation_steps"), ("--clip-grad", "--ds_gradient_clipping"),
    ("--again_1__lr", "--again_1__deepspeed_config=FILE")])
def test_a_search_that_would_repeat_one_trial_is_refused(flag: str, instead: str) -> None:
    with pytest.raises(ValueError, match=f"{flag} is searched, but the DeepSpeed file replaces it.*{instead}"):
        auto_tune.check(parse(["--tasks=copa", "--task_t_load=base", f"{flag}=grid:1,2"]))


def test_the_list_is_that_of_the_training_scripts() -> None:
    """Which values lose against a file that has all of them."""
    params = {"lr": 0.5, "weight_decay": 0.5, "betas": [0.5, 0.5], "eps": 0.5}
    file = {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 3, "gradient_clipping": 0.5,
            "optimizer": {"type": "Adam", "params": params}}
    given = ["--finetune", "--cloze-eval", "--task=copa"]
    args = build_parser("finetune").parse_args(given)
    (note,) = [note for note in ds_config.resolve(args, file, on_gpu=False).notes if "replaces" in note]
    assert {word for word in note.split() if word.startswith("--")} == set(_ENTRIES)


def test_a_value_without_effect_is_told() -> None:
    said = notes(parse(["--tasks=copa", "--lr=1e-5", "--epochs=3"]))
    assert said == ["--lr has no effect: the DeepSpeed file replaces it; write --ds_optimizer__params__lr instead"]


def test_the_file_says_what_it_replaces(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"optimizer": {"params": {"weight_decay": 0.1}}}))
    own = f"--deepspeed_config={file}"
    assert list(overruled(parse([own]), ALL)) == ["--weight-decay", "--gradient-accumulation-steps", "--clip-grad"]
    assert list(overruled(parse([own, "--args_to_ds_config"]), ALL)) == ["--weight-decay", "--clip-grad"]
    assert list(overruled(parse(["--args_to_ds_config"]), ALL)) == ["--lr", "--weight-decay", "--clip-grad"]
    stage = (f"--again_1__deepspeed_config={file}", "--again_2__args_to_ds_config")
    flags = ("--again_1__lr", "--again_1__clip-grad", "--again_2__lr", "--again_2__batch-size")
    assert list(overruled(parse(stage), flags)) == ["--again_1__clip-grad", "--again_2__lr"]


def test_other_scripts_and_missing_files_are_left_alone(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text("")
    for word in (f"--py_file={script}", "--py_file=missing.py", "--deepspeed_config=missing.json"):
        assert overruled(parse([word]), ALL) == {}


def test_the_seed_is_searched_or_repeated() -> None:
    with pytest.raises(ValueError, match="--seed is searched, and --seeds=3 repeats"):
        find_search_space(parse(["--seed=grid:1,2", "--seeds=3"]))
    assert list(find_search_space(parse(["--seed=grid:1,2"]))) == ["--seed"]
    assert list(find_search_space(parse(["--again_1__seed=grid:1,2", "--seeds=3"]))) == ["--again_1__seed"]
