"""Teachers that learn (``--mt_has_grad``), the empty student, and parts of a student's checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.training.forward_step import StepContext
from distill.training.student_parts import COMBINER, load_student_part, teacher_prefix
from model.checkpoint.load import load_backbone, read_module_state
from model.checkpoint.naming import shard_path
from model.checkpoint.reshard import change_mp
from model.checkpoint.save import module_payload, save_checkpoint
from model.empty import EmptyGLM
from model.parallel.groups import parallel_state
from model.parallel.sharding import shard_spec_of
from tests.distill.training.small_runs import exact, finetune_flags, run, write_world
from tests.golden.replay import whole_gradient
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, step, step_result, tiny_args, tiny_context

TWO = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=16:24")
LIVE = (*TWO, "--mt_has_grad")
KD = ("--student_model=kd", "--distill_pt_soft", "--distill_pt_hard")
HEADS = {"tokens": ("--distill_pt_soft",), "copa": (*COPA, "--distill_ft_soft"), "cb": (*CB, "--distill_ft_soft"),
         "classifier": ("--finetune", "--task=copa", "--distill_ft_soft")}


@pytest.mark.parametrize("head", HEADS)
def test_teachers_learn_and_are_saved_under_their_names(head: str) -> None:
    context = tiny_context(*LIVE, "--student_model=kd", *HEADS[head])
    step(context)
    state = context.model.state_dict(keep_vars=True)
    names = {name.removeprefix("model.") for name in state}
    inner = "model." if head == "classifier" else ""
    for t_no, teacher in enumerate(context.teachers):
        assert teacher.training
        assert f"{teacher_prefix(t_no)}{inner}transformer.layers.2.mlp.dense_4h_to_h.weight" in names
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in teacher.parameters())
    other = tiny_context(*LIVE, "--student_model=kd", *HEADS[head], seed=1)
    other.model.load_state_dict({name: value.detach().clone() for name, value in state.items()})
    for mine, theirs in zip(context.teachers, other.teachers, strict=True):
        torch.testing.assert_close(dict(mine.named_parameters()), dict(theirs.named_parameters()))


def test_the_loss_is_that_of_frozen_teachers() -> None:
    live, frozen = tiny_context(*LIVE, *KD), tiny_context(*TWO, *KD)
    for mine, theirs in zip(live.teachers, frozen.teachers, strict=True):
        theirs.load_state_dict(mine.state_dict())
    assert step(live).loss == step(frozen).loss


def test_a_students_checkpoint_with_teachers_is_still_a_glm(tmp_path: Path) -> None:
    context = tiny_context(*LIVE, *KD)
    save(context, tmp_path)
    glm = tiny_context("--block-lm", seed=1).model
    report = load_backbone(glm, str(tmp_path), mp_rank=0, mp_size=1)
    assert not report.missing and all(name.startswith("student.teacher_model_") for name in report.unexpected)
    torch.testing.assert_close(glm.state_dict(), context.student.origin_model.state_dict())


def save(context: StepContext, folder: Path) -> None:
    state = parallel_state()
    save_checkpoint(folder, "7", module_payload(context.model), mp_rank=state.model_rank, mp_size=state.model_size,
                    is_first_rank=state.model_rank == 0, agree=_agree)


def _agree(problem: str) -> str:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return problem


def load_teachers(folder: str, *flags: str) -> tuple[list[dict[str, torch.Tensor]], float]:
    """Whole weights of the teachers taken from a checkpoint, and the loss with them, on this rank."""
    context = tiny_context(*TWO, *KD, *flags, seed=5)
    load_backbone(context.model, folder, mp_rank=parallel_state().model_rank, mp_size=parallel_state().model_size)
    weights = []
    for t_no, teacher in enumerate(context.teachers):
        load_student_part(teacher, folder, teacher_prefix(t_no), flag="--mt_load_from_s", args=context.args)
        teacher.requires_grad_(True)
        for parameter in teacher.parameters():
            parameter.grad = parameter.detach().clone()
        weights.append({name: whole_gradient(parameter) for name, parameter in teacher.named_parameters()})
        teacher.requires_grad_(False)
    return weights, step(context).loss.item()


@pytest.mark.distributed
def test_teachers_of_a_students_checkpoint_at_another_size(tmp_path: Path) -> None:
    context = tiny_context(*LIVE, *KD)
    save(context, tmp_path)
    loss = step(context).loss.item()
    expected = [dict(teacher.named_parameters()) for teacher in context.teachers]
    for weights, found in [load_teachers(str(tmp_path)),
                           *run_distributed(load_teachers, 2, str(tmp_path), model_parallel_size=2)]:
        assert found == pytest.approx(loss, rel=1e-10)
        for mine, theirs in zip(expected, weights, strict=True):
            torch.testing.assert_close({name: value.detach() for name, value in mine.items()}, theirs)


@pytest.mark.parametrize("flags", [
    (*LIVE, *KD),
    (*TWO, *KD, "--multi_teacher_model=rl_kd", "--rl_kd_only_avg", "--rl_kd_semantic_model_dim=8"),
    (*TWO, *KD, "--multi_teacher_model=mixmt", "--mixmt_model=AvgTeacher,MT_BERT", "--mt_has_loss",
     "--mt_bert_fit_teacher", "--mt_bert_fix_layernorm")], ids=["teachers", "agent", "mixture"])
def test_a_change_of_size_and_back_is_bit_identical(tmp_path: Path, flags: tuple[str, ...]) -> None:
    context = tiny_context(*flags)
    save(context, tmp_path / "one")
    two = change_mp(tmp_path / "one", 2)
    for rank in (0, 1):
        state, _ = read_module_state(two, mp_rank=rank, mp_size=2)
        for name, tensor in context.model.state_dict(keep_vars=True).items():
            assert torch.equal(state[name], shard_spec_of(tensor).shard(tensor.detach(), rank, 2)), name
    back, _ = read_module_state(change_mp(two, 1), mp_rank=0, mp_size=1)
    assert back.keys() == context.model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in context.model.state_dict().items())


def test_a_precision_wrappers_level_is_tolerated(tmp_path: Path) -> None:
    context = tiny_context(*LIVE, *KD)
    save(context, tmp_path)
    path = shard_path(tmp_path, "7", 0)
    payload = torch.load(path, weights_only=True)
    for part in ("module", "shard_specs"):
        payload[part] = {name.replace("teacher_model_0.", "teacher_model_0.module."): value
                         for name, value in payload[part].items()}
    torch.save(payload, path)
    teacher = tiny_context(*TWO, *KD, seed=5).teachers[0]
    load_student_part(teacher, str(tmp_path), teacher_prefix(0), flag="--mt_load_from_s", args=context.args)
    torch.testing.assert_close(teacher.state_dict(), context.teachers[0].state_dict())


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    context = tiny_context(*TWO, *KD)
    save(context, tmp_path)
    with pytest.raises(ValueError, match=r"--mt_load_from_s=.*no entry under student.teacher_model_0\."):
        load_student_part(context.teachers[0], str(tmp_path), teacher_prefix(0), flag="--mt_load_from_s",
                          args=context.args)
    with pytest.raises(ValueError, match="--mt_model_load=.*nothing to load, AvgTeacher has no parameters"):
        load_student_part(context.combiner, str(tmp_path), COMBINER, flag="--mt_model_load", args=context.args)
    rl_kd = tiny_context(*TWO, "--student_model=kd", "--distill_pt_soft", "--multi_teacher_model=rl_kd",
                         "--rl_kd_only_avg", "--rl_kd_semantic_model_dim=8")
    with pytest.raises(ValueError, match=r"--mt_model_load=.*no entry under student.multi_teacher_model\."):
        load_student_part(rl_kd.combiner, str(tmp_path), COMBINER, flag="--mt_model_load", args=rl_kd.args)


def test_a_teacher_that_does_not_fit_is_named(tmp_path: Path) -> None:
    context = tiny_context(*LIVE, *KD)
    save(context, tmp_path)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_student_part(tiny_context(*TWO, *KD).teachers[1], str(tmp_path), teacher_prefix(0),
                          flag="--mt_load_from_s", args=context.args)


def run_flags(world: Path) -> list[str]:
    return [*finetune_flags(world, **{"epochs": 1, "save_interval_time": 1e-9}), "--student_model=kd",
            "--distill_ft_soft", "--teacher_random_para", "--mt_num_layers=1:2", "--mt_hidden_size=16:32",
            "--mt_num_attention_heads=4", "--mt_max_position_embeddings=64"]


def test_runs(tmp_path: Path) -> None:
    """Live teachers are trained, saved, resumed bit for bit and loaded by the next run; so are a combiner's layers."""
    world = write_world(tmp_path)
    live = [*run_flags(world), "--mt_load_pretrained=none", "--mt_has_grad"]
    assert run("finetune", [*live, f"--save={tmp_path / 'whole'}"]) == 0
    assert run("finetune", [*live, f"--save={tmp_path / 'rest'}", f"--load={tmp_path / 'whole/copa/3'}"]) == 0
    assert exact(tmp_path / "rest") == exact(tmp_path / "whole", after=3) and exact(tmp_path / "rest")
    states = [torch.load(tmp_path / f"whole/copa/{tag}/mp_rank_00_model_states.pt", weights_only=False)["module"]
              for tag in (1, 5)]
    name = "student.teacher_model_1.transformer.layers.1.mlp.dense_4h_to_h.weight"
    assert not torch.equal(states[0][name], states[1][name])
    agent = ["--multi_teacher_model=rl_kd", "--rl_kd_only_avg", "--rl_kd_semantic_model_dim=8"]
    frozen = [*run_flags(world), f"--mt_load_from_s={tmp_path / 'whole/copa'}", *agent]
    assert run("finetune", [*frozen, f"--save={tmp_path / 'agent'}"]) == 0
    again = [*frozen, f"--mt_model_load={tmp_path / 'agent/copa'}", f"--save={tmp_path / 'again'}"]
    assert run("finetune", again) == 0
    with pytest.raises(ValueError, match="--mt_model_load=.*AvgTeacher has no parameters"):
        run("finetune", [*again, "--multi_teacher_model=avg", "--overwrite"])


