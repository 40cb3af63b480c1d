"""SID: the loss in plain loops, stages by position, by epoch and by threshold, the saved stage, ranks, errors."""

from __future__ import annotations

import math

import pytest
import torch

from distill.training.run_state import RunState
from tests.distill.methods import contract
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, TWO_TEACHERS, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

SID = (*TEACHER, "--teacher_hidden_size=16", "--student_model=sid")
TEXT = (*SID, "--distill_pt_soft")
TASK = (*SID, *COPA, "--distill_ft_soft")


def at(iteration: int, **where: int) -> RunState:
    return RunState(seed=1, iteration=iteration, train_iters=90, **where)


def attention_divergence(s: torch.Tensor, t: torch.Tensor) -> float:
    total, rows = 0.0, s.flatten(0, -2).softmax(-1).tolist()
    for p, q in zip(rows, t.flatten(0, -2).softmax(-1).tolist(), strict=True):
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b > 0)
    return total / len(rows)


def cosine_loss(s: torch.Tensor, t: torch.Tensor) -> float:
    """Of the first position, in loops."""
    total = 0.0
    for x, y in zip(s[:, 0].tolist(), t[:, 0].tolist(), strict=True):
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        total += 1 - dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return total / len(s)


@pytest.mark.parametrize(("iteration", "stage"), [(0, 1), (30, 1), (31, 2), (60, 2)])
def test_loss_loops(iteration: int, stage: int) -> None:
    context = tiny_context(*TEXT, run=at(iteration))
    output, s_taps, t_taps = contract.watched_step(context, tiny_lm_batch())
    seg, terms = {1: 2, 2: 3}, []
    for k in range(1, stage + 1):
        terms.append(attention_divergence(s_taps[f"transformer.layers.{k - 1}.attention_scores"],
                                          t_taps[f"transformer.layers.{seg[k] - 1}.attention_scores"]))
    for k in range(1, stage + 1):
        terms.append(cosine_loss(s_taps[contract.state_name(k, 2)], t_taps[contract.state_name(seg[k], 3)]))
    assert output.loss.item() == pytest.approx(sum(terms), rel=1e-8)
    recorded = [(tag, value.item()) for tag, value in output.recorded if tag.startswith("inter_loss")]
    names = [f"inter_loss/{kind}.{k}_t0" for kind in ("attention_scores", "hidden_states") for k in range(stage)]
    assert [tag for tag, _ in recorded] == names
    assert [value for _, value in recorded] == pytest.approx(terms, rel=1e-6)
    assert not [tag for tag, _ in output.recorded if tag.startswith("pre_loss")]


def test_the_last_stage_is_the_prediction_loss() -> None:
    last, kd = (tiny_context(*TEACHER, "--teacher_hidden_size=16", f"--student_model={method}", "--distill_pt_soft",
                             "--distill_pt_hard", run=at(61)) for method in ("sid", "kd"))
    output = step(last)
    assert output.loss.item() == step(kd).loss.item()
    assert last.student.student_taps() == {} and last.student.teacher_taps(0) == {}
    assert "inter_loss" not in str(output.parts)


def test_shared_terms_stay_in_the_last_stage() -> None:
    output = step(tiny_context(*TEXT, "--distill_logits_parallel", run=at(61)))
    assert {"inter_loss/logits_parallel_t0", "pre_loss/pt_soft_t0"} <= output.parts.keys()


# ---- the stage --------------------------------------------------------------------------------------------------

def stages(*flags: str, positions: list[RunState]) -> list[int]:
    student = student_of(*flags)
    found = []
    for run in positions:
        student.run = run
        found.append(student.stage)
    return found


def test_stages_are_equal_shares_of_the_run() -> None:
    flags = (*TASK, "--num-layers=6", "--teacher_num_layers=6")
    run = [RunState(iteration=i, train_iters=70) for i in range(70)]
    expected = [1 + sum(i > 10 * j for j in range(1, 7)) for i in range(70)]
    assert stages(*flags, positions=run) == expected and expected[0] == 1 and expected[-1] == 7


def test_stages_by_epoch_or_never() -> None:
    run = [RunState(iteration=1000, train_iters=1001, epoch=epoch) for epoch in range(8)]
    assert stages(*TASK, "--sid_lim_e=2", positions=run) == [1, 1, 2, 2, 3, 3, 3, 3]
    assert stages(*TASK, "--sid_lim_e=none", positions=run) == [1] * 8


def test_the_threshold_advances_once_an_iteration() -> None:
    context = tiny_context(*TASK, "--sid_lim_e=none", "--sid_accumulate_t=100", "--forward_repeat_num=1")
    found = []
    for _ in range(5):
        found.append(context.student.stage)
        step(context)
    assert found == [1, 2, 3, 3, 3]  # two passes, one advance; all done is the end


def test_two_teachers_advance_once() -> None:
    context = tiny_context(*TWO_TEACHERS, "--mt_hidden_size=16:16", "--student_model=sid", *COPA, "--distill_ft_soft",
                           "--sid_lim_e=none", "--sid_accumulate_t=100")
    step(context)
    assert context.student.stage == 2


