"""Universal-KD: the mixture in plain loops, projections, ranks, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.distill.methods import contract
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, TWO_TEACHERS, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

UNIVERSAL = (*TEACHER, "--teacher_num_layers=4", "--num-layers=3", "--student_model=universal_kd")
SOFT = ("--distill_ft_soft", "--distill_ft_hard")
FORMS = {"first": (), "average": ("--universal_kd_avg",), "final": ("--universal_kd_cg",),
         "narrow": ("--universal_kd_size=8", "--universal_kd_avg")}


def softmax(values: list[float]) -> list[float]:
    return [math.exp(v) / sum(math.exp(u) for u in values) for v in values]


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def projected(layer: Any, rows: list[list[float]], average: bool) -> list[float]:
    pool = [sum(column) / len(rows) for column in zip(*rows, strict=True)] if average else rows[0]
    return [dot(weights, pool) for weights in layer.weight.tolist()]


@pytest.mark.parametrize("form", FORMS)
def test_loss_loops(form: str) -> None:
    context = tiny_context(*UNIVERSAL, *FORMS[form], "--universal_kd_gamma=0.7")
    output, s_taps, t_taps = contract.watched_step(context, tiny_lm_batch())
    student, average = context.student, "--universal_kd_avg" in FORMS[form]
    s_layers, t_layers = ([3], [4]) if form == "final" else ([1, 2], [1, 2, 3])
    sums = [0.0] * len(s_layers)
    for b in range(3):
        s, t = ([projected(layer, taps[contract.state_name(k, depth)][b].tolist(), average)
                 for layer, k in zip(own, numbers, strict=True)]
                for own, taps, numbers, depth in ((student.s_fit_dense, s_taps, s_layers, 3),
                                                  (student.t_fit_dense_0, t_taps, t_layers, 4)))
        for index, x in enumerate(s):
            alpha = softmax([dot(x, y) for y in t])
            mixture = [sum(a * y[u] for a, y in zip(alpha, t, strict=True)) for u in range(len(x))]
            p, q = softmax(x), softmax(mixture)
            sums[index] += sum(c * math.log(c / a) for a, c in zip(p, q, strict=True))
    for index, value in enumerate(sums):
        recorded = output.parts[f"inter_loss/hidden_states.{index}_t0"].item()
        assert recorded == pytest.approx(0.7 * value / 3)
    assert output.loss.item() == pytest.approx(0.7 * sum(sums) / 3)


@pytest.mark.parametrize(("form", "own", "teachers"), [
    ("first", [(16, 16)] * 2, [(16, 24)] * 3), ("narrow", [(8, 16)] * 2, [(8, 24)] * 3),
    ("final", [(16, 16)], [(16, 24)])])
def test_parameters(form: str, own: list[tuple[int, int]], teachers: list[tuple[int, int]]) -> None:
    student = student_of(*UNIVERSAL, *FORMS[form])
    shapes = {name: tuple(p.shape) for name, p in student.named_parameters() if name.startswith("student.")}
    assert shapes == {
        **{f"student.s_fit_dense.{i}.weight": shape for i, shape in enumerate(own)},
        **{f"student.t_fit_dense_0.{i}.weight": shape for i, shape in enumerate(teachers)}}


@pytest.mark.parametrize("form", FORMS)
def test_everything_learns(form: str) -> None:
    contract.assert_learns(*UNIVERSAL, *FORMS[form], *COPA, *SOFT)


def test_unequal_teachers() -> None:
    output = contract.assert_learns(*TWO_TEACHERS, "--mt_hidden_size=24:32", "--num-layers=3",
                                    "--student_model=universal_kd", *COPA, *SOFT)
    assert "inter_loss/hidden_states.1_t1" in output.parts


def test_reductions() -> None:
    contract.assert_reductions_agree(*UNIVERSAL, *CB, *SOFT)


def test_splitting_a_batch() -> None:
    contract.assert_split_changes_nothing(*UNIVERSAL, *COPA, *SOFT)


def test_half_precision_and_padding() -> None:
    contract.assert_finite(*UNIVERSAL, *COPA)


@pytest.mark.parametrize("off", ["--universal_kd_wo_inter", "--universal_kd_gamma=0"])
def test_off_is_the_prediction_loss(off: str) -> None:
    contract.assert_term_is_off(*UNIVERSAL, *COPA, *SOFT, off)
    with pytest.raises(ValueError, match="no loss term is switched on.*--universal_kd_gamma above 0"):
        student_of(*UNIVERSAL, off).check_terms()


@pytest.mark.parametrize(("flags", "message"), [
    (("--num-layers=1",), r"student 1 \(--num-layers\), teacher 4 .*both at least 2, or --universal_kd_cg"),
    (("--teacher_num_layers=1",), r"student 3 .*teacher 1 \(--teacher_num_layers\)"),
    (("--universal_kd_size=-3",), "--universal_kd_size=-3 must be a width"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *UNIVERSAL, *flags)


def test_one_layer_is_enough_for_the_final_states() -> None:
    context = tiny_context(*UNIVERSAL, "--num-layers=1", "--teacher_num_layers=1", "--universal_kd_cg")
    output, *_ = contract.watched_step(context, tiny_lm_batch())
    assert output.loss > 0 and torch.isfinite(output.loss)


def uneven_width() -> str:
    try:
        student_of(*UNIVERSAL, "--universal_kd_size=7")
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([(*UNIVERSAL, *COPA, *SOFT), (*UNIVERSAL, *FORMS["final"])])
    for message in run_distributed(uneven_width, 2, model_parallel_size=2):
        assert "width 7 is not divisible by --model-parallel-size 2" in message