def test_the_empty_student_is_all_ones_and_the_teachers_learn() -> None:
    context = tiny_context(*LIVE, *KD, "--student_use_empty_glm")
    output = step(context)
    assert isinstance(context.student.origin_model, EmptyGLM) and (output.logits == 1).all()
    assert output.logits.shape == (3, output.logits.shape[1], 64)
    assert all(p.grad.abs().sum() > 0 for teacher in context.teachers for p in teacher.parameters())
    assert all(name.startswith("student.teacher_model_") for name in context.model.state_dict())


@pytest.mark.parametrize("head", HEADS)
def test_the_empty_student_under_every_head(head: str) -> None:
    context = tiny_context(*LIVE, "--student_model=tinybert", "--tinybert_fit_compatible_mt", *HEADS[head],
                           "--student_use_empty_glm", "--mt_has_loss", "--multi_teacher_model=mt_bert",
                           "--mt_bert_wo_convert_layer")
    output = step(context)
    assert output.loss.isfinite() and not any(name.startswith("inter_loss") for name in output.parts)


@pytest.mark.distributed
def test_ranks_agree() -> None:
    flags = (*LIVE, *KD)
    whole, gradients = step_result(*flags)
    assert any("teacher_model_1" in name for name in gradients)
    for loss, found in run_distributed(step_result, 2, *flags, model_parallel_size=2):
        assert loss == pytest.approx(whole, rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("flags", "message"), [
    ((*KD, "--student_use_empty_glm"), "--student_use_empty_glm leaves nothing to train.*--mt_has_grad"),
    (("--student_model=diito", "--distill_pt_soft", "--forward_repeat_num=1", "--diito_alpha_mlm=0",
      "--mt_hidden_size=16:16", "--mt_has_grad", "--student_use_empty_glm"),
     "diito needs the student's inner tensors"),
    ((*KD, "--mt_has_grad", "--teacher_offload"), "--teacher_offload is for frozen teachers"),
    (("--student_model=theseus", "--mt_hidden_size=16:16", "--mt_has_grad", "--distill_pt_hard"), "frozen teachers")])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_context(*TWO, *flags)


def test_another_precision_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tiny_context(*LIVE, *KD, "--teacher_bf16")
    assert "the teachers train in the student's precision" in caplog.text
    assert not tiny_args(*TWO, *KD).mt_has_grad
