"""The number of parameters of a planned model, from the flags of its command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable

from distill.sweep.presets import ModelPreset, fill
from distill.sweep.types import FlagPair, render_flag
from model.config import ModelConfig, add_model_flags
from model.count import count_parameters

_TOKENIZER = ("--tokenizer-type", "--tokenizer-model-type", "--tokenizer-path", "--task-mask")
_MULTIPLE = 128


def preset_parameters(preset: ModelPreset) -> int | None:
    """Parameters of a model preset as it stands; None where it does not tell its vocabulary."""
    return planned_parameters(fill(preset.flags, {"checkpoint": ""}), preset)


def planned_parameters(flags: Iterable[FlagPair], preset: ModelPreset) -> int | None:
    """Parameters of the model that a command trains, projections of methods and heads of tasks not counted.

    None where the vocabulary is not known: a tokenizer that is not the preset's, or a compact vocabulary of other forms
    than a share.
    """
    given = dict(flags)
    own = dict(fill(preset.flags, {"checkpoint": ""}))
    if not preset.vocab_size or any(given.get(name) != own.get(name) for name in _TOKENIZER):
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_model_flags(parser)
    parser.add_argument("--map_vocab_size", default="0")
    try:
        args = parser.parse_known_args([render_flag(name, value) for name, value in given.items()])[0]
        share = float(args.map_vocab_size)
    except (argparse.ArgumentError, ValueError):
        return None
    if not 0 <= share < 1:
        return None
    rows = math.ceil(preset.vocab_size * share / _MULTIPLE) * _MULTIPLE
    names = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "inverted_bottleneck_mode",
             "ib_hidden_size", "ib_ffn_num", "ib_word_emb", "compress_word_emb", "cross_layer_parameter_sharing")
    return count_parameters(ModelConfig(**{name: getattr(args, name) for name in names}, map_vocab_size=rows,
                                        vocab_size=preset.vocab_size)).total
