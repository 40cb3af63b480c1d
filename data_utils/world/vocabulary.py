"""The world's vocabularies: BERT WordPiece, GPT-2 byte-level BPE, and the frequency table of the compact vocabulary.

Both vocabularies come from the word lists, not from a trainer: the WordPiece trainer of the `tokenizers` package gives
another vocabulary at every call. Every word that the world can generate is one token; any other text still encodes,
as letters (WordPiece) or bytes (BPE).
"""

from __future__ import annotations

import re
import string
from collections import Counter

from data_utils.world import lists, more_tasks, templates

WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GPT2_END = "<|endoftext|>"
# Words of the tasks' patterns and their verbalizers, also of tasks that the world has no questions for yet.
PATTERN_WORDS = """
    question answer true false or neither yes no maybe based on the previous following passage because so
    similar sense of does have the same meaning in both sentences is it correct a the pronoun refers to sentence above
    what do refer which who whom when where why how wrong right placeholder fact highlight
"""
VERBALIZERS = ("yes", "no", "maybe", "true", "false", "neither", "because", "so", "right", "wrong", "2", "b")
_FIELD = re.compile(r"\{[a-z_]+\}")
_WORD = re.compile(r"[A-Za-z]+")
_COMMON_CAPITALS = ("Yes", "No", "Maybe", "True", "False", "Question", "Answer", "Based")


def world_strings() -> list[str]:
    """Every string that a generated sentence or a task pattern can be made of."""
    strings = [*lists.all_strings(), *templates.all_strings(), PATTERN_WORDS, *more_tasks.all_strings()]
    return [_FIELD.sub(" ", text) for text in strings]


def world_words() -> list[str]:
    """Every word of the world in lower case, sorted; those of WiC, WSC and MultiRC alone come last, sorted too."""
    later = {_FIELD.sub(" ", text) for text in more_tasks.all_strings()}
    words = {word.lower() for text in world_strings() if text not in later for word in _WORD.findall(text)}
    return [*sorted(words), *sorted({word.lower() for text in later for word in _WORD.findall(text)} - words)]


def wordpiece_vocabulary() -> list[str]:
    """The lines of vocab.txt: specials, punctuation, digits and letters with their `##` forms, then the words."""
    characters = [*string.punctuation, *string.digits, *string.ascii_lowercase]
    pieces = [f"##{c}" for c in string.digits + string.ascii_lowercase]
    words = [word for word in world_words() if len(word) > 1]
    return [*WORDPIECE_SPECIALS, *characters, *pieces, *words]


def gpt2_vocabulary() -> tuple[dict[str, int], list[str]]:
    """vocab.json (piece -> id) and the lines of merges.txt, without its first line.

    The merges are learned from one copy of each word with a blank before it, as it is written in the world, until
    every such word is one piece: the most frequent pair first, ties by the pair itself.
    """
    symbols = _byte_symbols()
    words = [[symbols[b] for b in f" {form}".encode()] for form in _written_forms()]
    merges = _learn_merges(words)
    pieces = [*(symbols[b] for b in _byte_order()), *(left + right for left, right in merges), GPT2_END]
    return {piece: i for i, piece in enumerate(pieces)}, [f"{left} {right}" for left, right in merges]


def _written_forms() -> list[str]:
    """The words as they stand in the world's strings, and with a capital where one may begin a sentence; sorted."""
    forms = set(_COMMON_CAPITALS)
    for text in world_strings():
        words = _WORD.findall(text)
        forms |= {*words, *(word[:1].upper() + word[1:] for word in words[:1])}
        forms |= {f"{words[0][:1].upper()}{words[0][1:]}" for words in map(_WORD.findall, text.split(". ")) if words}
    return sorted(forms)


def _byte_order() -> list[int]:
    """The 256 bytes in GPT-2's order: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return printable + [b for b in range(256) if b not in printable]


def _byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in a GPT-2 vocabulary."""
    order = _byte_order()
    num_printable = 256 - sum(1 for b in order if b <= 32 or 127 <= b <= 160 or b == 173)
    return {b: chr(b) if i < num_printable else chr(256 + i - num_printable) for i, b in enumerate(order)}


def _learn_merges(words: list[list[str]]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    counts: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = {}
    for i in range(len(words)):
        _count_pairs(words, i, counts, where, 1)
    while pairs := [pair for pair, count in counts.items() if count > 0]:
        best = max(pairs, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for i in sorted(where[best]):
            _count_pairs(words, i, counts, where, -1)
            words[i] = _merged(words[i], best)
            _count_pairs(words, i, counts, where, 1)
    return merges


def _count_pairs(
    words: list[list[str]], i: int, counts: Counter[tuple[str, str]], where: dict[tuple[str, str], set[int]], sign: int
) -> None:
    for pair in zip(words[i], words[i][1:], strict=False):
        counts[pair] += sign
        if sign > 0:
            where.setdefault(pair, set()).add(i)
        else:
            where[pair].discard(i)


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """`pieces` with every occurrence of `pair`, from the left, as one piece."""
    result, i = [], 0
    while i < len(pieces):
        width = 2 if tuple(pieces[i : i + 2]) == pair else 1
        result.append("".join(pieces[i : i + width]))
        i += width
    return result
