"""Attention with dropout on a CPU, block by block.

torch's fused attention has no dropout on a CPU: it falls back to forming all scores, probabilities and dropout masks,
and keeps them for the backward pass. Here a few heads at a time stay in the core's cache; nothing of size s x s
outlives its block. The backward pass forms scores and probabilities again (as FlashAttention does, Dao et al. 2022,
arXiv:2205.14135, section 3.1) and draws the same dropout from the same seed:

    O = (M P) V / (1 - r),    P = softmax(Q K^T / sqrt(d)),    M 0/1 with P(M = 0) = r

Most of the time of dropout on a CPU is drawing random numbers. 16 random bits decide about an entry, four entries a
draw, so the rate is a multiple of 2^-16 and the factor 1 / (1 - r) is that of the rounded rate.

Axes: b batch, n heads, s sequence, d head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

#: Scores of one block: 1 MiB in float32.
BLOCK_ELEMENTS = 1 << 18
_STEPS = 1 << 16


@torch.compiler.disable  # its draws, and so the numbers of a run, are the same with --compile
def dropout_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor,
                      rate: float) -> torch.Tensor:
    """Softmax attention with dropout on the probabilities.

    Args:
        query, key, value: [b, n, s, d]. Products are formed in their dtype, the softmax in at least float32.
        mask: [b or 1, 1 or n, s, s] in their dtype, 0 where a query sees a key, else minus infinity; each query sees
            something.
        rate: of dropout, in (0, 1). One number is drawn from torch's generator, whatever the sizes.

    Returns:
        [b, n, s, d].
    """
    seed = int(torch.randint(2 ** 62, (), dtype=torch.int64))
    return _DropoutAttention.apply(query, key, value, mask, round(rate * _STEPS), seed)


class _DropoutAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, steps: int,
                seed: int) -> torch.Tensor:
        ctx.steps, ctx.seed = steps, seed
        ctx.save_for_backward(query, key, value, mask)
        # [b, s, n, d] inside, which is what the caller makes of it.
        out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3]).transpose(1, 2)
        scale = 1.0 / (1.0 - steps / _STEPS)
        for block, probs, kept in _blocks(query, key, mask, steps, seed):
            dropped = probs.mul_(kept).to(value.dtype)
            out[block] = torch.bmm(dropped, value[block]).mul_(scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        scale, root = 1.0 / (1.0 - ctx.steps / _STEPS), 1.0 / math.sqrt(query.shape[-1])
        q_grad, k_grad, v_grad = (torch.empty_like(x) for x in (query, key, value))
        for block, probs, kept in _blocks(query, key, mask, ctx.steps, ctx.seed):
            out_grad = grad[block] * scale
            dropped = torch.mul(probs, kept).to(value.dtype)
            v_grad[block] = torch.bmm(dropped.transpose(1, 2), out_grad)
            p_grad = torch.bmm(out_grad, value[block].transpose(1, 2)).to(probs.dtype).mul_(kept)
            s_grad = torch._softmax_backward_data(p_grad, probs, -1, probs.dtype).mul_(root).to(query.dtype)
            q_grad[block] = torch.bmm(s_grad, key[block])
            k_grad[block] = torch.bmm(s_grad.transpose(1, 2), query[block])
        return q_grad, k_grad, v_grad, None, None, None


def _blocks(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, steps: int,
            seed: int) -> Iterator[tuple[tuple[int, slice], torch.Tensor, torch.Tensor]]:
    """Some heads of one sample at a time: where they are, their probabilities, and which are kept (1.0 or 0.0).

    ``kept`` takes the same memory for every block.
    """
    batch, heads, length, size = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    step = max(1, min(heads, BLOCK_ELEMENTS // (length * length)))
    generator = torch.Generator().manual_seed(seed)
    mask = mask.expand(batch, -1, -1, -1)
    bits = torch.empty(-(-step * length * length // 4), dtype=torch.int64)
    kept = torch.empty(step, length, length, dtype=dtype)
    for sample in range(batch):
        for first in range(0, heads, step):
            block = sample, slice(first, min(first + step, heads))
            count = block[1].stop - first
            bias = mask[block] if mask.shape[1] > 1 else mask[sample].expand(count, -1, -1)
            scores = torch.baddbmm(bias, query[block], key[block].transpose(1, 2), alpha=1.0 / math.sqrt(size))
            bits.random_(-2 ** 63, None, generator=generator)
            draws = bits.view(torch.int16)[:count * length * length].view(count, length, length)
            torch.ge(draws, steps - _STEPS // 2, out=kept[:count])
            yield block, torch.softmax(scores, -1, dtype=dtype), kept[:count]
