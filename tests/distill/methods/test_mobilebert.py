"""MobileBERT: what is learnt at each stage, in plain loops; the stage; ranks; errors."""

from __future__ import annotations

import math

import pytest
import torch

from distill.training.run_state import RunState
from tests.distill.methods import contract
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

MOBILEBERT = (*TEACHER, "--teacher_hidden_size=16", "--student_model=mobilebert", "--distill_pt_hard")
BOTTLENECKS = ("--inverted_bottleneck_mode", "--ib_hidden_size=8", "--ib_ffn_num=2", "--ib_word_emb=4",
               "--teacher_inverted_bottleneck_mode", "--teacher_ib_hidden_size=24", "--teacher_ib_ffn_num=1",
               "--teacher_ib_word_emb=4")
#: Iterations of 90 in which layer 1, layer 2 and the labels are learnt.
FIRST, SECOND, LAST = (RunState(iteration=iteration, train_iters=90) for iteration in (30, 60, 61))


def at(run: RunState) -> RunState:
    return RunState(iteration=run.iteration, train_iters=run.train_iters)


@pytest.mark.parametrize(("run", "attention", "states"), [
    (FIRST, [1], [0.2, 1]), (SECOND, [0.2, 1], [0.2, 0.2, 1]), (LAST, [1, 1], [1, 1, 1])], ids=["1", "2", "last"])
@pytest.mark.parametrize("shape", [(), BOTTLENECKS], ids=["plain", "bottleneck"])
def test_stages_in_loops(run: RunState, attention: list[float], states: list[float], shape: tuple[str, ...]) -> None:
    context = tiny_context(*MOBILEBERT, *shape, "--mobilebert_kd_w=0.3", "--mobilebert_pkt_small_lr=0.2", run=at(run))
    output, s_taps, t_taps = contract.watched_step(context, tiny_lm_batch())
    seg, total, expected = (0, 2, 3), 0.0, {}
    for k, weight in enumerate(attention, 1):
        s, t = (taps[f"transformer.layers.{layer - 1}.attention_scores"].reshape(-1, 16).tolist()
                for taps, layer in ((s_taps, k), (t_taps, seg[k])))
        value = sum(divergence(x, y) for x, y in zip(s, t, strict=True)) / len(s)
        expected[f"inter_loss/attention_scores.{k - 1}_t0"] = weight * value
    for k, weight in enumerate(states):
        s, t = s_taps[contract.state_name(k, 2)], t_taps[contract.state_name(seg[k], 3)]
        errors = [(x - y) ** 2 for x, y in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True)]
        expected[f"inter_loss/hidden_states.{k}_t0"] = weight * sum(errors) / len(errors)
    total = 0.3 * sum(expected.values()) + (output.hard_loss.item() if run is LAST else 0.0)
    recorded = {name: value.item() for name, value in output.parts.items() if name.startswith("inter_loss")}
    assert list(recorded) == list(expected) and recorded == pytest.approx(expected)
    assert output.loss.item() == pytest.approx(total, rel=1e-9)
    assert ("pre_loss/pt_hard_t0" in output.parts) == (run is LAST)


def divergence(student: list[float], teacher: list[float]) -> float:
    p, q = ([math.exp(v - max(values)) for v in values] for values in (student, teacher))
    p, q = ([v / sum(values) for v in values] for values in (p, q))
    return sum(b * math.log(b / a) for a, b in zip(p, q, strict=True) if b > 0)


def test_the_stage_is_a_function_of_the_iteration() -> None:
    student = student_of(*MOBILEBERT, run=at(FIRST))
    stages = []
    for iteration in (0, 30, 31, 60, 61, 89, 500):
        student.run.iteration = iteration
        stages.append(student.stage)
    assert stages == [1, 1, 2, 2, 3, 3, 3]
    student.run.iteration = 31
    assert student_of(*MOBILEBERT, run=at(student.run)).stage == 2  # resumed
    assert student_of(*MOBILEBERT, "--lr-decay-iters=900", run=at(student.run)).stage == 1
    accumulated = RunState(iteration=31, train_iters=90, accumulation_steps=4)  # fine-tuning counts micro-steps
    flags = (*MOBILEBERT, *COPA, "--distill_ft_hard", "--lr-decay-iters=30")
    assert student_of(*flags, run=accumulated).stage == 1
    assert student_of(*flags, run=RunState(iteration=41, train_iters=90, accumulation_steps=4)).stage == 2


