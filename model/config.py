"""Sizes of one model. Student and every teacher have a config of their own; nothing swaps fields of a shared one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

#: Fixed for every layer norm of GLM, as published; ``--layernorm-epsilon`` reaches only BERT baselines.
LAYERNORM_EPSILON = 1e-5
INIT_STD = 0.02


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a GLM.

    Attributes:
        num_layers, hidden_size, num_attention_heads: depth, width and heads; the feed-forward width is 4 x hidden.
        max_position_embeddings: P; both position tables have P + 1 rows (P without block positions).
        vocab_size: padded vocabulary, a multiple of the model-parallel size.
        attention_dropout, hidden_dropout: probabilities, on attention weights and on embeddings and sub-layer outputs.
        output_dropout: before the pooled classification head.
        block_position_encoding: the second position table (``--block-lm`` without ``--masked-lm``).
        attention_scale: above 1, scores are formed from queries and keys divided by it (for fp16 range).
        checkpoint_activations, checkpoint_num_layers: recompute chunks of so many layers in the backward pass.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    max_position_embeddings: int
    vocab_size: int
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.1
    output_dropout: float = 0.1
    block_position_encoding: bool = True
    attention_scale: float = 1.0
    checkpoint_activations: bool = False
    checkpoint_num_layers: int = 1

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_position_rows(self) -> int:
        return self.max_position_embeddings + int(self.block_position_encoding)

    def check(self, model_parallel_size: int = 1, prefix: str = "") -> None:
        """Raise ValueError for sizes that do not fit, naming the flags (``prefix`` is ``teacher_`` for a teacher)."""
        flag = _flag_names(prefix)
        for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} must be at least 1 (got {getattr(self, name)})")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"{flag('hidden_size')} {self.hidden_size} is not divisible by "
                f"{flag('num_attention_heads')} {self.num_attention_heads}")
        if self.num_attention_heads % model_parallel_size != 0:
            raise ValueError(
                f"{flag('num_attention_heads')} {self.num_attention_heads} is not divisible by "
                f"--model-parallel-size {model_parallel_size}")
        if self.vocab_size % model_parallel_size != 0:
            raise ValueError(
                f"the padded vocabulary size {self.vocab_size} is not divisible by --model-parallel-size "
                f"{model_parallel_size}; choose a --make-vocab-size-divisible-by that is a multiple of it")
        if self.checkpoint_num_layers < 1:
            raise ValueError(f"--checkpoint-num-layers must be at least 1 (got {self.checkpoint_num_layers})")
        for name in ("attention_dropout", "hidden_dropout", "output_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"--{name.replace('_', '-')} must be in [0, 1) (got {getattr(self, name)})")

    @classmethod
    def from_args(cls, args: Any, **overrides: Any) -> ModelConfig:
        """The student's (or only) model from the command line; ``overrides`` replace fields, for a teacher."""
        values: dict[str, Any] = dict(
            num_layers=args.num_layers, hidden_size=args.hidden_size, num_attention_heads=args.num_attention_heads,
            max_position_embeddings=args.max_position_embeddings, vocab_size=args.vocab_size,
            attention_dropout=args.attention_dropout, hidden_dropout=args.hidden_dropout,
            output_dropout=args.output_dropout,
            block_position_encoding=args.block_lm and not args.masked_lm, attention_scale=args.attention_scale,
            checkpoint_activations=args.checkpoint_activations or args.deepspeed_activation_checkpointing,
            checkpoint_num_layers=args.checkpoint_num_layers)
        return cls(**{**values, **overrides})


def _flag_names(prefix: str) -> Any:
    if prefix:
        return lambda name: f"--{prefix}{name}"
    return lambda name: f"--{name.replace('_', '-')}"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the group "Model"; architecture extensions stand with the feature that owns them."""
    group = parser.add_argument_group("model")
    group.add_argument("--num-layers", type=int, default=24, help="number of transformer layers")
    group.add_argument("--hidden-size", type=int, default=1024, help="width of the residual stream")
    group.add_argument("--num-attention-heads", type=int, default=16, help="number of attention heads")
    group.add_argument("--max-position-embeddings", type=int, default=512,
                       help="longest position; both position tables have one row more")
    group.add_argument("--vocab-size", type=int, default=30522,
                       help="always replaced by the tokenizer's size, rounded up")
    group.add_argument("--make-vocab-size-divisible-by", type=int, default=128,
                       help="the vocabulary is padded to a multiple of this")
    group.add_argument("--attention-dropout", type=float, default=0.1, help="dropout on attention probabilities")
    group.add_argument("--hidden-dropout", type=float, default=0.1,
                       help="dropout on embeddings and on the outputs of attention and feed-forward")
    group.add_argument("--output-dropout", type=float, default=0.1,
                       help="dropout before the pooled classification head")
    group.add_argument("--attention-scale", type=float, default=1.0,
                       help="above 1: queries and keys are divided by its root and the scores multiplied back after "
                            "the row maximum is subtracted (keeps fp16 scores in range)")
    group.add_argument("--freeze-transformer", action="store_true",
                       help="train neither the word embeddings nor the transformer")
    group.add_argument("--tune-prefix-layers", type=int, default=None,
                       help="with --freeze-transformer, train this many first layers all the same")
    group.add_argument("--checkpoint-activations", action="store_true",
                       help="recompute the layers in the backward pass instead of storing their activations")
    group.add_argument("--checkpoint-num-layers", type=int, default=1, help="layers per recomputed chunk")
