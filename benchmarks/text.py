"""The block-LM loader and the token cache, on the generated world (or a corpus of your own)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from data_utils.block_lm import BlockLM, BlockLMConfig
from data_utils.corpora.build import iter_source, write_tokens
from data_utils.corpora.documents import InMemoryDocuments
from data_utils.corpora.registry import Source, resolve_source
from data_utils.datasets.block import BlockDataset
from data_utils.loaders import BatchPlan, BlockLMLoader
from data_utils.tokenizers import Tokenizer, make_tokenizer
from data_utils.world.build import write_world

MODES = {"bert": (1.0, 0.0), "sentence": (0.0, 1.0), "gpt": (0.0, 0.0)}
GOAL_TOKENS, GOAL_CACHE = 300_000, 4.0


def text_lines(corpus: str | None, vocabulary: str | None, batches: int) -> Iterator[str]:
    """Lines of the table about text: tokens a second of CPU time, equal samples, seconds of the token cache."""
    with tempfile.TemporaryDirectory() as folder:
        if corpus is None or vocabulary is None:
            world = write_world(Path(folder) / "world")
            corpus, vocabulary = str(_enlarged(world / "text" / "train.jsonl")), str(world / "vocab.txt")
        tokenizer = make_tokenizer("BertWordPieceTokenizer", vocabulary)
        source = resolve_source(corpus)
        texts = [text for _, text in iter_source(source)]
        encoded = tokenizer.encode_batch(texts)
        for mode, (bert, sentence) in MODES.items():
            yield _loader_line(tokenizer, encoded, mode, bert, sentence, batches)
        yield _equality_line(tokenizer, encoded)
        size = sum(map(len, texts)) / 1e6
        for processes in (1, 2):
            yield _cache_line(source, tokenizer, texts, processes, size)


def _cache_line(source: Source, tokenizer: Tokenizer, texts: list[str], processes: int, size: float,
                repeats: int = 3) -> str:
    """Wall-clock time (several processes have no common CPU time), in turns."""
    pairs = []
    for _ in range(repeats):
        naive = _wall(lambda: [tokenizer._words.encode(text) for text in texts])
        with tempfile.TemporaryDirectory() as cache:
            ours = _wall(partial(write_tokens, Path(cache), source, tokenizer, num_processes=processes,
                                 show_progress=False))
        pairs.append((naive / ours, naive, ours))
    ratios = sorted(pairs)
    ratio, naive, ours = ratios[len(ratios) // 2]
    return (f"token cache of {size:.0f} MB, {processes} process(es)    one engine call a line {naive:.2f} s, ours with "
            f"writing {ours:.2f} s, {ratio:.1f}x ({ratios[0][0]:.1f}-{ratios[-1][0]:.1f})   goal >= {GOAL_CACHE:g}x "
            f"{'yes' if ratio >= GOAL_CACHE else 'NO'}")


def _enlarged(corpus: Path, megabytes: int = 24) -> Path:
    """The corpus over and over, so that its token cache is worth two processes."""
    text = corpus.read_text(encoding="utf-8")
    larger = corpus.with_name("larger" + corpus.suffix)
    larger.write_text(text * max(1, int(megabytes * 1e6 / len(text))), encoding="utf-8")
    return larger


def _wall(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _loader(tokenizer: Tokenizer, encoded: list[list[int]], bert: float, sentence: float,
            workers: int = 0) -> BlockLMLoader:
    objective = BlockLM(BlockLMConfig(bert_prob=bert, gap_sentence_prob=sentence), tokenizer, 512)
    dataset = BlockDataset(InMemoryDocuments(encoded), tokenizer, 512)
    return BlockLMLoader(dataset, objective, BatchPlan("train", batch_size=16, num_workers=workers))


def _loader_line(tokenizer: Tokenizer, encoded: list[list[int]], mode: str, bert: float, sentence: float,
                 batches: int) -> str:
    loader = _loader(tokenizer, encoded, bert, sentence)
    loader.batch(0)
    rates = []
    for start in range(0, 3 * batches, batches):
        began = time.process_time()
        samples = sum(len(loader.batch(number)["attention_mask"]) for number in range(start, start + batches))
        rates.append(samples * 512 / (time.process_time() - began))
    rates.sort()
    return (f"block-LM loader, {mode}, one worker    {rates[1]:,.0f} tokens/s ({rates[0]:,.0f}-{rates[-1]:,.0f})   "
            f"goal >= {GOAL_TOKENS:,} {'yes' if rates[1] >= GOAL_TOKENS else 'NO'}")


def _equality_line(tokenizer: Tokenizer, encoded: list[list[int]]) -> str:
    found = []
    for workers in (0, 1, 4):
        batches = _loader(tokenizer, encoded[:2000], 0.5, 0.3, workers).iterate(3)
        found.append([next(batches) for _ in range(5)])
        batches.close()
    same = all(torch.equal(first[key], other[key]) for others in found[1:]
               for first, other in zip(found[0], others) for key in first)
    return f"samples with 0, 1 and 4 workers    {'identical' if same else 'DIFFERENT'}"
