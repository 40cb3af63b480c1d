"""TinyBERT: which tensors meet, the loss against plain loops, gradients, projections, random layers, ranks, errors."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F

from distill.training.run_state import RunState
from model.parallel.sharding import shard_spec_of
from model.taps import TapRequest, tapped
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, step_result, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

TINYBERT = (*TEACHER, "--student_model=tinybert")
ALL_ATTENTION = [("att", 1, 2), ("att", 2, 3)]
ALL_HIDDEN = [("hid", 0, 0), ("hid", 1, 2), ("hid", 2, 3)]
PAIRS = {
    (): ALL_ATTENTION + ALL_HIDDEN,
    ("--tinybert_wo_att",): ALL_HIDDEN,
    ("--tinybert_wo_emb",): ALL_ATTENTION + ALL_HIDDEN[1:],
    ("--tinybert_wo_final",): ALL_ATTENTION + ALL_HIDDEN[:-1],
    ("--tinybert_inter_final",): [("hid", 2, 3)],
    ("--tinybert_inter_final", "--tinybert_custom_final=2"): [("hid", 1, 2)],
    ("--tinybert_only_emb",): [("hid", 0, 0)],
    ("--tinybert_only_emb_final",): [("hid", 0, 0), ("hid", 2, 3)],
    ("--tinybert_only_emb_final", "--tinybert_custom_final=2"): [("hid", 0, 0), ("hid", 1, 2)],
}


def hidden_path(k: int, depth: int) -> tuple[str | int, ...]:
    return ("transformer", "output") if k == depth else ("transformer", "layers", k, "layernorm_output")


def path(kind: str, k: int, depth: int) -> tuple[str | int, ...]:
    return ("transformer", "layers", k - 1, "attention_scores") if kind == "att" else hidden_path(k, depth)


@pytest.mark.parametrize("flags", PAIRS, ids=lambda flags: " ".join(flags) or "all")
def test_pairs(flags: tuple[str, ...]) -> None:
    pairs = student_of(*TINYBERT, *flags).pairs(0)
    assert [(pair.student, pair.teacher) for pair in pairs] == [
        (path(kind, k, 2), path(kind, seg, 3)) for kind, k, seg in PAIRS[flags]]
    assert all((pair.partition == "heads") == (pair.kind == "attention_scores") for pair in pairs)


@pytest.mark.parametrize("flags", PAIRS, ids=lambda flags: " ".join(flags) or "all")
def test_loss_loops(flags: tuple[str, ...]) -> None:
    """Sum of mean squared errors, element by element, of the tensors that the models return."""
    context = tiny_context(*TINYBERT, *flags)
    student, batch = context.student, tiny_lm_batch()
    inputs = batch["tokens"], batch["position_ids"], batch["attention_mask"]
    expected = 0.0
    for kind, k, seg in PAIRS[flags]:
        values = []
        for model, place, depth in ((student.origin_model, k, 2), (context.teachers[0], seg, 3)):
            hook: dict = {}
            node, where = hook, path(kind, place, depth)
            for key in where[:-1]:
                node = node.setdefault(key, {})
            node[where[-1]] = None
            _, inter_vars = model(*inputs, hook=hook)
            values.append(tapped(inter_vars, TapRequest.from_hook(hook, depth).fill(hook), *where).detach())
        if kind == "hid":
            values[0] = F.linear(values[0], student.fit_dense.weight, student.fit_dense.bias)
        total = 0.0
        for s, t in zip(values[0].flatten().tolist(), values[1].flatten().tolist(), strict=True):
            total += (s - t) ** 2
        expected += total / values[0].numel()
    output = step(context, batch)
    assert output.loss.item() == pytest.approx(expected, rel=1e-9)
    recorded = [name for name in output.parts if name.startswith("inter_loss")]
    numbers = {"att": 0, "hid": 0}
    for (kind, _, _), name in zip(PAIRS[flags], recorded, strict=True):
        title = "attention_scores" if kind == "att" else "hidden_states"
        assert name == f"inter_loss/{title}.{numbers[kind]}_t0"
        numbers[kind] += 1


@pytest.mark.parametrize("task", [(), COPA], ids=["text", "copa"])
def test_every_parameter_learns_and_the_teacher_does_not(task: tuple[str, ...]) -> None:
    context = tiny_context(*TINYBERT, *task)
    step(context)
    own = {name for name, p in context.student.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    # The last block's feed-forward and values reach the loss through the final state; nothing is left out.
    assert own == set()
    assert all(p.grad is None for p in context.teachers[0].parameters())


def test_wo_inter_is_exactly_the_prediction_loss() -> None:
    context = tiny_context(*TINYBERT, *COPA, "--tinybert_wo_inter", "--distill_ft_soft")
    output = step(context)
    torch.testing.assert_close(output.loss.detach(), output.parts["pre_loss/ft_soft_t0"], rtol=0, atol=0)
    assert context.student.student_taps() == {} and context.student.fit_dense.weight.grad is None


def test_masked_attention_entries_cancel() -> None:
    """-65504 on both sides: the loss is that of the visible entries, over all entries."""
    output = step(tiny_context(*TINYBERT, "--tinybert_wo_emb", "--tinybert_wo_final"))
    assert output.parts["inter_loss/attention_scores.0_t0"] < 1e4


def test_keep_batch_is_the_mean_of_each_sample() -> None:
    student = student_of(*TINYBERT)
    pair = student.pairs(0)[0]
    s, t = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    vector = student.pair_loss(pair, s, t, keep_batch=True, t_no=0)
    torch.testing.assert_close(vector, ((s - t) ** 2).flatten(1).mean(1))


def test_a_projection_for_each_teacher() -> None:
    flags = (*TWO_TEACHERS, "--mt_hidden_size=24:32", "--student_model=tinybert", "--tinybert_fit_compatible_mt")
    context = tiny_context(*flags)
    shapes = {name: tuple(p.shape) for name, p in context.student.named_parameters() if name.startswith("student.")}
    assert shapes == {"student.fit_dense_0.weight": (24, 16), "student.fit_dense_0.bias": (24,),
                      "student.fit_dense_1.weight": (32, 16), "student.fit_dense_1.bias": (32,)}
    step(context)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in context.student.parameters())


def test_unequal_teachers_need_their_own_projections() -> None:
    with pytest.raises(ValueError, match=r"unequal hidden sizes \[24, 32\].*--tinybert_fit_compatible_mt"):
        student_of(*TWO_TEACHERS, "--mt_hidden_size=24:32", "--student_model=tinybert")


def test_a_projection_works_in_half_precision() -> None:
    context = tiny_context(*TINYBERT, dtype=torch.bfloat16)
    output = step(context)
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert context.student.fit_dense.weight.grad.dtype == torch.bfloat16


# ---- random layers ----------------------------------------------------------------------------------------------

RANDOM = (*TEACHER, "--teacher_num_layers=12", "--num-layers=3", "--student_model=tinybert", "--tinybert_random_layers")


def drawn(flags: tuple[str, ...], name: str, positions: Iterable[int]) -> list[tuple[int, ...]]:
    """The layers at several epochs or iterations."""
    student = student_of(*RANDOM, *flags, run=RunState(seed=1))
    maps = []
    for position in positions:
        setattr(student.run, name, position)
        maps.append(student.layer_map(0))
    return maps


def test_random_layers_follow_epochs_or_iterations() -> None:
    by_epoch = drawn((*COPA, "--tinybert_random_e=2"), "epoch", range(40))
    assert all(by_epoch[i] == by_epoch[i + 1] for i in range(0, 40, 2))
    assert len(set(by_epoch)) > 10
    by_iteration = drawn(("--tinybert_random_i=10",), "iteration", range(0, 200, 5))
    assert all(by_iteration[i] == by_iteration[i + 1] for i in range(0, 40, 2))
    assert len(set(by_iteration)) > 10
    by_default = drawn((*COPA, "--tinybert_random_e=0"), "iteration", (0, 2999, 3000))
    assert by_default[0] == by_default[1] != by_default[2]
    assert all(layers[0] == 0 and layers[-1] == 12 and len(layers) == 4 for layers in by_epoch)


def test_random_layers_are_the_same_after_a_resume() -> None:
    assert drawn((), "iteration", (0, 4000, 9000))[-1:] == drawn((), "iteration", (9000,))


def test_each_teacher_has_its_own_draw() -> None:
    student = student_of(*RANDOM, "--mt_num_layers=12:12", "--tinybert_random_i=1")
    maps = []
    for iteration in range(20):
        student.run.iteration = iteration
        maps.append((student.layer_map(0), student.layer_map(1)))
    assert any(first != second for first, second in maps)
    assert len({first for first, _ in maps}) > 5 and len({second for _, second in maps}) > 5


def test_draws_are_told(caplog: pytest.LogCaptureFixture) -> None:
    student = student_of(*RANDOM, "--tinybert_random_show")
    with caplog.at_level("INFO", logger="distill"):
        student.layer_map(0)
    assert "layers of teacher 0 in iteration 0" in caplog.text


# ---- errors -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "message"), [
    (("--teacher_num_attention_heads=8",),
     r"equal numbers of heads: student 4 \(--num-attention-heads\) vs teacher 8 .*--tinybert_wo_att"),
    (("--num-layers=4",), r"student layers <= teacher layers: student 4 .*teacher 3"),
    (("--tinybert_inter_final", "--tinybert_only_emb"), "--tinybert_inter_final and --tinybert_only_emb exclude"),
    (("--tinybert_only_emb", "--tinybert_wo_final"), "remove --tinybert_wo_final"),
    (("--tinybert_custom_final=2",), "needs --tinybert_inter_final or --tinybert_only_emb_final"),
    (("--tinybert_custom_final=0", "--tinybert_inter_final"), "must be at least 1"),
    (("--tinybert_custom_final=3", "--tinybert_inter_final"), "counts back over more than the 2 layers"),
    (("--tinybert_random_layers", "--tinybert_random_e=0", "--tinybert_random_i=0"), "--tinybert_random_e or"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_of(*TINYBERT, *flags)


def test_heads_may_differ_without_attention() -> None:
    for flags in (("--tinybert_wo_att",), ("--tinybert_only_emb",), ("--tinybert_wo_inter", "--distill_pt_soft")):
        assert step(tiny_context(*TINYBERT, "--teacher_num_attention_heads=8", *flags)).loss.isfinite()


# ---- several ranks ----------------------------------------------------------------------------------------------

PARITY = [TINYBERT, (*TINYBERT, *COPA, "--distill_ft_soft"), (*TINYBERT, "--distill_logits_parallel"),
          (*TWO_TEACHERS, "--mt_hidden_size=24:32", "--student_model=tinybert", "--tinybert_fit_compatible_mt",
           "--tinybert_fit_parallel")]


def parity_steps(checkpoint_activations: bool) -> list[tuple[float, dict[str, torch.Tensor]]]:
    return [step_result(*flags, checkpoint_activations=checkpoint_activations) for flags in PARITY]


@pytest.mark.distributed
@pytest.mark.parametrize("checkpoint_activations", [False, True], ids=["stored", "recomputed"])
def test_ranks_and_checkpointing_change_nothing(checkpoint_activations: bool) -> None:
    expected = parity_steps(False)
    for results in run_distributed(parity_steps, 2, checkpoint_activations, model_parallel_size=2):
        for (loss, gradients), (other, other_gradients) in zip(expected, results, strict=True):
            assert other == pytest.approx(loss, rel=1e-11)
            assert gradients.keys() == other_gradients.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-8, atol=1e-10)


def cut_layers() -> tuple[bool, bool]:
    plain, cut = student_of(*TINYBERT), student_of(*TINYBERT, "--tinybert_fit_parallel")
    return tuple(shard_spec_of(student.fit_dense.weight).is_sharded for student in (plain, cut))


def test_the_projection_is_cut_only_on_request() -> None:
    assert cut_layers() == (False, True)
