"""RL-KD: the agent's input, its action and reward in plain loops, memory over steps and resumes, ranks, errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from distill.multi_teacher.base import OutputShape
from distill.training.forward_step import StepContext, StepOutput
from distill.training.run_state import RunState
from model.parallel.sharding import ShardSpec, shard_spec_of
from tests.distill.training.small_runs import exact, finetune_flags, run, write_world
from tests.golden.replay import whole_gradient
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, choice_batch, step, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

#: Teacher 0 encodes the sentence, 1 and 2 teach.
THREE = (*TEACHER, "--mt_num_layers=3:3:4", "--mt_hidden_size=24:32:16", "--student_model=kd",
         "--multi_teacher_model=rl_kd", "--rl_kd_semantic_model=0", "--mt_has_loss")
CHOICE = (*THREE, *COPA, "--distill_ft_soft")
TOKENS = (*THREE, "--distill_pt_soft")
UNIFORM = ([[0.1, 0.9], [0.6, 0.2], [0.4, 0.7]], [[0.8, 0.3], [0.2, 0.5], [0.9, 0.05]])


def two_steps(context: StepContext) -> tuple[StepOutput, StepOutput]:
    """Two iterations over one batch, with given draws and an agent that is not yet sure of anything."""
    with torch.no_grad():
        for parameter in context.combiner.parameters():
            parameter.mul_(0.01)
    queue = iter(UNIFORM)
    context.student.injected_draws["rl_kd_uniform"] = lambda *key: next(queue)
    first = step(context)
    context.model.zero_grad(set_to_none=True)
    context.run.iteration = 1
    return first, step(context)


def test_what_the_agent_sees() -> None:
    context = tiny_context(*CHOICE)
    output, batch = step(context), choice_batch()
    _, inter_vars = context.teachers[0](batch["text"], batch["position"], batch["mask"], batch["target"],
                                        batch["logit_mask"], hook={"transformer": {"output": None}})
    state = context.combiner.memory()
    for b in range(3):
        encoding = torch.cat([inter_vars[0][2 * b, 0], inter_vars[0][2 * b + 1, 0]])
        losses = torch.stack([teacher["loss_batch"][b] for teacher in output.teacher_outputs[1:]])
        torch.testing.assert_close(state["semantic"][b], torch.cat([encoding, losses]))
        torch.testing.assert_close(state["logits"][b], torch.cat([t["logits"][b] for t in output.teacher_outputs[1:]]))
    assert context.combiner.agent_semantic_mt_loss.weight.shape == (2, 2 * 24 + 2)
    assert context.combiner.agent_mt_soft.weight.shape == (2, 2 * 2)


@pytest.mark.parametrize("flags", [(), ("--rl_kd_wo_loss_mask",), ("--rl_kd_only_mask_pad",)])
def test_the_agent_sees_masked_means_of_token_logits(flags: tuple[str, ...]) -> None:
    context, batch = tiny_context(*TOKENS, *flags), tiny_lm_batch()
    output = step(context, batch)
    mask = {(): batch["loss_mask"], ("--rl_kd_wo_loss_mask",): torch.ones_like(batch["loss_mask"]),
            ("--rl_kd_only_mask_pad",): (batch["labels"] > 0)}[flags].double()
    means = [(teacher["logits"] * mask[..., None]).mean(1) for teacher in output.teacher_outputs[1:]]
    torch.testing.assert_close(context.combiner.memory()["logits"], torch.cat(means, dim=1))


@pytest.mark.parametrize("flags", [
    (), ("--rl_kd_policy_term=log_pi",), ("--rl_kd_reward=2",), ("--rl_kd_reward=2", "--rl_kd_reward_teacher=selected"),
    ("--rl_kd_wo_hard",), ("--rl_kd_alpha=0.2",)], ids=" ".join)
def test_two_steps_in_loops(flags: tuple[str, ...]) -> None:
    context = tiny_context(*CHOICE, *flags)
    agent = context.combiner
    first, second = two_steps(context)
    assert "multi_teacher_model/rl_loss" not in first.parts
    state = agent.memory()  # the same batch: the same state in both steps
    with torch.no_grad():
        sigma = torch.sigmoid(agent.agent_semantic_mt_loss(state["semantic"]) + agent.agent_mt_soft(state["logits"]))
    pre = [[-float((t["logits"][b].softmax(-1) * second.logits[b].detach().log_softmax(-1)).sum()) for b in range(3)]
           for t in second.teacher_outputs[1:]]
    chosen = [(b, i) for b in range(3) for i in range(2) if UNIFORM[1][b][i] < sigma[b, i]]
    student_loss = sum(pre[i][b] for b, i in chosen) / 6
    hard, terms = second.hard_loss.item(), []
    for b in range(3):
        for i in range(2):
            pi = float(sigma[b, i]) if UNIFORM[0][b][i] < sigma[b, i] else 1 - float(sigma[b, i])
            terms.append(math.log(max(pi, 1e-6)) if "--rl_kd_policy_term=log_pi" in flags else pi)
    reward = -hard
    if "--rl_kd_reward_teacher=selected" in flags:
        reward -= sum(pre[i][b] for b, i in chosen) / len(chosen)
    elif "--rl_kd_reward=2" in flags:
        reward -= second.teacher_outputs[2]["loss"].item()
    agent_loss = -reward * sum(terms)
    assert second.parts["multi_teacher_model/rl_loss"].item() == pytest.approx(agent_loss, rel=1e-9)
    alpha = context.args.rl_kd_alpha
    mixed = alpha * (student_loss + agent_loss) + (1 - alpha) * hard
    expected = student_loss + agent_loss if "--rl_kd_wo_hard" in flags else mixed
    assert second.loss.item() == pytest.approx(expected, rel=1e-9)
    assert all(parameter.grad.abs().sum() > 0 for parameter in agent.parameters())
    assert "pre_loss/ft_soft_t0" not in second.parts and "teacher_loss/teacher_2_t2" in second.parts


def test_the_first_stage_is_a_mean() -> None:
    flags = (*CHOICE, "--rl_kd_only_avg", "--rl_kd_alpha=0.3")
    output = step(tiny_context(*flags))
    terms = [output.parts[f"teacher_loss/teacher_{i}_t{i}"] for i in (1, 2)]
    torch.testing.assert_close(output.loss.detach(), 0.3 * sum(terms) / 2 + 0.7 * output.hard_loss.detach())


def test_the_first_stage_makes_the_agent_of_the_second() -> None:
    two = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=32:16", "--student_model=kd", *COPA, "--distill_ft_soft",
           "--multi_teacher_model=rl_kd", "--rl_kd_only_avg", "--rl_kd_semantic_model_dim=24")
    shapes = [{name: value.shape for name, value in tiny_context(*flags).combiner.state_dict().items()}
              for flags in (two, CHOICE)]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 4


def test_without_an_encoder_its_place_is_zero() -> None:
    context = tiny_context(*TEACHER, "--mt_num_layers=3:4", "--student_model=kd", *CB, "--distill_ft_soft",
                           "--multi_teacher_model=rl_kd", "--rl_kd_semantic_model_dim=8", "--mt_has_loss")
    step(context)
    state = context.combiner.memory()["semantic"]
    assert state.shape == (3, 8 + 2) and (state[:, :8] == 0).all() and (state[:, 8:] > 0).all()


def test_a_varying_number_of_choices_is_padded_or_cut() -> None:
    context = tiny_context(*CHOICE)
    combiner, x = context.combiner, torch.arange(6.0).view(2, 3)
    with pytest.raises(ValueError, match="built for 2 columns and gets 3.*--fix_variable_num_choices"):
        combiner._fit(x, 2)
    combiner.outputs = OutputShape(2, 2, varies=True)
    assert combiner._fit(x, 2).tolist() == x[:, :2].tolist()
    assert combiner._fit(x, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    assert step(context, choice_batch(choices=3)).loss.isfinite() and step(context, choice_batch(2)).loss.isfinite()


def test_draws_are_those_of_the_iteration() -> None:
    def action(iteration: int) -> list:
        context = tiny_context(*CHOICE, run=RunState(seed=1, iteration=iteration))
        for parameter in context.combiner.parameters():
            torch.nn.init.zeros_(parameter)
        step(context)
        return context.combiner.memory()["action"].tolist()

    assert action(0) == action(0) and len({str(action(i)) for i in range(6)}) > 2


def test_memory_goes_through_a_save() -> None:
    whole, resumed = tiny_context(*CHOICE), tiny_context(*CHOICE)
    step(whole)
    resumed.combiner.restore_memory(whole.combiner.memory())
    whole.run.iteration = resumed.run.iteration = 1
    assert step(whole).loss == step(resumed).loss
    assert "multi_teacher_model/rl_loss" in step(resumed).parts


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Bit for bit, the agent's memory and random draws included."""
    world = write_world(tmp_path)
    flags = [*finetune_flags(world, **{"save_interval_time": 1e-9, "epochs": 1}), "--student_model=kd",
             "--distill_ft_soft", "--multi_teacher_model=rl_kd", "--rl_kd_semantic_model=0", "--mt_has_loss",
             "--teacher_random_para", "--mt_load_pretrained=none", "--mt_num_layers=1:1:2", "--mt_hidden_size=16:16:16",
             "--mt_num_attention_heads=4", "--mt_max_position_embeddings=64", "--teacher_offload"]
    assert run("finetune", [*flags, f"--save={tmp_path / 'whole'}"]) == 0
    assert run("finetune", [*flags, f"--save={tmp_path / 'rest'}", f"--load={tmp_path / 'whole/copa/2'}"]) == 0
    found = exact(tmp_path / "rest")
    assert found[0]["iteration"] == 3 and found == exact(tmp_path / "whole", after=2)


