"""The analysis of inner tensors: what is compared, numbers in plain loops, that it changes nothing, when it is due."""

from __future__ import annotations

import math

import pytest
import torch

from distill.analysis import TEMPERATURES, comparisons
from distill.training.forward_step import StepOutput
from distill.training.run_state import RunState
from model.taps import TapRequest, tapped
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, step, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

EQUAL = (*TEACHER, "--teacher_hidden_size=16")
KD = (*EQUAL, "--student_model=kd", "--distill_pt_soft")
ANALYSIS = "--distil_analysis_inter"


def numbers(output: StepOutput) -> dict[str, float]:
    return {tag.removeprefix("analysis_inter/"): value.item() for tag, value in output.recorded
            if tag.startswith("analysis_inter/")}


def test_what_is_compared() -> None:
    names = [pair.name for pair in comparisons(2, 3)]
    assert names == ["HS1", "HS2", "Q1", "Q2", "K1", "K2", "V1", "V2", "Att1", "Att2", "Emb", "Pred"]
    found = numbers(step(tiny_context(*KD, ANALYSIS)))
    tags = {f"{kind}_{name}_t0" for name in names for kind in ("MSE", *(f"KL{tau}" for tau in TEMPERATURES))}
    with_relation = {f"self-{tag}" for tag in tags if "_Att" not in tag and "_Pred" not in tag}
    assert set(found) == tags | with_relation
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(("name", "place", "t_place"), [
    ("HS2", ("transformer", "layers", 1, "layernorm_output"), ("transformer", "layers", 2, "layernorm_output")),
    ("K2", ("transformer", "layers", 1, "key_layer"), ("transformer", "layers", 2, "key_layer")),
    ("Emb", ("transformer", "output"), ("transformer", "output")),
    ("Pred", ("logits_parallel",), ("logits_parallel",))])
def test_numbers_loops(name: str, place: tuple[str | int, ...], t_place: tuple[str | int, ...]) -> None:
    context, batch = tiny_context(*KD, ANALYSIS), tiny_lm_batch()
    found = numbers(step(context, batch))
    values = []
    for model, path, depth in ((context.student.origin_model, place, 2), (context.teachers[0], t_place, 3)):
        hook: dict = {}
        node = hook
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = None
        _, taps = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], hook=hook)
        values.append(tapped(taps, TapRequest.from_hook(hook, depth).fill(hook), *path).detach())
    s, t = values
    assert found[f"MSE_{name}_t0"] == pytest.approx(((s - t) ** 2).mean().item(), rel=1e-9)
    assert found[f"KL5_{name}_t0"] == pytest.approx(25 * divergence(s / 5, t / 5), rel=1e-8)
    if name != "Pred":
        s, t = (x @ x.transpose(-1, -2) / math.sqrt(x.shape[-1]) for x in (s, t))
        assert found[f"self-MSE_{name}_t0"] == pytest.approx(((s - t) ** 2).mean().item(), rel=1e-9)
        assert found[f"self-KL1_{name}_t0"] == pytest.approx(divergence(s, t), rel=1e-8)


def divergence(s: torch.Tensor, t: torch.Tensor) -> float:
    total, rows = 0.0, s.flatten(0, -2).softmax(-1).tolist()
    for p, q in zip(rows, t.flatten(0, -2).softmax(-1).tolist(), strict=True):
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total / len(rows)


@pytest.mark.parametrize("flags", [KD, (*EQUAL, "--student_model=tinybert"), (*EQUAL, "--student_model=sid",
                                                                              "--distill_pt_soft"),
                                   (*EQUAL, "--student_model=logitsdistil", "--logitsdistil_mask_pad"),
                                   (*KD, "--distill_logits_parallel")],
                         ids=["kd", "tinybert", "sid", "glmd", "shared"])
def test_it_changes_no_loss_and_no_gradient(flags: tuple[str, ...]) -> None:
    plain, analysed = tiny_context(*flags), tiny_context(*flags, ANALYSIS)
    one, other = step(plain), step(analysed)
    assert other.loss.item() == pytest.approx(one.loss.item(), rel=1e-12) and numbers(other)
    for first, second in zip(plain.model.parameters(), analysed.model.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None)
        if first.grad is not None:  # tapped attention is computed in another order
            torch.testing.assert_close(first.grad, second.grad, rtol=1e-9, atol=1e-12)


def test_a_method_sees_only_what_it_asked_for() -> None:
    context = tiny_context(*EQUAL, "--student_model=tinybert", "--tinybert_only_emb", ANALYSIS)
    seen: list[dict] = []
    inter_loss = context.student.inter_loss
    context.student.inter_loss = lambda s, t, s_hook, t_hook, **kwargs: (
        seen.extend([s_hook, t_hook]), inter_loss(s, t, s_hook, t_hook, **kwargs))[1]
    step(context)
    assert all(hook.keys() == {"transformer"} and hook["transformer"].keys() == {"layers"}
               and hook["transformer"]["layers"].keys() == {0} for hook in seen)


def test_sizes_that_differ_are_left_out_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    context = tiny_context(*TEACHER, "--student_model=kd", "--distill_pt_soft", ANALYSIS)
    found = numbers(step(context))
    step(context)
    assert "MSE_HS1_t0" not in found and "MSE_Q1_t0" not in found
    assert {"MSE_Att1_t0", "MSE_Pred_t0", "self-MSE_HS1_t0", "self-KL20_Q2_t0"} <= found.keys()
    told = [record.getMessage() for record in caplog.records if "not compared directly" in record.getMessage()]
    assert len(told) == 1 and "HS1 (3, 16, 16) vs (3, 16, 24)" in told[0]


def test_a_student_deeper_than_its_teacher_cannot_be_analysed() -> None:
    with pytest.raises(ValueError, match="student layers <= teacher layers"):
        student_of(*KD, "--num-layers=4", ANALYSIS)


def test_when_it_is_due() -> None:
    def due(*flags: str, **where: int) -> bool:
        student = student_of(*KD, ANALYSIS, *flags, run=RunState(**where))
        student._args.log_interval = 10
        return student.analysis_is_due()

    assert due(iteration=9) and not due(iteration=8) and not due(iteration=10)
    assert due(iteration=9, micro_step=0, accumulation_steps=4) and due(iteration=9, micro_step=3, accumulation_steps=4)
    finetuning = (*COPA, "--distill_ft_soft")
    # Iterations 8 .. 11 are one optimizer step there; a logged value is the mean over them.
    assert all(due(*finetuning, iteration=8 + i, micro_step=i, accumulation_steps=4) for i in range(4))
    assert not due(*finetuning, iteration=12, micro_step=0, accumulation_steps=4)
    assert not due(iteration=9, repeat=1) and due("--distil_analysis_frcn=0,1", iteration=9, repeat=1)


def test_passes_are_analysed_as_named() -> None:
    output = step(tiny_context(*KD, ANALYSIS, "--forward_repeat_num=1", "--distil_analysis_frcn=1"))
    assert numbers(output) and all(tag.endswith("_t0_repeat1") for tag in numbers(output))


def analysed() -> dict[str, float]:
    return numbers(step(tiny_context(*KD, ANALYSIS)))


@pytest.mark.distributed
def test_ranks_agree() -> None:
    expected = analysed()
    for found in run_distributed(analysed, 2, model_parallel_size=2):
        assert found == pytest.approx(expected, rel=1e-9)
