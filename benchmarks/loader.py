"""Speed of the data path: ``python benchmarks/loader.py CORPUS --tokenizer-model-type NAME_OR_PATH``.

Prints tokens a second of one loader (samples, spans, layout, collating; length 512) for each mode of the objective, and
the time to tokenize the corpus into a cache with ``--processes`` processes against one line a call.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_utils.block_lm import BlockLM, BlockLMConfig  # noqa: E402
from data_utils.corpora.build import iter_source, write_tokens  # noqa: E402
from data_utils.corpora.documents import InMemoryDocuments  # noqa: E402
from data_utils.corpora.registry import resolve_source  # noqa: E402
from data_utils.datasets.block import BlockDataset  # noqa: E402
from data_utils.loaders import BatchPlan, BlockLMLoader  # noqa: E402
from data_utils.tokenizers import make_tokenizer  # noqa: E402

MODES = {"bert": (1.0, 0.0), "sentence": (0.0, 1.0), "gpt": (0.0, 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("corpus", help="a .txt or .jsonl file, or a folder of them")
    parser.add_argument("--tokenizer-type", default="BertWordPieceTokenizer")
    parser.add_argument("--tokenizer-model-type", default=None)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--batches", type=int, default=100, help="batches of 16 samples for each mode")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()

    tokenizer = make_tokenizer(args.tokenizer_type, args.tokenizer_model_type)
    source = resolve_source(args.corpus)
    documents = list(iter_source(source))
    started = time.perf_counter()
    encoded = [tokenizer.encode(text) for _, text in documents]
    one_by_one = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        counts = write_tokens(Path(folder), source, tokenizer, num_processes=args.processes, show_progress=False)
        parallel = time.perf_counter() - started
    print(f"tokenizing {counts['text_items']} tokens: one line a call {one_by_one:.2f} s, cache with {args.processes} "
          f"processes {parallel:.2f} s (writing included), ratio {one_by_one / parallel:.1f}")

    dataset = BlockDataset(InMemoryDocuments(encoded), tokenizer, args.seq_length)
    for mode, (bert, sentence) in MODES.items():
        objective = BlockLM(BlockLMConfig(bert_prob=bert, gap_sentence_prob=sentence), tokenizer, args.seq_length)
        loader = BlockLMLoader(dataset, objective, BatchPlan("train", batch_size=16))
        loader.batch(0)
        started, tokens = time.perf_counter(), 0
        for number in range(args.batches):
            tokens += int(loader.batch(number)["attention_mask"].shape[0]) * args.seq_length
        print(f"{mode}: {tokens / (time.perf_counter() - started):,.0f} tokens/s in one process")


if __name__ == "__main__":
    main()