def ranks_result(*flags: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and whole gradients of the second of two steps."""
    context = tiny_context(*flags)
    _, second = two_steps(context)
    return second.loss.item(), {name: whole_gradient(value)
                                for name, value in context.model.state_dict(keep_vars=True).items()}


@pytest.mark.distributed
@pytest.mark.parametrize("flags", [CHOICE, TOKENS], ids=["choices", "tokens"])
def test_ranks_agree(flags: tuple[str, ...]) -> None:
    """Over a cut vocabulary each teacher's block of columns is cut by itself: the numbers stay at every size."""
    whole, gradients = ranks_result(*flags)
    for loss, found in run_distributed(ranks_result, 2, *flags, model_parallel_size=2):
        assert loss == pytest.approx(whole, rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-10)


def test_the_agents_weight_over_the_vocabulary_is_cut_by_teacher() -> None:
    layer = tiny_context(*TOKENS).combiner.agent_mt_soft
    assert layer.weight.shape == (2, 2 * 64) and shard_spec_of(layer.weight) == ShardSpec(dim=1, blocks=2)


def reward_of_rank(rank_losses: list[float]) -> float:
    """The reward where data-parallel ranks have unequal losses."""
    context = tiny_context(*CHOICE)
    own = torch.tensor(rank_losses[torch.distributed.get_rank()], dtype=torch.float64)
    fake = type("Outputs", (), {"s_out": {"loss": own}})
    return context.combiner._reward(fake, [1, 2], torch.ones(1, 2), torch.ones(1, 2)).item()


@pytest.mark.distributed
def test_the_reward_is_the_mean_over_data_parallel_ranks() -> None:
    assert run_distributed(reward_of_rank, 2, [1.0, 4.0], model_parallel_size=1) == [-2.5, -2.5]


def test_bf16_is_finite() -> None:
    _, second = two_steps(tiny_context(*CHOICE, dtype=torch.bfloat16))
    assert second.loss.isfinite()


def test_errors_and_warnings(caplog: pytest.LogCaptureFixture) -> None:
    def attempt(*flags: str) -> StepContext:
        return tiny_context(*TEACHER, "--mt_num_layers=3:4", "--student_model=kd", *COPA, "--distill_ft_soft",
                            "--multi_teacher_model=rl_kd", *flags)

    with pytest.raises(ValueError, match="rl_kd chooses by the teachers' own label losses: add --mt_has_loss"):
        attempt("--rl_kd_semantic_model=0")
    with pytest.raises(ValueError, match="needs the width of its sentence encoder"):
        attempt("--mt_has_loss")
    with pytest.raises(ValueError, match="--rl_kd_semantic_model=2: there are 2 teachers, counted from 0"):
        attempt("--mt_has_loss", "--rl_kd_semantic_model=2")
    with pytest.raises(ValueError, match="--rl_kd_semantic_model=0 leaves no teacher to learn from"):
        attempt("--mt_has_loss", "--rl_kd_semantic_model=0", "--mt_num_layers=3")
    with pytest.raises(ValueError, match="rl_kd reads the logits of every teacher, but --mt_disable_op.* 0 off"):
        step(attempt("--mt_has_loss", "--rl_kd_semantic_model=0", "--mt_disable_operation=1:0"))
    context = attempt("--rl_kd_only_avg")
    assert "no semantic dimension, no agent is built" in caplog.text and not list(context.combiner.parameters())
    assert step(context).loss.isfinite()
    attempt("--rl_kd_only_avg", "--distill_ft_hard", "--rl_kd_reward_teacher=selected")
    assert "the label counts twice: rl_kd" in caplog.text
    assert "--rl_kd_reward_teacher=selected has no effect without --rl_kd_reward=2" in caplog.text


def test_the_encoder_may_be_of_any_size() -> None:
    """It meets no loss of the method, so the method's sizes do not bind it."""
    flags = (*TEACHER, "--mt_num_layers=3:3:3", "--mt_hidden_size=32:16:16", "--student_model=pkd", "--mt_has_loss",
             "--multi_teacher_model=rl_kd", "--pkd_beta=1")
    with pytest.raises(ValueError, match="PKD needs equal hidden sizes"):
        tiny_context(*flags, "--rl_kd_semantic_model=1")
    context = tiny_context(*flags, "--rl_kd_semantic_model=0")
    assert context.combiner.batch_coupled and step(context).loss.isfinite()
