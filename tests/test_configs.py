"""The DeepSpeed files below config/ hold the published values; only the ZeRO block differs, as the text below says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.shared import require_shared

CONFIG = Path(__file__).resolve().parents[1] / "config"

# file: micro batch, accumulation, lr, weight decay, betas, eps, fp16, clipping, print every, ZeRO
# ZeRO is (stage, reduce bucket, gather bucket, offload), None where there is no block. The published files without a
# block, and config_blocklm_large with stage 0, get stage 1 with fp16: at stage 0 DeepSpeed takes a hidden optimizer
# step while a half-precision engine is built.
SMALL = 5e7
STAGE_1 = (1, SMALL, SMALL, False)
TABLE = {
    "config_block_10B": (21, 1, 1e-4, 0.1, (0.9, 0.95), 1e-8, True, 1, 50, (2, SMALL, 5e8, False)),
    "config_block_10B_longer": (8, 1, 3e-5, 0.1, (0.9, 0.95), 1e-8, True, 1, 50, (2, SMALL, 5e8, False)),
    "config_block_base": (16, 1, 4e-4, 0.1, (0.9, 0.98), 1e-6, True, 1, 100, STAGE_1),
    "config_block_large": (16, 1, 2e-4, 0.1, (0.9, 0.98), 1e-6, True, 1, 100, STAGE_1),
    "config_block_large_chinese": (32, 1, 4e-4, 0.01, (0.9, 0.98), 1e-6, True, 1, 100, STAGE_1),
    "config_block_tiny4_fp32": (16, 1, 4e-4, 0.1, (0.9, 0.98), 1e-6, False, 1, 100, None),
    "config_block_tiny6": (16, 1, 4e-4, 0.1, (0.9, 0.98), 1e-6, True, 1, 100, STAGE_1),
    "config_block_tiny6_big": (8, 2, 4e-4, 0.1, (0.9, 0.98), 1e-6, True, 1, 100, STAGE_1),
    "tasks/config_blocklm_10B": (4, 2, 5e-6, 0.01, (0.9, 0.95), 1e-8, True, 1, 50, (2, SMALL, SMALL, True)),
    "tasks/config_blocklm_10B_1gpu": (4, 16, 5e-6, 0.01, (0.9, 0.95), 1e-8, True, 1, 50, (2, SMALL, SMALL, True)),
    "tasks/config_blocklm_10B_cnndm": (4, 1, 5e-6, 0.01, (0.9, 0.95), 1e-8, True, 1, 50, (2, SMALL, SMALL, True)),
    "tasks/config_blocklm_10B_record": (1, 8, 5e-6, 0.01, (0.9, 0.95), 1e-8, True, 1, 50, (2, SMALL, SMALL, True)),
    "tasks/config_blocklm_base": (16, 1, 1e-5, 0.1, (0.9, 0.999), 1e-8, True, 1, 50, STAGE_1),
    "tasks/config_blocklm_large": (16, 1, 1e-5, 0.1, (0.9, 0.999), 1e-8, True, 1000, 50, STAGE_1),
    "tasks/config_blocklm_tiny4_fp32": (16, 1, 1e-5, 0.1, (0.9, 0.999), 1e-8, False, 1, 50, None),
    "tasks/config_blocklm_tiny6": (16, 1, 1e-5, 0.1, (0.9, 0.999), 1e-8, True, 1, 50, STAGE_1),
    "tasks/config_blocklm_tiny6_big_task": (4, 2, 1e-5, 0.1, (0.9, 0.999), 1e-8, True, 1, 50, STAGE_1),
    "tasks/config_blocklm_tiny6_mini": (8, 2, 1e-5, 0.1, (0.9, 0.999), 1e-8, True, 1, 50, STAGE_1),
    "tasks/config_blocklm_tiny6_record": (4, 4, 1e-5, 0.1, (0.9, 0.999), 1e-8, True, 1, 50, STAGE_1),
}


def load(name: str) -> dict:
    return json.loads((CONFIG / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLE)
def test_values(name: str) -> None:
    micro, accumulation, lr, decay, betas, eps, fp16, clipping, steps_per_print, zero = TABLE[name]
    config = load(name)
    block = config.pop("zero_optimization", None)
    assert config.pop("zero_allow_untested_optimizer", None) == (True if zero else None)
    assert config == {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "steps_per_print": steps_per_print,
        "gradient_clipping": clipping,
        "optimizer": {"type": "Adam",
                      "params": {"lr": lr, "betas": list(betas), "eps": eps, "weight_decay": decay}},
        "fp16": {"enabled": fp16, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
        "activation_checkpointing": {"partition_activations": False, "contiguous_memory_optimization": False},
        "wall_clock_breakdown": False,
    }
    if zero is None:
        assert block is None
        return
    stage, reduce_bucket, gather_bucket, offload = zero
    assert block == {
        "stage": stage, "contiguous_gradients": False, "overlap_comm": True, "reduce_scatter": True,
        "reduce_bucket_size": reduce_bucket, "allgather_bucket_size": gather_bucket,
        # the present form of the published `"cpu_offload": true`
        **({"offload_optimizer": {"device": "cpu"}} if offload else {}),
    }


def test_no_file_is_missing_from_the_table() -> None:
    found = {path.relative_to(CONFIG).with_suffix("").as_posix() for path in CONFIG.rglob("config_*.json")}
    assert found == set(TABLE)


def test_the_table_is_the_published_one() -> None:
    text = (require_shared("spec") / "configs.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("| config")]
    assert {row[0].replace("config_tasks/", "config/tasks/").removeprefix("config/").removesuffix(".json")
            for row in rows} == set(TABLE)
    for file, micro, accumulation, lr, decay, betas, eps, fp16, clipping, steps, _ in rows:
        name = Path(file).stem if file.startswith("config/") else f"tasks/{Path(file).stem}"
        assert TABLE[name][:9] == (
            int(micro), int(accumulation), float(lr), float(decay), tuple(map(float, betas.split(","))), float(eps),
            fp16 == "on", float(clipping), int(steps))


def test_base_and_tiny6_tasks_are_the_same() -> None:
    assert load("tasks/config_blocklm_base") == load("tasks/config_blocklm_tiny6")


def test_half_precision_never_runs_below_stage_1() -> None:
    for name in TABLE:
        config = load(name)
        if config["fp16"]["enabled"]:
            assert config["zero_optimization"]["stage"] >= 1
