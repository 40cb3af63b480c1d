"""ERDistill: which states meet, both terms in plain loops, compressed students, and the contract of every method."""

from __future__ import annotations

import math

import pytest
import torch

from tests.distill.methods import contract
from tests.distill.methods.loops import dot, kl, mean, mean_square, relation
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

ERDISTILL = (*TEACHER, "--student_model=erdistill")
MSE = "--erdistill_inter_mse"
#: Value of --erdistill_inter -> numbers of the states that meet (2 student layers, 3 teacher layers), with weights.
MEETING = {"all": [(0, 0, 1), (1, 2, 1), (2, 3, 1)], "two": [(1, 2, 1), (2, 3, 1)], "one": [(2, 3, 1)],
           "1plus": [(1, 3, 0.1), (2, 3, 1)]}


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_layer_maps(sizes: tuple[int, int]) -> None:
    seg = contract.LAYER_MAPS[sizes]
    depth, t_depth = sizes
    expected = {"all": [(k, seg[k]) for k in range(depth + 1)], "one": [(depth, t_depth)],
                "two": [(k, seg[k]) for k in (depth - 1, depth)], "1plus": [(depth - 1, t_depth), (depth, t_depth)]}
    for which, pairs in expected.items():
        found = contract.matched_layers(sizes, *ERDISTILL, f"--erdistill_inter={which}")
        assert found == {"hidden_states": pairs}


@pytest.mark.parametrize("flags", [(), (MSE,)], ids=["kl", "mse"])
@pytest.mark.parametrize("which", MEETING)
def test_loss_loops(which: str, flags: tuple[str, ...]) -> None:
    context, batch = tiny_context(*ERDISTILL, f"--erdistill_inter={which}", *flags), tiny_lm_batch(2, 10)
    output, student, teacher = contract.watched_step(context, batch)
    distance, scale = (mean_square, 1 / 10) if flags else (kl, 1 / math.sqrt(10))
    tables = [model.word_embedding_weight.tolist() for model in (context.student, context.teachers[0])]
    total = 0.0
    for number, (k, t_k, weight) in enumerate(MEETING[which]):
        states = student[contract.state_name(k, 2)].tolist(), teacher[contract.state_name(t_k, 3)].tolist()
        local, words = [], []
        for s, t in zip(*states, strict=True):
            local += [distance(*rows) for rows in zip(relation(s, scale), relation(t, scale), strict=True)]
            words += [distance([dot(x, e) for e in tables[0]], [dot(y, e) for e in tables[1]])
                      for x, y in zip(s, t, strict=True)]
        for name, values in (("local", local), ("global", words)):
            assert output.parts[f"inter_loss/{name}.{number}_t0"].item() == pytest.approx(mean(values), rel=1e-8)
            total += weight * mean(values)
    assert output.loss.item() == pytest.approx(total, rel=1e-9)


def test_parts_can_be_left_out() -> None:
    both = step(tiny_context(*ERDISTILL, MSE)).loss
    local, words = (step(tiny_context(*ERDISTILL, MSE, f"--erdistill_wo_{name}")) for name in ("global", "local"))
    torch.testing.assert_close(local.loss + words.loss, both)
    assert not [name for name in local.parts if "global" in name]
    assert not [name for name in words.parts if "local" in name]


def test_the_word_table_learns_from_the_vocabulary_term() -> None:
    """Of all rows, those of tokens that do not occur are reached through the output side alone."""
    for flags, reached in (((), True), (("--erdistill_wo_global",), False)):
        context, batch = tiny_context(*ERDISTILL, *flags), tiny_lm_batch()
        step(context, batch)
        unused = sorted(set(range(64)) - set(batch["tokens"].flatten().tolist()))
        assert context.student.word_embedding_weight.grad[unused].any().item() is reached


def test_none_taps_nothing() -> None:
    contract.assert_term_is_off(*ERDISTILL, *COPA, "--erdistill_inter=", "--distill_ft_soft", "--distill_ft_hard")


@pytest.mark.parametrize("flags", [(MSE,), COPA, ("--erdistill_inter=1plus", "--distill_pt_hard")],
                         ids=["mse", "copa", "1plus"])
def test_contract(flags: tuple[str, ...]) -> None:
    contract.assert_learns(*ERDISTILL, *flags)
    contract.assert_reductions_agree(*ERDISTILL, *flags)


def test_numbers_stay_finite() -> None:
    contract.assert_finite(*ERDISTILL, MSE)
    contract.assert_finite(*ERDISTILL, *COPA)


def test_splits_of_a_batch() -> None:
    contract.assert_split_changes_nothing(*ERDISTILL, *COPA)


def test_a_factorised_word_table() -> None:
    """The product with the table is what the model's output layer computes."""
    context = tiny_context(*ERDISTILL, MSE, "--compress_word_emb=8", "--erdistill_inter=one", "--erdistill_wo_local",
                           "--distill_pt_hard")
    output = step(context)
    logits, target = output.logits, output.teacher_outputs[0]["logits"]
    torch.testing.assert_close(output.parts["inter_loss/global.0_t0"], (logits - target).square().mean().detach())


@pytest.mark.parametrize(("flags", "message"), [
    (("--num-layers=4",), r"student layers <= teacher layers: student 4 .*teacher 3"),
    (("--num-layers=4", "--erdistill_inter=two"), "student layers <= teacher layers"),
    (("--erdistill_inter=",), "no loss term is switched on.*--erdistill_inter"),
    (("--erdistill_wo_local", "--erdistill_wo_global"), "no loss term is switched on"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_context(*ERDISTILL, *flags)


def test_the_final_state_alone_needs_no_layer_map() -> None:
    student_of(*ERDISTILL, "--num-layers=4", "--erdistill_inter=one")


@pytest.mark.distributed
def test_ranks_and_checkpointing_change_nothing() -> None:
    contract.assert_ranks_agree([ERDISTILL, (*ERDISTILL, MSE, *COPA, "--distill_ft_hard"),
                                 (*TWO_TEACHERS, "--student_model=erdistill", "--erdistill_inter=1plus")])
