"""Fine-tuning and pretraining as stages: files, scores, distillation, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint.naming import read_tracker
from tests.distill.training.small_runs import (
    NO_DROPOUT,
    exact,
    finetune_flags,
    losses,
    pretrain_flags,
    records,
    run,
    run_on_ranks,
)


@pytest.fixture(scope="module")
def teacher(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A pretrained teacher of 4 layers, as flags."""
    folder = tmp_path_factory.mktemp("teacher")
    assert run("pretrain", [*pretrain_flags(world, **{"num-layers": 4}), f"--save={folder}"]) == 0
    (path,) = folder.iterdir()
    return [f"--teacher_load_pretrained={path}", "--teacher_num_layers=4", "--teacher_hidden_size=32",
            "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=64"]


METHODS = {
    "kd": ["--student_model=kd", "--distill_{}_soft", "--distill_{}_hard", "--distill_temperature=10"],
    "logitsdistil": ["--student_model=logitsdistil", "--logitsdistil_mask_pad", "--distill_temperature=15"],
    "tinybert": ["--student_model=tinybert", "--tinybert_fit_parallel"],
}
TERMS = {"kd": ["pre_loss/{}_soft", "pre_loss/{}_hard"], "logitsdistil": ["inter_loss/logits_parallel"],
         "tinybert": ["inter_loss/attention_scores.0", "inter_loss/hidden_states.2"]}


def method_flags(method: str, stage: str) -> list[str]:
    return [flag.format(stage) for flag in METHODS[method]]


