"""Corpora by registered name below ``--data-root``, or by path."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_utils.corpora import readers
from data_utils.corpora.legacy import is_legacy_folder
from data_utils.corpora.readers import Reader

logger = logging.getLogger(__name__)

DEFAULT_DATA_ROOT = "../GLM/data"
PLAIN_SUFFIXES = (".txt",)
JSON_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class NamedCorpus:
    """A registered corpus: its reader, and where it may lie below the data root (a file or a folder)."""

    reader: Reader
    places: tuple[str, ...] = ()


_PLAIN = Reader("plain", readers.plain_text)
_JSON = Reader("json", readers.JsonText())
_QUESTIONS = Reader("question-answer", readers.QuestionAnswer(), normalise=False)
# The two wikibook files are the same kind of text: `bert-base` was meant for WordPiece, `bert-large` for GPT-2's BPE.
CORPORA: dict[str, NamedCorpus] = {
    "bert-base": NamedCorpus(_PLAIN, ("pretrain/bertbase/wikibook_glm.txt",)),
    "bert-large": NamedCorpus(_PLAIN, ("pretrain/bertlarge/wikibook_glm_10b.txt",)),
    "wikibook": NamedCorpus(_PLAIN),
    "wikipedia": NamedCorpus(_JSON),
    "stories": NamedCorpus(_JSON),
    "openwebtext": NamedCorpus(Reader("openwebtext", readers.long_text, english_only=True)),
    "cc-news": NamedCorpus(Reader("cc-news", readers.cc_news)),
    "pile": NamedCorpus(Reader("pile", readers.pile)),
    "test": NamedCorpus(_JSON),
    "zhihu": NamedCorpus(_QUESTIONS),
    "zhidao": NamedCorpus(_QUESTIONS),
    "baike": NamedCorpus(_QUESTIONS),
    "wudao": NamedCorpus(Reader("wudao", readers.wudao, whole_file=True, normalise=False)),
}
ALIASES = {"wiki": "wikipedia"}


@dataclass(frozen=True)
class Source:
    """Files of a corpus, each with its reader, in the order in which they are read."""

    location: Path
    files: tuple[tuple[Path, Reader], ...]


def resolve_source(name: str, *, data_root: str | Path = DEFAULT_DATA_ROOT, text_key: str = "text",
                   loose_json: bool = False) -> Source:
    """Files of a corpus name or path.

    Args:
        name: a registered name, a ``.txt`` file (one document a line), a ``.json``/``.jsonl`` file (one object a line
            with ``text``, optionally ``prompt``), or a folder of these. A path wins over a name.
        text_key: field that is tried before ``text`` in JSON files given by path.
        loose_json: treat every file given by path as JSON lines.

    Raises:
        FileNotFoundError: nothing is there. ValueError: a folder without readable files, or an unknown suffix.
    """
    path, reader = _locate(name, Path(data_root))
    if reader is None:
        json_reader = replace(_JSON, name=f"json:{text_key}", parse=readers.JsonText(text_key))
        found = [(file, json_reader if loose_json or file.suffix in JSON_SUFFIXES else _PLAIN)
                 for file in _files_below(path, any_suffix=loose_json or path.is_file())]
        if path.is_file() and not loose_json and path.suffix not in PLAIN_SUFFIXES + JSON_SUFFIXES:
            raise ValueError(f"{path}: a corpus file must end in .txt, .json or .jsonl (--loose-json reads any file as "
                             "JSON lines)")
    else:
        found = [(file, reader) for file in _files_below(path, any_suffix=True)]
    if not found:
        raise ValueError(f"{path} holds no .txt, .json or .jsonl file")
    return Source(path, tuple(found))


def _locate(name: str, root: Path) -> tuple[Path, Reader | None]:
    """The path of a corpus, and its reader if the name is registered."""
    corpus = CORPORA.get(ALIASES.get(name, name))
    if corpus is None or (Path(name).exists() and Path(name).suffix):
        if not Path(name).exists():
            raise FileNotFoundError(
                f"no corpus {name!r}: it is neither a path nor one of the registered names "
                f"({', '.join([*CORPORA, *ALIASES])}); give a .txt, .json or .jsonl file or a folder of them")
        return Path(name), None
    places = _places(name, corpus, root)
    for place in places:
        if place.exists():
            return place, corpus.reader
    if Path(name).exists():
        return Path(name), None
    raise FileNotFoundError(
        f"corpus {name!r} not found below --data-root={root} (looked for {', '.join(str(p) for p in places[:4])} …); "
        "set --data-root, or give the path of a .txt, .json or .jsonl file or of a folder of them")


def _places(name: str, corpus: NamedCorpus, root: Path) -> list[Path]:
    """Where a registered corpus may lie, the release's place first."""
    places = [root / place for place in corpus.places]
    for stem in dict.fromkeys((name, ALIASES.get(name, name))):
        for folder in (root / "pretrain", root):
            places += [folder / stem, *(folder / f"{stem}{suffix}" for suffix in PLAIN_SUFFIXES + JSON_SUFFIXES)]
    return places


def find_legacy(name: str, data_root: str | Path = DEFAULT_DATA_ROOT) -> Path | None:
    """A token folder of the release: named itself (``….lazy``), or standing where a corpus has lost its text."""
    if is_legacy_folder(Path(name)):
        return Path(name)
    corpus = CORPORA.get(ALIASES.get(name, name))
    places = [Path(name), *(_places(name, corpus, Path(data_root)) if corpus else ())]
    if any(place.exists() for place in places):
        return None
    folders = (place.with_suffix(".lazy") for place in places)
    return next((folder for folder in folders if is_legacy_folder(folder)), None)


def _files_below(path: Path, *, any_suffix: bool) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if any(part.startswith(".") or part.endswith((".lazy", ".scatter")) for part in parts) or not file.is_file():
            continue
        if any_suffix or file.suffix in PLAIN_SUFFIXES + JSON_SUFFIXES:
            yield file
