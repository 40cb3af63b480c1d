"""Where the vocabulary files of a tokenizer lie: a known name, a file or a folder. Nothing is downloaded."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

RELEASE_CACHE = ".pytorch_pretrained_bert"
WORDPIECE_NAMES = tuple(
    f"bert-{size}-{case}" for size in ("base", "large") for case in ("uncased", "cased")) + (
    "bert-base-chinese", "bert-base-multilingual-uncased", "bert-base-multilingual-cased")
BPE_NAMES = ("gpt2", "roberta", "roberta-base", "roberta-large")
CHINESE_NAMES = ("chinese-sentencepiece",)
# The base and the large English vocabularies are the same file.
_SAME_FILE = {"bert-base-uncased": "bert-large-uncased", "bert-large-uncased": "bert-base-uncased",
              "bert-base-cased": "bert-large-cased", "bert-large-cased": "bert-base-cased",
              "roberta": "roberta-large", "roberta-base": "roberta-large", "roberta-large": "roberta-base"}


def find_wordpiece(model_type: str | None, cache_dir: str | None = None) -> tuple[Path, bool]:
    """Vocabulary file, and whether text is lower-cased (unless the name says ``-cased`` or ``chinese``)."""
    name = _known_or_path(model_type, WORDPIECE_NAMES, "bert-large-uncased", "BertWordPieceTokenizer")
    if name in WORDPIECE_NAMES:
        file, = _search(name, (("vocab.txt",),), cache_dir)
        return file, lowers(name)
    path = Path(name)
    file = path if path.is_file() else _only(path, "vocab.txt")
    return file, lowers(f"{file.parent.name}/{file.name}")


def find_bpe(model_type: str | None, cache_dir: str | None = None) -> tuple[Path, Path]:
    """``vocab.json`` and ``merges.txt``."""
    name = _known_or_path(model_type, BPE_NAMES, "gpt2", "GPT2BPETokenizer")
    if name in BPE_NAMES:
        vocab, merges = _search(name, (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")), cache_dir)
        return vocab, merges
    path = Path(name)
    vocab = path if path.is_file() else _only(path, "vocab.json")
    merges = vocab.with_name(vocab.name.replace("vocab.json", "merges.txt"))
    if merges == vocab or not merges.is_file():
        raise FileNotFoundError(f"{vocab} has no merges.txt beside it ({merges} does not exist)")
    return vocab, merges


def find_sentencepiece(model_type: str | None, cache_dir: str | None = None) -> Path:
    """The ``.model`` file of the Chinese tokenizer."""
    name = _known_or_path(model_type, CHINESE_NAMES, CHINESE_NAMES[0], "ChineseSPTokenizer")
    if name in CHINESE_NAMES:
        file, = _search(name, (("cog-pretrain.model", "spiece.model", "tokenizer.model"),), cache_dir)
        return file
    path = Path(name)
    return path if path.is_file() else _only(path, ".model")


def _known_or_path(model_type: str | None, names: tuple[str, ...], default: str, family: str) -> str:
    if not model_type:
        return default
    if model_type in names or Path(model_type).exists():
        return model_type
    if os.sep in model_type or Path(model_type).suffix in (".txt", ".json", ".model"):
        raise FileNotFoundError(
            f"--tokenizer-model-type={model_type} looks like a path, but nothing is there; give a vocabulary file, a "
            f"folder with one, or one of {', '.join(names)}")
    logger.warning("%s knows no vocabulary %r: using %s, as the release does (known: %s; a path works too)",
                   family, model_type, default, ", ".join(names))
    return default


def lowers(name: str) -> bool:
    """Whether a vocabulary of this name is for lower-case text."""
    return "-cased" not in name and "chinese" not in name


def _only(folder: Path, ending: str) -> Path:
    """The file of that name in a folder, or the only one whose name ends so."""
    if (folder / ending).is_file():
        return folder / ending
    found = sorted(file for file in folder.iterdir() if file.is_file() and file.name.endswith(ending))
    if len(found) != 1:
        what = "none" if not found else ", ".join(file.name for file in found)
        raise FileNotFoundError(f"--tokenizer-model-type={folder}: expected one file named (*){ending}, found {what}")
    return found[0]


def _search(name: str, wanted: tuple[tuple[str, ...], ...], cache_dir: str | None) -> list[Path]:
    """All wanted files of a known name from the first place that has them."""
    roots = list(vocabulary_roots(cache_dir))
    for candidate in (name, _SAME_FILE.get(name)):
        for root in roots if candidate else ():
            files = [_first_file(root, candidate, endings) for endings in wanted]
            if all(files):
                return [file for file in files if file is not None]
    needed = " and ".join(endings[0] for endings in wanted)
    raise FileNotFoundError(
        f"no vocabulary for --tokenizer-model-type={name}: looked for {needed} in "
        f"{', '.join(str(root) for root in roots)}. Nothing is downloaded: put the file(s) in "
        f"{roots[0]}{os.sep}{name}{os.sep}, or give the path of a file or folder as --tokenizer-model-type")


def vocabulary_roots(cache_dir: str | None) -> Iterator[Path]:
    """The folders in which known names are looked up."""
    if cache_dir:
        yield Path(cache_dir)
    yield Path(RELEASE_CACHE)
    yield from (Path("../GLM/data") / sub for sub in ("", "vocab", "tokenizers", RELEASE_CACHE))


def _first_file(root: Path, name: str, endings: tuple[str, ...]) -> Path | None:
    for ending in endings:
        for candidate in (root / name / ending, root / f"{name}-{ending}", root / f"{name}.{ending}",
                          *((root / f"{name}.txt",) if ending == "vocab.txt" else ()),
                          *((root / ending,) if root.name == name or ending.endswith(".model") else ())):
            if candidate.is_file():
                return candidate
    return _downloaded(root, name, endings)


def _downloaded(root: Path, name: str, endings: tuple[str, ...]) -> Path | None:
    """A file that pytorch_pretrained_bert once downloaded: a hashed name, its source in a ``.json`` beside it."""
    for meta in sorted(root.glob("*.json")):
        data = meta.with_suffix("")
        if len(meta.name.split(".")[0]) == 64 and data.is_file():
            url = str(json.loads(meta.read_text(encoding="utf-8")).get("url", ""))
            if any(url.endswith((f"/{name}-{ending}", f"/{name}/{ending}")) for ending in endings):
                return data
    return None
