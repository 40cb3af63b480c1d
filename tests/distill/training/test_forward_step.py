"""The forward step: label losses, denominators, the split of a batch, and steps without a term."""

from __future__ import annotations

import pytest
import torch

from distill.student import METHODS, register_method
from distill.training.forward_step import forward_step
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, choice_batch, step, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch


def test_plain_training_is_the_label_loss() -> None:
    context, batch = tiny_context(), tiny_lm_batch()
    output = step(context, batch)
    logits, _ = context.model(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    losses = -logits.log_softmax(-1).gather(-1, batch["labels"].unsqueeze(-1)).squeeze(-1) * batch["loss_mask"]
    torch.testing.assert_close(output.loss, losses.sum() / batch["loss_mask"].sum())
    torch.testing.assert_close(output.hard_loss_per_sample, losses.sum(-1) / batch["loss_mask"].sum(-1))
    assert torch.equal(output.loss, output.hard_loss) and output.parts == {}


def test_given_denominator() -> None:
    context = tiny_context()
    whole = step(context)
    tokens = tiny_lm_batch()["loss_mask"].sum()
    other = forward_step(context, tiny_lm_batch(), token_denominator=2 * tokens)
    torch.testing.assert_close(other.loss, whole.loss / 2)


def test_no_loss_token_is_zero_not_nan() -> None:
    batch = tiny_lm_batch()
    batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
    output = step(tiny_context(), batch)
    assert output.loss.item() == 0.0 and (output.hard_loss_per_sample == 0).all()


@pytest.mark.parametrize("flags", [(), (*TEACHER, "--student_model=kd", "--distill_pt_soft", "--distill_pt_hard"),
                                   (*TEACHER, "--student_model=logitsdistil"), (*TEACHER, "--student_model=tinybert")],
                         ids=["plain", "kd", "glmd", "tinybert"])
def test_the_split_into_micro_batches_changes_nothing(flags: tuple[str, ...]) -> None:
    """8 x 1 and 2 x 4 with one denominator: the mean of the micro-losses and of their gradients is the whole one."""
    batch = tiny_lm_batch(batch_size=8)
    whole, split = tiny_context(*flags), tiny_context(*flags)
    loss = step(whole, batch).loss
    tokens, losses = batch["loss_mask"].sum(), []
    for start in range(0, 8, 2):
        part = {name: value[start:start + 2] for name, value in batch.items()}
        losses.append(forward_step(split, part, token_denominator=tokens / 4).loss / 4)
        losses[-1].backward()
    torch.testing.assert_close(sum(losses), loss)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), split.model.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_padding_choices_do_not_compete_for_the_label() -> None:
    batch = choice_batch(choices=3)
    batch["loss_mask"] = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    batch["label"] = torch.tensor([1, 2, 0])
    output = step(tiny_context(*COPA), batch)
    assert output.hard_loss_per_sample[2].item() == pytest.approx(0.0, abs=1e-12)
    assert output.logits.shape == (3, 3)


def test_activation_checkpointing_changes_nothing() -> None:
    flags = (*TEACHER, "--student_model=tinybert", "--distill_logits_parallel")
    stored, recomputed = (tiny_context(*flags, checkpoint_activations=on) for on in (False, True))
    assert step(stored).loss.item() == step(recomputed).loss.item()
    for one, other in zip(stored.model.parameters(), recomputed.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_step_whose_terms_all_vanish_is_an_error() -> None:
    context = tiny_context(*TEACHER, "--student_model=tinybert", "--mt_disable_operation=1")
    with pytest.raises(ValueError, match="no loss term is switched on"):
        forward_step(context, tiny_lm_batch())


def test_operations_are_asked_for_per_teacher_and_used() -> None:
    seen: dict[str, object] = {}

    @register_method("with_operations")
    class WithOperations(METHODS["kd"]):
        def get_teacher_hook_op(self, t_no: int = 0, **kwargs: object) -> dict[str, object]:
            seen[f"teacher {t_no}"] = self.args.teacher_num_layers
            return {"input_ids": lambda input_ids: input_ids * 0 + 7 + t_no}

        def get_student_hook_op(self, teacher_models: object = None, **kwargs: object) -> dict[str, object]:
            seen["models"] = len(teacher_models)
            return {}

    try:
        context = tiny_context(*TWO_TEACHERS, "--student_model=with_operations", "--distill_pt_soft")
    finally:
        del METHODS["with_operations"]
    output = step(context)
    assert seen == {"teacher 0": 3, "teacher 1": 4, "models": 2}
    batch = tiny_lm_batch()
    for t_no, teacher in enumerate(context.teachers):
        logits, _ = teacher(torch.full_like(batch["tokens"], 7 + t_no), batch["position_ids"], batch["attention_mask"])
        torch.testing.assert_close(output.teacher_outputs[t_no]["logits"], logits)


def test_a_second_step_starts_its_record_anew() -> None:
    context = tiny_context(*TEACHER, "--student_model=kd", "--distill_pt_soft")
    assert len(step(context).recorded) == len(step(context).recorded)
