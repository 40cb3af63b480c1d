"""PKD: which states meet, the loss in plain loops, the weights, and the contract of every method."""

from __future__ import annotations

import math

import pytest

from tests.distill.methods import contract
from tests.distill.methods.loops import dot, mean, mean_square
from tests.helpers.tiny_distill import CB, COPA, TEACHER, TWO_TEACHERS, choice_batch, step, tiny_context

PKD = (*TEACHER, "--teacher_hidden_size=16", "--student_model=pkd")
PREDICTIONS = ("--distill_ft_soft", "--distill_ft_soft_kl", "--distill_ft_hard", "--distill_temperature=10")
TASK = (*PKD, *COPA, *PREDICTIONS)


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
@pytest.mark.parametrize("flags", [(), ("--pkd_use_embed",), ("--pkd_wo_final",),
                                   ("--pkd_use_embed", "--pkd_wo_final")], ids=lambda flags: " ".join(flags) or "plain")
def test_layer_maps(sizes: tuple[int, int], flags: tuple[str, ...]) -> None:
    states = range(0 if "--pkd_use_embed" in flags else 1, sizes[0] + (0 if "--pkd_wo_final" in flags else 1))
    expected = [(k, contract.LAYER_MAPS[sizes][k]) for k in states]
    found = contract.matched_layers(sizes, *PKD, "--distill_pt_hard", *flags)
    assert found == ({"hidden_states": expected} if expected else {})


@pytest.mark.parametrize("flags", [(), ("--pkd_only_cls",), ("--pkd_normalized_patience", "--pkd_use_embed"),
                                   ("--pkd_only_cls", "--pkd_normalized_patience", "--pkd_wo_final")],
                         ids=lambda flags: " ".join(flags) or "plain")
def test_loss_loops(flags: tuple[str, ...]) -> None:
    context = tiny_context(*TASK, "--pkd_alpha=0.3", "--pkd_beta=7", *flags)
    output, student, teacher = contract.watched_step(context, choice_batch())
    total, seg = 0.0, (0, 2, 3)
    states = range(0 if "--pkd_use_embed" in flags else 1, 2 if "--pkd_wo_final" in flags else 3)
    for number, k in enumerate(states):
        s, t = student[contract.state_name(k, 2)], teacher[contract.state_name(seg[k], 3)]
        positions = [0] if "--pkd_only_cls" in flags else range(s.shape[1])
        rows = [(s[b, i].tolist(), t[b, i].tolist()) for b in range(len(s)) for i in positions]
        if "--pkd_normalized_patience" in flags:
            rows = [tuple([x / math.sqrt(dot(row, row)) for x in row] for row in pair) for pair in rows]
        value = mean([mean_square(*pair) for pair in rows])
        assert output.parts[f"inter_loss/hidden_states.{number}_t0"].item() == pytest.approx(value, rel=1e-8)
        total += 7 * value
    soft, hard = output.parts["pre_loss/ft_soft_t0"].item(), output.hard_loss.item()
    assert output.parts["pre_loss/ft_hard_t0"].item() == pytest.approx(hard)
    assert output.loss.item() == pytest.approx(total + 0.3 * soft + 0.7 * hard, rel=1e-9)


def test_rates_multiply_alpha() -> None:
    output = step(tiny_context(*TASK, "--pkd_beta=0", "--pkd_alpha=0.3", "--distill_soft_rate=2",
                               "--distill_hard_rate=3"))
    plain = step(tiny_context(*TASK, "--pkd_beta=0", "--pkd_alpha=0.3")).parts
    expected = 0.3 * 2 * plain["pre_loss/ft_soft_t0"] + 0.7 * 3 * plain["pre_loss/ft_hard_t0"]
    assert output.loss.item() == pytest.approx(expected.item())


def test_shared_terms_are_not_weighed() -> None:
    """beta is the weight of the hidden states alone."""
    parts = step(tiny_context(*TASK, "--distill_logits_parallel", "--pkd_beta=3"))
    hidden = sum(value for name, value in parts.parts.items() if "hidden_states" in name)
    pre = 0.5 * (parts.parts["pre_loss/ft_soft_t0"] + parts.parts["pre_loss/ft_hard_t0"])
    assert parts.loss.item() == pytest.approx((3 * hidden + pre + parts.parts["inter_loss/logits_parallel_t0"]).item())


def test_terms_are_told_with_their_weights() -> None:
    student = tiny_context(*TASK, "--pkd_alpha=0.25").student
    assert student.prediction_terms() == ["soft kl x 1, temperature 10 x 0.25", "hard label x 1 x 0.75"]
    assert [term[:4] for term in tiny_context(*TASK, "--pkd_alpha=1").student.prediction_terms()] == ["soft"]


@pytest.mark.parametrize("task", [COPA, CB], ids=["copa", "cb"])
def test_contract(task: tuple[str, ...]) -> None:
    flags = (*PKD, *task, *PREDICTIONS, "--pkd_normalized_patience")
    contract.assert_learns(*flags)
    contract.assert_reductions_agree(*flags)


def test_numbers_stay_finite() -> None:
    contract.assert_finite(*TASK, "--pkd_normalized_patience")
    contract.assert_finite(*PKD)


def test_splits_of_a_batch() -> None:
    contract.assert_split_changes_nothing(*TASK, "--pkd_normalized_patience", "--pkd_only_cls")


def test_beta_of_zero() -> None:
    context = tiny_context(*TASK, "--pkd_beta=0")
    step(context)
    assert context.student.student_taps() == {} and context.student.teacher_taps(0) == {}


@pytest.mark.parametrize(("flags", "message"), [
    (("--teacher_hidden_size=24",),
     r"PKD needs equal hidden sizes: student 16 \(--hidden-size\) vs teacher 24 \(--teacher_hidden_size\)"),
    (("--num-layers=4",), r"student layers <= teacher layers: student 4 .*teacher 3"),
    (("--pkd_alpha=1.5",), r"--pkd_alpha=1.5 must be between 0"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *PKD, *flags)


def test_one_layer_without_its_final_state_is_nothing() -> None:
    with pytest.raises(ValueError, match="no loss term is switched on.*at least one layer"):
        tiny_context(*PKD, *COPA, "--num-layers=1", "--pkd_wo_final")


@pytest.mark.distributed
def test_ranks_and_checkpointing_change_nothing() -> None:
    two = (*TWO_TEACHERS, "--mt_hidden_size=16:16", *TASK[len(TEACHER) + 1:])
    contract.assert_ranks_agree([(*TASK, "--pkd_only_cls"), (*PKD, "--pkd_normalized_patience"), two])
