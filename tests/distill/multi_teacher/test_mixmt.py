"""MixMT: the sum of its members, their order, names and shared encoder, errors."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny_distill import COPA, TEACHER, step, tiny_context

TWO = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=24:32", "--student_model=kd", *COPA, "--distill_ft_soft",
       "--multi_teacher_model=mixmt", "--mt_has_loss")
THREE = (*TWO, "--mt_num_layers=3:3:4", "--mt_hidden_size=24:32:16", "--rl_kd_semantic_model=0")
ALL = "--mixmt_model=AvgTeacher,MT_BERT,Uncertainty,RL_KD"


def test_the_sum_of_the_members() -> None:
    output = step(tiny_context(*TWO, "--mixmt_model=AvgTeacher,Uncertainty,MT_BERT"))
    results = {name: value for name, value in output.parts.items() if name.startswith("multi_teacher_model/")
               and "hard" not in name}
    assert list(results) == [f"multi_teacher_model/{name}" for name in ("AvgTeacher", "Uncertainty", "MT_BERT")]
    torch.testing.assert_close(output.loss.detach(), sum(results.values()))
    for name, combiner in (("AvgTeacher", "avg"), ("Uncertainty", "uncertainty")):
        alone = tiny_context(*TWO, f"--multi_teacher_model={combiner}")
        torch.testing.assert_close(results[f"multi_teacher_model/{name}"], step(alone).loss.detach())


def test_order_is_that_of_the_flag_and_a_repetition_counts_once() -> None:
    context = tiny_context(*TWO, "--mixmt_model=Uncertainty,AvgTeacher,Uncertainty,")
    assert list(context.combiner.members) == ["Uncertainty", "AvgTeacher"]


def test_parameters_lie_under_the_published_names() -> None:
    context = tiny_context(*THREE, ALL, "--student_model=pkd", "--mt_hidden_size=24:16:16", "--pkd_beta=1")
    own = {name for name in context.model.state_dict() if name.startswith("student.")}
    assert "student.multi_teacher_model.MT_BERT.fit_dense_1.weight" in own
    assert "student.multi_teacher_model.RL_KD.agent_mt_soft.weight" in own
    assert not any("fit_dense_0" in name for name in own), "nobody compares the encoder's states"
    step(context)
    context.run.iteration = 1
    output = step(context)
    assert all(p.grad is not None for p in context.combiner.parameters() if p.requires_grad)
    assert not any(name.endswith("_t0") for name in output.parts) and output.loss.isfinite()


def test_a_kept_encoder_is_no_teacher_of_the_other_members() -> None:
    context = tiny_context(*THREE, ALL, "--uncertainty_teacher_seq=1:0")
    assert context.combiner.members["Uncertainty"].ranks == {1: 1, 2: 0}
    step(context)


def test_memory_of_the_members() -> None:
    context, other = tiny_context(*THREE, ALL), tiny_context(*THREE, ALL)
    step(context)
    memory = context.combiner.memory()
    assert list(memory) == ["RL_KD"]
    other.combiner.restore_memory(memory)
    assert other.combiner.memory()["RL_KD"].keys() == memory["RL_KD"].keys()


def test_what_members_say_of_themselves() -> None:
    combiner = tiny_context(*THREE, ALL, "--uncertainty_hard").combiner
    assert "sorts" in combiner.batch_coupled and "rewarded" in combiner.batch_coupled
    assert not combiner.fits_widths and tiny_context(*TWO, "--mixmt_model=MT_BERT").combiner.fits_widths


@pytest.mark.parametrize(("flag", "message"), [
    ("--mixmt_model=", "mixmt needs --mixmt_model, a comma list of AvgTeacher, .*MT_BERT"),
    ("--mixmt_model=AvgTeacher,Nobody", "Nobody is no combiner; known: AvgTeacher"),
    ("--mixmt_model=MixMT", "MixMT is no combiner")])
def test_errors(flag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_context(*TWO, flag)
