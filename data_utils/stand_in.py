"""Stands in for data that is not there when a command is only tried out: text, vocabularies, tasks of the generated
world, each made in less than a second.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from data_utils.tokenizers import Tokenizer
from data_utils.vocab_file import vocab_file_text
from data_utils.world.facts import make_world
from data_utils.world.tasks import LABELS, make_task
from data_utils.world.text import make_documents
from data_utils.world.vocabulary import gpt2_vocabulary, wordpiece_vocabulary

SEED = 0
_VALID_MENTIONS = 2
_NUM_CHINESE_PIECES = 600
#: Size of the vocabulary that each tokenizer is known for: what shares of a stand-in refer to.
PUBLISHED_SIZES = {"BertWordPieceTokenizer": 30522, "GPT2BPETokenizer": 50257, "ChineseSPTokenizer": 50000}


def write_text(path: Path, max_documents: int, *, for_training: bool = True) -> Path:
    """Documents of the world as JSON lines, or, by the ending of the name, one a line."""
    world = make_world(SEED)
    documents = (make_documents(world, SEED) if for_training else
                 make_documents(world, SEED, mentions=_VALID_MENTIONS, part="valid"))
    is_json = path.suffix in (".json", ".jsonl")
    return _write(path, "".join((json.dumps({"text": text}) if is_json else text) + "\n"
                                for text in documents[:max_documents]))


def write_vocabulary(folder: Path, tokenizer_type: str, words: Iterable[str] = ()) -> Path:
    """A vocabulary of the world for a tokenizer; the path is one for ``--tokenizer-model-type``.

    Args:
        words: label words that have to be single tokens too, with the blank before them.
    """
    words = sorted(set(words))
    if tokenizer_type == "BertWordPieceTokenizer":
        tokens = [*wordpiece_vocabulary(), *(word.strip().lower() for word in words)]
        return _write(folder / "vocab.txt", "".join(f"{token}\n" for token in dict.fromkeys(tokens)))
    if tokenizer_type == "ChineseSPTokenizer":
        return _write_sentencepiece(folder / "cog-pretrain.model", words)
    vocabulary, merges = gpt2_vocabulary()
    merges = [tuple(merge.split(" ")) for merge in merges]
    for word in words:
        merges += _merges_for(word, merges)
    pieces = [piece for piece in vocabulary if len(piece) == 1]
    pieces += ["".join(merge) for merge in merges]
    end = [piece for piece in vocabulary if piece not in set(pieces)]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *end]))}
    _write(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    _write(folder / "vocab.json", json.dumps(ids, ensure_ascii=False) + "\n")
    return folder


def _merges_for(word: str, merges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Further merges that make an ASCII word one piece, after the known ones have been applied to it."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    pieces = ["\u0120" if letter == " " else letter for letter in word]
    while True:
        known = [(ranks[pair], place) for place, pair in enumerate(zip(pieces, pieces[1:])) if pair in ranks]
        if not known:
            break
        place = min(known)[1]
        pieces[place:place + 2] = ["".join(pieces[place:place + 2])]
    added = []
    while len(pieces) > 1:
        added.append((pieces[0], pieces[1]))
        pieces[:2] = ["".join(pieces[:2])]
    return added


def _write_sentencepiece(path: Path, words: Sequence[str]) -> Path:
    import sentencepiece

    model = io.BytesIO()
    documents = make_documents(make_world(SEED), SEED, mentions=_VALID_MENTIONS, part="valid")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_writer=model, vocab_size=_NUM_CHINESE_PIECES + len(words),
        user_defined_symbols=list(words), hard_vocab_limit=False, byte_fallback=True, num_threads=1, minloglevel=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path


def write_sort_file(path: Path, tokenizer: Tokenizer, words: Iterable[str] = (), *, max_documents: int = 1000) -> Path:
    """The vocabulary sort file of a tokenizer, counted on text of the world."""
    counts: Counter[int] = Counter()
    for ids in tokenizer.encode_batch(make_documents(make_world(SEED), SEED)[:max_documents]):
        counts.update(ids)
    protected = {command.id for command in tokenizer.commands}
    protected |= {tokenizer.word_to_id(word, keep_blank=True) for word in words}
    tokens = [tokenizer.id_to_token(token) for token in range(tokenizer.num_tokens)]
    return _write(path, vocab_file_text(tokens, counts, protected))


def world_task(name: str) -> str | None:
    """The world's own name of a task, whatever its case; None if the world has no such task."""
    return next((task for task in LABELS if task.lower() == name.lower()), None)


def write_world_task(name: str, folder: Path, files: Iterable[str], max_examples: int) -> None:
    """A task of the world under the names of files: train, val, test and unlabeled as they are, others as val."""
    parts = make_task(make_world(SEED), name, SEED, max_examples)
    for file in files:
        rows = parts.get(Path(file).stem, parts["val"])
        _write(folder / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def copy_head(source: Path, target: Path, max_lines: int) -> None:
    """The beginning of a data file: its first lines; of one JSON document the first entries of its lists; of a folder
    its first files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        for file in islice((path for path in sorted(source.rglob("*")) if path.is_file()), max_lines):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        return
    with source.open("rb") as stream:
        head = list(islice(stream, max_lines + 1))
    if source.suffix == ".json" and len(head) <= max_lines:
        _copy_document(source, target)
        return
    target.write_bytes(b"".join(head))


def _copy_document(source: Path, target: Path) -> None:
    """A file of few lines: one document (SQuAD), shortened, or JSON lines as they are."""
    content = source.read_bytes()
    try:
        document = json.loads(content)
    except ValueError:  # lines, or broken: for the reader to say
        target.write_bytes(content)
        return
    if isinstance(document, dict):
        document = {key: value[:2] if isinstance(value, list) else value for key, value in document.items()}
    target.write_text(json.dumps(document), encoding="utf-8")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
