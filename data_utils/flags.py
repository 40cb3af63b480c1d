"""Command-line flags of the data: tokenizer, corpora, and the pre-training objective."""

from __future__ import annotations

import argparse
import logging

from data_utils.corpora.registry import DEFAULT_DATA_ROOT
from data_utils.tokenizers import TOKENIZER_TYPES

logger = logging.getLogger(__name__)

DEFAULT_TEXT_KEY = "sentence"

# Accepted because published command lines may carry them, without effect. flag -> (dest, reason)
DEAD_FLAGS = {
    "--tokenizer-path": ("tokenizer_path", "only the two refused tokenizers are trained on a corpus"),
    "--delim": ("delim", "delimited files are not read; use .jsonl"),
    "--presplit-sentences": ("presplit_sentences", "sentence borders are found in the tokens"),
    "--input-data-sizes-file": ("input_data_sizes_file", "nothing reads it, in the release neither"),
    "--max-preds-per-seq": ("max_preds_per_seq", "the block objective has no such limit"),
    "--multi-seq-length": ("multi_seq_length", "multi-task data is refused"),
    "--multi-batch-size": ("multi_batch_size", "multi-task data is refused"),
}
# Refused: flag -> (dest, reason and way out)
REFUSED_FLAGS = {
    "--use-tfrecords": ("use_tfrecords", "needs a module that the release never shipped; convert to .txt or .jsonl"),
    "--multi-task-data": ("multi_task_data", "mixing labelled tasks into pre-training is not built; leave it out"),
    "--multi-task-ratio": ("multi_task_ratio", "mixing labelled tasks into pre-training is not built; leave it out"),
    "--reset-position-ids": ("reset_position_ids", "applies only without --block-lm, which is not supported here"),
    "--reset-attention-mask": ("reset_attention_mask", "applies only without --block-lm, which is not supported here"),
}


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Groups "tokenizer and data" and "pre-training objective"."""
    _add_tokenizer_flags(parser.add_argument_group("tokenizer and data"))
    _add_objective_flags(parser.add_argument_group("pre-training objective"))


def check_data_flags(args: argparse.Namespace) -> None:
    """Warn about dead flags that were given. Raises ValueError for refused ones and impossible values."""
    defaults = _defaults()
    for flag, (dest, reason) in DEAD_FLAGS.items():
        if getattr(args, dest, defaults[dest]) != defaults[dest]:
            logger.warning("%s has no effect: %s", flag, reason)
    for flag, (dest, reason) in REFUSED_FLAGS.items():
        if getattr(args, dest, defaults[dest]) != defaults[dest]:
            raise ValueError(f"{flag} is refused: {reason}")
    if args.seq_length < 4:
        raise ValueError(f"--seq-length must be at least 4 (got {args.seq_length})")
    if args.num_workers < 0:
        raise ValueError(f"--num-workers must not be negative (got {args.num_workers})")
    if args.load_splits and args.save_splits:
        raise ValueError("--load-splits and --save-splits exclude each other: loaded indices need not be saved")
    if not 0 <= args.non_sentence_start <= 1:
        raise ValueError(f"--non-sentence-start is a probability (got {args.non_sentence_start})")


def _defaults() -> dict[str, object]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_data_flags(parser)
    return vars(parser.parse_args([]))


def _add_tokenizer_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--tokenizer-type", default="BertWordPieceTokenizer", choices=TOKENIZER_TYPES, help="tokenizer family")
    add("--tokenizer-model-type", default=None,
        help="known vocabulary (bert-base-uncased, gpt2, …), vocabulary file, or folder with one")
    add("--tokenizer-path", default="tokenizer.model", help="no effect")
    add("--fix-command-token", action="store_true", help="ChineseSPTokenizer: corrected ids of the command tokens")
    add("--cache-dir", default=None, help="folder with vocabularies; token caches of read-only corpora go there too")
    add("--data-root", default=DEFAULT_DATA_ROOT, help="folder below which registered corpora are looked up")
    add("--train-data", nargs="+", default=None, help="corpora to train on: registered names or paths")
    add("--valid-data", nargs="*", default=None,
        help="corpora for validation (then --split gives none to it); fine-tuning: names of the splits to score")
    add("--test-data", nargs="*", default=None, help="corpora for the test loss (then --split gives none to it)")
    add("--data-dir", default=None, help="folder of the fine-tuning data set")
    add("--split", default="1000,1,1", help="proportions of training, validation and test documents")
    add("--seq-length", type=int, default=512, help="longest sample, in tokens")
    add("--shuffle", action="store_true", help="draw samples with replacement instead of in turn")
    add("--no-lazy-loader", action="store_true", help="read the whole token file into memory instead of mapping it")
    add("--half-lazy-loader", action="store_true", help="use the first two thirds of the documents only")
    add("--loader-scatter", type=int, default=None,
        help="number of shards; data-parallel rank r reads shard r modulo this number")
    add("--num-workers", type=int, default=2, help="processes that prepare batches; 0: the main process does")
    add("--loose-json", action="store_true", help="read every file given by path as one JSON object a line")
    add("--text-key", default=DEFAULT_TEXT_KEY,
        help="field of JSON files given by path that holds the text; by default `text`, then `sentence`")
    add("--eval-text-key", default=None, help="the same for validation and test files (default: --text-key)")
    add("--delim", default=",", help="no effect")
    add("--presplit-sentences", action="store_true", help="no effect")
    add("--sample-one-document", action="store_true", help="never pack two documents into one sample")
    add("--non-sentence-start", type=float, default=0.0, help="probability of starting a sample in mid-sentence")
    add("--filter-english", action="store_true", help="drop documents that fastText does not judge English")
    add("--no-pre-tokenize", action="store_true", help="keep text in the cache and tokenize while training")
    add("--load-splits", default=None, help=".npy file with the order of documents to cut by --split")
    add("--save-splits", default=None, help=".npy file to which that order is written")
    add("--save-test-data", default=None, help="text file to which the test documents are written, one a line")
    add("--input-data-sizes-file", default="sizes.txt", help="no effect")
    add("--use-tfrecords", action="store_true", help="refused")
    add("--max-preds-per-seq", type=int, default=None, help="no effect")
    add("--resume-dataloader", action="store_true",
        help="accepted: a resumed run always goes on at its own micro-batch number")
    add("--reset-position-ids", action="store_true", help="refused: only without --block-lm")
    add("--reset-attention-mask", action="store_true", help="refused: only without --block-lm")
    add("--multi-task-data", nargs="*", default=None, help="refused")
    add("--multi-task-ratio", type=float, default=0.0, help="refused")
    add("--multi-seq-length", type=int, default=None, help="no effect")
    add("--multi-batch-size", type=int, default=None, help="no effect")


def _add_objective_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--block-lm", action="store_true", help="GLM: autoregressive blank filling with two-dimensional positions")
    add("--masked-lm", action="store_true", help="mask spans in place instead of generating them")
    add("--bert-prob", type=float, default=0.5, help="probability of short spans (15%% of the tokens)")
    add("--gap-sentence-prob", type=float, default=0.0,
        help="probability of whole sentences; the rest is one long span (generation)")
    add("--gap-sentence-ratio", type=float, default=0.15, help="share of tokens masked by whole sentences")
    add("--gpt-infill-prob", type=float, default=0.5, help="generation: probability that the text's end is generated")
    add("--gpt-min-ratio", type=float, default=0.5, help="generation: smallest generated share")
    add("--avg-block-length", type=int, default=3, help="Poisson parameter of the span length, in tokens")
    add("--short-seq-prob", type=float, default=0.0, help="probability of cutting a sample into short ones")
    add("--single-span-prob", type=float, default=0.0, help="probability of masking one short span only")
    add("--block-mask-prob", type=float, default=0.0, help="share of span inputs replaced by [dBLOCK]")
    add("--context-mask-ratio", type=float, default=0.0, help="share of tokens near spans replaced by [dBLOCK]")
    add("--task-mask", action="store_true", help="[gMASK] for generation and [sMASK] for sentences")
    add("--no-shuffle-block", action="store_true", help="predict spans from left to right")
    add("--no-block-position", action="store_true", help="second position row is 1 throughout the spans")
    add("--sentinel-token", action="store_true", help="numbered masks instead of mask positions")
    add("--random-position", action="store_true", help="random offset of the first position row")
