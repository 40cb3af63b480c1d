"""From a line (or file) of a corpus to documents: one small function per format."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_NORMALISED = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-"})
_DROPPED_PILE_SETS = {"Github", "StackExchange", "DM Mathematics", "Ubuntu IRC", "EuroParl", "YoutubeSubtitles",
                      "Enron Emails"}
_THINNED_PILE_SETS = {"PubMed Central", "ArXiv", "FreeLaw"}
_THINNED_SHARE = 0.3
_MIN_CHARACTERS = 100

Texts = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Reader:
    """How the raw text of a corpus becomes documents.

    Attributes:
        name: part of the cache key; change it when ``parse`` changes what it returns.
        parse: gives ``(prompt, text)`` pairs of one line, or of one file where ``whole_file``. The prompt is seen but
            not predicted.
        normalise: map typographic quotes and dashes to ASCII (all but the Chinese corpora).
        english_only: keep only documents that a language model judges English.
    """

    name: str
    parse: Callable[[str], Texts]
    whole_file: bool = False
    normalise: bool = True
    english_only: bool = False

    def documents(self, raw: str) -> Texts:
        """Documents of one line or file; empty texts are dropped. Raises ValueError on broken JSON or fields."""
        for prompt, text in self.parse(raw):
            if self.normalise:
                prompt, text = prompt.translate(_NORMALISED), text.translate(_NORMALISED)
            if text.strip():
                yield prompt, text


@dataclass(frozen=True)
class JsonText:
    """Reads ``{"text": …}`` with an optional ``"prompt"``; ``text_key`` is tried before ``text`` and ``sentence``."""

    text_key: str = "text"

    def __call__(self, raw: str) -> Texts:
        record = _record(raw)
        if record is not None:
            key = next((key for key in (self.text_key, "text", "sentence") if key in record), "text")
            yield _field(record, "prompt", default=""), _field(record, key)


def plain_text(raw: str) -> Texts:
    """One document a line."""
    yield "", raw


def long_text(raw: str) -> Texts:
    """``text`` of more than 100 characters."""
    for prompt, text in JsonText()(raw):
        if len(text) > _MIN_CHARACTERS:
            yield prompt, text


def cc_news(raw: str) -> Texts:
    """Title, description (unless the main text starts with it) and main text."""
    record = _record(raw)
    if record is None:
        return
    title, description, main = (record.get(key) or "" for key in ("title", "description", "maintext"))
    text = (f"{title.strip()} " if title else "")
    text += f"{description.strip()} " if description and not main.startswith(description) else ""
    text += main
    if len(text) > _MIN_CHARACTERS:
        yield "", text


def pile(raw: str) -> Texts:
    """The Pile without code, chat and mail; three large sets thinned to 30 %, by the hash of the document."""
    record = _record(raw)
    if record is None:
        return
    origin = (record.get("meta") or {}).get("pile_set_name")
    text = _field(record, "text")
    if origin in _DROPPED_PILE_SETS:
        return
    if origin in _THINNED_PILE_SETS and random.Random(zlib.crc32(text.encode())).random() > _THINNED_SHARE:
        return
    yield "", text


@dataclass(frozen=True)
class QuestionAnswer:
    """Chinese question-and-answer records: the question (title and body) is the prompt.

    The fields of the three corpora differ; the first of each tuple that a record has is taken.
    """

    question: tuple[str, ...] = ("q_title", "title", "question")
    body: tuple[str, ...] = ("q_content", "q-content", "desc")
    answer: tuple[str, ...] = ("ans-content", "ans_content", "best_answer", "answer", "content", "text")

    def __call__(self, raw: str) -> Texts:
        record = _record(raw)
        if record is None:
            return
        question, body = _first(record, self.question), _first(record, self.body)
        answer = _first(record, self.answer)
        if answer:
            prompt = f"问题：{question} {body}".strip() + " 回答：" if question else ""
            yield prompt, answer


def wudao(raw: str) -> Texts:
    """A whole file: a list of articles under ``RECORDS``."""
    for article in json.loads(raw)["RECORDS"]:
        text = f"{article.get('title') or ''} {article.get('content') or ''}"
        if len(text) > _MIN_CHARACTERS:
            yield "", text


def _record(raw: str) -> dict[str, Any] | None:
    if not raw.strip():
        return None
    record = json.loads(raw)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object a line, got {type(record).__name__}")
    return record


def _field(record: dict[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"the field {key!r} is missing or no string (fields: {', '.join(record)})")
    return value


def _first(record: dict[str, Any], keys: tuple[str, ...]) -> str:
    values = (record.get(key) for key in keys)
    return next((str(value).strip() for value in values if value), "")
