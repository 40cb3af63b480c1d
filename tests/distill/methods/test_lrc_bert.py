"""LRC-BERT: the contrast in plain loops, negatives of other ranks, the perturbation by hand, ranks, errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distill.methods.lrc_bert import contrast, gather_rows
from distill.training.forward_step import StepContext, forward_step
from tests.distill.methods import contract
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import (
    CB,
    COPA,
    TEACHER,
    TWO_TEACHERS,
    batch_for,
    step,
    step_result,
    student_of,
    tiny_context,
)
from tests.helpers.tiny_model import tiny_lm_batch

LRC = (*TEACHER, "--student_model=lrc_bert")
TASK = (*LRC, *COPA)
PERTURB = ("--lrc_bert_gard_perturb", "--ignore_first_backward_gard", "--forward_repeat_num=1")
TWO = (*TWO_TEACHERS, "--mt_hidden_size=24:32", "--student_model=lrc_bert")
SOFT = ("--distill_pt_soft", "--distill_temperature=2")


def cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_loss_loops(alpha: float) -> None:
    context = tiny_context(*LRC, f"--lrc_bert_alpha={alpha}")
    output, s_taps, t_taps = contract.watched_step(context, tiny_lm_batch())
    weight, n = context.student.s_fit_dense[0].weight, 3
    c = [[0.0] * n for _ in range(n)]
    for k, seg in ((1, 2), (2, 3)):
        x = F.linear(s_taps[contract.state_name(k, 2)], weight).tolist()
        t = t_taps[contract.state_name(seg, 3)].tolist()
        for i in range(n):
            for j in range(n):
                c[i][j] += sum(cosine(a, b) for a, b in zip(x[i], t[j], strict=True)) / len(x[i]) / 2
    total = 0.0
    for i in range(n):
        own, others = 1 - c[i][i], [1 - c[i][j] for j in range(n) if j != i]
        total += (1 + own - (sum(others) / len(others) - own) / 2) / n
    assert output.loss.item() == pytest.approx(alpha * 2 * total, rel=1e-9)
    assert output.parts["inter_loss/hidden_states.1_t0"].item() == pytest.approx(alpha * 2 * total, rel=1e-6)


def test_one_projection_for_each_teacher() -> None:
    context = tiny_context(*TWO)
    shapes = {name: tuple(p.shape) for name, p in context.student.named_parameters() if name.startswith("student.")}
    assert shapes == {"student.s_fit_dense.0.weight": (24, 16), "student.s_fit_dense.1.weight": (32, 16)}
    output = step(context)
    assert {"inter_loss/hidden_states.1_t0", "inter_loss/hidden_states.1_t1"} <= output.parts.keys()
    assert all(layer.weight.grad.any() for layer in context.student.s_fit_dense)


def test_without_alpha_only_the_prediction_is_left() -> None:
    contract.assert_term_is_off(*LRC, *SOFT, "--lrc_bert_alpha=0")
    assert student_of(*LRC, *SOFT, "--lrc_bert_alpha=0").batch_coupled == ""
    assert student_of(*LRC).batch_coupled


# ---- negatives of other ranks -----------------------------------------------------------------------------------

def halves(gathers: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """This data-parallel rank's half of a batch of four."""
    rank = torch.distributed.get_rank()
    context = tiny_context(*LRC, *(("--lrc_bert_gather_dp",) if gathers else ()))
    batch = {name: value[2 * rank:2 * rank + 2] for name, value in tiny_lm_batch(4).items()}
    loss = step(context, batch).loss.item()
    return loss, {name: p.grad for name, p in context.model.named_parameters() if p.grad is not None}


@pytest.mark.distributed
def test_gathered_negatives_make_one_batch_of_all() -> None:
    whole = tiny_context(*LRC)
    loss = step(whole, tiny_lm_batch(4)).loss.item()
    (first, gradients), (second, others) = run_distributed(halves, 2, True)
    assert (first + second) / 2 == pytest.approx(loss, rel=1e-12)
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close((gradients[name] + others[name]) / 2, parameter.grad, rtol=1e-9, atol=1e-12)
    (alone, _), (also, _) = run_distributed(halves, 2, False)
    assert (alone + also) / 2 != pytest.approx(loss, rel=1e-6)


def unequal() -> None:
    gather_rows(torch.zeros(2 + torch.distributed.get_rank(), 4))


@pytest.mark.distributed
def test_ranks_of_unequal_shapes() -> None:
    with pytest.raises(ValueError, match=r"equal shapes .*\(2, 4\), \(3, 4\).*--fix_variable_num_choices"):
        run_distributed(unequal, 2)


def test_gathering_alone_changes_nothing() -> None:
    one, other = (step_result(*TASK, *flags) for flags in ((), ("--lrc_bert_gather_dp",)))
    assert one[0] == other[0]


# ---- perturbation -----------------------------------------------------------------------------------------------

