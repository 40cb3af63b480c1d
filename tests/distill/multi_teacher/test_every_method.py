"""Every method under every combiner, with teachers of unequal depths and widths: it trains, or says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from distill.distill_model import GLMStudent, mse, register_method, tapped
from distill.student import METHODS
from tests.helpers.tiny_distill import COPA, TEACHER, step, tiny_context, watch_losses

#: Teacher 0 is RL-KD's encoder.
TEACHERS = (*TEACHER, "--mt_num_layers=3:3:4")
COMBINERS = {
    "avg": ("--avgmt_sum_loss",),
    "mt_bert": ("--mt_has_loss", "--mt_bert_fit_teacher"),
    "uncertainty": ("--uncertainty_inter_entropy",),
    "rl_kd": ("--mt_has_loss", "--rl_kd_semantic_model=0"),
    "mixmt": ("--mt_has_loss", "--mixmt_model=AvgTeacher,Uncertainty,RL_KD", "--rl_kd_semantic_model=0")}
#: What a method needs beside the common flags.
OPTIONS = {
    "tinybert": ("--tinybert_fit_compatible_mt",), "rail_kd": ("--rail_kd_u=8",),
    "minilmv2": ("--minilmv2_relation_heads=8", "--minilmv2_teacher_layer=-1"),
    "mixbaseline": ("--mixbaseline_inter_bl=TinyBERT,MiniLMv2", "--tinybert_fit_compatible_mt",
                    "--minilmv2_relation_heads=8", "--minilmv2_teacher_layer=-1"),
    "annealing_kd": ("--distill_ft_soft_mse",), "continuation_kd": ("--distill_ft_soft_mse", "--distill_ft_hard"),
    "diito": ("--forward_repeat_num=1", "--diito_alpha_mlm=0"), "mgskd": ("--mgskd_multi_heads=4",)}
#: Methods that compare hidden states of equal width and have no projection of their own.
EQUAL = {"alp_kd", "diito", "distilbert", "mobilebert", "pkd", "sid", "theseus"}
#: Those of them that take the states as MT-BERT's projection hands them over.
FITTED = EQUAL - {"diito", "theseus"}
#: Methods with a projection of their own, or the teachers' word tables: not together with MT-BERT's.
OWN_WIDTHS = {"erdistill", "lrc_bert", "mixbaseline", "rail_kd", "tinybert", "universal_kd"}


class _FinalOutputs(GLMStudent):
    """The extension example of the README."""

    def get_teacher_hook(self, **kwargs):
        return {"transformer": {"output": None}}

    def get_student_hook(self, **kwargs):
        return {"transformer": {"output": None}}

    def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch=False, **kwargs):
        return mse(tapped(s_inter_vars, s_hook, "transformer", "output"),
                   tapped(t_inter_vars, t_hook, "transformer", "output"), keep_batch=keep_batch)


@pytest.fixture
def final_outputs() -> Iterator[str]:
    register_method("final_outputs_of_teachers")(_FinalOutputs)
    yield "final_outputs_of_teachers"
    del METHODS["final_outputs_of_teachers"]


def flags_for(method: str, combiner: str, widths: str) -> tuple[str, ...]:
    return (*TEACHERS, *COPA, f"--mt_hidden_size={widths}", f"--student_model={method}", "--distill_ft_soft",
            f"--multi_teacher_model={combiner}", *COMBINERS[combiner], *OPTIONS.get(method, ()))


def expected_error(method: str, combiner: str) -> str:
    """What is said for teachers of other widths than the student's 16; empty: nothing."""
    if method in EQUAL and not (combiner == "mt_bert" and method in FITTED):
        return "equal hidden sizes"
    return "--mt_bert_wo_convert_layer|--erdistill_wo_global" if combiner == "mt_bert" and method in OWN_WIDTHS else ""


def trains(*flags: str) -> None:
    """Two steps: RL-KD's agent learns from the second on."""
    context = tiny_context(*flags)
    for context.run.iteration in (0, 1):
        output = step(context)
    assert output.loss.isfinite()
    gradients = [p.grad for p in context.student.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert all(p.grad is None for teacher in context.teachers for p in teacher.parameters())
    for t_no in {0, 1, 2} - context.combiner.unused:
        assert any(tag.endswith(f"_t{t_no}") for tag in output.parts), t_no


@pytest.mark.parametrize(("method", "combiner"), [
    (method, combiner) for method in sorted(METHODS) for combiner in COMBINERS])
def test_unequal_widths(method: str, combiner: str) -> None:
    flags = flags_for(method, combiner, "24:24:32")
    if message := expected_error(method, combiner):
        with pytest.raises(ValueError, match=message):
            tiny_context(*flags)
    else:
        trains(*flags)


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("method", sorted(EQUAL - FITTED) + ["pkd"])
def test_equal_widths(method: str, combiner: str) -> None:
    trains(*flags_for(method, combiner, "32:16:16" if combiner == "rl_kd" and method == "pkd" else "16:16:16"))


@pytest.mark.parametrize("combiner", COMBINERS)
def test_the_extension_example(final_outputs: str, combiner: str) -> None:
    trains(*flags_for(final_outputs, combiner, "24:24:32" if combiner == "mt_bert" else "16:16:16"))


def test_one_teacher_through_the_average_is_the_plain_sum() -> None:
    """Wrapping a single teacher changes no bit of the loss."""
    context = tiny_context(*TEACHER, *COPA, "--student_model=tinybert", "--distill_ft_soft")
    kept = watch_losses(context.student)
    assert torch.equal(step(context).loss, kept["prediction_loss"] + kept["intermediate_loss"])


@pytest.mark.parametrize("flags", [
    (*COPA, "--distill_ft_soft", "--distill_ft_soft_mse", "--distill_ft_hard", "--distill_hard_rate=1/teacher_num",
     "--multi_teacher_model=tmkd"),
    (*COPA, "--distill_ft_soft", "--distill_soft_rate=0.5", "--distill_hard_rate=0.5", "--avgmt_sum_loss",
     "--avgmt_teacher_survival_p=0.75")], ids=["TMKD", "DGKD"])
def test_recipes(flags: tuple[str, ...]) -> None:
    context = tiny_context(*TEACHER, "--mt_num_layers=3:4", "--student_model=kd", *flags)
    output = step(context)
    parts, hard = output.parts, output.hard_loss.detach()
    alive = [i for i in (0, 1) if f"pre_loss/ft_soft_t{i}" in parts]
    soft = sum(parts[f"pre_loss/ft_soft_t{i}"] for i in alive)
    expected = soft / 2 + hard / 2 if "--multi_teacher_model=tmkd" in flags else soft + 0.5 * hard
    torch.testing.assert_close(output.loss.detach(), expected)
