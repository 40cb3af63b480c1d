"""The token cache: a corpus, tokenized once, in memory-mapped files.

A cache folder is keyed by the content of the corpus, its readers and the tokenizer, so it never goes stale; it appears
under its name only when complete. Inside: ``text`` and ``prompt``, all documents end to end as 32-bit native integers
(UTF-8 bytes with ``--no-pre-tokenize``), ``text.lengths.npy`` and ``prompt.lengths.npy``, and ``meta.json``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_utils.corpora import legacy
from data_utils.corpora.build import write_tokens
from data_utils.corpora.documents import Document
from data_utils.corpora.english import EnglishFilter
from data_utils.corpora.registry import Source
from data_utils.tokenizers.base import Tokenizer

logger = logging.getLogger(__name__)

FORMAT = 1
PARTS = ("prompt", "text")


@dataclass(frozen=True)
class CacheOptions:
    """How a corpus is tokenized and read.

    Attributes:
        pre_tokenize: store ids; otherwise store the text and tokenize on the fly (``--no-pre-tokenize``).
        in_memory: read the whole token file at start (``--no-lazy-loader``).
        english_only: drop documents that are not English (``--filter-english``), ``data_root`` holds the model.
        fallback_root: where caches go when the corpus lies in a read-only folder.
        num_processes: processes that tokenize; None: one per core.
        show_progress: a progress bar while tokenizing.
    """

    pre_tokenize: bool = True
    in_memory: bool = False
    english_only: bool = False
    data_root: str = "."
    fallback_root: str | None = None
    num_processes: int | None = None
    show_progress: bool = True


class TokenizedCorpus:
    """Documents of one cache folder (or of an old ``.lazy`` folder), memory-mapped unless ``in_memory``."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, in_memory: bool = False) -> None:
        self._tokenizer = tokenizer
        self._is_text = False
        if (folder / "meta.json").is_file():
            self._is_text = not json.loads((folder / "meta.json").read_text())["pre_tokenize"]
            lengths = {part: np.load(folder / f"{part}.lengths.npy") for part in PARTS}
        else:
            lengths = {"text": legacy.read_lengths(folder / "text.len.pkl")}
            lengths["prompt"] = (legacy.read_lengths(folder / "prompt.len.pkl")
                                 if (folder / "prompt.len.pkl").is_file() else np.zeros_like(lengths["text"]))
            self._is_text = int(lengths["text"].sum()) == (folder / "text").stat().st_size
        self._lengths = lengths["prompt"].astype(np.int64) + lengths["text"]
        dtype = np.dtype(np.uint8 if self._is_text else np.int32)
        self._offsets: dict[str, np.ndarray] = {}
        self._tokens: dict[str, np.ndarray] = {}
        for part in PARTS:
            self._offsets[part] = np.concatenate(([0], np.cumsum(lengths[part], dtype=np.int64)))
            self._tokens[part] = _open_tokens(folder / part, dtype, int(self._offsets[part][-1]), in_memory)
        if not (folder / "meta.json").is_file() and not self._is_text:
            legacy.check_legacy_tokens(folder, self._tokens["text"], tokenizer.num_tokens)

    def __len__(self) -> int:
        return len(self._lengths)

    def lengths(self) -> np.ndarray:
        return self._lengths

    def document(self, index: int, eos: int) -> Document:
        prompt, text = (self._tokens[part][self._offsets[part][index]:self._offsets[part][index + 1]] for part in PARTS)
        if self._is_text:
            prompt, text = (np.array(self._tokenizer.encode(part.tobytes().decode()), dtype=np.int64)
                            for part in (prompt, text))
        return Document(prompt, text, eos)


def open_corpus(source: Source, tokenizer: Tokenizer, options: CacheOptions) -> TokenizedCorpus:
    """The tokenized corpus; the first caller builds the cache, concurrent ones wait for it.

    The lock is one of the kernel's: it goes with the process, so a killed builder blocks nobody, and what it had
    written lies under a temporary name that nobody reads and the next builder removes. Where the disk is full, the
    builder removes it itself.
    """
    root = cache_root(source, options.fallback_root)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        folder = root / _cache_key(root, source, tokenizer, options)
        if not (folder / "meta.json").is_file():
            _build(folder, source, tokenizer, options)
    return TokenizedCorpus(folder, tokenizer, in_memory=options.in_memory)