def losses_with(context: StepContext, batch: dict[str, torch.Tensor], added: torch.Tensor | float) -> torch.Tensor:
    """The loss of a plain pass whose embeddings are moved by ``added``."""
    context.student.get_student_hook_op = lambda **kwargs: {
        "transformer": {"embeddings": lambda this, hidden_states: hidden_states + added}}
    return forward_step(context, batch).loss


@pytest.mark.parametrize("flags", [(*LRC, *SOFT, "--distill_pt_hard"), (*TASK, "--distill_ft_soft"), (*TWO, *SOFT)],
                         ids=["text", "copa", "two teachers"])
def test_perturbation_by_hand(flags: tuple[str, ...]) -> None:
    context, plain = tiny_context(*flags, *PERTURB), tiny_context(*flags)
    batch = batch_for(context)
    output = step(context, batch)
    rows = batch["text"].numel() // batch["text"].shape[-1] if "text" in batch else len(batch["tokens"])
    length = (batch["text"] if "text" in batch else batch["tokens"]).shape[-1]
    zero = torch.zeros(rows, length, 16, dtype=torch.float64, requires_grad=True)
    first = losses_with(plain, batch, zero)
    gradient, = torch.autograd.grad(first, zero)
    norm = gradient.norm(dim=-1, keepdim=True)
    second = losses_with(plain, batch, gradient / norm.clamp(min=1e-12))
    assert output.passes[0].loss.item() == pytest.approx(first.item(), rel=1e-12)
    torch.testing.assert_close(output.loss, second)
    second.backward()
    for one, other in zip(context.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert context.student._perturbation is None and context.student._embeddings is None


def test_the_first_pass_gives_no_gradient_to_parameters() -> None:
    context = tiny_context(*LRC, *PERTURB)
    forward_step(context, tiny_lm_batch())
    assert all(p.grad is None for p in context.model.parameters())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_perturbs_nothing(broken: float) -> None:
    plain, context = tiny_context(*LRC), tiny_context(*LRC, *PERTURB)
    after_pass = context.student.after_pass
    context.student.after_pass = lambda loss: after_pass(loss * broken if context.run.repeat == 0 else loss)
    assert step(context).loss.item() == pytest.approx(step(plain).loss.item(), rel=1e-12)


def test_a_loss_without_gradient_perturbs_nothing() -> None:
    context = tiny_context(*LRC, *PERTURB, "--lrc_bert_alpha=0", "--distill_pt_hard")
    after_pass = context.student.after_pass
    context.student.after_pass = lambda loss: after_pass(0.0 if context.run.repeat == 0 else loss)
    assert step(context).loss.item() == pytest.approx(step(tiny_context()).loss.item(), rel=1e-12)


def test_evaluation_is_not_perturbed() -> None:
    context = tiny_context(*LRC, *PERTURB)
    context.run.is_training = False
    assert forward_step(context, tiny_lm_batch()).loss.item() == step(tiny_context()).loss.item()


# ---- what every method has to do --------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_layers(sizes: tuple[int, int]) -> None:
    expected = list(enumerate(contract.LAYER_MAPS[sizes]))[1:]
    assert contract.matched_layers(sizes, *LRC) == {"hidden_states": expected}


@pytest.mark.parametrize("flags", [LRC, TASK, (*LRC, *CB, *PERTURB, "--distill_ft_soft")], ids=["text", "copa", "cb"])
def test_gradients_reductions_and_odd_batches(flags: tuple[str, ...]) -> None:
    contract.assert_learns(*flags)
    contract.assert_finite(*flags)
    contract.assert_reductions_agree(*flags)


def test_recomputed_activations() -> None:
    stored, recomputed = (step_result(*TASK, *PERTURB, checkpoint_activations=on) for on in (False, True))
    assert stored[0] == pytest.approx(recomputed[0], rel=1e-12)
    for name, gradient in stored[1].items():
        torch.testing.assert_close(recomputed[1][name], gradient)


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([LRC, (*TASK, *PERTURB), TWO])


def test_a_single_sample_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="at least 2 samples.*--batch-size"):
        contrast(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="at least 2 samples"):
        step(tiny_context(*LRC), tiny_lm_batch(1))


@pytest.mark.parametrize(("flags", "message"), [
    (("--lrc_bert_gard_perturb",), r"needs --forward_repeat_num=1 \(not 0\) and --ignore_first_backward_gard"),
    (("--lrc_bert_gard_perturb", "--forward_repeat_num=1"), "and --ignore_first_backward_gard"),
    ((*PERTURB, "--distill_random_data=replace"), "--distill_random_data exclude each other"),
    (("--num-layers=4",), "student layers <= teacher layers: student 4"),
    (("--lrc_bert_alpha=0",), "no loss term is switched on.*--lrc_bert_alpha above 0")])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_context(*LRC, *flags)
