"""Attention with the prefix mask, and a whole distillation step of GLMD."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.losses import TAU, naive_kl, our_kl
from benchmarks.measure import Cost, Row, Work, alternate, compare
from distill.training.compile import compile_layer
from model.attention import ParallelSelfAttention, additive_mask, prefix_mask
from model.config import ModelConfig
from model.glm import GLMModel
from model.parallel.fused_vocab_loss import SoftTarget, fused_vocab_loss


@dataclass(frozen=True)
class StepSizes:
    """Of the whole step."""

    teacher_layers: int = 12
    student_layers: int = 6
    width: int = 768
    heads: int = 12
    length: int = 512
    batch: int = 4
    vocabulary: int = 30592


def explicit_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor,
                       dropout: float = 0.0) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d) + mask) V with all scores formed."""
    visible = (mask == 0).to(query.dtype)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores * visible - 65504.0 * (1.0 - visible)
    return F.dropout(torch.softmax(scores, -1), dropout) @ value


def attention(repeats: int, batch: int = 4, heads: int = 12, length: int = 512, size: int = 64) -> Iterator[Row]:
    """Forward and backward of the attention inside a layer, without its projections; then what dropout costs."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(batch, length, heads, size, generator=generator).requires_grad_() for _ in range(3)]
    inputs = [leaf.transpose(1, 2) for leaf in leaves]  # as a layer splits its heads off
    mask = additive_mask(prefix_mask(torch.full((batch,), length // 2), batch, length), torch.float32)
    module = ParallelSelfAttention(ModelConfig(
        num_layers=1, hidden_size=heads * size, num_attention_heads=heads, max_position_embeddings=length,
        vocab_size=128, attention_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0))

    upstream = torch.ones(batch, length, heads, size).transpose(1, 2)

    def work(function: Callable[[], torch.Tensor]) -> Work:
        return lambda: function().backward(upstream)

    def fused(dropout: float) -> torch.Tensor:
        module.dropout_p = dropout
        return module._fused(*inputs, mask)

    yield compare("attention, prefix mask", work(lambda: explicit_attention(*inputs, mask)),
                  work(lambda: fused(0.0)), leaves, repeats=repeats, goal_ratio=2.3,
                  goal_megabytes=25 * 2 ** 20 / 1e6)  # result and gradients alone are 24 MiB
    yield compare("attention with dropout 0.1", work(lambda: explicit_attention(*inputs, mask, 0.1)),
                  work(lambda: fused(0.1)), leaves, repeats=repeats)


class _Step:
    """A teacher, a student and an optimizer; one step of either form."""

    def __init__(self, sizes: StepSizes, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.teacher = self._model(sizes, sizes.teacher_layers).to(dtype).requires_grad_(False)
        self.student = self._model(sizes, sizes.student_layers).to(dtype)
        shape = (sizes.batch, sizes.length)
        self.batch = (torch.randint(0, sizes.vocabulary, shape),
                      torch.stack([torch.arange(sizes.length).expand(shape), torch.zeros(shape, dtype=torch.long)], 1),
                      torch.full((sizes.batch,), sizes.length // 2))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4)

    @staticmethod
    def _model(sizes: StepSizes, layers: int) -> GLMModel:
        return GLMModel(ModelConfig(
            num_layers=layers, hidden_size=sizes.width, num_attention_heads=sizes.heads,
            max_position_embeddings=sizes.length, vocab_size=sizes.vocabulary, attention_dropout=0.0,
            hidden_dropout=0.0, output_dropout=0.0))

    def compile_layers(self) -> None:
        """As ``--compile`` does where no layer is tapped."""
        for model in (self.teacher, self.student):
            for layer in model.transformer.layers:
                compile_layer(layer)

    def run(self, form: str) -> None:
        loss = {"naive": self._naive, "ours": self._ours, "fused": self._fused}[form]()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            teacher = self.teacher(*self.batch)[0]
        return self.student(*self.batch)[0], teacher

    def _naive(self) -> torch.Tensor:
        fused = ParallelSelfAttention._fused
        ParallelSelfAttention._fused = lambda self, query, key, value, mask: explicit_attention(query, key, value, mask)
        try:
            student, teacher = self._outputs()
        finally:
            ParallelSelfAttention._fused = fused
        return naive_kl(student.float(), teacher.float())

    def _ours(self) -> torch.Tensor:
        student, teacher = self._outputs()
        return our_kl(student, teacher)

    def _fused(self) -> torch.Tensor:
        for model in (self.student, self.teacher):
            model.output_predict = False
        hidden, t_hidden = (output.flatten(0, 1) for output in self._outputs())
        for model in (self.student, self.teacher):
            model.output_predict = True
        weight = torch.full((len(hidden),), TAU ** 2 / len(hidden))
        soft = SoftTarget(t_hidden, self.teacher.word_embedding_weight, weight, "kl", TAU)
        labels = torch.zeros(len(hidden), dtype=torch.long)
        return fused_vocab_loss(hidden, self.student.word_embedding_weight, labels, torch.zeros(len(hidden)),
                                soft=soft).loss


def glmd_steps(sizes: StepSizes, repeats: int) -> Iterator[Row]:
    """Teacher and student forward, loss on all positions, backward, AdamW; in fp32 and bf16."""
    costs: dict[tuple[str, torch.dtype], Cost] = {}
    for dtype in (torch.float32, torch.bfloat16):
        step = _Step(sizes, dtype)  # the one before is freed only now, and counted in no row
        for form in ("naive", "ours", "fused"):
            costs[form, dtype] = Cost()
        alternate([(partial(step.run, form), costs[form, dtype]) for form in ("naive", "ours", "fused")], (), repeats)
        short = str(dtype).removeprefix("torch.")
        naive = costs["naive", dtype]
        goal = 1.15 if dtype == torch.float32 else None
        for form, name in (("ours", "GLMD step"), ("fused", "GLMD step, --fused-lm-loss")):
            yield Row(f"{name}, {short}", naive, costs[form, dtype], goal, naive.memory / 2)
        if dtype == torch.bfloat16:
            yield Row("GLMD step, bfloat16 against naive float32", costs["naive", torch.float32], costs["ours", dtype],
                      goal_ratio=2.8)


def compiled_steps(sizes: StepSizes, repeats: int) -> Iterator[Row]:
    """The step with and without ``--compile``; here "naive" is ours without. Compiling is not counted."""
    for dtype in (torch.float32, torch.bfloat16):
        plain, compiled = _Step(sizes, dtype), _Step(sizes, dtype)
        compiled.compile_layers()
        short = str(dtype).removeprefix("torch.")
        yield compare(f"GLMD step, --compile against without, {short}", partial(plain.run, "ours"),
                      partial(compiled.run, "ours"), (), repeats=repeats)
