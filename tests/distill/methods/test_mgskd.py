"""MGSKD: which relation at which state, weights, spans, ranks, errors. The relations themselves are tested beside
:mod:`distill.losses.granular_relations`."""

from __future__ import annotations

import random

import pytest

from distill.losses import position_pad_mask
from distill.losses.granular_relations import sample_relations, span_means, token_relations
from distill.methods.mgskd import draw_lengths
from distill.training.run_state import RunState
from model.parallel.groups import parallel_state
from tests.distill.methods import contract
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

MGSKD = (*TEACHER, "--student_model=mgskd", "--mgskd_multi_heads=8", "--mgskd_triplet_k1=4", "--mgskd_triplet_k2=3")
WEIGHTS = ("--mgskd_weight_sample=4", "--mgskd_weight_token=2", "--mgskd_weight_span=3")
SIZES = {"num_heads": 8, "num_vertices": 4, "num_neighbours": 3}


@pytest.mark.parametrize("level", [0, 1, 9])
def test_each_state_has_its_relation(level: int) -> None:
    context = tiny_context(*MGSKD, *WEIGHTS, f"--mgskd_sample_level_m={level}")
    batch = tiny_lm_batch()
    output, s_taps, t_taps = contract.watched_step(context, batch)
    mask, lengths = position_pad_mask(batch["position_ids"]), context.student.span_lengths(16)
    total = 0.0
    for k, seg in enumerate((0, 2, 3)):
        s, t = s_taps[contract.state_name(k, 2)], t_taps[contract.state_name(seg, 3)]
        if k >= level:
            term = 4 * sample_relations(s, t, mask, num_heads=8).mean()
        else:
            spans = span_means(s, lengths), span_means(t, lengths)
            term = (2 * token_relations(s, t, mask, **SIZES) + 3 * token_relations(
                *spans, span_means(mask[..., None], lengths)[..., 0] > 0, **SIZES)).mean()
        assert output.parts[f"inter_loss/hidden_states.{k}_t0"].item() == pytest.approx(term.item())
        total += term.item()
    assert output.loss.item() == pytest.approx(total)


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_layers(sizes: tuple[int, int]) -> None:
    found = contract.matched_layers(sizes, *MGSKD)
    assert found == {"hidden_states": list(enumerate(contract.LAYER_MAPS[sizes]))}


def test_random_lengths_cut_the_sequence() -> None:
    generator = random.Random(1)
    for length, count in [(16, 6), (7, 7), (9, 1), (256, 102)] * 20:
        lengths = draw_lengths(length, count, generator)
        assert len(lengths) == count and sum(lengths) == length and min(lengths) >= 1


def test_the_remainder_goes_to_the_last_spans() -> None:
    class Even(random.Random):
        def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
            return -1.0

    assert draw_lengths(14, 4, Even()) == [3, 3, 4, 4]
    assert draw_lengths(12, 4, Even()) == [3, 3, 3, 3]


def test_lengths_are_a_function_of_the_step() -> None:
    first, second = (student_of(*MGSKD, run=RunState(seed=1)) for _ in range(2))
    draws = []
    for iteration in range(5):
        first.run.iteration = iteration
        draws.append(first.span_lengths(16))
    second.run.iteration = 4
    assert second.span_lengths(16) == draws[4] and len({tuple(draw) for draw in draws}) > 1
    second.run.micro_step = 1
    assert second.span_lengths(16) != draws[4]


def lengths_here() -> tuple[int, list[int]]:
    return parallel_state().data_rank, student_of(*MGSKD, run=RunState(seed=1)).span_lengths(31)


@pytest.mark.distributed
def test_data_parallel_ranks_draw_their_own() -> None:
    first, second = run_distributed(lengths_here, 2, model_parallel_size=1)
    assert (first[0], second[0]) == (0, 1) and first[1] != second[1]


@pytest.mark.parametrize("flags", [("--mgskd_span_max_rate=0",), ("--mgskd_weight_span=0",)])
def test_spans_can_be_left_out(flags: tuple[str, ...]) -> None:
    output = step(tiny_context(*MGSKD, *flags, "--mgskd_weight_sample=0"))
    with_spans = step(tiny_context(*MGSKD, "--mgskd_weight_sample=0"))
    assert 0 < output.loss < with_spans.loss
    short = student_of(*MGSKD, "--mgskd_span_max_rate=0.05")
    assert short.span_lengths(16) == []


# ---- the contract -----------------------------------------------------------------------------------------------

SOFT = ("--distill_ft_soft", "--distill_ft_hard")


def test_everything_learns() -> None:
    contract.assert_learns(*MGSKD, *COPA)


@pytest.mark.parametrize("level", [0, 9])
def test_reductions(level: int) -> None:
    contract.assert_reductions_agree(*MGSKD, *COPA, *SOFT, f"--mgskd_sample_level_m={level}")


@pytest.mark.parametrize("task", [(), COPA], ids=["text", "copa"])
def test_half_precision_and_padding(task: tuple[str, ...]) -> None:
    contract.assert_finite(*MGSKD, *task)


@pytest.mark.parametrize("off", [
    ("--mgskd_wo_inter",), ("--mgskd_weight_sample=0", "--mgskd_weight_token=0", "--mgskd_weight_span=0"),
    ("--mgskd_weight_sample=0", "--mgskd_sample_level_m=0"),
    ("--mgskd_weight_token=0", "--mgskd_span_max_rate=0", "--mgskd_sample_level_m=3")])
def test_nothing_left_is_the_prediction_loss(off: tuple[str, ...]) -> None:
    contract.assert_term_is_off(*MGSKD, *COPA, *SOFT, *off)
    assert student_of(*MGSKD, *COPA, *SOFT, *off).batch_coupled == ""
    with pytest.raises(ValueError, match="no loss term is switched on.*remove --mgskd_wo_inter"):
        student_of(*MGSKD, *off).check_terms()


@pytest.mark.parametrize(("flags", "message"), [
    (("--mgskd_multi_heads=64",), "--mgskd_multi_heads=64 parts, which does not divide --hidden-size 16"),
    (("--mgskd_multi_heads=16",), "--mgskd_multi_heads=16 parts, which does not divide --teacher_hidden_size 24"),
    (("--num-layers=4",), "student layers <= teacher layers: student 4 .*teacher 3"),
    (("--mgskd_span_max_rate=1.5",), "--mgskd_span_max_rate=1.5 must lie between 0"),
    (("--mgskd_triplet_k1=0",), "--mgskd_triplet_k1=0 must be at least 1"),
    (("--mgskd_multi_heads=0",), "--mgskd_multi_heads=0 must be at least 1"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *MGSKD, *flags)


def test_it_says_that_samples_are_coupled() -> None:
    assert "all samples" in student_of(*MGSKD).batch_coupled


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([(*MGSKD, *COPA, *SOFT), (*MGSKD, "--mgskd_sample_level_m=1")])
