"""Sizes of one model. Student and every teacher have a config of their own; nothing swaps fields of a shared one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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
        inverted_bottleneck_mode, ib_hidden_size, ib_ffn_num: run attention and feed-forward at this width, with so many
            feed-forward blocks a layer.
        ib_word_emb: above 0, join so many columns of three neighbouring word vectors.
        compress_word_emb: above 0, width of the word table.
        cross_layer_parameter_sharing: one layer that runs num_layers times.
        map_vocab_size: above 0, rows of the compact word table (see :mod:`model.vocab_map`).
        unmap_vocab_output: logits over these rows instead of all token ids.
        num_prompt_tokens, prompt_func: trained vectors in place of words, and their encoder (:mod:`model.prompt`).
        gelu: ``tanh``, the approximation that GLM was published with, or ``erf``, exact, as in its Hugging Face code.
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
    inverted_bottleneck_mode: bool = False
    ib_hidden_size: int = 128
    ib_ffn_num: int = 4
    ib_word_emb: int = 0
    compress_word_emb: int = 0
    cross_layer_parameter_sharing: bool = False
    map_vocab_size: int = 0
    unmap_vocab_output: bool = False
    gelu: str = "tanh"
    num_prompt_tokens: int = 0
    prompt_func: str = "lstm"

    @property
    def attention_size(self) -> int:
        """Width of attention and feed-forward inside a layer."""
        return self.ib_hidden_size if self.inverted_bottleneck_mode else self.hidden_size

    @property
    def word_embedding_size(self) -> int:
        """Width of the word table."""
        return self.compress_word_emb or self.hidden_size

    @property
    def num_word_rows(self) -> int:
        """Rows of the word table over all ranks."""
        return self.map_vocab_size or self.vocab_size

    @property
    def output_size(self) -> int:
        """Columns of the logits over all ranks."""
        return self.num_word_rows if self.unmap_vocab_output else self.vocab_size

    @property
    def num_position_rows(self) -> int:
        return self.max_position_embeddings + int(self.block_position_encoding)

    def check(self, model_parallel_size: int = 1, prefix: str = "") -> None:
        """Raise ValueError for sizes that do not fit, naming the flags (``prefix`` is ``teacher_`` for a teacher)."""
        flag = _flag_names(prefix)
        for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} must be at least 1 (got {getattr(self, name)})")
        width = "ib_hidden_size" if self.inverted_bottleneck_mode else "hidden_size"
        if self.attention_size % self.num_attention_heads != 0:
            raise ValueError(
                f"{flag(width)} {self.attention_size} is not divisible by "
                f"{flag('num_attention_heads')} {self.num_attention_heads}")
        if self.num_attention_heads % model_parallel_size != 0:
            raise ValueError(
                f"{flag('num_attention_heads')} {self.num_attention_heads} is not divisible by "
                f"--model-parallel-size {model_parallel_size}")
        if self.vocab_size % model_parallel_size != 0:
            raise ValueError(
                f"the padded vocabulary size {self.vocab_size} is not divisible by --model-parallel-size "
                f"{model_parallel_size}; choose a --make-vocab-size-divisible-by that is a multiple of it")
        self._check_compressed_forms(model_parallel_size, flag)
        if self.gelu not in ("tanh", "erf"):
            raise ValueError(f"{flag('gelu')} must be tanh or erf (got {self.gelu!r})")
        if self.checkpoint_num_layers < 1:
            raise ValueError(f"--checkpoint-num-layers must be at least 1 (got {self.checkpoint_num_layers})")
        for name in ("attention_dropout", "hidden_dropout", "output_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"--{name.replace('_', '-')} must be in [0, 1) (got {getattr(self, name)})")

    def _check_compressed_forms(self, model_parallel_size: int, flag: Callable[[str], str]) -> None:
        if self.compress_word_emb < 0:
            raise ValueError(f"{flag('compress_word_emb')} {self.compress_word_emb} must be a width, or 0 (off)")
        for name in ("hidden_size", "compress_word_emb", *(
                ("ib_hidden_size",) if self.inverted_bottleneck_mode else ())):
            if getattr(self, name) % model_parallel_size != 0:
                raise ValueError(f"{flag(name)} {getattr(self, name)} is not divisible by --model-parallel-size "
                                 f"{model_parallel_size}")
        if self.inverted_bottleneck_mode and self.ib_ffn_num < 1:
            raise ValueError(f"{flag('ib_ffn_num')} must be at least 1 (got {self.ib_ffn_num})")
        if not 0 <= self.ib_word_emb <= self.hidden_size:
            raise ValueError(f"{flag('ib_word_emb')} {self.ib_word_emb} must lie between 0 and "
                             f"{flag('hidden_size')} {self.hidden_size}")
        if self.map_vocab_size:
            for what, size in (("kept", self.map_vocab_size), ("dropped", self.vocab_size - self.map_vocab_size)):
                if size <= 0 or size % model_parallel_size != 0:
                    raise ValueError(f"--map_vocab_size: {size} {what} tokens do not divide into "
                                     f"--model-parallel-size {model_parallel_size} equal parts")
        elif self.unmap_vocab_output:
            raise ValueError("--unmap_vocab_output needs --map_vocab_size")

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
            checkpoint_num_layers=args.checkpoint_num_layers,
            inverted_bottleneck_mode=args.inverted_bottleneck_mode, ib_hidden_size=args.ib_hidden_size,
            ib_ffn_num=args.ib_ffn_num, ib_word_emb=args.ib_word_emb, compress_word_emb=args.compress_word_emb,
            cross_layer_parameter_sharing=args.cross_layer_parameter_sharing, gelu=args.gelu)
        return cls(**{**values, **overrides})


_UNDERSCORE_FLAGS = ("ib_hidden_size", "ib_ffn_num", "ib_word_emb", "compress_word_emb")


def _flag_names(prefix: str) -> Callable[[str], str]:
    if prefix:
        return lambda name: f"--{prefix}{name}"
    return lambda name: f"--{name if name in _UNDERSCORE_FLAGS else name.replace('_', '-')}"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the group "Model"; those of the compact vocabulary stand with vocabulary compression."""
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
    group.add_argument("--pretrained-bert", action="store_true",
                       help="fine-tune the BERT that --tokenizer-model-type names (a folder, or a name that was "
                            "downloaded before) instead of a GLM; needs transformers")
    group.add_argument("--layernorm-epsilon", type=float, default=LAYERNORM_EPSILON,
                       help="of the BERT's layer norms; that of a GLM is fixed")
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
    group.add_argument("--gelu", choices=("tanh", "erf"), default="tanh",
                       help="form of GELU: the approximation of the published models, or the exact one that their "
                            "Hugging Face code computes")
    group = parser.add_argument_group("compressed forms of the model")
    group.add_argument("--inverted_bottleneck_mode", action="store_true",
                       help="attention and feed-forward run at --ib_hidden_size inside every layer (MobileBERT)")
    group.add_argument("--ib_hidden_size", type=int, default=128, help="width inside the bottleneck")
    group.add_argument("--ib_ffn_num", type=int, default=4, help="feed-forward blocks in a bottleneck layer")
    group.add_argument("--ib_word_emb", type=int, default=0,
                       help="join so many columns of three neighbouring word vectors; 0 = off")
    group.add_argument("--compress_word_emb", type=int, default=0,
                       help="width of a factorised word table (ALBERT); 0 = --hidden-size")
    group.add_argument("--cross_layer_parameter_sharing", action="store_true",
                       help="one layer that runs --num-layers times (ALBERT)")