def cache_root(source: Source, fallback_root: str | None = None) -> Path:
    """``<file without ending>.lazy`` beside the corpus; below the fallback where that folder is read-only.

    Permission bits are respected for every user: root does not write in a folder that is marked read-only either.
    """
    location = source.location.resolve()
    parent = location.parent
    name = f"{location.stem if location.is_file() else location.name}.lazy"
    is_marked_read_only = not parent.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    if os.access(parent, os.W_OK) and not is_marked_read_only:
        return parent / name
    base = Path(fallback_root) if fallback_root else Path(
        os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "glmkd"
    return base / "corpora" / f"{hashlib.sha256(str(location).encode()).hexdigest()[:12]}-{name}"


def _build(folder: Path, source: Source, tokenizer: Tokenizer, options: CacheOptions) -> None:
    for leftover in folder.parent.glob("*.partial"):
        shutil.rmtree(leftover)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir()
    try:
        _fill(partial, source, tokenizer, options)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot write the token cache: {error.strerror}", str(folder)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fill(partial: Path, source: Source, tokenizer: Tokenizer, options: CacheOptions) -> None:
    needs_filter = options.english_only or any(reader.english_only for _, reader in source.files)
    keep = EnglishFilter(options.data_root) if needs_filter else None
    counts = write_tokens(partial, source, tokenizer, pre_tokenize=options.pre_tokenize, keep=keep,
                          filter_all=options.english_only, num_processes=options.num_processes,
                          show_progress=options.show_progress)
    if not counts["documents"]:
        raise ValueError(f"{source.location} holds no document")
    meta = {"format": FORMAT, "pre_tokenize": options.pre_tokenize, "tokenizer": tokenizer.fingerprint(),
            "num_tokens": tokenizer.num_tokens, "source": str(source.location), **counts}
    (partial / "meta.json").write_text(json.dumps(meta, indent=1))
    for file in partial.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    logger.info("token cache %s: %s documents, %s tokens", partial.stem, counts["documents"], counts["text_items"])


def _cache_key(root: Path, source: Source, tokenizer: Tokenizer, options: CacheOptions) -> str:
    digests = _file_digests(root, source)
    parts = [FORMAT, options.pre_tokenize, options.english_only,
             [(digest, reader.name) for digest, (_, reader) in zip(digests, source.files)]]
    if options.pre_tokenize:  # Stored text serves every tokenizer.
        parts.append(tokenizer.fingerprint())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _file_digests(root: Path, source: Source) -> list[str]:
    """Content hashes; those of files that did not change (size, modification time) are remembered beside the cache."""
    memo_file = root / "digests.json"
    try:
        known = json.loads(memo_file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        known = {}
    current: dict[str, list[object]] = {}
    for file, _ in source.files:
        status = file.stat()
        name, mark = str(file.resolve()), [status.st_size, status.st_mtime_ns]
        if known.get(name, [])[:2] == mark:
            current[name] = known[name]
        else:
            with open(file, "rb") as stream:
                current[name] = [*mark, hashlib.file_digest(stream, "blake2b").hexdigest()]
    if current != known:
        temporary = memo_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(current))
        temporary.replace(memo_file)
    return [str(current[str(file.resolve())][2]) for file, _ in source.files]


def _open_tokens(file: Path, dtype: np.dtype, size: int, in_memory: bool) -> np.ndarray:
    stored = file.stat().st_size if file.is_file() else 0
    if stored != size * dtype.itemsize:
        raise ValueError(f"{file} has {stored} bytes, its lengths say {size} x {dtype.itemsize}: the cache is damaged; "
                         f"remove {file.parent} to build it again")
    if size == 0:
        return np.zeros(0, dtype=dtype)
    return np.fromfile(file, dtype=dtype) if in_memory else np.memmap(file, dtype=dtype, mode="r")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Exclusive POSIX record lock: not inherited by forked workers, released by the kernel when the process dies."""
    with open(file, "a+b") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(stream, fcntl.LOCK_UN)
