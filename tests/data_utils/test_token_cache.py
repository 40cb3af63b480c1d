from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_utils.corpora import build, load_documents
from data_utils.corpora.build import iter_source, write_tokens
from data_utils.corpora.cache import CacheOptions, TokenizedCorpus, cache_root, open_corpus
from data_utils.corpora.registry import resolve_source
from data_utils.tokenizers import Tokenizer, make_tokenizer
from tests.helpers.shared import REPOSITORY

QUIET = CacheOptions(num_processes=1, show_progress=False)
CHILD = """
import sys
from data_utils.corpora.cache import CacheOptions, open_corpus
from data_utils.corpora.registry import resolve_source
from data_utils.tokenizers import make_tokenizer
tokenizer = make_tokenizer("BertWordPieceTokenizer", sys.argv[1])
corpus = open_corpus(resolve_source(sys.argv[2]), tokenizer, CacheOptions(num_processes=2, show_progress=False))
print(len(corpus))
"""


def ids_of(corpus: TokenizedCorpus) -> list[list[int]]:
    return [corpus.document(index, -1).window(0, 1 << 30).text.tolist() for index in range(len(corpus))]


def caches(corpus_file: Path) -> list[Path]:
    return sorted(folder for folder in cache_root(resolve_source(str(corpus_file))).iterdir() if folder.is_dir())


@pytest.fixture()
def corpus_file(text_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(text_file, tmp_path / "corpus.txt"))


