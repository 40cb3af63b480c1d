from __future__ import annotations

import math

import pytest
import torch

from tasks.losses import LOSS_KINDS, choice_loss, sum_segments

SCORES = [[0.5, -1.0, 2.0], [1.5, 0.25, -3.0]]
LABELS = [2, 1]
MASK = [[1, 1, 1], [1, 1, 0]]


def by_hand(kind: str, scores: list[float], label: int, mask: list[int]) -> float:
    if kind == "adapet":
        return sum((-s if c == label else s) for c, s in enumerate(scores) if mask[c])
    values = [s if m else -10000.0 for s, m in zip(scores, mask)]
    right = values[label]
    entropy = math.log(sum(math.exp(value - right) for value in values))
    return {"cross_entropy": entropy, "generative": -right, "mix": entropy - right,
            "hinge": sum(max(0.0, 1.0 + value - right) for value in values) - 1.0}[kind]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_values(kind: str, dtype: torch.dtype) -> None:
    scores, labels, mask = torch.tensor(SCORES, dtype=dtype), torch.tensor(LABELS), torch.tensor(MASK)
    expected = [by_hand(kind, *row) for row in zip(SCORES, LABELS, MASK)]
    got = choice_loss(scores, labels, kind=kind, choice_mask=mask, per_sample=True)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.tolist() == pytest.approx(expected, rel=1e-6)
    mean = choice_loss(scores, labels, kind=kind, choice_mask=mask)
    assert mean.item() == pytest.approx(sum(expected) / 2, rel=1e-6)
    full = [by_hand(kind, *row, [1, 1, 1]) for row in zip(SCORES, LABELS)]
    assert choice_loss(scores, labels, kind=kind, per_sample=True).tolist() == pytest.approx(full, rel=1e-6)


@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_gradient_leaves_padding_alone_and_input_unchanged(kind: str) -> None:
    scores = torch.tensor(SCORES, requires_grad=True)
    before = scores.detach().clone()
    choice_loss(scores, torch.tensor(LABELS), kind=kind, choice_mask=torch.tensor(MASK)).backward()
    assert torch.equal(scores.detach(), before)
    assert scores.grad[1, 2] == 0.0 and scores.grad[1, 1] != 0.0


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="loss 'focal' is unknown; known: cross_entropy, hinge"):
        choice_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), kind="focal")


def test_sums_of_pieces_by_hand() -> None:
    values = [[-1.0, -2.0, -4.0, -8.0], [-1.0, -2.0, -9.0, -9.0]]
    scores = torch.tensor(values, dtype=torch.bfloat16, requires_grad=True)
    segment_id, rows = torch.tensor([[0, 1, 1, 2], [0, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    sums, mask = sum_segments(scores, segment_id, rows)
    assert sums.dtype == torch.float32 and sums.tolist() == [[-1.0, -6.0, -8.0], [-3.0, 0.0, 0.0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert sum_segments(scores, segment_id)[0].tolist()[1] == [-21.0, 0.0, 0.0]
    labels = torch.tensor([1, 0])
    loss = choice_loss(scores, labels, choice_mask=rows, segment_id=segment_id, per_sample=True)
    assert loss.tolist() == pytest.approx([by_hand("cross_entropy", [-1.0, -6.0, -8.0], 1, [1, 1, 1]), 0.0])
    sums[0, 1].backward()
    assert scores.grad.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
