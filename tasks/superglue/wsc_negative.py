"""``python -m tasks.superglue.wsc_negative WSC WSC-negative``: WSC files with candidates, for ``--wsc-negative``.

The candidates of an example are the noun phrases of its text, found by a rule without any model: a phrase begins with a
determiner, a possessive or a name and goes on until a word of a closed class (preposition, conjunction, auxiliary,
pronoun, common adverb), a word with a verb's ending, or punctuation. The rule misses phrases and takes some verbs for
nouns; a wrong candidate costs little, because it only has to lose against the phrase that is asked about. The phrase
that is asked about itself, and the pronoun, are no candidates.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.examples import standard_punctuation
from tasks.files import read_lines

MAX_WORDS = 4

_DETERMINERS = frozenset(
    "the a an this these those my your his her its our their some any no every each both all many several another "
    "other one two three four five six ten".split())
_TITLES = frozenset("mr mrs ms dr aunt uncle sir lady king queen prince professor".split())
_CLOSED = frozenset(
    "and or but nor so yet if because although though since while when where why how who whom whose which that than "
    "as of in on at by for with from to into onto over under above below behind before after between through during "
    "without within against about around across along near off out up down until till toward towards upon per like "
    "i you he she it we they me him us them myself himself herself itself themselves mine yours hers ours theirs "
    "is am are was were be been being has have had having do does did done will would shall should can could may might "
    "must not never always often still just only even also too very then there here now again soon already almost "
    "quite rather really once twice ever perhaps maybe however instead together away back home today yesterday "
    "tomorrow went got gave took made said told saw came knew thought found left kept put let ran sat stood wrote "
    "what whatever whoever everyone everybody someone somebody anyone anybody nobody nothing something anything "
    "everything yes ok".split())
_VERB_ENDING = re.compile(r".{3,}(ed|ing|ly)$|.*n't$")
_WORD = re.compile(r"[A-Za-z][A-Za-z.'-]*|[^\sA-Za-z]+")


def noun_phrases(text: str) -> list[str]:
    """The noun phrases of a text in its order, without repetitions (whatever the case and the article)."""
    found: dict[str, str] = {}
    for clause in _clauses(standard_punctuation(text)):
        for phrase in _phrases(clause):
            found.setdefault(_key(phrase), phrase)
    return list(found.values())


def _key(phrase: str) -> str:
    """What makes two phrases the same."""
    words = phrase.lower().rstrip(".").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "a", "an") else words)


def _clauses(text: str) -> Iterator[list[str]]:
    """The words between punctuation marks; a possessive 's is a word of its own."""
    clause: list[str] = []
    for word in _WORD.findall(re.sub(r"'s\b|(?<=s)'(?=\s)", " 's ", text)):
        bare = word.rstrip(".'")
        is_title = bare.lower() in _TITLES
        if word[0].isalpha() or word == "'s":
            clause.append(f"{bare}." if is_title and word.endswith(".") else bare or word)
        if not word[0].isalpha() and word != "'s" or word.endswith(".") and not is_title and len(bare) > 1:
            yield clause
            clause = []
    yield clause


def _phrases(words: Sequence[str]) -> Iterator[str]:
    start = 0
    while start < len(words):
        length = _name_length(words, start) or _described_length(words, start)
        if length:
            yield " ".join(words[start:start + length])
        start += length or 1


def _name_length(words: Sequence[str], start: int) -> int:
    """Words of the name that begins at ``start``: capitals, with a title before them; 0 where there is none."""
    end = start
    while end < len(words) and words[end][0].isupper() and _stem(words[end]) not in _CLOSED | _DETERMINERS:
        end += 1
    is_one_verb = start == 0 and end == 1 and bool(_VERB_ENDING.match(words[0].lower()))
    return 0 if is_one_verb else end - start


def _described_length(words: Sequence[str], start: int) -> int:
    """Words of the phrase that begins with a determiner at ``start``; 0 where there is none."""
    if words[start].lower() not in _DETERMINERS:
        return 0
    end = start + 1
    while end < min(start + MAX_WORDS, len(words)):
        word = words[end].lower()
        is_noun_already = end > start + 1
        is_end = is_noun_already and (word in _DETERMINERS or _VERB_ENDING.match(word))
        if words[end] == "'s" or _stem(word) in _CLOSED or is_end:
            break
        end += 1
    return end - start if end > start + 1 and words[end - 1].lower() not in _DETERMINERS else 0


def _stem(word: str) -> str:
    return word.lower().rstrip(".")


def candidates(text: str, phrase: str, pronoun: str) -> list[dict[str, str]]:
    """The field ``candidates`` of an example: other noun phrases of its text."""
    taken = {_key(phrase), _key(pronoun)}
    return [{"text": one} for one in noun_phrases(text) if _key(one) not in taken]


def add_candidates(source: Path, target: Path) -> list[Path]:
    """Writes every ``.jsonl`` file of ``source`` with candidates to the folder ``target``; returns the paths.

    A file is written whole or not at all. Raises ValueError naming file and line for rows that are no WSC examples.
    """
    files = sorted(source.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{source} has no .jsonl file; name the folder of WSC (python -m tasks.superglue.download WSC "
                         "makes it)")
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for file in files:
        rows = []
        for line in read_lines(file):
            span = line.child("target")
            rows.append({**line.fields, "candidates": candidates(line.text("text"), span.text("span1_text"),
                                                                 span.text("span2_text"))})
        path = target / file.name
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, path)
        written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the folder; exit code 2 where the source is no WSC folder."""
    parser = argparse.ArgumentParser(prog="python -m tasks.superglue.wsc_negative", allow_abbrev=False,
                                     description="Write WSC files with candidates, for --wsc-negative.")
    parser.add_argument("source", type=Path, metavar="WSC", help="folder with WSC's .jsonl files")
    parser.add_argument("target", type=Path, metavar="WSC-negative", help="folder to write")
    args = parser.parse_args(argv)
    try:
        for path in add_candidates(args.source, args.target):
            sys.stdout.write(f"{path}\n")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
