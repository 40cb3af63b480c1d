"""Tokenizing a corpus in several processes, file order kept, a bounded part of it in memory."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data_utils.corpora.readers import Reader
from data_utils.corpora.registry import Source
from data_utils.tokenizers.base import Tokenizer
from data_utils.workers import end_with_parent

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
_SMALLEST_CHUNK = 64 << 10
_IN_PROCESS_BYTES = 8 << 20  # half a second: starting processes, each with an empty word memory, costs more
_BATCH_DOCUMENTS = 1000
# A stray broken character is replaced, as always; more of them mean another encoding. The last one may be cut in two.
_BROKEN_CHARACTERS = 4
_BROKEN_SHARE = 0.002


class Chunk(NamedTuple):
    """The lines of a file that begin in the bytes ``start … end - 1`` (a whole file where the reader wants that)."""

    file: Path
    reader: Reader
    start: int
    end: int


class Encoded(NamedTuple):
    """Documents of a chunk end to end: int32 ids, or uint8 text; int32 lengths in items."""

    prompt: np.ndarray
    text: np.ndarray
    prompt_lengths: np.ndarray
    text_lengths: np.ndarray


@dataclass(frozen=True)
class ChunkEncoder:
    """What a worker process needs; ``keep`` filters documents of readers (or of all with ``filter_all``)."""

    tokenizer: Tokenizer
    pre_tokenize: bool = True
    keep: Callable[[str], bool] | None = None
    filter_all: bool = False

    def __call__(self, chunk: Chunk) -> Encoded:
        documents = iter_documents(chunk)
        if self.keep is not None and (self.filter_all or chunk.reader.english_only):
            documents = (document for document in documents if self.keep(document[1]))
        batches = []
        while batch := list(islice(documents, _BATCH_DOCUMENTS)):
            batches.append(self._encode(batch))
        if not batches:
            empty = np.zeros(0, dtype=np.int32)
            return Encoded(empty, empty, empty, empty)
        return Encoded(*(np.concatenate(arrays) for arrays in zip(*batches)))

    def _encode(self, documents: list[tuple[str, str]]) -> Encoded:
        prompts, texts = zip(*documents)
        if self.pre_tokenize:
            encoded = [self.tokenizer.encode_batch(prompts) if any(prompts) else [[]] * len(texts),
                       self.tokenizer.encode_batch(texts)]
            dtype = np.int32
        else:
            encoded = [[np.frombuffer(text.encode(), dtype=np.uint8) for text in part] for part in (prompts, texts)]
            dtype = np.uint8
        kept = [index for index, ids in enumerate(encoded[1]) if len(ids)]
        parts, lengths = [], []
        for part in encoded:
            sizes = np.array([len(part[index]) for index in kept], dtype=np.int32)
            flat = np.empty(int(sizes.sum()), dtype=dtype)
            position = 0
            for index, size in zip(kept, sizes.tolist()):
                flat[position:position + size] = part[index]
                position += size
            parts.append(flat)
            lengths.append(sizes)
        return Encoded(*parts, *lengths)


def check_text(file: Path) -> None:
    """Look at the beginning of a corpus file. Raises ValueError if that is no UTF-8 text."""
    with open(file, "rb") as stream:
        head = stream.read(_SMALLEST_CHUNK)
    if (place := head.find(0)) >= 0:
        raise ValueError(f"{file} is no text: byte {place} is zero, as in a binary file or in UTF-16; give UTF-8 text "
                         "(for example: iconv -f utf-16 -t utf-8), decompressed")
    broken = head.decode("utf-8", errors="replace").count("\ufffd") - head.count("\ufffd".encode())
    if broken > max(_BROKEN_CHARACTERS, _BROKEN_SHARE * len(head)):
        raise ValueError(f"{file} is not UTF-8: {broken} characters of its first {len(head)} bytes cannot be read; "
                         "convert it (for example: iconv -f latin1 -t utf-8)")


def iter_documents(chunk: Chunk) -> Iterator[tuple[str, str]]:
    """``(prompt, text)`` of every document that begins in the chunk. Raises ValueError naming the file and byte."""
    if chunk.reader.whole_file:
        yield from chunk.reader.documents(chunk.file.read_text(encoding="utf-8", errors="replace"))
        return
    with open(chunk.file, "rb") as stream:
        if chunk.start:
            stream.seek(chunk.start - 1)
            stream.readline()  # ends the line that began in the chunk before
        while (position := stream.tell()) < chunk.end:
            line = stream.readline().decode("utf-8", errors="replace").rstrip("\r\n")
            try:
                yield from chunk.reader.documents(line)
            except ValueError as error:
                raise ValueError(f"{chunk.file}, line at byte {position}: {error}") from error


def iter_source(source: Source) -> Iterator[tuple[str, str]]:
    """All documents of a source, one after the other, in file order."""
    for file, reader in source.files:
        check_text(file)
        yield from iter_documents(Chunk(file, reader, 0, file.stat().st_size))


def write_tokens(folder: Path, source: Source, tokenizer: Tokenizer, *, pre_tokenize: bool = True,
                 keep: Callable[[str], bool] | None = None, filter_all: bool = False,
                 num_processes: int | None = None, show_progress: bool = True) -> dict[str, int]:
    """Write ``prompt``, ``text`` and their ``.lengths.npy`` to ``folder``.

    Args:
        num_processes: None: one per core this process may use; small corpora are always done in this process.

    Returns:
        ``documents``, ``prompt_items`` and ``text_items`` (tokens, or bytes without ``pre_tokenize``).
    """
    for file, _ in source.files:
        check_text(file)
    encoder = ChunkEncoder(tokenizer, pre_tokenize, keep, filter_all)
    total = sum(file.stat().st_size for file, _ in source.files)
    processes = 1 if total < _IN_PROCESS_BYTES else num_processes or _num_cores()
    logger.info("tokenizing %s (%.1f MB) with %d process(es)", source.location, total / 1e6, processes)
    chunks = _chunks(source, min(_CHUNK_BYTES, max(_SMALLEST_CHUNK, total // (4 * processes) + 1)))
    lengths: dict[str, list[np.ndarray]] = {"prompt": [], "text": []}
    with (open(folder / "prompt", "wb") as prompt, open(folder / "text", "wb") as text,
          tqdm(total=total, unit="B", unit_scale=True, desc=f"tokenizing {source.location.name}",
               disable=None if show_progress else True) as progress):
        for chunk, encoded in _encode_all(encoder, chunks, processes):
            prompt.write(encoded.prompt.data)
            text.write(encoded.text.data)
            lengths["prompt"].append(encoded.prompt_lengths)
            lengths["text"].append(encoded.text_lengths)
            progress.update(chunk.end - chunk.start)
    counts = {"documents": sum(len(part) for part in lengths["text"])}
    for name, parts in lengths.items():
        whole = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        np.save(folder / f"{name}.lengths.npy", whole)
        counts[f"{name}_items"] = int(whole.sum(dtype=np.int64))
    return counts


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(source: Source, size: int) -> Iterator[Chunk]:
    for file, reader in source.files:
        total = file.stat().st_size
        if reader.whole_file:
            yield Chunk(file, reader, 0, total)
            continue
        for start in range(0, total, size):
            yield Chunk(file, reader, start, min(start + size, total))


def _encode_all(encoder: ChunkEncoder, chunks: Iterator[Chunk], processes: int) -> Iterator[tuple[Chunk, Encoded]]:
    """Encoded chunks in order. Raises ChildProcessError if a worker process dies."""
    if processes == 1:
        for chunk in chunks:
            yield chunk, encoder(chunk)
        return
    try:
        yield from _encode_in_processes(encoder, chunks, processes)
    except BrokenProcessPool as error:
        raise ChildProcessError("a process that tokenized the corpus was ended from outside, as the system does when "
                                "memory runs out; nothing of the cache is kept, start again") from error


def _encode_in_processes(encoder: ChunkEncoder, chunks: Iterator[Chunk],
                         processes: int) -> Iterator[tuple[Chunk, Encoded]]:
    """At most three chunks a process are under way."""
    # Forked workers inherit the tokenizer and do not run the entry script again, as spawned ones would.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork"),
                             initializer=_start_worker, initargs=(encoder, os.getpid())) as pool:
        pending: deque[tuple[Chunk, Future[Encoded]]] = deque()
        for chunk in chunks:
            pending.append((chunk, pool.submit(_work, chunk)))
            if len(pending) >= 3 * processes:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()


_worker_encoder: ChunkEncoder | None = None


def _start_worker(encoder: ChunkEncoder, parent: int) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool does not survive a fork
    end_with_parent(parent)


def _work(chunk: Chunk) -> Encoded:
    if _worker_encoder is None:
        raise RuntimeError("worker started without an encoder")
    return _worker_encoder(chunk)
