"""MiniLM: which tensors meet, the loss in plain loops, the double softmax, and the contract of every method."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.distill.methods import contract
from tests.distill.methods.loops import kl, mean, relation, softmax
from tests.golden.replay import Options, compare, run_cases
from tests.helpers.shared import require_shared
from tests.helpers.tiny_distill import CB, COPA, TEACHER, TWO_TEACHERS, step, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

MINILM = (*TEACHER, "--student_model=minilm")
DOUBLE = "--minilm_double_softmax"


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_the_last_layers_meet(sizes: tuple[int, int]) -> None:
    assert contract.matched_layers(sizes, *MINILM) == {
        "attention": [sizes], "value_relation": [(sizes[0] - 1, sizes[1] - 1)]}  # a state's number is its layer's


@pytest.mark.parametrize("double", [False, True], ids=["softmax once", "twice"])
def test_loss_loops(double: bool) -> None:
    context = tiny_context(*MINILM, *([DOUBLE] if double else []))
    output, student, teacher = contract.watched_step(context, tiny_lm_batch())
    name = "attention_probs" if double else "attention_scores"
    s_att, t_att = student[f"transformer.layers.1.{name}"].tolist(), teacher[f"transformer.layers.2.{name}"].tolist()
    s_val, t_val = student["transformer.layers.1.value_layer"], teacher["transformer.layers.2.value_layer"]
    places = [(b, n) for b in range(3) for n in range(4)]
    attention = mean([kl(s, t) for b, n in places for s, t in zip(s_att[b][n], t_att[b][n], strict=True)])
    values = mean([kl(s, t) for b, n in places
                   for s, t in zip(relation(s_val[b, n].tolist(), 1 / math.sqrt(4)),
                                   relation(t_val[b, n].tolist(), 1 / math.sqrt(6)), strict=True)])
    assert output.parts["inter_loss/attention_t0"].item() == pytest.approx(attention, rel=1e-9)
    assert output.parts["inter_loss/value_relation_t0"].item() == pytest.approx(values, rel=1e-9)
    assert output.loss.item() == pytest.approx(attention + values, rel=1e-9)


def test_masked_keys_have_no_probability() -> None:
    assert softmax([0.5, -65504.0]) == [1.0, 0.0]
    output = step(tiny_context(*MINILM))
    assert 0 < output.parts["inter_loss/attention_t0"] < 50


def test_a_second_softmax_flattens() -> None:
    once, twice = (step(tiny_context(*MINILM, *flags)).parts["inter_loss/attention_t0"] for flags in ((), (DOUBLE,)))
    assert twice < 0.2 * once


@pytest.mark.parametrize("name", ["minilm_pt", "mixbaseline_pt"])
def test_published_numbers_with_two_softmaxes(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in require_shared("golden", name).iterdir():
        shutil.copyfile(file, folder / file.name)
    case = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**case, "flags": [*case["flags"], DOUBLE]}))
    verdict = compare(run_cases([folder], Options())[0], folder, Options())
    assert not verdict.failures


@pytest.mark.parametrize("task", [("--distill_pt_hard",), (*COPA, "--distill_ft_soft"), (*CB, "--distill_ft_hard")],
                         ids=["text", "copa", "cb"])
def test_contract(task: tuple[str, ...]) -> None:
    contract.assert_learns(*MINILM, *task)
    contract.assert_reductions_agree(*MINILM, *task)


def test_alone_it_leaves_what_follows_the_last_attention() -> None:
    contract.assert_learns(*MINILM, except_for=(
        "transformer.layers.1.attention.dense", "transformer.layers.1.post_attention", "transformer.layers.1.mlp",
        "transformer.final_layernorm"))


def test_numbers_stay_finite() -> None:
    contract.assert_finite(*MINILM)


def test_splits_of_a_batch() -> None:
    contract.assert_split_changes_nothing(*MINILM, *COPA, "--distill_ft_hard")


def test_heads_have_to_be_equal() -> None:
    contract.assert_refused(r"equal numbers of heads: student 4 \(--num-attention-heads\) vs teacher 8 .*minilmv2",
                            *MINILM, "--teacher_num_attention_heads=8")


@pytest.mark.distributed
def test_ranks_and_checkpointing_change_nothing() -> None:
    contract.assert_ranks_agree([MINILM, (*MINILM, *COPA, "--distill_ft_hard", DOUBLE),
                                 (*TWO_TEACHERS, "--student_model=minilm")])
