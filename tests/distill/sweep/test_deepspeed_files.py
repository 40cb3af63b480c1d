"""Derived DeepSpeed files: types, lists for tasks, rates, and what is refused."""

from __future__ import annotations

import copy
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from distill.sweep.deepspeed_files import choose, derive, find_file, write_file
from tests.distill.sweep.planning import commands

BASE = {
    "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
    "wall_clock_breakdown": False, "optimizer": {"type": "Adam", "params": {"lr": 1e-5, "betas": [0.9, 0.999]}},
    "fp16": {"enabled": True}, "zero_optimization": {"stage": 1, "reduce_bucket_size": 50_000_000}}


def derived(rates: dict[str, Fraction] | None = None, base: dict[str, Any] = BASE, del_fp16: bool = False,
            **overrides: str) -> dict[str, Any]:
    before = copy.deepcopy(base)
    found = derive(base, overrides, rates or {}, del_fp16=del_fp16, where="base.json")
    assert base == before
    return found


def test_nothing_given_changes_nothing() -> None:
    assert derived() == BASE
    assert commands("--tasks=copa", "--ds_gradient_accumulation_steps=1")[0].deepspeed_config is None


def test_values_take_the_type_of_the_base() -> None:
    found = derived(train_micro_batch_size_per_gpu="8", gradient_clipping="2", wall_clock_breakdown="true",
                    optimizer__type="AdamW", optimizer__params__lr="2E-05", optimizer__params__betas="0.8,0.9",
                    zero_optimization__reduce_bucket_size="5e8")
    assert json.dumps(found) == json.dumps({
        "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1, "gradient_clipping": 2.0,
        "wall_clock_breakdown": True, "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.8, 0.9]}},
        "fp16": {"enabled": True}, "zero_optimization": {"stage": 1, "reduce_bucket_size": 500_000_000}})


@pytest.mark.parametrize(("text", "rate", "result"), [
    ("16", "0.25", 4), ("32", "0.125", 4), ("7", "0.5", 3), ("10", "0.7", 7), ("3", "2", 6)])
def test_rates_of_whole_numbers_round_down_exactly(text: str, rate: str, result: int) -> None:
    """In binary 10 x 0.7 is a little less than 7."""
    path = "train_micro_batch_size_per_gpu"
    assert derived({path: Fraction(rate)}, **{path: text})[path] == result


def test_rate_of_a_number() -> None:
    found = derived({"optimizer__params__lr": Fraction("0.5")}, optimizer__params__lr="3e-5")
    assert found["optimizer"]["params"]["lr"] == 1.5e-5


@pytest.mark.parametrize(("path", "text", "message"), [
    ("optimiser__params__lr", "1", "has no entry 'optimiser' at the top level: did you mean optimizer"),
    ("optimizer__params__lrs", "1", "has no entry 'lrs' at optimizer.params: did you mean lr"),
    ("gradient_clipping__x", "1", "has no entry 'x' at gradient_clipping"),
    ("optimizer__params", "1", "is a block; set one of its entries, such as --ds_optimizer__params__lr"),
    ("gradient_accumulation_steps", "2E-05", "--ds_grad.*=2E-05: base.json has 1 there, so .* a whole number"),
    ("gradient_accumulation_steps", "two", "a whole number"),
    ("gradient_clipping", "high", "a number"),
    ("wall_clock_breakdown", "perhaps", "true or false"),
    ("optimizer__params__betas", "a,b", "a list"),
])
def test_refused_values(path: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        derived(**{path: text})


def test_refused_rates() -> None:
    with pytest.raises(ValueError, match="4 x 0.125 rounds to 0"):
        derived({"gradient_accumulation_steps": Fraction("0.125")}, gradient_accumulation_steps="4")
    with pytest.raises(ValueError, match="--rate_ds_optimizer__type: optimizer.type of base.json is no number"):
        derived({"optimizer__type": Fraction(2)}, optimizer__type="Adam")


def test_half_precision() -> None:
    assert derived(del_fp16=True)["fp16"] == {"enabled": False} and "zero_optimization" not in derived(del_fp16=True)
    assert derived(fp16__enabled="false")["fp16"] == {"enabled": False}
    fp32 = {"fp16": {"enabled": False}}
    assert derived(base=fp32)["fp16"] == {"enabled": True} and derived(base=fp32)["zero_optimization"]["stage"] == 1
    assert derived(base=fp32, del_fp16=True) == fp32
    for base in ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, {"gradient_clipping": 1.0}):
        assert derived(base=base) == base


def test_one_value_for_each_task() -> None:
    assert [choose("lr", "1;2; 3", index, 3) for index in range(3)] == ["1", "2", "3"]
    assert choose("lr", "1", 2, 3) == "1"
    with pytest.raises(ValueError, match=r"--ds_lr=1;2 lists 2 values for the 3 tasks"):
        choose("lr", "1;2", 0, 3)
    rates = [stage.deepspeed_config["optimizer"]["params"]["lr"] for stage in commands(
        "--tasks=copa,cb", "--ds_optimizer__params__lr=3e-5;4e-5")]
    assert rates == [3e-5, 4e-5]


def test_files(tmp_path: Path) -> None:
    assert find_file("config_tasks/config_blocklm_tiny6.json") == find_file("config/tasks/config_blocklm_tiny6.json")
    with pytest.raises(ValueError, match="nothing.json does not exist .shipped"):
        find_file("nothing.json")
    write_file(tmp_path / "a" / "b.json", {"b": 1, "a": {"d": 1, "c": 2}})
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "a": {\n    "c": 2,\n    "d": 1\n  },\n  "b": 1\n}\n'
