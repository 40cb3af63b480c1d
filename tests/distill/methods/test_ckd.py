"""CKD: normalisers and weights, ranks, errors. The relations themselves are tested beside
:mod:`distill.losses.context_relations`."""

from __future__ import annotations

import pytest
import torch

from distill.losses import position_pad_mask
from distill.losses.context_relations import layer_angles, layer_pairs, word_angles, word_pairs
from tests.distill.methods import contract
from tests.helpers.tiny_distill import CB, COPA, TEACHER, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

CKD = (*TEACHER, "--student_model=ckd", "--ckd_window_size=5")
WEIGHTS = {"wrdist": 2.0, "wrangle": 3.0, "ltrdist": 5.0, "ltrangle": 7.0}
SOFT = ("--distill_ft_soft", "--distill_ft_hard")
OFF = tuple(f"--ckd_{name}_w=0" for name in WEIGHTS)


def test_means_and_weights() -> None:
    batch = tiny_lm_batch()
    output, s_taps, t_taps = contract.watched_step(
        tiny_context(*CKD, *(f"--ckd_{name}_w={weight}" for name, weight in WEIGHTS.items())), batch)
    mask = position_pad_mask(batch["position_ids"])
    assert 0 < mask.sum() < mask.numel()
    student = [s_taps[contract.state_name(k, 2)] for k in range(3)]
    teacher = [t_taps[contract.state_name(seg, 3)] for seg in (0, 2, 3)]
    layers, tokens, pairs = 3, mask.sum(), sum(row.sum() ** 2 for row in mask)
    within = list(zip(student, teacher, strict=True))
    stacks = torch.stack(student, 2), torch.stack(teacher, 2)
    expected = {"wrdist": sum(word_pairs(s, t, mask).sum() for s, t in within) / (layers * pairs),
                "wrangle": sum(word_angles(s, t, mask, window=5).sum() for s, t in within) / (layers * 25 * tokens),
                "ltrdist": layer_pairs(*stacks, mask).sum() / (layers ** 2 * tokens),
                "ltrangle": layer_angles(*stacks, mask).sum() / (layers ** 3 * tokens)}
    for name, value in expected.items():
        assert output.parts[f"inter_loss/{name}_t0"].item() == pytest.approx(WEIGHTS[name] * value.item())
    assert output.loss.item() == pytest.approx(sum(WEIGHTS[name] * value.item() for name, value in expected.items()))


@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_layers(sizes: tuple[int, int]) -> None:
    found = contract.matched_layers(sizes, *CKD)
    assert found == {"hidden_states": list(enumerate(contract.LAYER_MAPS[sizes]))}


def test_terms_without_weight_are_absent() -> None:
    context = tiny_context(*CKD, "--ckd_wrangle_w=0", "--ckd_ltrdist_w=0")
    assert context.student.intermediate_terms() == ["wrdist", "ltrangle"]
    output, *_ = contract.watched_step(context, tiny_lm_batch())
    recorded = [name for name in output.parts if name.startswith("inter_loss")]
    assert recorded == ["inter_loss/wrdist_t0", "inter_loss/ltrangle_t0"]
    contract.assert_term_is_off(*CKD, *COPA, *SOFT, *OFF)
    with pytest.raises(ValueError, match="no loss term is switched on.*--ckd_wrdist_w"):
        student_of(*CKD, *OFF).check_terms()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_each_term_trains(weight: str) -> None:
    others = tuple(f"--ckd_{name}_w=0" for name in WEIGHTS if name != weight)
    contract.assert_learns(*CKD, *COPA, *others)


def test_reductions() -> None:
    contract.assert_reductions_agree(*CKD, *CB, *SOFT)


@pytest.mark.parametrize("task", [(), COPA], ids=["text", "copa"])
def test_half_precision_and_padding(task: tuple[str, ...]) -> None:
    contract.assert_finite(*CKD, *task)


@pytest.mark.parametrize(("flags", "message"), [
    (("--ckd_window_size=4",), "--ckd_window_size=4 must be odd"),
    (("--ckd_window_size=-1",), "--ckd_window_size=-1 must be odd"),
    (("--num-layers=4",), "student layers <= teacher layers: student 4 .*teacher 3"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *CKD, *flags)


def test_it_says_that_samples_are_coupled() -> None:
    assert "micro-batch" in student_of(*CKD).batch_coupled
    assert student_of(*CKD, *COPA, *SOFT, *OFF).batch_coupled == ""


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([(*CKD, *COPA, *SOFT), CKD])
