"""Printing a plan, and the entry script around it: nothing on the disk changes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from distill import auto_tune
from distill.sweep.dry import plan_text, planned_trials
from distill.sweep.flags import parse
from distill.sweep.presets import REPOSITORY

SCRIPT = REPOSITORY / "distill" / "auto_tune.py"


def lines(*words: str) -> list[str]:
    return plan_text(parse([*words, "--test"])).splitlines()


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("NCCL_DEBUG=info ")]


def test_a_plan_to_read() -> None:
    remark, command, last = lines("--tasks=copa", "--gpus=0,1", "--ds_optimizer__params__lr=3e-5")
    assert remark.startswith("# copa, stage 0; 66,811,392 parameters; tmp_deepspeed_config/")
    assert remark.endswith(".json will have micro batch 16 x 1, lr 3e-05, fp16")
    assert command.startswith("NCCL_DEBUG=info NCCL_IB_DISABLE=0 NCCL_NET_GDR_LEVEL=2 deepspeed --master_port=")
    assert command.split()[-1].startswith("--custom_tmp_result=../GLM/data/tmp/result_") and "1 commands" in last


def test_every_choice_of_a_grid_with_every_seed() -> None:
    words = ("--tasks=copa,cb", "--lr=grid:1,2", "--warmup=grid:0.1,0.2", "--seeds=2", "--seed_base=7")
    found = [(trial.point["--lr"], trial.point["--warmup"], trial.seed) for trial in planned_trials(parse(words))]
    assert found == [(lr, warmup, seed) for lr in "12" for warmup in ("0.1", "0.2") for seed in (7, 8)]
    text = lines(*words)
    assert text[0] == "# --lr=1 --warmup=0.1 --seed=7" and text[-1].startswith("# 16 commands")
    assert all(f" --seed={7 + index // 2 % 2} " in line for index, line in enumerate(commands("\n".join(text))))


def test_a_drawn_search_shows_an_example() -> None:
    text = lines("--tasks=copa", "--search=tpe", "--lr=float:1e-5..1e-3:log", "--x=choice:a,b", "--n=int:2..4")
    assert text[0] == "# --lr=1e-05 --n=2 --x=a" and text[-1].endswith("--search=tpe will draw other values")


def test_json() -> None:
    words = ("--tasks=copa", "--task_t_load=base", "--again_1__x=a b", "--ds_gradient_accumulation_steps=2",
             "--seeds=5,")
    first, second = json.loads(plan_text(parse(words), "json"))
    assert (first["task"], first["stage"], first["seed"], second["stage"]) == ("copa", 0, 5, 1)
    assert "--x=a b" in second["command"] and first["deepspeed_config"]["gradient_accumulation_steps"] == 2
    assert f"--deepspeed_config={first['deepspeed_path']}" in first["command"]
    assert first["environment"]["NCCL_DEBUG"] == "info"


def test_shell_lines_can_be_run(tmp_path: Path) -> None:
    """Also with values that need quotes: here with a launcher that writes its words down."""
    text = plan_text(parse(["--tasks=copa,cb", "--note=it's $HOME; a", "--ds_gradient_accumulation_steps=2",
                            f"--data-root={tmp_path}/data"]), "shell")
    program = tmp_path / "deepspeed"
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word" >> said.txt; done\necho $NCCL_DEBUG >> said.txt\n')
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-e"], input=text, text=True, cwd=tmp_path, check=True, env=path)
    said = (tmp_path / "said.txt").read_text().splitlines()
    assert said.count("--note=it's $HOME; a") == 2 and said.count("info") == 2 and (tmp_path / "data" / "tmp").is_dir()
    files = sorted((tmp_path / "tmp_deepspeed_config").iterdir())
    assert len(files) == 2
    assert all(json.loads(file.read_text())["gradient_accumulation_steps"] == 2 for file in files)


def test_shell_lines_cut_checkpoints_as_a_sweep_does(tmp_path: Path) -> None:
    """Under the names that the commands read, with the parameters that stay whole, once for all commands."""
    for rank in range(4):
        part = tmp_path / "it's_MP4" / f"mp_rank_{rank:02}_model_states.pt"
        part.parent.mkdir(exist_ok=True)
        part.touch()
    text = plan_text(parse([
        "--tasks=copa,cb", f"--model_path={tmp_path}/it's_MP4", "--model-parallel-size=2",
        "--fix_module_parameters_mp=a.weight;b", f"--data-root={tmp_path}/data"]), "shell")
    for name, script in (("deepspeed", "exit 0"), ("python", 'printf "%s\\n" "$@" >> said.txt; mkdir "$2_MP$3"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", "-e"], input=text, text=True, cwd=tmp_path, check=True, env=path)
    assert (tmp_path / "said.txt").read_text().splitlines() == [
        "change_mp.py", f"{tmp_path}/it's_MP4", "2", "--fix_module_parameters=a.weight;b"]
    assert (tmp_path / "it's_MP2").is_dir() and not (tmp_path / "it's_MP4_MP2").exists()


def test_without_arguments_samples_are_printed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = commands(done.stdout)
    assert len(found) == 9 + 9 + 3 + 2 and sum("blank-tiny6" in line for line in found) == 9
    large = [line for line in found if "--load-pretrained=../GLM/data/checkpoints/pretrain/blocklm-xxlarge " in line]
    assert len(large) == 12 and sum("--epochs=100 " in line for line in large) == 4
    assert [line.split(" distill/")[1].split()[0] for line in found[-3:]] == ["finetune.py", *["pretrain.py"] * 2]
    assert list(tmp_path.iterdir()) == [] and done.stderr == ""


def test_a_dry_run_needs_no_torch_and_changes_nothing(tmp_path: Path) -> None:
    words = ["--test", "--tasks=copa", "--task_t_load=base", "--student_model=kd", "--again_1__distill_ft_soft",
             "--ds_optimizer__params__lr=2e-5", "--model=block_tiny24_4"]
    code = ("import sys; sys.path[0] = sys.argv.pop(1); from distill import auto_tune; "
            "status = auto_tune.main(sys.argv[1:]); "
            "assert not {'torch', 'optuna', 'deepspeed', 'matplotlib'} & set(sys.modules); sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code, str(REPOSITORY), *words], cwd=tmp_path, capture_output=True,
                          text=True, check=True)
    assert len(commands(done.stdout)) == 2 and "fp16 all the same" in done.stderr and list(tmp_path.iterdir()) == []


def test_entry_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert auto_tune.main(["--test", "--tasks=copa", "--print_only=json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert auto_tune.main(["--show_presets"]) == 0
    text = capsys.readouterr().out
    assert "9,880,682,496" in text and "seq_gigaword" in text and "rl_kd_12_18_24" in text and "{" not in text
    assert auto_tune.main([f"--show_tune={tmp_path / 'x.json'}"]) == auto_tune.REFUSED == 2
    assert "error: --show_tune=" in capsys.readouterr().err
    assert auto_tune.main(["--tasks=copo"]) == 2 and "did you mean copa" in capsys.readouterr().err


def test_published_sample_words_are_single_words() -> None:
    for line in commands(plan_text(parse(["--test"]))):
        assert shlex.split(line) == line.split()