@pytest.mark.parametrize("method", METHODS)
def test_distilling_in_both_stages(world: Path, tmp_path: Path, teacher: list[str], method: str) -> None:
    flags = [*pretrain_flags(world), *teacher, *method_flags(method, "pt"), f"--save={tmp_path / 'pre'}"]
    assert run("pretrain", flags) == 0
    (student,) = (tmp_path / "pre").iterdir()
    flags = [*finetune_flags(world), *teacher, *method_flags(method, "ft"), f"--save={tmp_path / 'ft'}",
             f"--load-pretrained={student}"]
    assert run("finetune", flags) == 0
    for folder, stage in ((student, "pt"), (tmp_path / "ft", "ft")):
        train = records(folder)
        for term in TERMS[method]:
            assert all(record[f"{term.format(stage)}_t0"] > 0 for record in train), term
        assert all(record["hard_loss"] > 0 and record["loss"] > 0 for record in train)
    saved = torch.load(student / "6" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert any(name.startswith("student.") for name in saved) == (method == "tinybert")
    assert "word_embeddings.weight" in saved


def test_training_without_labels(world: Path, tmp_path: Path, teacher: list[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = [json.loads(line) for line in (world / "copa" / "train.jsonl").read_text().splitlines()]
    (data / "unlabeled.jsonl").write_text("".join(
        json.dumps({key: value for key, value in line.items() if key != "label"}) + "\n" for line in lines))
    (data / "val.jsonl").write_text((world / "copa" / "val.jsonl").read_text())
    changes = {"data-dir": data, "train-split": "unlabeled", "epochs": 1}
    flags = [*finetune_flags(world, **changes), f"--save={tmp_path}"]
    with pytest.raises(ValueError, match="--student_model"):
        run("finetune", flags)
    with pytest.raises(ValueError, match="hard label"):
        run("finetune", [*flags, *teacher, *method_flags("kd", "ft")])
    assert run("finetune", [*flags, *teacher, *method_flags("logitsdistil", "ft")]) == 0
    assert all(record["loss"] > 0 and record["hard_loss"] is None for record in records(tmp_path / "copa"))
    assert 0 <= json.loads(next(tmp_path.rglob("test_results.json")).read_text())["accuracy"] <= 100


def test_a_distilled_run_resumes_exactly(world: Path, tmp_path: Path, teacher: list[str]) -> None:
    flags = [*pretrain_flags(world, **{"save-interval": 3}), *teacher, *method_flags("tinybert", "pt"),
             "--tinybert_random_layers", "--tinybert_random_e=0", "--tinybert_random_i=2"]
    assert run("pretrain", [*flags, f"--save={tmp_path / 'whole'}"]) == 0
    (folder,) = (tmp_path / "whole").iterdir()
    again = [f"--load={folder / '3'}", "--new-save-directory", f"--save={tmp_path / 'rest'}"]
    assert run("pretrain", [*flags, *again]) == 0
    assert exact(tmp_path / "rest") == exact(folder, after=3)


@pytest.mark.distributed
def test_distilling_on_two_model_parallel_ranks(world: Path, tmp_path: Path, teacher: list[str]) -> None:
    common = [*pretrain_flags(world), *NO_DROPOUT, *teacher]
    for method in METHODS:
        flags = [*common, *method_flags(method, "pt")]
        assert run("pretrain", [*flags, f"--log-dir={tmp_path / method}-1"]) == 0
    run_on_ranks([("pretrain", [*common, *method_flags(method, "pt"), "--model-parallel-size=2",
                                f"--log-dir={tmp_path / method}-2"]) for method in METHODS], 2, model_parallel_size=2)
    for method in METHODS:
        one, two = losses(tmp_path / f"{method}-1"), losses(tmp_path / f"{method}-2")
        # Where gradients almost vanish (GLMD at temperature 15), Adam makes large steps of rounding errors.
        assert two[:2] == pytest.approx(one[:2], rel=1e-4) and two == pytest.approx(one, rel=1e-4, abs=5e-5), method


def test_files_of_a_run(world: Path, tmp_path: Path) -> None:
    flags = [*finetune_flags(world, **{"valid-data": "dev"}), f"--save={tmp_path}", "--custom_first_eval",
             f"--custom_tmp_result={tmp_path / 'tmp.json'}"]
    assert run("finetune", flags) == 0
    folder = tmp_path / "copa"
    logs = folder / "tensorboard"
    result = json.loads((logs / "results.json").read_text())
    test = json.loads((logs / "test_results.json").read_text())
    assert result["type"] == "validation" and test == {"accuracy": result["accuracy"], "type": "test"}
    evaluations = [record for record in records(folder, "metrics") if record["epoch"] >= 0]
    assert [record["iteration"] for record in evaluations] == [0, 9, 18], "before training and after both epochs"
    assert result["accuracy"] == max(record["accuracy"] for record in evaluations)
    predictions = [json.loads(line) for line in (logs / "copa-dev.jsonl").read_text().splitlines()]
    assert [line["idx"] for line in predictions] == list(range(7)) and {line["label"] for line in predictions} <= {0, 1}
    labels = [json.loads(line)["label"] for line in (world / "copa" / "val.jsonl").read_text().splitlines()]
    right = sum(line["label"] == label for line, label in zip(predictions, labels))
    assert 100 * right / 7 == pytest.approx(test["accuracy"])
    best = json.loads((tmp_path / "tmp.json").read_text())
    assert best["epoch"] == -1 and best["max_score_dict"]["accuracy"]["score_dict"]["accuracy"] == result["accuracy"]
    assert read_tracker(folder, "latest_checkpointed_iteration.txt") == "best"
    best_iteration = int(read_tracker(folder, "best_checkpointed_iteration.txt"))
    assert best_iteration == next(r["iteration"] for r in evaluations if r["accuracy"] == result["accuracy"])


@pytest.mark.distributed
def test_predictions_of_several_ranks_are_those_of_one(world: Path, tmp_path: Path) -> None:
    common = [*finetune_flags(world, **{"epochs": 0, "eval-batch-size": 2}), "--seed=5"]
    jobs = {name: [*common, f"--save={tmp_path / name}"] for name in ("one", "data", "model")}
    assert run("finetune", jobs["one"]) == 0
    run_on_ranks([("finetune", jobs["data"])], 2)
    run_on_ranks([("finetune", [*jobs["model"], "--model-parallel-size=2"])], 2, model_parallel_size=2)
    files = [next((tmp_path / name).rglob("copa-dev.jsonl")).read_text() for name in jobs]
    assert files[0] and files[0] == files[1] == files[2]


def test_a_second_run_of_the_same_name_is_refused(world: Path, tmp_path: Path) -> None:
    flags = [*finetune_flags(world, **{"epochs": 0}), f"--save={tmp_path}"]
    assert run("finetune", flags) == 0
    with pytest.raises(ValueError, match="--overwrite"):
        run("finetune", flags)
    assert run("finetune", [*flags, "--overwrite"]) == 0


def test_no_validation_scores_the_last_weights(world: Path, tmp_path: Path) -> None:
    assert run("finetune", [*finetune_flags(world), "--no-validation", f"--save={tmp_path}"]) == 0
    assert not (tmp_path / "copa" / "best").exists()
    assert not list(tmp_path.rglob("results.json")) and list(tmp_path.rglob("test_results.json"))
    assert [record["epoch"] for record in records(tmp_path, "metrics")] == [-1]


def test_final_save_takes_the_marker(world: Path, tmp_path: Path) -> None:
    assert run("finetune", [*finetune_flags(world, epochs=1), "--ft_final_save", f"--save={tmp_path}"]) == 0
    assert read_tracker(tmp_path / "copa", "latest_checkpointed_iteration.txt") == "9"


def test_no_checkpoints_and_no_results(world: Path, tmp_path: Path) -> None:
    flags = [*finetune_flags(world, epochs=1), "--custom_no_save_checkpoint", f"--save={tmp_path}"]
    assert run("finetune", flags) == 0
    names = {path.name for path in (tmp_path / "copa").rglob("*") if "tfevents" not in path.name}
    assert names == {"tensorboard", "metrics.jsonl", "config.json"}


def test_the_classification_head_trains_and_is_reloaded(world: Path, tmp_path: Path) -> None:
    flags = [flag for flag in finetune_flags(world, epochs=1) if flag != "--cloze-eval"]
    assert run("finetune", [*flags, f"--save={tmp_path}"]) == 0
    saved = torch.load(tmp_path / "copa" / "best" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert any("multichoice_head" in name for name in saved)
    again = finetune_flags(world, **{"epochs": 0, "experiment-name": "again"})
    again.remove("--cloze-eval")
    assert run("finetune", [*again, f"--save={tmp_path}", f"--load-pretrained={tmp_path / 'copa'}"]) == 0
    first, second = (next((tmp_path / name).rglob("test_results.json")).read_text() for name in ("copa", "again"))
    assert first == second


def test_the_time_replaces_its_placeholder(world: Path, tmp_path: Path) -> None:
    flags = finetune_flags(world, **{"epochs": 0, "experiment-name": "copa-自动时间"})
    assert run("finetune", [*flags, f"--save={tmp_path}"]) == 0
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("copa-2") and "时" not in folder.name


def test_frozen_transformer_trains_the_prefix_only(world: Path, tmp_path: Path) -> None:
    flags = [*finetune_flags(world, epochs=1), "--freeze-transformer", "--tune-prefix-layers=1", f"--save={tmp_path}"]
    assert run("finetune", flags) == 0
    (start,) = records(tmp_path, "start")
    assert 0 < start["trained_parameters"] < start["parameters"] / 2
