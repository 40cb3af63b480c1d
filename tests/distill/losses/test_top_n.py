"""Top-n losses against plain loops, and with n counted over all ranks."""

from __future__ import annotations

import pytest
import torch

from distill.losses.top_n import (
    pick_entries,
    raise_to_minimum,
    resolve_top_n,
    threshold_hinge,
    top_entries,
    vocabulary_size,
)
from model.parallel import row_chunks
from model.parallel.groups import parallel_state
from tests.helpers.distributed import run_distributed

B, S, V = 2, 3, 12
MASK = torch.tensor([[1.0, 1, 0], [1, 0, 0]])


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (2 * torch.randn(B, S, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


def hinge_oracle(n: int, mask: torch.Tensor) -> tuple[list[float], int]:
    """Per sample the sum of the hinge, and the number of positive terms, in plain loops."""
    student, teacher = (x.tolist() for x in logits())
    sums, count = [0.0] * B, 0
    for b in range(B):
        for s in range(S):
            if not mask[b, s]:
                continue
            top = sorted(range(V), key=lambda v: -teacher[b][s][v])[:n]
            theta = min(student[b][s][v] for v in top)
            excess = [student[b][s][v] - theta for v in range(V) if v not in top]
            sums[b] += sum(x for x in excess if x > 0)
            count += sum(x > 0 for x in excess)
    return sums, count


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("n", [1, 4, V])
@pytest.mark.parametrize("mask", [torch.ones(B, S), MASK], ids=["whole", "masked"])
def test_hinge_loops(n: int, mask: torch.Tensor, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_chunks, "CPU_CHUNK_ELEMENTS", chunk)
    student, teacher = logits()
    sums, count = hinge_oracle(n, mask)
    hinge, number, _ = threshold_hinge(student, top_entries(teacher, n), mask=mask)
    per_sample, *_ = threshold_hinge(student, top_entries(teacher, n), mask=mask, keep_batch=True)
    assert number.item() == count
    assert hinge.item() == pytest.approx(sum(sums) / max(1, count))
    assert per_sample.tolist() == pytest.approx([B * value / max(1, count) for value in sums])


def test_hinge_gradcheck_through_the_threshold() -> None:
    student, teacher = logits()

    def loss(s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hinge, _, picked = threshold_hinge(s, top_entries(teacher, 4), mask=MASK)
        return hinge, picked

    assert torch.autograd.gradcheck(loss, (student,))


def test_second_backward_pass_gives_the_same() -> None:
    student, teacher = logits()
    hinge, _, picked = threshold_hinge(student, top_entries(teacher, 4), mask=MASK)
    passes = [torch.autograd.grad(hinge + picked.square().sum(), student, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*passes) and passes[0].abs().sum() > 0


def test_equal_smallest_entries_share_the_gradient_of_the_threshold() -> None:
    student = torch.tensor([[[1.0, 1.0, 3.0, 2.0]]], requires_grad=True)
    top = top_entries(torch.tensor([[[9.0, 8.0, 1.0, 0.0]]]), 2)
    threshold_hinge(student, top).hinge.backward()  # ((3 - 1) + (2 - 1)) / 2
    assert student.grad.tolist() == [[[-0.5, -0.5, 0.5, 0.5]]]


def test_nothing_positive_is_zero_not_nan() -> None:
    teacher = torch.randn(B, S, V)
    student = teacher.clone().requires_grad_()
    hinge, number, _ = threshold_hinge(student, top_entries(teacher, 3))
    hinge.backward()
    assert hinge.item() == 0.0 and number.item() == 0 and (student.grad == 0).all()


def test_raise_to_minimum_loops() -> None:
    _, teacher = logits()
    before = teacher.clone()
    raised = raise_to_minimum(teacher, 4)
    for row, result in zip(before.view(-1, V).tolist(), raised.view(-1, V).tolist(), strict=True):
        threshold = sorted(row)[-4]
        assert result == [value if value >= threshold else min(row) for value in row]
    assert torch.equal(teacher, before)


@pytest.mark.parametrize(("top_n", "expected"), [(5, 5), (0.5, 32), (1, 1), (64, 64), (0.02, 1)])
def test_resolve(top_n: float, expected: int) -> None:
    assert resolve_top_n(top_n, 64) == expected


@pytest.mark.parametrize("top_n", [0.0, -3, 65, 0.001])
def test_resolve_refuses(top_n: float) -> None:
    with pytest.raises(ValueError, match=r"--logitsdistil_top_n=.* of 64 vocabulary entries"):
        resolve_top_n(top_n, 64)


def rank_results(n: int) -> dict[str, torch.Tensor]:
    """Everything on this rank's slice of the vocabulary."""
    state = parallel_state()
    student, teacher = (x.detach().chunk(state.model_size, -1)[state.model_rank].clone() for x in logits())
    student.requires_grad_()
    top = top_entries(teacher, n)
    hinge, number, picked = threshold_hinge(student, top, mask=MASK)
    assert torch.equal(picked, pick_entries(student, top.columns))
    weights = torch.linspace(1, 2, picked.numel(), dtype=picked.dtype).view(picked.shape)
    (hinge + (picked * weights).sum()).backward()
    return {"hinge": hinge.detach(), "number": number, "top": top.values, "picked": picked.detach(),
            "size": torch.tensor(vocabulary_size(student)), "cut::gradient": student.grad,
            "cut::raised": raise_to_minimum(teacher, n)}


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("n", [2, 5, 11], ids=["few", "more than a slice of 4", "nearly all"])
def test_ranks_agree_with_one(n: int, size: int) -> None:
    whole = rank_results(n)
    results = run_distributed(rank_results, size, n, model_parallel_size=size)
    for name, expected in whole.items():
        if name.startswith("cut::"):
            torch.testing.assert_close(torch.cat([result[name] for result in results], dim=-1), expected)
        else:
            for result in results:
                torch.testing.assert_close(result[name], expected)
