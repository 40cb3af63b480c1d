"""The vocabulary sort file: every token id in the order in which a compact vocabulary keeps them.

UTF-8, tab separated, one header line, then one line per id of the unpadded vocabulary: ``origin_no`` (the place of the
id that equals the line number), ``sort_id`` (the id at this place), ``token``, ``number`` (of occurrences in the
corpus) and ``frequency``. The first two columns are inverse permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

HEADER = ("origin_no", "sort_id", "token", "number", "frequency")


def sort_vocabulary(num_tokens: int, counts: Mapping[int, int], protected: Set[int]) -> list[int]:
    """All ids, the protected ones first, each group by falling count.

    Ties keep the order of ``counts`` (that of the first occurrence in the corpus); ids that never occur come last.
    """
    first_seen = {token: place for place, token in enumerate(counts)}
    return sorted(range(num_tokens), key=lambda token: (
        token not in protected, -counts.get(token, 0), first_seen.get(token, len(first_seen)), token))


def vocab_file_text(tokens: Sequence[str], counts: Mapping[int, int], protected: Set[int]) -> str:
    """The whole file.

    Args:
        tokens: the string of each id, commands included.
        counts: occurrences by id, in the order of first occurrence.
        protected: ids that a compact vocabulary never drops.
    """
    order = sort_vocabulary(len(tokens), counts, protected)
    place_of = {token: place for place, token in enumerate(order)}
    total = max(1, sum(counts.values()))
    lines = ["\t".join(HEADER)]
    for place, token in enumerate(order):
        number = counts.get(token, 0)
        lines.append(f"{place_of[place]}\t{token}\t{tokens[token]}\t{number}\t{number / total:.3e}")
    return "\n".join(lines) + "\n"


def read_vocab_file(path: Path, tokens: Sequence[str]) -> list[int]:
    """The ids in sorted order.

    Args:
        tokens: the tokenizer's string of each id; the file has to be of this vocabulary.

    Raises:
        FileNotFoundError: there is no such file (the message names the command that makes it).
        ValueError: a malformed line (with its number), another vocabulary, or columns that are no permutations.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary sort file {path}: make it with `python distill/vocab_sort.py`, or name "
                                "one with --map_vocab_file")
    # Only line feeds end a line here: a token may be another kind of white space.
    lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    if tuple(lines[0].rstrip("\r").split("\t")) != HEADER:
        raise ValueError(f"{path} has the header {lines[0]!r}, not {' '.join(HEADER)} (tab separated)")
    places, order = [], []
    for number, line in enumerate(lines[1:], start=2):
        try:
            origin_no, sort_id, token, _, _ = line.rstrip("\r").split("\t")
            places.append(int(origin_no))
            order.append(int(sort_id))
        except ValueError:
            raise ValueError(f"{path}, line {number}: five columns with numbers are needed, not {line!r}") from None
        if not 0 <= order[-1] < len(tokens) or tokens[order[-1]] != token:
            known = tokens[order[-1]] if 0 <= order[-1] < len(tokens) else "nothing"
            raise ValueError(f"{path}, line {number}: id {order[-1]} is {token!r} there and {known!r} in the "
                             "tokenizer: the file belongs to another vocabulary")
    if len(order) != len(tokens) or sorted(order) != list(range(len(tokens))):
        raise ValueError(f"{path} has {len(order)} lines with {len(set(order))} different ids, the tokenizer has "
                         f"{len(tokens)} tokens")
    if any(order[place] != token for token, place in enumerate(places)):
        raise ValueError(f"{path}: the columns origin_no and sort_id are not inverse permutations")
    return order
