"""Uncertainty: entropy, rates, ranks of teachers, gradient through the entropy, errors."""

from __future__ import annotations

import math

import pytest
import torch

from distill.multi_teacher.uncertainty import Uncertainty
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, step, step_result, tiny_context, watch_losses
from tests.helpers.tiny_model import tiny_lm_batch

TWO = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=24:32", "--multi_teacher_model=uncertainty",
       "--student_model=kd")
SOFT = (*TWO, "--distill_pt_soft", "--distill_hard_rate=0.5")
CHOICE = (*TWO, *COPA, "--distill_ft_soft", "--distill_hard_rate=0.5")


def combiner_of(*flags: str) -> Uncertainty:
    return tiny_context(*flags).combiner


@pytest.mark.parametrize("flags", [(), ("--uncertainty_wo_loss_mask",), ("--uncertainty_only_mask_pad",),
                                   ("--uncertainty_valid",)])
def test_entropy_of_tokens(flags: tuple[str, ...]) -> None:
    """Position by position; a masked one counts as uniform, or not at all."""
    context, batch = tiny_context(*SOFT, *flags), tiny_lm_batch()
    logits = step(context, batch).logits.detach()
    mask = batch["loss_mask"] > 0
    if flags == ("--uncertainty_wo_loss_mask",):
        mask = torch.ones_like(mask)
    if flags == ("--uncertainty_only_mask_pad",):
        mask = batch["labels"] > 0
    rates = []
    for b in range(len(logits)):
        values = []
        for position in range(logits.shape[1]):
            p = logits[b, position].softmax(-1)
            entropy = -sum(float(x) * math.log(float(x)) for x in p) / math.log(64)
            if mask[b, position] or flags != ("--uncertainty_valid",):
                values.append(entropy if mask[b, position] else 1.0)
        rates.append(sum(values) / len(values))
    seen: list[torch.Tensor] = []
    original = context.combiner.rates
    context.combiner.rates = lambda u, count: seen.append(u) or original(u, count)
    step(context, batch)
    assert seen[0].tolist() == pytest.approx(rates, rel=1e-9)


def test_soft_rates_by_rank() -> None:
    combiner, u = combiner_of(*CHOICE), torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    rates = combiner.rates(u, 3)
    for b, value in enumerate(u.tolist()):
        weights = [value + (1 - 2 * value) * k / 2 for k in range(3)]
        assert rates[b].tolist() == pytest.approx([3 * w / sum(weights) for w in weights])
    assert rates[2].argmax() == 0 and rates[0].argmax() == 2, "the uncertain sample listens to the small teacher"
    assert combiner.rates(u, 1).tolist() == [[1.0]] * 3
    assert combiner_of(*CHOICE, "--uncertainty_wo_rate").rates(u, 2).tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize(("samples", "count"), [(4, 2), (5, 2), (7, 3), (3, 3)])
def test_hard_selection(samples: int, count: int) -> None:
    combiner, u = combiner_of(*CHOICE, "--uncertainty_hard"), torch.rand(samples, dtype=torch.float64)
    u[0] = u[-1]  # a tie: the earlier sample comes first
    rates = combiner.rates(u, count)
    order = sorted(range(samples), key=lambda b: (-float(u[b]), b))
    for place, b in enumerate(order, start=1):
        rho = place * count / samples
        assert rates[b].tolist() == [1.0 if k < rho <= k + 1 else 0.0 for k in range(count)]
    assert (rates.sum(1) == 1).all()


def test_too_few_samples_for_hard_selection(caplog: pytest.LogCaptureFixture) -> None:
    hard, soft = combiner_of(*CHOICE, "--uncertainty_hard"), combiner_of(*CHOICE)
    u = torch.rand(2, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(hard.rates(u, 3), soft.rates(u, 3))
    assert caplog.text.count("--uncertainty_hard needs at least as many samples as teachers") == 1


@pytest.mark.parametrize("flags", [(), ("--uncertainty_teacher_seq=1:0",)])
def test_loss_of_a_step(flags: tuple[str, ...]) -> None:
    context = tiny_context(*CHOICE, *flags)
    output, expected = step(context), 0.0
    scores = output.logits.detach()
    u = -(scores.softmax(-1) * scores.log_softmax(-1)).sum(-1) / math.log(2)
    rates = context.combiner.rates(u, 2)
    for t_no, teacher in enumerate(output.teacher_outputs):
        rank = 1 - t_no if flags else t_no
        for b in range(len(scores)):
            soft = -float((teacher["logits"][b].softmax(-1) * scores[b].log_softmax(-1)).sum())
            expected += float(rates[b, rank]) * soft / len(scores) / 2
    assert output.loss.item() == pytest.approx(expected + 0.5 * output.hard_loss.item(), rel=1e-10)


def test_intermediate_losses_by_entropy() -> None:
    flags = (*TEACHER, *COPA, "--multi_teacher_model=uncertainty", "--student_model=tinybert", "--distill_ft_soft",
             "--uncertainty_wo_hard")
    context = tiny_context(*flags, "--uncertainty_inter_entropy")
    kept = watch_losses(context.student)
    output = step(context)
    u = context.combiner.entropy(_step_of(output.logits)).detach()
    inter = kept["intermediate_loss"].detach().view(3, 2).mean(1)  # each sample's two choices
    expected = (u * inter).mean() + ((1 - u) * kept["prediction_loss"].detach()).mean()
    torch.testing.assert_close(output.loss.detach(), expected)


def _step_of(logits: torch.Tensor) -> object:
    return type("Outputs", (), {"s_out": {"logits": logits}})


def test_detach_stops_the_gradient_through_the_entropy() -> None:
    with_entropy, without = tiny_context(*SOFT), tiny_context(*SOFT, "--uncertainty_detach")
    assert step(with_entropy).loss == step(without).loss
    gradients = [context.student.origin_model.word_embeddings.weight.grad for context in (with_entropy, without)]
    assert not torch.allclose(*gradients)


@pytest.mark.distributed
@pytest.mark.parametrize("flags", [(*SOFT,), (*CHOICE, "--uncertainty_hard")], ids=["tokens", "hard"])
def test_ranks_agree(flags: tuple[str, ...]) -> None:
    """The entropy is over the whole vocabulary, at any model-parallel size."""
    whole, gradients = step_result(*flags)
    for loss, found in run_distributed(step_result, 2, *flags, model_parallel_size=2):
        assert loss == pytest.approx(whole, rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-10)


def test_hard_selection_couples_the_batch() -> None:
    assert combiner_of(*CHOICE, "--uncertainty_hard").batch_coupled and not combiner_of(*CHOICE).batch_coupled


def test_bf16_is_finite() -> None:
    assert step(tiny_context(*SOFT, dtype=torch.bfloat16)).loss.isfinite()


@pytest.mark.parametrize("seq", ["0:0", "0:2", "0", "0:1:2", "a:b"])
def test_ranks_are_a_permutation(seq: str) -> None:
    with pytest.raises(ValueError, match=f"--uncertainty_teacher_seq={seq} must name each of the ranks 0 to 1 once"):
        combiner_of(*CHOICE, f"--uncertainty_teacher_seq={seq}")


def test_counting_the_label_twice_is_told(caplog: pytest.LogCaptureFixture) -> None:
    combiner_of(*CHOICE, "--distill_ft_hard")
    assert "the label counts twice: uncertainty" in caplog.text
