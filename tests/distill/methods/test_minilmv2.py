"""MiniLMv2: layers, relation heads, the loss in plain loops, and the contract of every method."""

from __future__ import annotations

import math

import pytest
import torch

from tests.distill.methods import contract
from tests.distill.methods.loops import kl, mean, relation
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

PLAIN = (*TEACHER, "--student_model=minilmv2")
V2 = (*PLAIN, "--minilmv2_relation_heads=8", "--minilmv2_teacher_layer=-1")


@pytest.mark.parametrize(("layer", "index"), [(1, 0), (3, 2), (-1, 2), (-3, 0)])
def test_teacher_layer(layer: int, index: int) -> None:
    pairs = student_of(*V2, f"--minilmv2_teacher_layer={layer}").pairs(0)
    assert [(pair.student[2:], pair.teacher[2:], pair.partition) for pair in pairs] == [
        ((1, f"mixed_{name}_layer"), (index, f"mixed_{name}_layer"), "heads") for name in ("query", "key", "value")]


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_depths_are_free(sizes: tuple[int, int]) -> None:
    last = (sizes[0] - 1, sizes[1] - 1)  # a state's number is its layer's
    assert contract.matched_layers(sizes, *V2) == {f"relation_{name}": [last] for name in "qkv"}


def test_loss_loops() -> None:
    context = tiny_context(*V2, "--teacher_num_attention_heads=2")
    output, student, teacher = contract.watched_step(context, tiny_lm_batch())
    total = 0.0
    for name in ("query", "key", "value"):
        s, t = student[f"transformer.layers.1.mixed_{name}_layer"], teacher[f"transformer.layers.2.mixed_{name}_layer"]
        rows = []
        for b in range(3):
            for head in range(8):  # widths 16 and 24 in 8 relation heads: 2 and 3 columns each
                own = relation(s[b, :, 2 * head:2 * head + 2].tolist(), 1 / math.sqrt(2))
                other = relation(t[b, :, 3 * head:3 * head + 3].tolist(), 1 / math.sqrt(3))
                rows += [kl(*pair) for pair in zip(own, other, strict=True)]
        assert output.parts[f"inter_loss/relation_{name[0]}_t0"].item() == pytest.approx(mean(rows))
        total += mean(rows)
    assert output.loss.item() == pytest.approx(total, rel=1e-9)


def test_relation_heads_for_each_teacher() -> None:
    flags = (*TWO_TEACHERS, *V2[len(TEACHER):])
    student = student_of(*flags, "--minilmv2_relation_heads_mt=8,4")
    assert [student.relation_heads(i) for i in range(2)] == [8, 4]
    listed, first, second = (step(tiny_context(*flags, *extra)).parts for extra in (
        ("--minilmv2_relation_heads_mt=8,4",), ("--minilmv2_relation_heads=8",), ("--minilmv2_relation_heads=4",)))
    for name in "qkv":
        assert listed[f"inter_loss/relation_{name}_t0"] == first[f"inter_loss/relation_{name}_t0"]
        assert listed[f"inter_loss/relation_{name}_t1"] == second[f"inter_loss/relation_{name}_t1"]
        assert listed[f"inter_loss/relation_{name}_t1"] != first[f"inter_loss/relation_{name}_t1"]


@pytest.mark.parametrize("task", [("--distill_pt_hard",), (*COPA, "--distill_ft_hard")], ids=["text", "copa"])
def test_contract(task: tuple[str, ...]) -> None:
    contract.assert_learns(*V2, *task)
    contract.assert_reductions_agree(*V2, *task)


def test_numbers_stay_finite() -> None:
    contract.assert_finite(*V2)


def test_splits_of_a_batch() -> None:
    contract.assert_split_changes_nothing(*V2, *COPA)


def test_wo_inter() -> None:
    contract.assert_term_is_off(*V2, *COPA, "--minilmv2_wo_inter", "--distill_ft_soft", "--distill_ft_hard")
    # sizes that the intermediate loss would not take
    student_of(*PLAIN, "--minilmv2_wo_inter", "--distill_pt_hard")


@pytest.mark.parametrize(("flags", "message"), [
    (("--minilmv2_relation_heads=6",), r"6 relation heads .* student's width 16 \(--hidden-size\)"),
    (("--minilmv2_relation_heads=16",), r"16 relation heads .* teacher's width 24 \(--teacher_hidden_size\)"),
    (("--minilmv2_relation_heads=0",), "--minilmv2_relation_heads=0 must be positive"),
    (("--minilmv2_relation_heads_mt=8,x",), "--minilmv2_relation_heads_mt=8,x must be positive numbers"),
    (("--minilmv2_relation_heads_mt=8,8",), "has 2 entries for 1 teachers"),
    (("--minilmv2_teacher_layer=12",), "--minilmv2_teacher_layer=12 is not a layer of teacher 0, which has 3"),
    (("--minilmv2_teacher_layer=0",), "give 1 to 3, or -1 to -3"),
    (("--minilmv2_wo_inter",), "no loss term is switched on.*remove --minilmv2_wo_inter"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_context(*V2, *flags)


def refusal() -> str:
    with pytest.raises(ValueError) as error:
        student_of(*V2, "--minilmv2_relation_heads=2", "--num-attention-heads=4")
    return str(error.value)


@pytest.mark.distributed
def test_ranks_share_the_relation_heads() -> None:
    messages = run_distributed(refusal, 4, model_parallel_size=4)
    assert all("2 relation heads" in text and "--model-parallel-size=4" in text for text in messages)


@pytest.mark.distributed
def test_ranks_and_checkpointing_change_nothing() -> None:
    two = (*TWO_TEACHERS, *V2[len(TEACHER):], "--minilmv2_relation_heads_mt=8,4")
    contract.assert_ranks_agree([V2, (*V2, *COPA, "--distill_ft_hard"), two])


def test_a_student_of_one_precision_below() -> None:
    """Tapped in fp32, so bfloat16 weights change the loss by rounding only."""
    exact, half = (step(tiny_context(*V2, dtype=dtype)).loss.item() for dtype in (torch.float64, torch.bfloat16))
    assert half == pytest.approx(exact, rel=0.1)
