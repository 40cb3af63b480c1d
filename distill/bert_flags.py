"""What ``--pretrained-bert`` goes with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model.config import LAYERNORM_EPSILON
from tasks.language_model import is_language_model_task


def check_bert_flags(args: Any) -> list[str]:
    """Notes about flags that have no effect.

    Raises:
        ValueError: something that a BERT cannot do; the message says why.
    """
    if not args.pretrained_bert:
        return [] if args.layernorm_epsilon == LAYERNORM_EPSILON else [
            f"--layernorm-epsilon={args.layernorm_epsilon:g} has no effect without --pretrained-bert: that of a GLM is "
            f"{LAYERNORM_EPSILON:g}"]
    for given, reason in _obstacles(args):
        raise ValueError(f"{given} does not go with --pretrained-bert: {reason}; leave one of both out")
    return []


def _obstacles(args: Any) -> Iterator[tuple[str, str]]:
    """What was given, and why it cannot be."""
    if not args.finetune:
        yield "pretraining", "it is a baseline of fine-tuning"
    if is_language_model_task(args.task):
        yield f"--task={args.task}", "a BERT does not continue texts"
    if args.cloze_eval:
        yield "--cloze-eval", "its classifier reads the texts as they are, without a pattern"
    if args.student_model:
        yield f"--student_model={args.student_model}", "distillation methods tap the inside of a GLM"
    if args.given_model_parallel_size > 1:
        yield f"--model-parallel-size={args.given_model_parallel_size}", "transformers' model is not cut over ranks"
    if args.tokenizer_type != "BertWordPieceTokenizer":
        yield f"--tokenizer-type={args.tokenizer_type}", "BERT has WordPiece vocabularies"
    if args.pool_token != "cls":
        yield f"--pool-token={args.pool_token}", "its pooled token is the first one"
    for dest in ("inverted_bottleneck_mode", "compress_word_emb", "ib_word_emb", "cross_layer_parameter_sharing",
                 "map_vocab_size"):
        if getattr(args, dest):
            yield f"--{dest}", "that is a form of a GLM"
    for dest in ("compile", "fused_lm_loss"):
        if getattr(args, dest):
            yield f"--{dest.replace('_', '-')}", "that works on the layers of a GLM"
