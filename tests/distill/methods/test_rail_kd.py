"""RAIL-KD: both forms in plain loops, drawn layers, sum and mean over the batch, ranks, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest

from distill.training.run_state import RunState
from tests.distill.methods import contract
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, TWO_TEACHERS, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

RAIL = (*TEACHER, "--student_model=rail_kd", "--rail_kd_u=8")
ENDS = ("--rail_kd_has_embed", "--rail_kd_has_final")
FORMS = {"layer by layer": (), "concatenated": ("--rail_kd_concatenated",),
         "ends": ("--rail_kd_concatenated", *ENDS), "layers and ends": ENDS}


def averages(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def vector_of(layer: Any, x: list[float]) -> list[float]:
    """``W x + b`` of length 1."""
    z = [sum(w * v for w, v in zip(row, x, strict=True)) + b
         for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]
    norm = math.sqrt(sum(v * v for v in z))
    return [v / norm for v in z]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mean", [(), ("--rail_kd_batch_mean",)], ids=["sum", "mean"])
def test_loss_loops(form: str, mean: tuple[str, ...]) -> None:
    context = tiny_context(*RAIL, *FORMS[form], *mean, "--rail_kd_no_random", "--rail_kd_inter_rate=0.25",
                           "--rail_kd_layer_wise_alpha=3")
    output, s_taps, t_taps = contract.watched_step(context, tiny_lm_batch())
    layers = [(0, 0), (1, 2), (2, 3)] if "ends" in form else [(1, 2)]
    is_joined = "--rail_kd_concatenated" in FORMS[form]
    total = 0.0
    for b in range(3):
        s, t = ([averages(taps[contract.state_name(pair[side], depth)][b].tolist()) for pair in layers]
                for side, (taps, depth) in enumerate(((s_taps, 2), (t_taps, 3))))
        if is_joined:
            s, t = [sum(s, [])], [sum(t, [])]
        for x, y in zip(s, t, strict=True):
            x, y = vector_of(context.student.s_fit_dense, x), vector_of(context.student.t_fit_dense_0, y)
            total += (1 if is_joined else 3) * sum((a - c) ** 2 for a, c in zip(x, y, strict=True))
    total /= 3 if mean else 1
    assert output.loss.item() == pytest.approx(0.25 * total, rel=1e-9)
    assert output.parts["inter_loss/hidden_states_t0"].item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_evenly_spaced_layers(sizes: tuple[int, int]) -> None:
    expected = list(enumerate(contract.LAYER_MAPS[sizes]))
    flags = (*RAIL, "--rail_kd_no_random", *ENDS)
    assert contract.matched_layers(sizes, *flags) == {"hidden_states": expected}
    if sizes[0] > 1:
        inner = contract.matched_layers(sizes, *RAIL, "--rail_kd_no_random")
        assert inner == {"hidden_states": expected[1:-1]}


# ---- drawn layers -----------------------------------------------------------------------------------------------

DRAWN = (*RAIL, "--teacher_num_layers=12", "--num-layers=4")


def maps(flags: tuple[str, ...], name: str, positions: list[int], t_no: int = 0) -> list[tuple[int, ...]]:
    student = student_of(*DRAWN, *flags, run=RunState(seed=1))
    result = []
    for position in positions:
        setattr(student.run, name, position)
        result.append(student.layer_map(t_no))
    return result


def test_layers_are_drawn_by_epochs_or_iterations() -> None:
    by_epoch = maps((*COPA, "--rail_kd_epochs=2"), "epoch", list(range(40)))
    assert all(by_epoch[i] == by_epoch[i + 1] for i in range(0, 40, 2)) and len(set(by_epoch)) > 10
    assert all(layers == tuple(sorted(set(layers))) and layers[0] == 0 and layers[-1] == 12 for layers in by_epoch)
    in_text = maps(("--rail_kd_iters=10",), "iteration", list(range(0, 200, 5)))
    assert all(in_text[i] == in_text[i + 1] for i in range(0, 40, 2)) and len(set(in_text)) > 10
    by_default = maps((*COPA, "--rail_kd_epochs=0"), "iteration", [0, 2999, 3000])
    assert by_default[0] == by_default[1] != by_default[2]


def test_draws_survive_a_resume_and_differ_between_teachers() -> None:
    assert maps((), "iteration", [0, 4000, 9000])[-1:] == maps((), "iteration", [9000])
    lists = ("--mt_num_layers=12:12", "--rail_kd_iters=1")
    assert maps(lists, "iteration", list(range(20))) != maps(lists, "iteration", list(range(20)), t_no=1)


def test_changes_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="distill"):
        student = student_of(*DRAWN, "--rail_kd_show_hook_change")
        for iteration in (0, 1, 3000):
            student.run.iteration = iteration
            student.pairs(0)
    lines = [line for line in caplog.messages if "rail_kd: layers" in line]
    assert len(lines) == 2 and "in iteration 0:" in lines[0] and "in iteration 1:" in lines[1]


# ---- the contract -----------------------------------------------------------------------------------------------

SOFT = ("--distill_ft_soft", "--distill_ft_hard")


@pytest.mark.parametrize("form", FORMS)
def test_everything_learns(form: str) -> None:
    contract.assert_learns(*RAIL, *FORMS[form], *COPA, *SOFT)


def test_teachers_have_projections_of_their_own() -> None:
    flags = (*TWO_TEACHERS, "--mt_hidden_size=24:32", "--student_model=rail_kd", "--rail_kd_u=8", *COPA, *SOFT)
    shapes = {name: tuple(p.shape) for name, p in student_of(*flags).named_parameters() if name.startswith("student.")}
    assert shapes["student.t_fit_dense_0.weight"] == (8, 24) and shapes["student.t_fit_dense_1.weight"] == (8, 32)
    contract.assert_learns(*flags)


@pytest.mark.parametrize("mean", [(), ("--rail_kd_batch_mean",)], ids=["sum", "mean"])
def test_reductions(mean: tuple[str, ...]) -> None:
    contract.assert_reductions_agree(*RAIL, *CB, *SOFT, *mean)


def test_splitting_a_batch() -> None:
    contract.assert_split_changes_nothing(*RAIL, *COPA, *SOFT, "--rail_kd_batch_mean")
    assert "sum over the micro-batch" in student_of(*RAIL).batch_coupled


def test_half_precision_and_padding() -> None:
    contract.assert_finite(*RAIL, *COPA, "--rail_kd_concatenated")


def test_rate_zero_is_the_prediction_loss() -> None:
    contract.assert_term_is_off(*RAIL, *COPA, *SOFT, "--rail_kd_inter_rate=0")


@pytest.mark.parametrize(("flags", "message"), [
    (("--num-layers=1",), r"student of 1 layer \(--num-layers\).*--rail_kd_has_embed or --rail_kd_has_final"),
    (("--num-layers=4",), r"student layers <= teacher layers: student 4 .*teacher 3"),
    (("--num-layers=4", "--rail_kd_no_random"), r"student layers <= teacher layers: student 4"),
    (("--rail_kd_u=0",), "--rail_kd_u=0 must be at least 1"),
    (("--rail_kd_epochs=0", "--rail_kd_iters=0"), "set --rail_kd_epochs or --rail_kd_iters above 0"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *RAIL, *flags)


def test_rate_zero_alone_leaves_nothing() -> None:
    with pytest.raises(ValueError, match="no loss term is switched on.*--rail_kd_inter_rate above 0"):
        student_of(*RAIL, "--rail_kd_inter_rate=0").check_terms()


def uneven_width() -> str:
    try:
        student_of(*RAIL, "--rail_kd_u=7")
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([(*RAIL, *COPA, *SOFT), (*RAIL, "--rail_kd_concatenated", *ENDS)])
    for message in run_distributed(uneven_width, 2, model_parallel_size=2):
        assert "--rail_kd_u=7 is not divisible by --model-parallel-size 2" in message
