"""From the files of the language-model tasks to passages. Complaints name the file and the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tasks.examples import Line, standard_punctuation
from tasks.files import read_lines, text_lines
from tasks.language_model.spec import Passage

_JSON = (".json", ".jsonl")
_LAST_WORD = re.compile(r"\s*\S+\Z")


def _lines(path: Path, text_key: str) -> Iterator[tuple[Line, str]]:
    """Each line that holds a text, and the text: a JSON object's, or the line itself."""
    if path.suffix in _JSON:
        for line in read_lines(path):
            key = next((key for key in (text_key, "text", "sentence") if key in line.fields), "text")
            yield line, line.text(key)
    else:
        yield from ((Line(path, number, {}), text) for number, text in text_lines(path))


def read_documents(path: Path, text_key: str) -> Iterator[Passage]:
    """A document a line; in JSON lines (``text``) it may have a ``prompt``, which is read but not scored."""
    for line, text in _lines(path, text_key):
        prompt = line.text("prompt") if "prompt" in line.fields else ""
        if text.strip():
            text = standard_punctuation(text)
            yield Passage(standard_punctuation(prompt), text, len(text.split()))


def read_lambada(path: Path, text_key: str) -> Iterator[Passage]:
    """The last word of each line, behind the rest of it: words are what white space separates."""
    for line, text in _lines(path, text_key):
        text = standard_punctuation(text).rstrip()
        if not text:
            continue
        context = text[:_LAST_WORD.search(text).start()]
        if not context:
            raise line.error(f"{text!r:.80} is one word, and the last word of a passage is to be guessed from the "
                             "others; give one passage a line")
        yield Passage(context, text[len(context):], 1)


def read_wikitext(path: Path, text_key: str) -> Iterator[Passage]:
    """The whole file as one text in ordinary spelling.

    Words are those of the file, and the end of each line is one too: so published results count them (245,569 in the
    test files of WikiText-2 and WikiText-103).
    """
    lines = [text for _, text in text_lines(path)]
    text = "\n".join(lines)
    if text.strip():
        yield Passage("", ordinary_spelling(standard_punctuation(text)), len(text.split()) + len(lines))


#: Stretches of WikiText, in which punctuation stands apart -> ordinary spelling, in this order.
_SPELLING = tuple((re.compile(pattern, re.MULTILINE), replacement) for pattern, replacement in (
    (r" @([-,.])@ ", r"\1"),
    (r" ([.,;:!?])(?=\s|$)", r"\1"),
    (r" '(s|t|m|d|re|ve|ll)\b", r"'\1"),
    (r'" ([^"\n]*) "', r'"\1"'),
    (r"\( ([^()\n]*) \)", r"(\1)"),
    (r"\[ ([^\[\]\n]*) \]", r"[\1]"),
    (r"= (?==)", "="),
    (r"\$ (?=\d)", "$"),
    (r"^ | $", ""),
))


def ordinary_spelling(text: str) -> str:
    """WikiText with its punctuation put back: ``guest @-@ starring`` -> ``guest-starring``, ``( 2000 ) .`` ->
    ``(2000).`` A tokenizer that was trained on ordinary text then sees ordinary text."""
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return text
