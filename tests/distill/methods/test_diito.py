"""DIITO: the interchange by hand, positions, levels, weights, both passes in plain formulas, ranks, errors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch

from distill.methods.diito import chosen_positions, interchange
from distill.training.forward_step import StepContext, forward_step
from distill.training.run_state import RunState
from model.taps import TapRequest, tapped
from tests.distill.methods import contract
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, step_result, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

SIZES = (*TEACHER, "--teacher_hidden_size=16", "--student_model=diito", "--forward_repeat_num=1")
TEXT = (*SIZES, "--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=2")
TASK = (*SIZES, *COPA, "--distill_ft_soft", "--distill_ft_hard")
ALPHAS = ("--diito_alpha_mlm=0.5", "--diito_alpha_ce=0.75", "--diito_alpha_causal_ce=2", "--diito_alpha_cos=0.125",
          "--diito_alpha_causal_cos=3")


def zero(*names: str) -> tuple[str, ...]:
    return tuple(f"--diito_alpha_{name}=0" for name in names)


# ---- positions and the swap -------------------------------------------------------------------------------------

def test_interchange_loops() -> None:
    x, source = torch.randn(3, 5, 2, requires_grad=True), torch.randn(3, 5, 2, requires_grad=True)
    own = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    partner = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]).bool()
    before = x.detach().clone()
    result = interchange(x, source, own, partner)
    expected = before.clone()
    for b, p, q in ((0, 0, 3), (0, 2, 4), (2, 3, 0), (2, 4, 4)):
        expected[b, p] = source[b, q]
    assert torch.equal(result, expected) and torch.equal(x, before)
    result.sum().backward()
    assert torch.equal(x.grad[..., 0], (~own).float()) and torch.equal(source.grad[..., 0], partner.float())


@pytest.mark.parametrize("window", [True, False])
def test_chosen_positions(window: bool) -> None:
    generator, places = random.Random(1), [0, 1, 2, 3, 4, 5, 6]
    seen = set()
    for _ in range(200):
        mask = chosen_positions(places, 3, window, generator, 10)
        chosen = [i for i, is_chosen in enumerate(mask) if is_chosen]
        assert len(chosen) == 3 and max(chosen) < 7 and len(mask) == 10
        assert not window or chosen == list(range(chosen[0], chosen[0] + 3))
        seen.update(chosen)
    assert seen == set(places)
    assert chosen_positions(places, 0, window, generator, 10) == [False] * 10


def positions_of(*flags: str, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    student = student_of(*TEXT, *flags)
    real = (batch["position_ids"][:, 0] > 0).float()
    real[:, 0] = 1
    return student._draw_positions(real, batch["loss_mask"])


@pytest.mark.parametrize("way", ["consecutive", "random"])
def test_counts_follow_the_shorter_of_two_neighbours(way: str) -> None:
    batch = tiny_lm_batch(4)
    lengths = [int((row > 0).sum()) + 1 for row in batch["position_ids"][:, 0]]
    assert len(set(lengths)) > 1
    own, partner = positions_of(f"--diito_interchange_way={way}", "--diito_interchange_prop=0.5", batch=batch)
    for b in range(4):
        other = lengths[(b + 1) % 4]
        count = int(min(lengths[b], other) * 0.5)
        assert own[b].sum() == partner[b].sum() == count
        assert not own[b, lengths[b]:].any() and not partner[b, other:].any()
    own, partner = positions_of(f"--diito_interchange_way={way}", "--diito_interchange_max_token=2", batch=batch)
    assert own.sum(1).tolist() == partner.sum(1).tolist() == [2] * 4


def test_masked_positions_are_the_predicted_ones() -> None:
    batch = tiny_lm_batch(4)
    own, partner = positions_of("--diito_interchange_way=masked", batch=batch)
    predicted = batch["loss_mask"].bool()
    assert own.sum(1).tolist() == partner.sum(1).tolist()
    assert (own & ~predicted).sum() == 0
    lengths = [int((row > 0).sum()) + 1 for row in batch["position_ids"][:, 0]]
    for b in range(4):
        assert own[b].sum() == min(int(predicted[b].sum()), lengths[(b + 1) % 4])
        assert not partner[b, lengths[(b + 1) % 4]:].any()


def drawn() -> tuple[list[list[bool]], list[list[int]]]:
    student = student_of(*TEXT, "--num-layers=3", "--diito_interchange_way=random")
    own, _ = student._draw_positions(torch.ones(4, 16), None)
    return own.tolist(), [student.levels(None) for student.run.iteration in range(8)]


@pytest.mark.distributed
def test_ranks_of_a_model_draw_alike_and_data_parallel_ones_only_the_level() -> None:
    ranks = run_distributed(drawn, 4, model_parallel_size=2)
    assert ranks[0] == ranks[1] and ranks[2] == ranks[3]
    assert ranks[0][0] != ranks[2][0] and ranks[0][1] == ranks[2][1]


# ---- levels -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sizes", contract.LAYER_MAPS)
def test_levels(sizes: tuple[int, int]) -> None:
    depth, t_depth, seg = *sizes, contract.LAYER_MAPS[sizes]
    flags = (*TEXT, f"--num-layers={depth}", f"--teacher_num_layers={t_depth}")
    student = student_of(*flags)
    seen = set()
    for iteration in range(60):
        student.run.iteration = iteration
        k, = student.levels(None)
        student.run.micro_step = 1
        assert student.levels(None) == [k]
        student.run.micro_step = 0
        seen.add(k)
        assert student.levels(0) == list(range(seg[k - 1] + 1, seg[k] + 1))
    assert seen == set(range(1, depth + 1))
    middle = student_of(*flags, "--diito_alignment=middle")
    assert middle.levels(None) == [depth // 2 + 1] and middle.levels(0) == [t_depth // 2 + 1]
    late = student_of(*flags, "--diito_alignment=late")
    assert late.levels(None) == [depth - 1, depth] and late.levels(0) == [t_depth - 1, t_depth]


# ---- both passes ------------------------------------------------------------------------------------------------

def plain_outputs(context: StepContext, batch: dict[str, torch.Tensor], hook_op: list[dict], hooks: list[dict]) -> list:
    """(logits, tapped) of student and teacher, without any student machinery."""
    found = []
    for model, depth, op, hook in zip((context.student.origin_model, context.teachers[0]), (2, 3), hook_op, hooks):
        logits, values = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], hook=hook, hook_op=op)
        found.append((logits, values, TapRequest.from_hook(hook, depth).fill(hook)))
    return found


def swapped(source: torch.Tensor, own: list[list[int]], partner: list[list[int]]) -> Callable[..., torch.Tensor]:
    def operation(**tensors: torch.Tensor) -> torch.Tensor:
        x, = tensors.values()
        rows = [list(row) for row in x]
        for b in range(len(x)):
            for p, q in zip(own[b], partner[b], strict=True):
                rows[b][p] = source[(b + 1) % len(x)][q]
        return torch.stack([torch.stack(row) for row in rows])

    return operation


def cosine_mean(s: torch.Tensor, t: torch.Tensor, real: torch.Tensor) -> float:
    total = 0.0
    for x, y, m in zip(s.flatten(0, 1).tolist(), t.flatten(0, 1).tolist(), real.flatten().tolist(), strict=True):
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        total += m * (1 - dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))) + 1 - m
    return total / real.numel()


@pytest.mark.parametrize("alignment", ["middle", "late"])
def test_both_passes_by_hand(alignment: str) -> None:
    """2 student layers, 3 of the teacher: middle is the output beside state 2; late the last two states of each."""
    context, batch = tiny_context(*TEXT, *ALPHAS, f"--diito_alignment={alignment}"), tiny_lm_batch()
    own, partner = [[1, 2], [0, 3], [2, 4]], [[0, 1], [1, 2], [3, 4]]
    masks = [[[i in row for i in range(16)] for row in rows] for rows in (own, partner)]
    context.student.injected_draws = {"diito_interchange_mask": masks[0], "diito_dual_interchange_mask": masks[1]}
    output = step(context, batch)
    kept = {"middle": ((2,), (2,)), "late": ((1, 2), (2, 3))}[alignment]
    hooks = [{"transformer": {"output": None, "layers": {k: {"layernorm_output": None} for k in levels if k < depth}}}
             for levels, depth in zip(kept, (2, 3))]
    factual = plain_outputs(context, batch, [{}, {}], hooks)
    operations = []
    for (_, values, hook), levels, depth in zip(factual, kept, (2, 3)):
        layers, body = {}, {}
        for k in levels:
            path = ("transformer", "output") if k == depth else ("transformer", "layers", k, "layernorm_output")
            source = tapped(values, hook, *path)
            if k == depth:
                body["output"] = swapped(source, own, partner)
            else:
                layers[k] = {"layernorm_output": swapped(source, own, partner)}
        operations.append({"transformer": {**body, "layers": layers}})
    counterfactual = plain_outputs(context, batch, operations, [{"transformer": {"output": None}} for _ in range(2)])
    real = (batch["position_ids"][:, 0] > 0).float()
    real[:, 0] = 1
    mask, soft, cos = batch["loss_mask"], [], []
    for (s_logits, s_vars, s_hook), (t_logits, t_vars, t_hook) in (factual, counterfactual):
        p, q = ((z / 2).log_softmax(-1) for z in (s_logits, t_logits))
        soft.append(4 * ((q.exp() * (q - p)).sum(-1) * mask).mean())
        cos.append(cosine_mean(tapped(s_vars, s_hook, "transformer", "output"),
                               tapped(t_vars, t_hook, "transformer", "output"), real))
    expected = 0.5 * output.hard_loss + 0.75 * soft[0] + 0.125 * cos[0] + 2 * soft[1] + 3 * cos[1]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(output.passes[1].logits, counterfactual[0][0])
    torch.testing.assert_close(output.passes[1].teacher_outputs[0]["logits"], counterfactual[1][0])
    # The kept activations are not detached: the gradient of the whole agrees too.
    gradients = {name: p.grad.clone() for name, p in context.student.named_parameters()}
    context.model.zero_grad()
    loss = 0.5 * hard(context, batch, factual[0][0]) + 0.75 * soft[0] + 2 * soft[1] + sum(
        weight * torch_cosine(outputs, real) for weight, outputs in ((0.125, factual), (3.0, counterfactual)))
    loss.backward()
    for name, parameter in context.student.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-11)


def hard(context: StepContext, batch: dict[str, torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
    losses = -logits.log_softmax(-1).gather(-1, batch["labels"].unsqueeze(-1)).squeeze(-1) * batch["loss_mask"]
    return losses.sum() / batch["loss_mask"].sum()


def torch_cosine(outputs: list, real: torch.Tensor) -> torch.Tensor:
    s, t = (tapped(values, hook, "transformer", "output") for _, values, hook in outputs)
    return (real * (1 - torch.cosine_similarity(s, t, dim=-1))).mean()


def test_terms_and_their_names() -> None:
    output = step(tiny_context(*TEXT))
    tags = [tag for tag, _ in output.recorded if not tag.startswith("teacher_loss")]
    assert tags == ["other/s_alignment_layer", "Train/hard_loss", "pre_loss/pt_soft_t0", "pre_loss/pt_hard_t0",
                    "inter_loss/diito_alpha_cos_0_t0", "Train/hard_loss", "pre_loss/pt_soft_t0_repeat1_causal1",
                    "inter_loss/diito_alpha_cos_1_t0_repeat1"]


@pytest.mark.parametrize("name", ["mlm", "ce", "causal_ce", "cos", "causal_cos"])
def test_a_weight_of_zero_removes_the_term(name: str) -> None:
    others = [other for other in ("mlm", "ce", "causal_ce", "cos", "causal_cos") if other != name]
    without, only = step(tiny_context(*TEXT, *zero(name))), step(tiny_context(*TEXT, *zero(*others)))
    whole = step(tiny_context(*TEXT))
    torch.testing.assert_close(without.loss + only.loss, whole.loss)
    removed = {tag for tag, _ in whole.recorded} - {tag for tag, _ in without.recorded}
    assert len([tag for tag in removed if not tag.startswith("teacher_loss")]) == 1


def test_rates_of_other_methods_are_not_read() -> None:
    assert (step(tiny_context(*TEXT, "--distill_soft_rate=0.1", "--distill_hard_rate=0.1")).loss.item()
            == step(tiny_context(*TEXT)).loss.item())


def test_masked_constants_can_be_left_out() -> None:
    one, other = step(tiny_context(*TEXT)), step(tiny_context(*TEXT, "--distill_mask_wo_constant"))
    real = tiny_lm_batch()["position_ids"][:, 0] > 0
    real[:, 0] = True
    # Two cosine terms, each with 1 per padding row in its mean over all positions.
    assert (one.loss - other.loss).item() == pytest.approx(2 * (~real).double().mean().item(), rel=1e-6)


def test_nothing_is_kept_after_a_step_and_steps_differ() -> None:
    context = tiny_context(*TEXT, run=RunState(seed=1))
    losses = []
    for context.run.iteration in range(4):
        losses.append(forward_step(context, tiny_lm_batch()).passes[1].loss.item())
        assert context.student._kept == {} and context.student._positions is None
    assert len(set(losses)) == 4
    again = tiny_context(*TEXT, run=RunState(seed=1, iteration=3))
    assert forward_step(again, tiny_lm_batch()).passes[1].loss.item() == losses[3]


def test_a_teacher_that_joins_in_the_second_pass_only() -> None:
    """Activations are kept for every teacher, whichever ones the combiner lets survive a pass."""
    context = tiny_context(*TWO_TEACHERS, "--mt_hidden_size=16:16", *TEXT[len(TEACHER):],
                           "--avgmt_teacher_survival_p=0.5")
    context.student.injected_draws = {"avgmt_survivors": lambda iteration, micro, repeat: [[], [0, 1]][repeat]}
    output = step(context)
    assert {f"inter_loss/diito_alpha_cos_1_t{t_no}_repeat1" for t_no in (0, 1)} <= output.parts.keys()


# ---- what every method has to do --------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [TEXT, (*TEXT, "--diito_alignment=late"), TASK], ids=["full", "late", "copa"])
def test_gradients_reductions_and_odd_batches(flags: tuple[str, ...]) -> None:
    contract.assert_learns(*flags)
    contract.assert_finite(*flags)
    if "--finetune" not in flags:  # there a row of the batch is a choice, and the label loss belongs to a sample
        contract.assert_reductions_agree(*flags, *zero("mlm"))


@pytest.mark.parametrize("alignment", ["full", "middle", "late"])
def test_recomputed_activations(alignment: str) -> None:
    flags = (*TEXT, f"--diito_alignment={alignment}")
    stored, recomputed = (step_result(*flags, checkpoint_activations=on) for on in (False, True))
    assert stored[0] == pytest.approx(recomputed[0], rel=1e-12)
    for name, gradient in stored[1].items():
        torch.testing.assert_close(recomputed[1][name], gradient)


@pytest.mark.distributed
def test_ranks() -> None:
    contract.assert_ranks_agree([TEXT, (*TASK, "--diito_alignment=late")])


@pytest.mark.parametrize(("flags", "message"), [
    ((*TEXT, "--forward_repeat_num=0"), r"diito needs --forward_repeat_num=1 \(not 0\)"),
    ((*TEXT, "--ignore_first_backward_gard"), "without --ignore_first_backward_gard"),
    ((*TEXT, "--distill_random_data=dual"), "--distill_random_data exclude each other"),
    ((*TEXT, "--teacher_hidden_size=24"), r"equal hidden sizes: student 16 \(--hidden-size\) vs teacher 24"),
    ((*TEXT, "--num-layers=4"), "student layers <= teacher layers: student 4"),
    ((*TEXT, "--diito_interchange_prop=0"), "--diito_interchange_prop=0.0 must be a share"),
    ((*SIZES, "--distill_pt_soft"), "--diito_alpha_mlm=1.0 has no effect without --distill_pt_hard"),
    ((*SIZES, "--distill_pt_hard"), "--diito_alpha_ce=1.0 has no effect without --distill_pt_soft")])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    contract.assert_refused(message, *flags)


def test_unequal_widths_without_cosine() -> None:
    flags = (*TEXT, "--teacher_hidden_size=24", *zero("cos", "causal_cos"))
    assert step(tiny_context(*flags)).loss.isfinite()


def test_deep_students_may_align_the_middle() -> None:
    assert step(tiny_context(*TEXT, "--num-layers=4", "--diito_alignment=middle")).loss.isfinite()


def test_a_single_sample_and_a_disabled_teacher() -> None:
    with pytest.raises(ValueError, match="at least 2 in a micro-batch.*--batch-size"):
        step(tiny_context(*TEXT), tiny_lm_batch(1))
    with pytest.raises(ValueError, match="--mt_disable_operation switches it off"):
        step(tiny_context(*TEXT, "--mt_disable_operation=1"))
