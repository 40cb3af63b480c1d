"""Theseus: replaced layers by hand, the rate, the draw, what stays as it is, the self-test, ranks, errors."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from distill.methods.theseus import draw_choice
from distill.training.forward_step import StepContext, forward_step
from distill.training.run_state import RunState
from tests.distill.methods import contract
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, step_result, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

EQUAL = (*TEACHER, "--teacher_hidden_size=16", "--mt_disable_operation=1", "--student_model=theseus")
TEXT = (*EQUAL, "--distill_pt_hard")
TASK = (*EQUAL, *COPA, "--distill_ft_hard")
TWO = (*TWO_TEACHERS, "--mt_hidden_size=16:16", "--mt_disable_operation=1", "--student_model=theseus",
       "--distill_pt_hard")


def context_with(choice: list[int], *flags: str) -> StepContext:
    context = tiny_context(*flags)
    context.student.injected_draws = {"theseus_choice": choice}
    return context


@pytest.mark.parametrize("choice", [[-1, -1], [0, -1], [-1, 0], [1, -1], [-1, 1]])
def test_forward_by_hand(choice: list[int]) -> None:
    """Teachers of 3 and 4 layers beside a student of 2: blocks 0-1 and 2, or 0-1 and 2-3."""
    context, batch = context_with(choice, *TWO), tiny_lm_batch()
    output = step(context, batch)
    glm, teachers = context.student.origin_model, context.teachers
    cuts = {0: ([0, 1], [2]), 1: ([0, 1], [2, 3])}
    layers = [layer for k, chosen in enumerate(choice) for layer in (
        [glm.transformer.layers[k]] if chosen < 0 else [teachers[chosen].transformer.layers[i]
                                                        for i in cuts[chosen][k]])]
    body, position = glm.transformer, batch["position_ids"]
    x = (glm.word_embeddings(batch["tokens"]) + body.position_embeddings(position[:, 0])
         + body.block_position_embeddings(position[:, 1]))
    s = torch.arange(batch["tokens"].shape[1])
    mask = ((s[None, :] <= s[:, None]) | (s[None, None, :] < batch["attention_mask"][:, None, None])).unsqueeze(1)
    for layer in layers:
        x, = layer(x, mask)
    logits = F.linear(body.final_layernorm(x), glm.word_embeddings.weight)
    torch.testing.assert_close(output.logits, logits)
    assert output.loss.item() == output.hard_loss.item()


def test_gradients_pass_through_teacher_blocks() -> None:
    context = context_with([-1, 0], *TEXT)
    step(context)
    without = {name for name, p in context.student.named_parameters() if p.grad is None}
    assert without and all(name.startswith("transformer.layers.1.") for name in without)
    assert context.student.origin_model.transformer.layers[0].mlp.dense_h_to_4h.weight.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in context.teachers[0].parameters())


def test_teacher_layers_are_no_part_of_the_student() -> None:
    context = context_with([0, -1], *TEXT)
    before = set(context.student.state_dict())
    step(context)
    assert set(context.student.state_dict()) == before
    assert {id(p) for p in context.student.parameters()}.isdisjoint(id(p) for p in context.teachers[0].parameters())


def test_evaluation_is_the_student_alone() -> None:
    replaced, own = context_with([0, -1], *TEXT), tiny_context()
    replaced.run.is_training = False
    assert forward_step(replaced, tiny_lm_batch()).loss.item() == forward_step(own, tiny_lm_batch()).loss.item()


def test_a_teacher_with_shared_layers() -> None:
    context = context_with([-1, 0], *TEXT, "--teacher_cross_layer_parameter_sharing")
    blocks = context.student._blocks(context.teachers[0], 0)
    assert [len(block) for block in blocks] == [2, 1] and blocks[0][0] is blocks[1][0]
    assert step(context).loss.isfinite()


def test_a_student_with_shared_layers() -> None:
    context = context_with([-1, 0], *TEXT, "--cross_layer_parameter_sharing")
    assert step(context).loss.isfinite()


# ---- rate and draw ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("iteration", "expected"), [(0, 0.3), (33, 0.65), (66, 1.0), (99, 1.35)])
def test_rate(iteration: int, expected: float) -> None:
    output = step(tiny_context(*TEXT, run=RunState(seed=1, iteration=iteration, train_iters=100)))
    assert output.parts["get_student_hook_op/replacing_rate"].item() == pytest.approx(expected, rel=1e-6)


def test_only_student_layers_at_the_end() -> None:
    late = step(tiny_context(*TEXT, run=RunState(seed=1, iteration=70, train_iters=100)))
    assert late.loss.item() == step(tiny_context()).loss.item()


def test_every_draw_has_a_student_layer_and_the_right_shares() -> None:
    """Three layers, two teachers: P(choice | at least one student layer), by counting."""
    generator, rate, n = random.Random(3), 0.3, 20_000
    found = Counter(tuple(draw_choice(3, 2, rate, generator)) for _ in range(n))
    assert all(-1 in choice for choice in found) and len(found) == 27 - 8
    for choice, count in found.items():
        own = choice.count(-1)
        share = rate ** own * (0.35 ** (3 - own)) / (1 - 0.7 ** 3)
        assert count / n == pytest.approx(share, abs=4 * (share / n) ** 0.5)


def test_a_rate_of_zero_leaves_one_student_layer() -> None:
    choices = [draw_choice(4, 1, 0.0, random.Random(seed)) for seed in range(40)]
    assert all(choice.count(-1) == 1 for choice in choices)
    assert {choice.index(-1) for choice in choices} == {0, 1, 2, 3}


def losses_of_steps(*flags: str) -> list[float]:
    context = tiny_context(*flags)
    found = []
    for iteration in range(6):
        context.run.iteration = iteration
        found.append(forward_step(context, tiny_lm_batch()).loss.item())
    return found


def test_steps_differ_and_a_resume_repeats_them() -> None:
    first = losses_of_steps(*TEXT, "--theseus_not_replaced_steps=1000")
    assert len(set(first)) > 1 and losses_of_steps(*TEXT, "--theseus_not_replaced_steps=1000") == first


@pytest.mark.distributed
def test_data_parallel_ranks_replace_the_same_layers() -> None:
    first, second = run_distributed(losses_of_steps, 2, *TEXT, "--theseus_not_replaced_steps=1000")
    assert first == second


# ---- the self-test ----------------------------------------------------------------------------------------------

def test_the_self_test_passes_and_finds_changed_teachers() -> None:
    context = tiny_context(*TEXT, "--distill_test_output")
    step(context)
    step(context)
    with torch.no_grad():
        next(context.teachers[0].parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="teacher weights changed"):
        step(context)


def test_the_self_test_finds_a_step_without_student_layers() -> None:
    with pytest.raises(RuntimeError, match="no student layer"):
        step(context_with([0, 0], *TEXT, "--distill_test_output"))


def test_methods_without_a_self_test_say_so(caplog: pytest.LogCaptureFixture) -> None:
    tiny_context(*TEACHER, "--student_model=kd", "--distill_pt_soft", "--distill_test_output")
    assert "--distill_test_output has no effect: kd has no self-test" in caplog.text


# ---- what every method has to do --------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_layers(sizes: tuple[int, int]) -> None:
    context = tiny_context(*TEXT, f"--num-layers={sizes[0]}", f"--teacher_num_layers={sizes[1]}")
    blocks = context.student._blocks(context.teachers[0], 0)
    layers = list(context.teachers[0].transformer.layers)
    seg = contract.LAYER_MAPS[sizes]
    assert blocks == [layers[seg[k]:seg[k + 1]] for k in range(sizes[0])]


@pytest.mark.parametrize("flags", [TEXT, TASK], ids=["text", "copa"])
def test_reductions_and_odd_batches(flags: tuple[str, ...]) -> None:
    contract.assert_finite(*flags)
    contract.assert_finite(*flags, "--theseus_replacing_rate=0")


def test_splits() -> None:
    contract.assert_split_changes_nothing(*TASK)


@pytest.mark.parametrize("flags", [TEXT, TASK], ids=["text", "copa"])
def test_recomputed_activations(flags: tuple[str, ...]) -> None:
    stored, recomputed = (step_result(*flags, checkpoint_activations=on) for on in (False, True))
    assert stored[0] == recomputed[0]
    for name, gradient in stored[1].items():
        torch.testing.assert_close(recomputed[1][name], gradient)


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([(*TEXT, "--theseus_replacing_rate=0"), TASK, TWO])


@pytest.mark.parametrize(("flags", "message"), [
    ((*TEXT, "--teacher_hidden_size=24"), r"Theseus needs equal hidden sizes: student 16 .*vs teacher 24"),
    ((*TEXT, "--num-layers=4"), "student layers <= teacher layers: student 4"),
    ((*TEXT, "--theseus_replacing_rate=1.5"), "--theseus_replacing_rate=1.5 must be a probability"),
    ((*TEXT, "--theseus_not_replaced_steps=0"), "--theseus_not_replaced_steps=0.0 must be above 0"),
    ((*TEXT, "--mt_disable_operation=0", "--distil_analysis_inter"), "exclude each other")])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *flags)


def test_no_label_no_loss() -> None:
    with pytest.raises(ValueError, match="no loss term is switched on"):
        tiny_context(*EQUAL)


def test_precisions_that_differ() -> None:
    context = tiny_context(*TEXT)
    context.teachers[0].float()
    with pytest.raises(ValueError, match="both need one precision"):
        step(context)


def test_soft_labels_need_the_teacher() -> None:
    with pytest.raises(ValueError, match="--mt_disable_operation"):
        step(tiny_context(*TEXT, "--distill_pt_soft"))
    assert "pre_loss/pt_soft_t0" in step(tiny_context(*TEXT, "--distill_pt_soft", "--mt_disable_operation=0")).parts


def test_heads_may_differ() -> None:
    assert student_of(*TEXT, "--teacher_num_attention_heads=8") is not None
