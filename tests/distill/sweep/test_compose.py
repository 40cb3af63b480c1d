"""The composed commands are the published ones, argument by argument."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill.sweep.deepspeed_files import find_file, read_file
from distill.sweep.flags import parse
from tests.distill.sweep.planning import command, commands, names, plan_of, stages
from tests.helpers.shared import require_shared

CASES = json.loads(Path(__file__).with_name("expanded.json").read_text(encoding="utf-8"))
IDS = [case["id"] for case in CASES]
_TIME = re.compile(r"\bt\d+(_\d{6}(?=\.json))?")
#: Not compared: half precision runs at ZeRO stage 1 here, and offloading is written in today's form.
ZERO = ("zero_optimization", "zero_allow_untested_optimizer")


def published(line: str, launcher_args: list[str]) -> list[str]:
    """The words of a published command, as this launcher writes them."""
    line = line.replace("config_tasks/", "config/tasks/")
    if not any(word.startswith("--py_file") for word in launcher_args):
        line = line.replace(" finetune_glm.py ", " distill/finetune.py ")
    words = line.split()
    assert words.pop().startswith("--custom_tmp_result=../GLM/data/tmp/result_")
    return words


def compare(case: dict[str, Any], number: int) -> None:
    found = stages(plan_of(parse(case["launcher_args"])))
    assert len(found) == number
    for ours, theirs in zip(found, case["commands"]):
        line = _TIME.sub("<STAMP>", ours.line()).replace("--master_port=1 ", "--master_port=<PORT> ")
        assert line.split() == published(theirs["command"], case["launcher_args"])
        assert (ours.deepspeed_config is not None) == theirs["derived_config"]
        config = ours.deepspeed_config or read_file(find_file(ours.deepspeed_path))
        wanted = {key: value for key, value in theirs["deepspeed_config"].items() if key not in ZERO}
        assert {key: config[key] for key in wanted} == wanted


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_published_sweeps(case: dict[str, Any]) -> None:
    compare(case, case["number_of_commands"])


@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_published_sweeps_in_full(index: int) -> None:
    case = json.loads((require_shared("spec") / "seed_tune_expanded.json").read_text(encoding="utf-8"))[index]
    compare(case, len(case["commands"]))


def test_half_precision_runs_at_zero_1() -> None:
    for model in ("block_tiny6", "model_blocklm_large", "block_tiny24_4"):
        found = command(f"--model={model}", "--tasks=copa", "--ds_gradient_accumulation_steps=2")
        assert found.deepspeed_config["fp16"]["enabled"] and found.deepspeed_config["zero_optimization"]["stage"] == 1
    found = command("--model=model_blocklm_10B", "--tasks=copa", "--del_fp16")
    assert not found.deepspeed_config["fp16"]["enabled"] and not set(ZERO) & set(found.deepspeed_config)
    assert "--fp16" not in names(found)


def test_presets_without_a_published_case() -> None:
    """Values of the tables: order and flags are checked above, here what differs."""
    found = {stage.task: stage for stage in commands(
        "--script=finetune_seq2seq", "--tasks=seq_cnndm,seq_xsum,seq_gigaword", "--model=model_blocklm_large")}
    assert found["seq_cnndm"].value("--lr") == "3e-5" and found["seq_cnndm"].value("--eval-epoch") is None
    assert found["seq_cnndm"].value("--data-dir") == "../GLM/data/english_data/NLG/cnn_dm"
    assert found["seq_xsum"].line().split("--eval-iters=100 ")[1].split(" --overwrite")[0].split() == [
        "--eval-epoch=2", "--src-seq-length=608", "--tgt-seq-length=60", "--min-tgt-length=10", "--length-penalty=1.0",
        "--no-repeat-ngram-size=3", "--num-beams=6", "--select-topk", "--eval-batch-size=1"]
    assert [found["seq_gigaword"].value(flag) for flag in ("--epochs", "--batch-size", "--length-penalty")] == [
        "10", "16", "0.6"]
    (found,) = commands("--script=evaluate_lm", "--tasks=zero_lm_uni")
    assert found.line().count("blank-tiny6-language_model_uni-t") == 1
    assert names(found)[-5:-3] == ["--overlapping-eval", "--unidirectional"]
    assert found.value("--save") == "../GLM/data/checkpoints/pretrain/block_tiny6/evaluate_lm/language_model"


def test_places() -> None:
    both = commands("--tasks=copa,cb", "--model_path=my/start/", "--cb_model_path=other", "--save_sub=here")
    assert [stage.value("--load-pretrained") for stage in both] == ["../GLM/data/my/start", "../GLM/data/other"]
    assert [stage.checkpoint for stage in both] == [
        "../GLM/data/my/start/here/COPA/blank-tiny6-COPA-t1", "../GLM/data/other/here/CB/blank-tiny6-CB-t2"]
    found = command("--tasks=copa", "--data-root=/data", "--model_path=/elsewhere/start", "--task_t_load=base",
                    "--student_model=kd")
    assert found.value("--data-dir") == "/data/english_data/superglue/COPA" and found.value("--data-root") == "/data"
    assert found.value("--teacher_load_pretrained").startswith("/data/checkpoints/pretrain/blocklm-base-blank/")
    assert found.checkpoint == "/elsewhere/start/ft_kd/COPA/blank-tiny6-COPA-t1"


def test_devices_divide_the_batch_and_big_tasks_have_their_own() -> None:
    found = commands("--tasks=copa,record", "--gpus=a:0,1@b:0", "--big_task_gpus=0,1,2,3", "--big_task=record")
    assert [stage.launcher[2] for stage in found] == ["--include=a:0,1@b:0", "--include=localhost:0,1,2,3"]
    assert [stage.value("--batch-size") for stage in found] == ["5", "4"]
    assert [stage.deepspeed_path for stage in found] == [
        "config/tasks/config_blocklm_tiny6.json", "config/tasks/config_blocklm_tiny6_big_task.json"]
    assert found[1].deepspeed_config is None
    (found,) = commands("--tasks=record", "--big_task_gpus=0", "--big_task_dsc_suffix=_record")
    assert found.deepspeed_path == "config/tasks/config_blocklm_tiny6_record.json"
    with pytest.raises(ValueError, match="config_blocklm_large_big_task.json does not exist: --model=.* has none for"):
        commands("--tasks=record", "--big_task_gpus=0", "--model=model_blocklm_large")


@pytest.mark.parametrize(("words", "epochs"), [
    ((), "50"), (("--epoch_rate=0.07",), "4"), (("--epoch_type=XXLARGE_EPOCH", "--epoch_rate=0.07"), "7"),
    (("--epoch_type=EPOCH_0",), "0"), (("--rate_arg_epochs=0.33",), "16"),
    (("--epochs=3", "--rate_arg_epochs=1/2"), "1"), (("--epoch_rate=0.5", "--epochs=9"), "9")])
def test_epochs(words: tuple[str, ...], epochs: str) -> None:
    """Exact: 100 x 0.07 is 7, though in binary it is a little more."""
    assert command("--tasks=copa", *words).value("--epochs") == epochs


def test_a_later_flag_replaces_the_value_and_keeps_the_place() -> None:
    plain, changed = command("--tasks=copa"), command("--tasks=copa", "--seq-length=64", "--seed=3", "--seed=4")
    assert names(changed) == [*names(plain), "--seed"]
    assert changed.value("--seq-length") == "64" and changed.value("--seed") == "4"


def test_dry_run_of_the_children_is_the_last_flag() -> None:
    for stage in commands("--tasks=copa", "--task_t_load=base", "--again_1__distill_ft_soft", "--fast-dev-run"):
        assert stage.flags[-1] == ("--fast-dev-run", "2")


def test_another_deepspeed_file_is_the_base(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text('{"optimizer": {"params": {"lr": 1.0}}, "bf16": {"enabled": true}}')
    found = command("--tasks=copa", f"--deepspeed_config={file}", "--ds_optimizer__params__lr=3e-5")
    assert found.deepspeed_config == {"optimizer": {"params": {"lr": 3e-5}}, "bf16": {"enabled": True}}
    assert found.value("--deepspeed_config") == found.deepspeed_path != str(file)
    moved = found.with_deepspeed_path("x.json")
    assert moved.value("--deepspeed_config") == moved.deepspeed_path == "x.json" and names(moved) == names(found)
    with pytest.raises(ValueError, match="missing.json does not exist"):
        command("--tasks=copa", "--deepspeed_config=missing.json")
