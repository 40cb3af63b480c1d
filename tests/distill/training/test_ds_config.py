"""The DeepSpeed file and the command line become one configuration."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.training import ds_config
from distill.training.ds_config import find_config, read_config, resolve

FILE = {
    "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5,
    "optimizer": {"type": "Adam", "params": {"lr": 4e-4, "weight_decay": 0.1, "betas": [0.9, 0.98], "eps": 1e-6}},
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 500}}


def arguments(**changes: Any) -> SimpleNamespace:
    values = dict(batch_size=8, gradient_accumulation_steps=1, lr=1e-5, weight_decay=0.01, clip_grad=1.0, fp16=True,
                  bf16=False, args_to_ds_config=False, zero_stage=0, cpu_offload=False,
                  adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-8, loss_scale=None,
                  loss_scale_window=1000.0, min_scale=1.0, hysteresis=2)
    return SimpleNamespace(**{**values, **changes})


def test_the_file_wins_and_one_note_names_every_loser_with_both_numbers() -> None:
    result = resolve(arguments(), FILE, on_gpu=True)
    assert {name: result.overrides[name] for name in ("batch_size", "gradient_accumulation_steps", "lr", "weight_decay",
                                                      "clip_grad")} == {
        "batch_size": 16, "gradient_accumulation_steps": 2, "lr": 4e-4, "weight_decay": 0.1, "clip_grad": 0.5}
    (note,) = [note for note in result.notes if "replaces" in note]
    assert "--batch-size 8 -> 16" in note and "--lr 1e-05 -> 0.0004" in note and "--weight-decay 0.01 -> 0.1" in note
    assert "--gradient-accumulation-steps 1 -> 2" in note and "--clip-grad 1.0 -> 0.5" in note


def test_missing_accumulation_in_the_file_means_one() -> None:
    file = {key: value for key, value in FILE.items() if key != "gradient_accumulation_steps"}
    result = resolve(arguments(gradient_accumulation_steps=4), file, on_gpu=True)
    assert result.overrides["gradient_accumulation_steps"] == result.config["gradient_accumulation_steps"] == 1


def test_a_file_without_batch_size_takes_the_command_line() -> None:
    result = resolve(arguments(), {"optimizer": {"type": "Adam", "params": {}}}, on_gpu=True)
    assert result.config["train_micro_batch_size_per_gpu"] == 8 and "batch_size" not in result.overrides


def test_what_the_file_does_not_say_about_adam_comes_from_the_command_line() -> None:
    args = arguments(weight_decay=0.1, adam_beta2=0.95, adam_eps=1e-6)
    for file in ({}, {"optimizer": {"type": "Adam", "params": {"lr": 4e-4}}}):
        params = resolve(args, file, on_gpu=True).config["optimizer"]["params"]
        assert (params["weight_decay"], params["betas"], params["eps"]) == (0.1, [0.9, 0.95], 1e-6)
    result = resolve(args, FILE, on_gpu=True)
    assert [result.overrides[f"adam_{name}"] for name in ("beta1", "beta2", "eps")] == [0.9, 0.98, 1e-6]
    (note,) = [note for note in result.notes if "replaces" in note]
    assert "--adam-beta2 0.95 -> 0.98" in note and "--adam-eps" not in note


def test_given_flags_that_the_file_decides_about_are_named() -> None:
    given = arguments(zero_stage=2, cpu_offload=True, loss_scale=128.0, min_scale=4.0)
    (note,) = [note for note in resolve(given, FILE, on_gpu=True).notes if "replaces" in note]
    assert "--zero_stage 2 -> 0" in note and "--cpu_offload True -> False" in note
    assert "--loss-scale 128.0 -> None" in note and "--min-scale 4.0 -> 1" in note
    same = arguments(zero_stage=1, loss_scale_window=500.0)
    notes = resolve(same, {**FILE, "zero_optimization": {"stage": 1}}, on_gpu=True).notes
    assert not any("--zero_stage" in note or "--loss-scale" in note for note in notes)


def test_overlapping_communication_would_leave_out_gradients_at_stage_one() -> None:
    file = {**FILE, "zero_optimization": {"stage": 1, "overlap_comm": True}}
    result = resolve(arguments(), file, on_gpu=True)
    assert result.config["zero_optimization"]["overlap_comm"] is False
    assert any("overlap_comm is switched off" in note for note in result.notes)
    for change in ({"gradient_accumulation_steps": 1}, {"zero_optimization": {"stage": 2, "overlap_comm": True}}):
        assert resolve(arguments(), {**file, **change}, on_gpu=True).config["zero_optimization"]["overlap_comm"] is True


def test_args_to_ds_config_turns_it_round_but_not_for_lr() -> None:
    args = arguments(args_to_ds_config=True, fp16=False, zero_stage=2, cpu_offload=True, gradient_accumulation_steps=8)
    result = resolve(args, FILE, on_gpu=True)
    assert result.overrides["batch_size"] == 8 and result.overrides["gradient_accumulation_steps"] == 8
    assert result.overrides["lr"] == 4e-4 and result.overrides["fp16"] is False and result.overrides["zero_stage"] == 2
    block = result.config["zero_optimization"]
    assert block["stage"] == 2 and block["offload_optimizer"] == {"device": "cpu"} and "cpu_offload" not in block
    assert any("--args_to_ds_config changes" in note for note in result.notes)
    assert FILE["train_micro_batch_size_per_gpu"] == 16, "the given dict is not edited"


def test_half_precision_runs_at_stage_one_at_least() -> None:
    result = resolve(arguments(), FILE, on_gpu=True)
    assert result.overrides["zero_stage"] == 1 and result.config["zero_optimization"]["stage"] == 1
    assert result.config["fp16"] == {**FILE["fp16"], "hysteresis": 2, "min_loss_scale": 1}
    assert any("stage 1" in note for note in result.notes)


def test_without_a_gpu_fp16_is_fp32_and_only_bf16_is_half() -> None:
    plain = resolve(arguments(), FILE, on_gpu=False)
    assert plain.overrides["fp16"] is plain.overrides["bf16"] is False and plain.overrides["zero_stage"] == 0
    assert not {"fp16", "bf16", "zero_optimization"} & set(plain.config)
    assert any("fp16 becomes fp32" in note for note in plain.notes)
    bf16 = resolve(arguments(fp16=False, bf16=True), FILE, on_gpu=False)
    assert bf16.config["bf16"] == {"enabled": True} and "fp16" not in bf16.config
    assert bf16.overrides["bf16"] is True and bf16.overrides["zero_stage"] == 1


def test_a_disagreement_about_fp16_is_told() -> None:
    result = resolve(arguments(fp16=False), FILE, on_gpu=True)
    assert result.overrides["fp16"] is True and any("the file wins" in note for note in result.notes)


def test_offload_has_nothing_to_do_without_a_gpu() -> None:
    result = resolve(arguments(), {**FILE, "zero_optimization": {"stage": 2, "cpu_offload": True}}, on_gpu=False)
    assert not {"cpu_offload", "offload_optimizer"} & set(result.config["zero_optimization"])
    assert any("cpu_offload" in note for note in result.notes)


def test_torch_adam_always() -> None:
    cpu, gpu = (resolve(arguments(), FILE, on_gpu=on_gpu).config["optimizer"]["params"] for on_gpu in (False, True))
    assert cpu["torch_adam"] is gpu["torch_adam"] is True and cpu["adam_w_mode"] is True
    assert "fused" not in cpu and gpu["fused"] is True and cpu["betas"] == [0.9, 0.98]


@pytest.mark.parametrize(("change", "message"), [
    ({"zero_optimization": {"stage": 3}}, "ZeRO stage 3"),
    ({"optimizer": {"type": "Lamb", "params": {}}}, "Lamb"),
    ({"fp16": {}, "bf16": {"enabled": True}, "zero_optimization": {"stage": 1},
      "data_types": {"grad_accum_dtype": "fp32"}}, "grad_accum_dtype 'fp32' .* needs ZeRO stage 2"),
])
def test_what_cannot_work_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(arguments(fp16=False), {**FILE, **change}, on_gpu=True)


def test_fp16_and_bf16_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="bf16"):
        resolve(arguments(fp16=True), {**FILE, "bf16": {"enabled": True}}, on_gpu=True)


def test_unused_blocks_are_told() -> None:
    file = {**FILE, "activation_checkpointing": {"partition_activations": True}, "train_batch_size": 64}
    result = resolve(arguments(), file, on_gpu=True)
    assert not {"activation_checkpointing", "train_batch_size"} & set(result.config)
    assert sum("activation_checkpointing" in note for note in result.notes) == 1


@pytest.mark.parametrize(("changes", "data_size", "expected"), [
    ({"train_batch_size": 64}, 2, 2),
    ({"train_batch_size": 128, "gradient_accumulation_steps": None}, 2, 4),
    ({"train_batch_size": 96}, None, 2),
    ({"train_batch_size": 64}, 3, "contradicts .* 16 x gradient_accumulation_steps 2 x 3"),
    ({"train_batch_size": 40}, None, "contradicts"),
    ({"train_batch_size": 100, "gradient_accumulation_steps": None}, 2, "not divisible"),
    ({"train_micro_batch_size_per_gpu": "auto"}, 1, "whole number above 0, not 'auto'"),
    ({"optimizer": {"type": "Adam", "params": {"lr": "auto"}}}, 1, "lr in the DeepSpeed file must be a number"),
    ({"optimizer": {"type": "Adam", "params": {"betas": [0.9]}}}, 1, "betas .* must be a list of two"),
    ({"optimizer": {"type": "Adam", "params": {"eps": "1e-6"}}}, 1, "eps in the DeepSpeed file must be a number"),
    ({"data_types": "fp32"}, 1, "data_types in the DeepSpeed file must be an object"),
    ({"fp16": True}, 1, "must be an object in braces"),
    ({"bf16": {"enabled": True}}, 1, "both true"),
])
def test_a_file_must_not_contradict_itself(changes: dict[str, Any], data_size: int | None, expected: int | str) -> None:
    file = {key: value for key, value in {**FILE, **changes}.items() if value is not None}
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            resolve(arguments(), file, on_gpu=True, data_size=data_size)
    else:
        result = resolve(arguments(), file, on_gpu=True, data_size=data_size)
        assert result.config["gradient_accumulation_steps"] == expected
        assert result.overrides["gradient_accumulation_steps"] == expected


def test_old_folder_names_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path, note = find_config("config_tasks/config_blocklm_tiny6.json")
    assert path == ds_config.REPOSITORY / "config/tasks/config_blocklm_tiny6.json" and str(path) in note
    (tmp_path / "mine.json").write_text(json.dumps(FILE))
    assert find_config("mine.json") == (Path("mine.json"), None)
    with pytest.raises(ValueError, match="config/"):
        find_config("config/absent.json")


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{,}")
    (tmp_path / "list.json").write_text("[]")
    for name in ("broken.json", "list.json"):
        with pytest.raises(ValueError, match=name):
            read_config(tmp_path / name)
