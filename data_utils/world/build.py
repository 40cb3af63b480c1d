"""Writes the folder of the generated world, whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from data_utils.tokenizers import Tokenizer, make_tokenizer
from data_utils.vocab_file import vocab_file_text
from data_utils.world.diagnostics import make_diagnostics
from data_utils.world.facts import World, make_world
from data_utils.world.more_tasks import MENTIONS_OF_CONTEXTS, make_senses, sense_documents, task_folders
from data_utils.world.tasks import LABELS, make_task
from data_utils.world.text import NUM_MENTIONS, make_documents
from data_utils.world.vocabulary import VERBALIZERS, gpt2_vocabulary, wordpiece_vocabulary

logger = logging.getLogger(__name__)

#: Raise it whenever the same seed gives other files.
WORLD_VERSION = 3
STAMP_FILE = "world.json"
VALID_MENTIONS = 2


def write_world(out: str | Path, *, seed: int = 0, force: bool = False) -> Path:
    """Write the world of `seed` to the folder `out` and return its path.

    The files depend on seed and version only. They are written to a temporary folder beside `out`, which is renamed at
    the end. A folder that already holds the same world is kept.

    Raises:
        ValueError: `out` exists and holds something else, and `force` is off.
    """
    out = Path(out)
    stamp = {"version": WORLD_VERSION, "seed": seed}
    if not force and _read_stamp(out) == stamp:
        logger.info("%s already holds the world of seed %d", out, seed)
        return out
    if out.exists() and not force:
        raise ValueError(
            f"{out} exists and is not the world of version {WORLD_VERSION}, seed {seed} ({STAMP_FILE}: "
            f"{_read_stamp(out)}); name another folder or pass --force to replace it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_files(temporary, make_world(seed), seed)
        _write_text(temporary / STAMP_FILE, json.dumps(stamp) + "\n")
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out


def _read_stamp(out: Path) -> dict | None:
    try:
        return json.loads((out / STAMP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_files(out: Path, world: World, seed: int) -> None:
    train = _documents(world, seed, "train", NUM_MENTIONS, MENTIONS_OF_CONTEXTS)
    _write_lines(out / "text/train.jsonl", ({"text": text} for text in train))
    valid = _documents(world, seed, "valid", VALID_MENTIONS, VALID_MENTIONS)
    _write_lines(out / "text/valid.jsonl", ({"text": text} for text in valid))
    _write_lines(out / "facts.jsonl", world.records())
    _write_lines(out / "senses.jsonl", map(asdict, make_senses()))
    for task in LABELS:
        for part, examples in make_task(world, task, seed).items():
            for folder, records in task_folders(task, examples):
                _write_lines(out / f"tasks/{folder}/{part}.jsonl", records)
    for task, examples in make_diagnostics(world, seed).items():
        _write_lines(out / f"tasks/{task}/{task}.jsonl", examples)
    _write_vocabularies(out, train)
    _write_text(out / "README.md", _readme(seed))


def _documents(world: World, seed: int, part: str, mentions: int, mentions_of_contexts: int) -> list[str]:
    """The text of one part: what the world is like and how its ambiguous words are used, shuffled."""
    documents = make_documents(world, seed, mentions=mentions, part=part)
    documents += sense_documents(seed, mentions=mentions_of_contexts, part=part)
    random.Random(f"documents-{part}-{seed}").shuffle(documents)
    return documents


def _write_vocabularies(out: Path, documents: list[str]) -> None:
    _write_text(out / "vocab.txt", "\n".join(wordpiece_vocabulary()) + "\n")
    vocabulary, merges = gpt2_vocabulary()
    _write_text(out / "gpt2/vocab.json", json.dumps(vocabulary, ensure_ascii=False) + "\n")
    _write_text(out / "gpt2/merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    for tokenizer_type, path in (("BertWordPieceTokenizer", out / "vocab.txt"), ("GPT2BPETokenizer", out / "gpt2")):
        table = table_of(make_tokenizer(tokenizer_type, str(path)), documents)
        _write_text(out / f"{tokenizer_type}_{path.stem}.txt", table)


def table_of(tokenizer: Tokenizer, documents: list[str]) -> str:
    """The frequency table of a tokenizer's whole unpadded vocabulary over `documents`."""
    counts: Counter[int] = Counter()
    for ids in tokenizer.encode_batch(documents):
        counts.update(ids)  # a Counter keeps the order of first occurrence
    protected = {command.id for command in tokenizer.commands}
    for word in VERBALIZERS:
        for form in (f" {word}", f" {word.capitalize()}"):
            try:
                protected.add(tokenizer.word_to_id(form, keep_blank=True))
            except ValueError:  # not a single token here, so no verbalizer either
                continue
    tokens = tokenizer.token_strings()
    return vocab_file_text(tokens, counts, protected)


def _write_lines(path: Path, records: Iterable[dict]) -> None:
    _write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _readme(seed: int) -> str:
    return f"""# A generated world (version {WORLD_VERSION}, seed {seed})

Made by `python -m data_utils.world`; the same seed gives the same bytes. Nothing here comes from real text.

| file | what |
| --- | --- |
| `text/train.jsonl`, `text/valid.jsonl` | one document a line, `{{"text": ...}}`; both tell all facts and senses |
| `vocab.txt` | BERT WordPiece vocabulary; every word of the world is one token (`--tokenizer-model-type`) |
| `gpt2/vocab.json`, `gpt2/merges.txt` | the same for GPT2BPETokenizer (`--tokenizer-model-type` takes the folder) |
| `BertWordPieceTokenizer_vocab.txt`, `GPT2BPETokenizer_gpt2.txt` | token frequencies, for the compact vocabulary |
| `tasks/<Task>/<part>.jsonl` | COPA, CB, RTE, BoolQ, ReCoRD, WiC, WSC, MultiRC in SuperGLUE's fields; `WSC-negative` |
| `tasks/AX-b/AX-b.jsonl`, `tasks/AX-g/AX-g.jsonl` | diagnostic sets for a model of RTE, about held-out facts |
| `facts.jsonl` | every fact, causal chain and attitude verb with its split |
| `senses.jsonl` | the senses of the ambiguous words, with their contexts and split |

The questions of `train` ask for facts of the split `train`, those of `val` and `test` for facts of the split
`heldout`; `unlabeled` asks for all, without labels, and repeats no question of the other parts. All facts stand in
the text. So a model that has not read the text is at chance on `val` and `test`, except for what a passage says itself.
"""