def test_teachers_share_the_stage() -> None:
    flags = (*TWO_TEACHERS, "--mt_hidden_size=16:16", "--student_model=mobilebert", "--distill_pt_hard")
    output = step(tiny_context(*flags, run=at(SECOND)))
    kinds = {name.split("_t")[0] for name in output.parts if name.startswith("inter_loss")}
    assert {f"{name}_t{t_no}" for name in kinds for t_no in (0, 1)} <= output.parts.keys()
    assert not any(name.startswith("pre_loss") for name in output.parts)


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_layers(sizes: tuple[int, int]) -> None:
    """All of them, in the last stage."""
    student = student_of(*MOBILEBERT, f"--num-layers={sizes[0]}", f"--teacher_num_layers={sizes[1]}")
    student.run.iteration = student.run.train_iters = 10 ** 6
    found = contract.layers_of(student.pairs(0), sizes)
    expected = list(enumerate(contract.LAYER_MAPS[sizes]))
    assert found == {"attention_scores": expected[1:], "hidden_states": expected}


# ---- the contract -----------------------------------------------------------------------------------------------

def test_what_learns() -> None:
    context = tiny_context(*MOBILEBERT, *BOTTLENECKS, run=at(FIRST))
    step(context)
    above = {name for name, p in context.student.named_parameters() if p.grad is None or not p.grad.any()}
    assert above and all(name.startswith(("transformer.layers.1.", "transformer.final_layernorm")) for name in above)
    context = tiny_context(*MOBILEBERT, *BOTTLENECKS, run=at(LAST))
    step(context)
    assert all(p.grad is not None and p.grad.any() for p in context.student.parameters())
    assert all(p.grad is None for p in context.teachers[0].parameters())


@pytest.mark.parametrize("run", [SECOND, LAST], ids=["stage 2", "last stage"])
def test_reductions(run: RunState) -> None:
    contract.assert_reductions_agree(*MOBILEBERT, *COPA, "--distill_ft_soft", run=at(run))


def test_splitting_a_batch() -> None:
    contract.assert_split_changes_nothing(*MOBILEBERT, *COPA, "--distill_ft_hard")


@pytest.mark.parametrize("task", [(), (*COPA, "--distill_ft_hard")], ids=["text", "copa"])
def test_half_precision_and_padding(task: tuple[str, ...]) -> None:
    contract.assert_finite(*MOBILEBERT, *BOTTLENECKS, *task)


def test_no_prediction_before_the_last_stage() -> None:
    student = student_of(*MOBILEBERT, "--distill_pt_soft", run=at(SECOND))
    logits = torch.randn(3, 5, 8)
    assert student.pre_loss(logits, logits, torch.tensor(2.0)) == 0.0
    assert student.pre_loss(logits, logits, torch.tensor(2.0), return_dict=True) == {"loss": 0.0}
    student.run.iteration = LAST.iteration
    assert student.pre_loss(logits, logits, torch.tensor(2.0)).item() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize(("flags", "message"), [
    (("--teacher_hidden_size=24",), r"equal hidden sizes: student 16 \(--hidden-size\) vs teacher 24 "
                                    r"\(--teacher_hidden_size\)"),
    (("--teacher_num_attention_heads=8",), r"equal numbers of heads: student 4 \(--num-attention-heads\) vs teacher 8 "
                                           r"\(--teacher_num_attention_heads\)"),
    (("--num-layers=4",), "student layers <= teacher layers: student 4 .*teacher 3"),
    (("--mobilebert_kd_w=0",), "--mobilebert_kd_w=0.0 must be above 0"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *MOBILEBERT, *flags)


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([(*MOBILEBERT, *BOTTLENECKS), (*MOBILEBERT, *COPA, "--distill_ft_hard")])
