"""What methods and combiners add to a student is saved, resharded bit for bit, resumed exactly, equal on all ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.student import METHODS
from model.checkpoint.files import safe_load
from model.checkpoint.load import read_module_state
from model.checkpoint.naming import shard_files
from model.checkpoint.reshard import change_mp
from model.checkpoint.save import module_payload, save_checkpoint
from model.parallel.sharding import shard_spec_of
from tests.distill.multi_teacher.test_every_method import OPTIONS
from tests.distill.training.small_runs import exact, finetune_flags, run_on_ranks, write_world
from tests.helpers.tiny_distill import COPA, TEACHER, tiny_context

TWO = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=16:16")
#: Every combiner with parameters or memory, in one: projections and layer norms, no state, an agent.
MIXTURE = ("--student_model=kd", "--distill_ft_soft", "--multi_teacher_model=mixmt", "--mt_has_loss",
           "--mixmt_model=MT_BERT,Uncertainty,RL_KD", "--mt_bert_fit_teacher", "--mt_bert_fix_layernorm",
           "--rl_kd_semantic_model=0")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_layers_of_every_method_survive_change_mp(method: str, tmp_path: Path) -> None:
    """1 -> 2 -> 4 -> 1; in between each rank has its slice."""
    own = ("--distill_ft_soft", "--multi_teacher_model=rl_kd", "--rl_kd_only_avg", "--rl_kd_semantic_model_dim=8")
    model = tiny_context(*TWO, *COPA, f"--student_model={method}", *own, *OPTIONS.get(method, ())).model
    before = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    save_checkpoint(tmp_path / "1", "7", module_payload(model), mp_rank=0, mp_size=1, is_first_rank=True,
                    agree=lambda problem: problem)
    four = change_mp(change_mp(tmp_path / "1", 2), 4)
    for rank, file in enumerate(shard_files(Path(four) / "7")):
        part = safe_load(file)["module"]
        for name, tensor in model.state_dict(keep_vars=True).items():
            assert torch.equal(part[name], shard_spec_of(tensor).shard(tensor.detach(), rank, 4)), name
    back, _ = read_module_state(change_mp(four, 1), mp_rank=0, mp_size=1)
    assert back.keys() == before.keys() and all(torch.equal(back[name], tensor) for name, tensor in before.items())


@pytest.mark.distributed
def test_a_mixture_of_all_combiners_resumes_exactly_and_is_equal_on_all_ranks(tmp_path: Path) -> None:
    flags = [*finetune_flags(write_world(tmp_path), **{"save_interval_time": 1e-9, "epochs": 1}), *MIXTURE,
             "--teacher_random_para", "--mt_load_pretrained=none", "--mt_num_layers=1:1:2",
             "--mt_hidden_size=16:16:24", "--mt_num_attention_heads=4", "--mt_max_position_embeddings=64",
             "--model-parallel-size=2"]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    run_on_ranks([("finetune", [*flags, f"--save={whole}"]),
                  ("finetune", [*flags, f"--save={rest}", f"--load={whole / 'copa/2'}"])], 2, model_parallel_size=2)
    found = exact(rest)
    assert found[0]["iteration"] == 3 and found == exact(whole, after=2)
    first, second = (safe_load(file) for file in shard_files(whole / "copa/5"))
    own = [name for name in first["module"] if name.startswith("student.multi_teacher_model.")]
    assert {name.split(".")[2] for name in own} == {"MT_BERT", "RL_KD"}
    whole_ones = [name for name, (dim, _) in first["shard_specs"].items() if dim is None]
    assert set(own) & set(whole_ones)
    for name in whole_ones:
        assert torch.equal(first["module"][name], second["module"][name]), name