def test_micro_steps_of_pretraining_are_one_iteration() -> None:
    run = at(0, accumulation_steps=3)
    context = tiny_context(*TEXT, "--sid_accumulate_t=100", run=run)
    found = []
    for micro_step in (0, 1, 2, 0):
        run.micro_step = micro_step
        found.append(context.student.stage)
        step(context)
    assert found == [1, 1, 1, 2]


def test_the_threshold_is_compared_with_the_sum_of_cosines() -> None:
    output = step(tiny_context(*TASK, "--sid_lim_e=none"))
    cosine = output.parts["inter_loss/hidden_states.0_t0"].item()
    for threshold, stage in ((cosine * 0.999, 1), (cosine * 1.001, 2)):
        context = tiny_context(*TASK, "--sid_lim_e=none", f"--sid_accumulate_t={threshold}")
        step(context)
        assert context.student.stage == stage


def test_the_threshold_leads_the_schedule() -> None:
    context = tiny_context(*TASK, "--sid_accumulate_t=100", run=at(0))
    step(context)
    assert context.student.stage == 2
    context.run.iteration = 61
    assert context.student.stage == 3


def test_evaluation_advances_nothing() -> None:
    context = tiny_context(*TEXT, "--sid_accumulate_t=100")
    context.run.is_training = False
    step(context)
    assert context.student.stage == 1


def test_the_stage_is_saved_and_may_be_absent() -> None:
    first, second = student_of(*TASK, "--sid_lim_e=none"), student_of(*TASK, "--sid_lim_e=none")
    first.sid_stage.fill_(2)
    state = first.state_dict()
    assert state["student.sid_stage"].dtype == torch.int64
    second.load_state_dict(state)
    assert second.stage == 2
    old = {name: value for name, value in student_of(*TASK).state_dict().items() if name != "student.sid_stage"}
    third = student_of(*TASK)
    assert not third.load_state_dict(old).missing_keys and third.stage == 1


def test_half_precision_leaves_the_stage_a_number() -> None:
    student = student_of(*TASK, dtype=torch.bfloat16)
    assert student.sid_stage.dtype == torch.int64


def advanced(threshold: float) -> int:
    rank = torch.distributed.get_rank()
    context = tiny_context(*TEXT, "--sid_lim_e=none", f"--sid_accumulate_t={threshold}")
    step(context, tiny_lm_batch(seed=rank))
    return context.student.stage


@pytest.mark.distributed
def test_data_parallel_ranks_advance_together() -> None:
    """By the mean of their cosine terms, wherever it lies between them."""
    cosines = [step(tiny_context(*TEXT), tiny_lm_batch(seed=seed)).parts["inter_loss/hidden_states.0_t0"].item()
               for seed in (0, 1)]
    mean = sum(cosines) / 2
    assert min(cosines) < mean < max(cosines)
    assert run_distributed(advanced, 2, mean * 1.0001) == [2, 2]
    assert run_distributed(advanced, 2, mean * 0.9999) == [1, 1]


# ---- what every method has to do --------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_layers(sizes: tuple[int, int]) -> None:
    student = student_of(*TASK, f"--num-layers={sizes[0]}", f"--teacher_num_layers={sizes[1]}")
    student.sid_stage.fill_(sizes[0])
    found = [(pair.kind, pair.student, pair.teacher) for pair in student.pairs(0)]
    depth, t_depth, seg = *sizes, contract.LAYER_MAPS[sizes]
    states = [(f"transformer.{'.'.join(map(str, s[1:]))}", f"transformer.{'.'.join(map(str, t[1:]))}")
              for kind, s, t in found if kind == "hidden_states"]
    assert states == [(contract.state_name(k, depth), contract.state_name(seg[k], t_depth))
                      for k in range(1, depth + 1)]
    attention = [(s[2] + 1, t[2] + 1) for kind, s, t in found if kind == "attention_scores"]
    assert attention == [(k, seg[k]) for k in range(1, depth + 1)]


def test_gradients() -> None:
    # The first stage stops at the second block's input LayerNorm.
    contract.assert_learns(*TEXT, except_for=[
        "transformer.final", *(f"transformer.layers.1.{name}" for name in ("attention", "post", "mlp"))])


@pytest.mark.parametrize("flags", [TEXT, TASK], ids=["text", "copa"])
def test_reductions_splits_and_odd_batches(flags: tuple[str, ...]) -> None:
    contract.assert_reductions_agree(*flags)
    contract.assert_finite(*flags)


def test_splits() -> None:
    contract.assert_split_changes_nothing(*TASK)


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([TEXT, TASK, (*SID, *CB, "--distill_ft_soft", "--sid_lim_e=1")])


@pytest.mark.parametrize(("flags", "message"), [
    ((*TEXT, "--teacher_hidden_size=24"), r"SID needs equal hidden sizes: student 16 \(--hidden-size\) vs teacher 24"),
    ((*TEXT, "--teacher_num_attention_heads=8"), r"SID needs equal numbers of heads: student 4 .* vs teacher 8"),
    ((*TEXT, "--num-layers=4"), "student layers <= teacher layers: student 4"),
    (SID, "sid has no loss in its last stage.*--distill_pt_soft"),
    ((*TEXT, "--sid_lim_e=0"), "--sid_lim_e=0 must be at least 1 epoch")])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *flags)
