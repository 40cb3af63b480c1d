"""Attention with dropout on a CPU: gradients, the distribution of what is dropped, and the formula."""

from __future__ import annotations

import math

import pytest
import torch

from model import dropout_attention as room
from model.attention import ParallelSelfAttention, additive_mask, prefix_mask
from model.config import ModelConfig
from model.dropout_attention import dropout_attention

B, N, S, D = 2, 3, 17, 8
MASK = additive_mask(prefix_mask(torch.tensor([5, 9]), B, S), torch.float64)


def inputs(dtype: torch.dtype = torch.float64, *, grad: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(B, N, S, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)
            for _ in range(3)]


@pytest.mark.parametrize("elements", [1, S * S * 2, 1 << 18], ids=["a head a block", "two, then one", "all heads"])
def test_gradients(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", elements)
    assert torch.autograd.gradcheck(lambda *x: room._DropoutAttention.apply(*x, MASK, 6554, 7), inputs(grad=True))


@pytest.mark.parametrize("mask", [MASK, MASK.expand(-1, N, -1, -1), MASK[:1]], ids=["sample", "head", "shared"])
def test_formula_from_the_drawn_masks(mask: torch.Tensor) -> None:
    query, key, value = inputs()
    steps, seed = 16384, 3  # a quarter
    kept = torch.cat([kept.clone() for _, _, kept in room._blocks(query, key, mask, steps, seed)]).view(B, N, S, S)
    scores = (query @ key.transpose(-1, -2) / math.sqrt(D)).masked_fill(mask != 0, float("-inf"))
    expected = (torch.softmax(scores, -1) * kept / 0.75) @ value
    torch.testing.assert_close(room._DropoutAttention.apply(query, key, value, mask, steps, seed), expected)
    assert set(kept.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_of_dropped_entries(rate: float) -> None:
    query, key, _ = (x.repeat(8, 1, 1, 1) for x in inputs())
    steps = round(rate * 65536)
    kept = [kept.clone() for _, _, kept in room._blocks(query, key, MASK[:1], steps, 5)]
    share = 1.0 - torch.cat(kept).mean().item()
    count = sum(x.numel() for x in kept)
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / count)  # four standard deviations


def test_mean_is_attention_without_dropout() -> None:
    torch.manual_seed(0)
    query, key, value = inputs()
    draws = torch.stack([dropout_attention(query, key, value, MASK, 0.1) for _ in range(400)])
    whole = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=MASK)
    deviation = (draws.mean(0) - whole).abs() / (draws.std(0) / math.sqrt(len(draws)) + 1e-12)
    assert deviation[..., 3:, :].max() < 5.0  # standard errors, of 700 values
    assert not torch.equal(draws[0], draws[1])


def test_the_generator_decides() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append((dropout_attention(*inputs(), MASK, 0.3), torch.rand(1)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_half_precision_is_close_and_finite() -> None:
    results = {}
    for dtype in (torch.float64, torch.bfloat16):
        leaves = [x.detach().requires_grad_() for x in inputs(dtype)]
        room._DropoutAttention.apply(*leaves, MASK.to(dtype), 6554, 7).sum().backward()
        results[dtype] = [x.grad.double() for x in leaves]
    for exact, half in zip(*results.values(), strict=True):
        assert half.isfinite().all()
        # bf16 has 8 bits; probabilities, products and results are rounded once each
        assert (half - exact).abs().max() < 3e-2 * exact.abs().max()


def test_the_layer_takes_it_while_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("model.attention.dropout_attention",
                        lambda *x: calls.append(x[-1]) or dropout_attention(*x))
    layer = ParallelSelfAttention(ModelConfig(
        num_layers=1, hidden_size=16, num_attention_heads=2, max_position_embeddings=S, vocab_size=128,
        attention_dropout=0.25, hidden_dropout=0.0, output_dropout=0.0))
    x = torch.randn(B, S, 16)
    layer(x, MASK, (), lambda *_: None)
    layer.eval()(x, MASK, (), lambda *_: None)
    assert calls == [0.25]
