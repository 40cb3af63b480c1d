"""Tokenizers by type and vocabulary, offline: see :func:`make_tokenizer`."""

from __future__ import annotations

from data_utils.tokenizers.base import Command, CommandSwitches, Tokenizer, padded_vocab_size
from data_utils.tokenizers.files import find_bpe, find_sentencepiece, find_wordpiece
from data_utils.tokenizers.gpt2_bpe import GPT2BPETokenizer
from data_utils.tokenizers.sentencepiece import ChineseSPTokenizer
from data_utils.tokenizers.wordpiece import BertWordPieceTokenizer

__all__ = ["BertWordPieceTokenizer", "ChineseSPTokenizer", "Command", "CommandSwitches", "GPT2BPETokenizer",
           "TOKENIZER_TYPES", "Tokenizer", "make_tokenizer", "padded_vocab_size", "tokenizer_from_args"]

TOKENIZER_TYPES = ("CharacterLevelTokenizer", "SentencePieceTokenizer", "BertWordPieceTokenizer", "GPT2BPETokenizer",
                   "ChineseSPTokenizer")


def make_tokenizer(tokenizer_type: str, model_type: str | None = None, *, block_lm: bool = True,
                   task_mask: bool = False, decoder_mask: bool = False, fix_command_token: bool = False,
                   num_sentinels: int = 0, cache_dir: str | None = None) -> Tokenizer:
    """The tokenizer of ``--tokenizer-type``.

    Args:
        model_type: a known name (``bert-base-uncased``, ``gpt2``, ``roberta``, ``chinese-sentencepiece`` …), looked up
            in ``cache_dir``, ``.pytorch_pretrained_bert`` and ``../GLM/data``; or a vocabulary file; or a folder with
            one. None means bert-large-uncased, gpt2 or chinese-sentencepiece.
        block_lm, task_mask, decoder_mask: which commands are added (``--block-lm``, ``--task-mask``,
            ``--block-mask-prob`` or ``--context-mask-ratio`` above 0).
        fix_command_token: ChineseSPTokenizer only.
        num_sentinels: numbered mask/start pairs (``--sentinel-token``); BertWordPieceTokenizer only.

    Raises:
        ValueError: a type or option that cannot work. FileNotFoundError: the vocabulary is not on this machine.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise ValueError(f"--tokenizer-type={tokenizer_type} is unknown; choose one of {', '.join(TOKENIZER_TYPES)}")
    if tokenizer_type in ("CharacterLevelTokenizer", "SentencePieceTokenizer"):
        raise ValueError(
            f"--tokenizer-type={tokenizer_type} is not supported: it has no mask and block symbols, so no GLM can be "
            "trained with it; use BertWordPieceTokenizer, GPT2BPETokenizer or ChineseSPTokenizer")
    if num_sentinels and tokenizer_type != "BertWordPieceTokenizer":
        raise ValueError(f"--sentinel-token works with BertWordPieceTokenizer only (got {tokenizer_type})")
    switches = CommandSwitches(block_lm, task_mask, decoder_mask, num_sentinels)
    if tokenizer_type == "BertWordPieceTokenizer":
        vocab_file, lower_case = find_wordpiece(model_type, cache_dir)
        return BertWordPieceTokenizer(vocab_file, lower_case=lower_case, switches=switches)
    if tokenizer_type == "GPT2BPETokenizer":
        vocab_file, merges_file = find_bpe(model_type, cache_dir)
        return GPT2BPETokenizer(vocab_file, merges_file, switches=switches)
    return ChineseSPTokenizer(find_sentencepiece(model_type, cache_dir), fix_command_token=fix_command_token,
                              switches=switches)


def tokenizer_from_args(args: object) -> Tokenizer:
    """:func:`make_tokenizer` from the command line's namespace."""
    def value(name: str, default: object = None) -> object:
        return getattr(args, name, default)

    decoder_mask = (value("block_mask_prob") or 0) > 0 or (value("context_mask_ratio") or 0) > 0
    sentinels = value("max_position_embeddings") - 1 if value("sentinel_token") else 0
    return make_tokenizer(
        value("tokenizer_type", "BertWordPieceTokenizer"), value("tokenizer_model_type"),
        block_lm=bool(value("block_lm")), task_mask=bool(value("task_mask")), decoder_mask=decoder_mask,
        fix_command_token=bool(value("fix_command_token")), num_sentinels=sentinels, cache_dir=value("cache_dir"))
