"""Count the tokens of a corpus and write the vocabulary sort file that a compact vocabulary is built from.

    python distill/vocab_sort.py --train-data wikibook --tokenizer-model-type bert-base-uncased --output sorted.txt
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Started by its path, Python puts the folder of this script first, not the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from data_utils.corpora import CacheOptions, Documents, load_documents
from data_utils.flags import add_data_flags
from data_utils.tokenizers import tokenizer_from_args
from data_utils.vocab_file import vocab_file_text
from distill.vocab_init import protected_ids, sort_file_path
from model.checkpoint.files import atomic_write_text
from tasks.registry import verbalizer_words

logger = logging.getLogger(__name__)


def count_tokens(documents: Documents, num_tokens: int) -> dict[int, int]:
    """Occurrences of each id in the texts (prompts not counted), in the order of first occurrence."""
    counts = np.zeros(num_tokens, dtype=np.int64)
    first = np.full(num_tokens, np.iinfo(np.int64).max)
    position = 0
    for index in tqdm(range(len(documents)), desc="counting", unit="doc", disable=None):
        document = documents.document(index, eos=0)
        sample = document.window(0, len(document) - 1)
        ids, where, number = np.unique(sample.text[sample.loss_mask == 1], return_index=True, return_counts=True)
        counts[ids] += number
        first[ids] = np.minimum(first[ids], position + where)
        position += len(document)
    return {int(token): int(counts[token]) for token in np.argsort(first, kind="stable") if counts[token]}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="distill/vocab_sort.py", description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    add_data_flags(parser)
    parser.add_argument("--output", default=None, help="default: where --map_vocab_size looks for it")
    parser.set_defaults(block_lm=True, map_vocab_file=None)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.train_data:
        parser.error("--train-data is needed: the corpus whose tokens are counted")
    tokenizer = tokenizer_from_args(args)
    options = CacheOptions(data_root=args.data_root, fallback_root=args.cache_dir)
    counts = count_tokens(load_documents(args.train_data, tokenizer, options), tokenizer.num_tokens)
    tokens = tokenizer.token_strings()
    protected = protected_ids(tokenizer, verbalizer_words())
    target = Path(args.output) if args.output else sort_file_path(args)
    atomic_write_text(vocab_file_text(tokens, counts, protected), target)
    logger.info("%s: %d tokens, %d of them protected, %d never seen; %d tokens counted", target, len(tokens),
                len(protected), len(tokens) - len(counts), sum(counts.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