@pytest.fixture(scope="module")
def large_file(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 MB: enough for several chunks and processes."""
    file = tmp_path_factory.mktemp("large") / "large.txt"
    words = text_file.read_text().split()
    lines = (" ".join(words[(n * 7 + k) % len(words)] + str(n % 97) for k in range(n % 60 + 1)) for n in range(18_000))
    file.write_text("\n".join(lines))
    return file


def test_cache_holds_the_documents_in_file_order(corpus_file: Path, tokenizer: Tokenizer) -> None:
    source = resolve_source(str(corpus_file))
    corpus = open_corpus(source, tokenizer, QUIET)
    texts = [text for _, text in iter_source(source)]
    assert len(texts) == 119  # the empty line is no document
    assert ids_of(corpus) == [tokenizer.encode(text) for text in texts]
    assert corpus.lengths().tolist() == [len(tokenizer.encode(text)) for text in texts]
    folder, = caches(corpus_file)
    assert folder.parent == corpus_file.with_suffix(".lazy")
    assert isinstance(corpus._tokens["text"], np.memmap)
    in_memory = open_corpus(source, tokenizer, replace(QUIET, in_memory=True))
    assert not isinstance(in_memory._tokens["text"], np.memmap) and ids_of(in_memory) == ids_of(corpus)


def test_prompts_and_text_caches(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "p.jsonl"
    records = [{"text": "the cat sat.", "prompt": "is it cold?"}, {"text": "no dog ran é."}]
    file.write_text("\n".join(json.dumps(record) for record in records))
    tokens = open_corpus(resolve_source(str(file)), tokenizer, QUIET)
    on_the_fly = open_corpus(resolve_source(str(file)), tokenizer, replace(QUIET, pre_tokenize=False))
    expected = [tokenizer.encode("is it cold?") + tokenizer.encode("the cat sat."), tokenizer.encode("no dog ran é.")]
    assert ids_of(tokens) == ids_of(on_the_fly) == expected
    assert on_the_fly.lengths().tolist() == [len("is it cold?the cat sat."), len("no dog ran é.".encode())]
    window = tokens.document(0, -1).window(0, 5)
    assert window.loss_mask.tolist() == [0, 0, 0, 0, 1]


def test_several_processes_write_the_same_bytes(large_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    counts = {}
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        counts[processes] = write_tokens(tmp_path / str(processes), resolve_source(str(large_file)), tokenizer,
                                         num_processes=processes, show_progress=False)
    assert counts[1] == counts[2] and counts[1]["documents"] == 18_000
    for name in ("text", "prompt", "text.lengths.npy", "prompt.lengths.npy"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_another_tokenizer_or_content_is_another_cache(corpus_file: Path, tokenizer: Tokenizer,
                                                       bpe_folder: Path) -> None:
    def load(with_tokenizer: Tokenizer) -> list[list[int]]:
        return ids_of(open_corpus(resolve_source(str(corpus_file)), with_tokenizer, QUIET))

    before = load(tokenizer)
    bpe = make_tokenizer("GPT2BPETokenizer", str(bpe_folder))
    assert load(bpe)[0] == bpe.encode("The cat sat on the mat.") and len(caches(corpus_file)) == 2
    status = corpus_file.stat()
    text = corpus_file.read_text().replace("cat", "dog")
    corpus_file.write_text(text)
    os.utime(corpus_file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # same size, a moment later
    assert load(tokenizer)[0] == tokenizer.encode("The dog sat on the mat.") != before[0]
    assert len(caches(corpus_file)) == 3
    built = [folder.stat().st_mtime_ns for folder in caches(corpus_file)]
    load(tokenizer)
    assert [folder.stat().st_mtime_ns for folder in caches(corpus_file)] == built  # nothing is built twice


def test_read_only_corpus_gets_its_cache_elsewhere(corpus_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir()
    corpus_file.rename(folder / "corpus.txt")
    folder.chmod(0o555)
    try:
        options = replace(QUIET, fallback_root=str(tmp_path / "fallback"))
        assert len(open_corpus(resolve_source(str(folder / "corpus.txt")), tokenizer, options)) == 119
        assert [file.name for file in folder.iterdir()] == ["corpus.txt"]
        assert list((tmp_path / "fallback" / "corpora").iterdir())
    finally:
        folder.chmod(0o755)


def _open_and_count(vocab: str, file: str) -> int:
    tokenizer = make_tokenizer("BertWordPieceTokenizer", vocab)
    return len(open_corpus(resolve_source(file), tokenizer, QUIET))


def test_killed_builder_leaves_nothing_that_is_read(large_file: Path, vocab_file: Path, tmp_path: Path) -> None:
    """A builder is killed half-way; two others then start together: one builds, the other waits, both read all."""
    file = Path(shutil.copy(large_file, tmp_path / "large.txt"))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(vocab_file), str(file)], cwd=REPOSITORY,
                             stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    root = cache_root(resolve_source(str(file)))
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size for path in root.glob("*.partial/text")) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout is not None and child.stdout.read() == b""  # also: no worker is left holding the pipe
    child.stdout.close()
    assert [folder.suffix for folder in caches(file)] == [".partial"]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        counted = pool.starmap(_open_and_count, [(str(vocab_file), str(file))] * 2)
    assert counted == [18_000, 18_000]
    folder, = caches(file)
    assert folder.suffix == ""


def test_damaged_cache_is_refused(corpus_file: Path, tokenizer: Tokenizer) -> None:
    open_corpus(resolve_source(str(corpus_file)), tokenizer, QUIET)
    folder, = caches(corpus_file)
    with open(folder / "text", "r+b") as stream:
        stream.truncate(8)
    with pytest.raises(ValueError, match="damaged"):
        open_corpus(resolve_source(str(corpus_file)), tokenizer, QUIET)


def write_legacy(folder: Path, documents: list[list[int]]) -> None:
    folder.mkdir()
    np.concatenate([np.array(ids, dtype=np.int32) for ids in documents]).tofile(folder / "text")
    (folder / "prompt").touch()
    for name, lengths in (("text", [len(ids) for ids in documents]), ("prompt", [0] * len(documents))):
        (folder / f"{name}.len.pkl").write_bytes(pickle.dumps(lengths))


def test_old_folders_are_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = [[5, 6, 7], [8], [9, 10]]
    write_legacy(tmp_path / "old.lazy", documents)
    for name in ("old.lazy", "old.txt"):  # the folder itself, or the file that is gone
        corpus = load_documents([str(tmp_path / name)], tokenizer, QUIET)
        assert ids_of(corpus) == documents
    named = tmp_path / "pretrain" / "bertbase" / "wikibook_glm.lazy"
    shutil.copytree(tmp_path / "old.lazy", named)
    assert ids_of(load_documents(["bert-base"], tokenizer, replace(QUIET, data_root=str(tmp_path)))) == documents
    np.array([tokenizer.num_tokens] * 6, dtype=np.int32).tofile(tmp_path / "old.lazy" / "text")
    with pytest.raises(ValueError, match="another tokenizer"):
        load_documents([str(tmp_path / "old.lazy")], tokenizer, QUIET)


class Attack:
    """Unpickles to the result of a call."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.getcwd, ()


@pytest.mark.parametrize("content", [Attack(), [1, Attack()], {"a": 1}, [1, "2"], [1, -2], np.arange(3)])
def test_length_lists_are_unpickled_as_lists_of_numbers_only(content: object, tokenizer: Tokenizer,
                                                             tmp_path: Path) -> None:
    write_legacy(tmp_path / "old.lazy", [[5, 6, 7]])
    (tmp_path / "old.lazy" / "text.len.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="refusing to unpickle|no list of lengths"):
        load_documents([str(tmp_path / "old.lazy")], tokenizer, QUIET)


def test_first_documents_only(corpus_file: Path, tokenizer: Tokenizer) -> None:
    documents = load_documents([str(corpus_file), str(corpus_file)], tokenizer, QUIET, max_documents=5)
    assert len(documents) == 10 and not corpus_file.with_suffix(".lazy").exists()
    first, again = (documents.document(index, -1).window(0, 50).text.tolist() for index in (0, 5))
    assert first == again


def test_empty_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "x.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no document"):
        open_corpus(resolve_source(str(tmp_path / "x.txt")), tokenizer, QUIET)


def test_full_disk_is_named_and_leaves_nothing(corpus_file: Path, tokenizer: Tokenizer,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="cannot write the token cache: No space left on device: .*corpus.lazy"):
            open_corpus(resolve_source(str(corpus_file)), tokenizer, QUIET)
    assert caches(corpus_file) == []
    assert len(open_corpus(resolve_source(str(corpus_file)), tokenizer, QUIET)) > 0


def _die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_ends_the_builder(large_file: Path, tokenizer: Tokenizer, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(shutil.copy(large_file, tmp_path / "large.txt"))
    with monkeypatch.context() as patch:
        patch.setattr(build, "_IN_PROCESS_BYTES", 0)
        patch.setattr(build, "_work", _die)
        with pytest.raises(ChildProcessError, match="was ended from outside"):
            open_corpus(resolve_source(str(file)), tokenizer, replace(QUIET, num_processes=2))
    assert caches(file) == []
