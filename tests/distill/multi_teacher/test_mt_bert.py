"""MT-BERT: the weights of the teachers, the projection and the LayerNorms, ranks, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distill.multi_teacher.mt_bert import MTBert
from model.parallel.sharding import ROWS, shard_spec_of
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, step, step_result, tiny_context

TWO = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=24:32")
MT_BERT = ("--multi_teacher_model=mt_bert", "--mt_has_loss")
PKD = (*TWO, *COPA, *MT_BERT, "--student_model=pkd", "--pkd_alpha=1", "--pkd_beta=1")
KD = (*TWO, *MT_BERT, "--student_model=kd")


def test_a_sample_counts_less_where_the_teacher_errs() -> None:
    """The formula, sample by sample, from what the models hand over."""
    context = tiny_context(*KD, *COPA, "--distill_ft_soft", "--mt_bert_wo_convert_layer")
    output, expected = step(context), 0.0
    for teacher in output.teacher_outputs:
        for b in range(len(output.logits)):
            q, log_p = teacher["logits"][b].softmax(-1), output.logits[b].detach().log_softmax(-1)
            expected += -float((q * log_p).sum()) / (1.0 + float(teacher["loss_batch"][b])) / len(output.logits)
    assert output.loss.item() == pytest.approx(expected + output.hard_loss.item(), rel=1e-12)
    assert output.parts["multi_teacher_model/hard_loss"] == output.hard_loss
    assert step(tiny_context(*KD, *COPA, "--distill_ft_soft", "--mt_bert_wo_convert_layer", "--mt_bert_wo_hard")
                ).loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fit", [("--mt_bert_fit_teacher",), ()])
def test_hidden_states_of_unequal_widths_meet(fit: tuple[str, ...]) -> None:
    context = tiny_context(*PKD, *fit)
    output, combiner = step(context), context.combiner
    for t_no, width in enumerate((24, 32)):
        layer = getattr(combiner, f"fit_dense_{t_no}")
        assert tuple(layer.weight.shape) == ((16, width) if fit else (width, 16)) and layer.weight.grad.abs().sum() > 0
        assert layer.bias.grad.abs().sum() > 0 and shard_spec_of(layer.weight) == ROWS
        assert output.parts[f"inter_loss/hidden_states.0_t{t_no}"] > 0
    assert all(parameter.grad is None for teacher in context.teachers for parameter in teacher.parameters())
    assert "student.multi_teacher_model.fit_dense_0.weight" in context.model.state_dict()


def test_one_teacher_is_projected_as_well() -> None:
    context = tiny_context(*TEACHER, *COPA, *MT_BERT, "--student_model=pkd")
    assert context.combiner.fit_dense_0.weight.shape == (24, 16) and step(context).loss.isfinite()


def test_a_method_that_reads_only_the_final_state_is_projected_as_well() -> None:
    context = tiny_context(*TWO, *MT_BERT, "--student_model=tinybert", "--tinybert_inter_final",
                           "--tinybert_fit_compatible_mt", "--mt_hidden_size=16:16")
    step(context)
    assert context.combiner.fit_dense_1.weight.grad.abs().sum() > 0


def test_layernorms_are_applied_once_and_only_the_students_learns() -> None:
    """Each teacher meets the student's states behind one LayerNorm, not behind one for every teacher before it."""
    flags = (*PKD, "--mt_bert_fit_teacher", "--mt_bert_fix_layernorm")
    context = tiny_context(*flags)
    with torch.no_grad():
        context.combiner.layernorm.weight.mul_(3.0)
    both = step(context)
    other = tiny_context(*flags, "--mt_disable_operation=1:0")
    other.model.load_state_dict(context.model.state_dict())
    alone = step(other)
    tag = "inter_loss/hidden_states.0_t1"
    torch.testing.assert_close(both.parts[tag], alone.parts[tag])
    assert context.combiner.layernorm.weight.grad.abs().sum() > 0
    frozen = context.combiner.t_layernorm_0
    assert not frozen.weight.requires_grad and torch.equal(frozen.bias, torch.zeros_like(frozen.bias))


def test_the_students_own_tensors_are_not_overwritten() -> None:
    """The projection of teacher 0 must not reach teacher 1: its term is the same with the teachers in either order."""
    first = tiny_context(*PKD)
    swapped = tiny_context(*PKD, "--mt_num_layers=4:3", "--mt_hidden_size=32:24")
    swapped.teachers = first.teachers[::-1]
    state = first.model.state_dict()
    names = {name: name.replace("fit_dense_0", "fit_dense_x").replace("fit_dense_1", "fit_dense_0").replace(
        "fit_dense_x", "fit_dense_1") for name in state}
    swapped.model.load_state_dict({names[name]: value for name, value in state.items()})
    torch.testing.assert_close(step(first).loss, step(swapped).loss, rtol=1e-12, atol=0)


def test_weights_take_no_gradient_from_a_live_teacher() -> None:
    context = tiny_context(*TEACHER, *MT_BERT, "--student_model=kd", "--distill_pt_soft", "--mt_has_grad",
                           "--distill_soft_rate=0", "--distill_logits_parallel", "--mt_bert_wo_hard")
    output = step(context)
    assert output.teacher_outputs[0]["loss_batch"].requires_grad and output.loss.isfinite()


@pytest.mark.distributed
@pytest.mark.parametrize("fit", ["--mt_bert_fit_teacher", "--mt_bert_fix_layernorm"])
def test_ranks_agree(fit: str) -> None:
    flags = (*PKD, "--distill_ft_soft", fit)
    whole, gradients = step_result(*flags)
    for loss, found in run_distributed(step_result, 2, *flags, model_parallel_size=2):
        assert loss == pytest.approx(whole, rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10)


def test_bf16_is_finite() -> None:
    assert step(tiny_context(*PKD, "--distill_ft_soft", dtype=torch.bfloat16)).loss.isfinite()


def test_errors(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="mt_bert weighs a teacher by its own label loss: add --mt_has_loss"):
        tiny_context(*TWO, "--student_model=kd", "--multi_teacher_model=mt_bert")
    with pytest.raises(ValueError, match="PKD needs equal hidden sizes: student 16 .* teacher 24"):
        tiny_context(*PKD, "--mt_bert_wo_convert_layer")
    with pytest.raises(ValueError, match="between the widths 16 .* and 24 .*tinybert does so itself: add --mt_bert_wo"):
        tiny_context(*TWO, *MT_BERT, "--student_model=tinybert", "--tinybert_fit_compatible_mt")
    assert tiny_context(*TWO, *MT_BERT, "--student_model=tinybert", "--tinybert_fit_compatible_mt",
                        "--mt_bert_wo_convert_layer").combiner is not None
    tiny_context(*KD, "--distill_pt_hard")
    assert "the label counts twice: mt_bert" in caplog.text


def test_a_hidden_state_of_another_width_is_named() -> None:
    """What a method did to its tensors in ``forward`` shows only in a step."""
    context = tiny_context(*PKD)
    combiner: MTBert = context.combiner
    combiner.fit_dense_0.weight.data = F.pad(combiner.fit_dense_0.weight.data, (0, 1))
    with pytest.raises(ValueError, match="expects hidden states of width 17, but pkd hands over 16"):
        step(context)
