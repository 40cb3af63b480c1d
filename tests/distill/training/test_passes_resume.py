"""Methods with state, draws or several passes, through the entry scripts: a resumed run repeats the numbers exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.training.small_runs import exact, finetune_flags, pretrain_flags, records, run

TEACHER = ("--teacher_random_para", "--teacher_load_pretrained=none", "--teacher_num_layers=3",
           "--teacher_hidden_size=32", "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=64")
PERTURB = ("--lrc_bert_gard_perturb", "--ignore_first_backward_gard", "--forward_repeat_num=1")
PRETRAINING = {
    "diito": ("--student_model=diito", "--forward_repeat_num=1", "--distill_pt_soft", "--distill_pt_hard",
              "--gradient-accumulation-steps=2"),
    "sid": ("--student_model=sid", "--sid_lim_e=none", "--sid_accumulate_t=100", "--distill_pt_soft"),
    "lrc_bert": ("--student_model=lrc_bert", *PERTURB),
    "theseus": ("--student_model=theseus", "--distill_pt_hard", "--mt_disable_operation=1", "--distill_test_output"),
    "random data": ("--student_model=logitsdistil", "--distill_random_data=dual", "--distill_random_data_n=1",
                    "--distill_random_data_method=sample", "--forward_repeat_num=1"),
}


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_resumes(name: str, world: Path, tmp_path: Path) -> None:
    common = [*pretrain_flags(world, **{"save-interval": 2, "batch-size": 4}), *TEACHER, *PRETRAINING[name]]
    assert run("pretrain", [*common, f"--save={tmp_path / 'whole'}"]) == 0
    (folder,) = (tmp_path / "whole").iterdir()
    assert run("pretrain", [*common, f"--save={tmp_path / 'rest'}", "--new-save-directory",
                            f"--load={folder / '2'}"]) == 0
    rest = exact(tmp_path / "rest", after=2)
    assert len(rest) == 4 and rest == exact(tmp_path / "whole", after=2)


def test_sid_goes_on_where_it_was(world: Path, tmp_path: Path) -> None:
    """Two layers and a threshold that is always met: one step each, then the prediction loss."""
    flags = [*pretrain_flags(world, **{"batch-size": 4}), *TEACHER, *PRETRAINING["sid"], f"--save={tmp_path / 'run'}"]
    assert run("pretrain", flags) == 0
    states = [sum("inter_loss/hidden_states" in tag for tag in record) for record in records(tmp_path / "run")]
    assert states == [1, 2, 0, 0, 0, 0]


def test_analysis_is_recorded_at_the_log_interval(world: Path, tmp_path: Path) -> None:
    """And in fine-tuning as a mean over the micro-batches of the step."""
    flags = [*finetune_flags(world, **{"epochs": 1, "log-interval": 4}), *TEACHER, "--student_model=kd",
             "--distill_ft_soft", "--distil_analysis_inter", "--gradient-accumulation-steps=2", "--no-validation",
             f"--save={tmp_path / 'run'}"]
    assert run("finetune", flags) == 0
    found = {record["iteration"]: record.get("analysis_inter/MSE_Emb_t0", 0.0) for record in records(tmp_path / "run")}
    assert found.keys() == {4, 8, 9} and found[4] > 0 and found[8] > 0 and found[9] == 0
