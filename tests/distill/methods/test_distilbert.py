"""DistilBERT: masks and weights in plain loops, the LayerNorms, and the contract of every method."""

from __future__ import annotations

import math

import pytest
import torch

from tests.distill.methods import contract
from tests.distill.methods.loops import dot, kl
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

DISTILBERT = (*TEACHER, "--teacher_hidden_size=16", "--student_model=distilbert", "--distill_temperature=2",
              "--distilbert_alpha_ce=5", "--distilbert_alpha_mlm=2", "--distilbert_alpha_cos=3")
NORMS = "--distilbert_fix_layernorm"
#: Flags -> whether the cosine and the soft labels leave out padding only.
MASKS = {(): (False, False), ("--distilbert_cos_mask_padding",): (True, False),
         ("--distilbert_ce_mask_padding",): (False, True), ("--distill_mask_wo_constant",): (False, False),
         ("--distill_wo_loss_mask",): (False, False), (NORMS,): (False, False)}


@pytest.mark.parametrize("flags", MASKS, ids=lambda flags: " ".join(flags) or "plain")
def test_loss_loops(flags: tuple[str, ...]) -> None:
    context, batch = tiny_context(*DISTILBERT, *flags), tiny_lm_batch()
    output, student, teacher = contract.watched_step(context, batch)
    names = [f"transformer.layers.{depth - 1}.tf_output" if NORMS in flags else "transformer.output"
             for depth in (2, 3)]
    states = [taps[name] for taps, name in zip((student, teacher), names, strict=True)]
    if NORMS in flags:  # fresh LayerNorms: weight 1, bias 0
        states = [torch.nn.functional.layer_norm(state, state.shape[-1:]) for state in states]
    masks = [batch["labels"] > 0 if padding else batch["loss_mask"] > 0 for padding in MASKS[flags]]
    constant = 0.0 if "--distill_mask_wo_constant" in flags else 1.0
    cosine = soft = 0.0
    for b in range(3):
        for i in range(16):
            s, t = states[0][b, i].tolist(), states[1][b, i].tolist()
            apart = 1 - dot(s, t) / math.sqrt(dot(s, s) * dot(t, t))
            cosine += apart if masks[0][b, i] else constant
            if masks[1][b, i] or "--distill_wo_loss_mask" in flags:
                logits = (output.logits, output.teacher_outputs[0]["logits"])
                soft += kl(*([value / 2 for value in rows[b, i].tolist()] for rows in logits))
    assert output.parts["inter_loss/distilbert_alpha_cos_t0"].item() == pytest.approx(3 * cosine / 48, rel=1e-8)
    assert output.parts["pre_loss/distilbert_alpha_ce_t0"].item() == pytest.approx(5 * 4 * soft / 48, rel=1e-8)
    assert output.parts["pre_loss/distilbert_alpha_mlm_t0"].item() == pytest.approx(2 * output.hard_loss.item())
    assert output.loss.item() == pytest.approx(3 * cosine / 48 + 20 * soft / 48 + 2 * output.hard_loss.item())


def test_the_constant_has_no_gradient() -> None:
    gradients = []
    for flags in ((), ("--distill_mask_wo_constant",)):
        context = tiny_context(*DISTILBERT, *flags)
        step(context)
        gradients.append(context.student.word_embedding_weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_no_cosine_without_a_loss_mask() -> None:
    output = step(tiny_context(*DISTILBERT, *COPA))
    expected = output.parts["pre_loss/distilbert_alpha_ce_t0"] + output.parts["pre_loss/distilbert_alpha_mlm_t0"]
    torch.testing.assert_close(output.loss.detach(), expected, rtol=0, atol=0)
    assert not [name for name in output.parts if name.startswith("inter_loss")]


@pytest.mark.parametrize("name", ["ce", "mlm", "cos"])
def test_a_weight_of_zero_removes_its_term(name: str) -> None:
    output = step(tiny_context(*DISTILBERT, f"--distilbert_alpha_{name}=0"))
    left = {tag.rpartition("_")[0] for tag in output.parts if "distilbert" in tag}
    assert len(left) == 2 and not [tag for tag in left if tag.endswith(f"_{name}")]


def test_shared_switches_are_not_read_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    plain = step(tiny_context(*DISTILBERT)).loss
    switched = step(tiny_context(*DISTILBERT, "--distill_pt_soft", "--distill_pt_hard", "--distill_soft_rate=0.5")).loss
    assert torch.equal(plain, switched)
    assert "--distill_pt_hard has no effect on distilbert" in caplog.text


def test_own_layernorms() -> None:
    context = tiny_context(*DISTILBERT, NORMS)
    step(context)
    own = {name: p for name, p in context.student.named_parameters() if name.startswith("student.")}
    assert {name: (tuple(p.shape), p.requires_grad, p.grad is not None) for name, p in own.items()} == {
        "student.layernorm.weight": ((16,), True, True), "student.layernorm.bias": ((16,), True, True),
        "student.t_layernorm.weight": ((16,), False, False), "student.t_layernorm.bias": ((16,), False, False)}


def test_parts_by_name() -> None:
    student = student_of(*DISTILBERT, *COPA)
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    parts = student.prediction_loss(*logits[:, :], torch.tensor(2.0), return_dict=True)
    assert set(parts) == {"soft", "hard", "loss"} and parts["hard"].item() == 4.0
    torch.testing.assert_close(parts["loss"], parts["soft"] + parts["hard"])


@pytest.mark.parametrize("flags", [(), (NORMS,), (*COPA,)], ids=["text", "layer norms", "copa"])
def test_contract(flags: tuple[str, ...]) -> None:
    contract.assert_learns(*DISTILBERT, *flags, except_for=("student.t_layernorm",))
    contract.assert_reductions_agree(*DISTILBERT, *flags)


def test_numbers_stay_finite() -> None:
    contract.assert_finite(*DISTILBERT)
    contract.assert_finite(*DISTILBERT, NORMS, "--distilbert_cos_mask_padding")


def test_splits_of_a_batch() -> None:
    contract.assert_split_changes_nothing(*DISTILBERT, *COPA)


def test_widths_have_to_be_equal_for_the_cosine() -> None:
    wide = (*DISTILBERT, "--teacher_hidden_size=24")
    contract.assert_refused(r"DistilBERT needs equal hidden sizes: student 16 \(--hidden-size\) vs teacher 24 "
                            r"\(--teacher_hidden_size\).*--distilbert_alpha_cos=0", *wide)
    assert step(tiny_context(*wide, "--distilbert_alpha_cos=0")).loss.isfinite()


def test_something_has_to_be_learnt() -> None:
    with pytest.raises(ValueError, match=r"no loss term is switched on.*--distilbert_alpha_\* above 0"):
        tiny_context(*DISTILBERT, *(f"--distilbert_alpha_{name}=0" for name in ("ce", "mlm", "cos")))


@pytest.mark.distributed
def test_ranks_and_checkpointing_change_nothing() -> None:
    two = (*TWO_TEACHERS, "--mt_hidden_size=16:16", *DISTILBERT[len(TEACHER) + 1:])
    contract.assert_ranks_agree([(*DISTILBERT, NORMS), (*DISTILBERT, *COPA), two])
