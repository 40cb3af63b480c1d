"""What every tokenizer offers: text to ids with command tokens, ids to text, and facts about single tokens."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SENTENCE_END_MARKS = ".?!;:\n"
WIDE_SENTENCE_END_MARKS = SENTENCE_END_MARKS + "。？！；…"  # noqa: RUF001 - full-width forms on purpose


@dataclass(frozen=True)
class Command:
    """A special token: the ``name`` code uses, the ``string`` recognised in text (left-stripped or not), its id."""

    name: str
    string: str
    id: int
    strips_left: bool = False


@dataclass(frozen=True)
class CommandSwitches:
    """Which optional commands exist. Task masks and the decoder mask need the block symbols."""

    block_lm: bool = True
    task_mask: bool = False
    decoder_mask: bool = False
    num_sentinels: int = 0


class Tokenizer(ABC):
    """A vocabulary with command tokens on top.

    Args:
        num_text_tokens: ids ``0 … num_text_tokens - 1`` belong to the vocabulary file.
        commands: in the order in which their strings are cut out of a text; ``pad`` first.
        num_tokens: size of the vocabulary with all commands, before padding.
    """

    def __init__(self, num_text_tokens: int, commands: Sequence[Command], num_tokens: int) -> None:
        self.num_text_tokens = num_text_tokens
        self.num_tokens = num_tokens
        self.commands = list(commands)
        self._command_ids = {command.name: command.id for command in commands}
        self._command_strings: dict[int, str] = {}
        for command in commands:  # ChineseSP gives one id to two commands: the first keeps it
            self._command_strings.setdefault(command.id, command.string)
        self._id_of_string = {command.string: command.id for command in reversed(commands)}
        strings = dict.fromkeys((command.string, command.strips_left) for command in commands)
        pattern = "|".join((r"\s*" if strips else "") + re.escape(string) for string, strips in strings)
        self._command_pattern = re.compile(f"({pattern})")
        if self.command_id("pad") != self.command_id("eos"):
            raise ValueError(f"pad ({self.pad_id}) and eos ({self.command_id('eos')}) must be one id")

    # --- commands -------------------------------------------------------------------------------------------------

    def command_id(self, name: str) -> int:
        """Id of a command by name. Raises ValueError naming the switch when this tokenizer lacks it."""
        if name not in self._command_ids:
            raise ValueError(
                f"this tokenizer has no command {name!r} (it has {', '.join(self._command_ids)}); sop and eop come "
                "with --block-lm, gMASK and sMASK with --task-mask, dBLOCK with --block-mask-prob or "
                "--context-mask-ratio above 0")
        return self._command_ids[name]

    def has_command(self, name: str) -> bool:
        return name in self._command_ids

    @property
    def pad_id(self) -> int:
        return self._command_ids["pad"]

    # --- text and ids ---------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of a text; command strings become their ids (case matters), the stretches between are encoded alone."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of many texts; the vocabulary does them in one go, which is what makes it fast."""
        stretches: list[str] = []
        layout: list[list[int]] = []  # per text: a command id, or -1 for the next stretch
        for text in texts:
            pieces: list[int] = []
            for number, piece in enumerate(self._command_pattern.split(text) if text.strip() else ()):
                if number % 2:
                    pieces.append(self._id_of_string[piece.lstrip()])
                elif piece:
                    pieces.append(-1)
                    stretches.append(piece)
            layout.append(pieces)
        encoded = iter(self._encode_stretches(stretches))
        if len(stretches) == len(texts) and all(pieces == [-1] for pieces in layout):
            return list(encoded)
        result = []
        for pieces in layout:
            ids: list[int] = []
            for piece in pieces:
                if piece < 0:
                    ids.extend(next(encoded))
                else:
                    ids.append(piece)
            result.append(ids)
        return result

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which command strings are ordinary characters."""
        return list(self._encode_stretches([text])[0]) if text.strip() else []

    @abstractmethod
    def _encode_stretches(self, texts: Sequence[str]) -> Sequence[list[int]]:
        """Ids of texts that hold no command."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""

    @abstractmethod
    def word_to_id(self, word: str, *, keep_blank: bool = False) -> int:
        """Id of a verbalizer word.

        Args:
            keep_blank: byte-level BPE and SentencePiece: encode the word with its leading blank and take the piece if
                it is exactly one; only otherwise look up the stripped word. The release always looks up the stripped
                word (``Yes``, 5297, where GLM's own checkpoints were trained on `` Yes``, 3363).

        Raises:
            ValueError: the word is not one token.
        """

    # --- single tokens --------------------------------------------------------------------------------------------

    def id_to_token(self, token_id: int) -> str:
        """String of a token as the vocabulary writes it (``##ing``, ``Ġthe``); of a command, its string."""
        if token_id in self._command_strings:
            return self._command_strings[token_id]
        if not 0 <= token_id < self.num_text_tokens:
            raise ValueError(f"no token has id {token_id}; this tokenizer has {self.num_tokens} tokens")
        return self._text_token(token_id)

    def token_strings(self) -> list[str]:
        """The string of every id; ids that no token has (ChineseSP skips some) have a name of their own."""
        known = [token in self._command_strings or token < self.num_text_tokens for token in range(self.num_tokens)]
        return [self.id_to_token(token) if known[token] else f"[unused{token}]" for token in range(self.num_tokens)]

    @abstractmethod
    def _text_token(self, token_id: int) -> str:
        """String of a token of the vocabulary file."""

    def sentence_ends(self, marks: str = SENTENCE_END_MARKS) -> np.ndarray:
        """bool [num_tokens]: does the token's string contain one of ``marks``? Commands never end a sentence."""
        size = max(self.num_tokens, max(self._command_strings) + 1)
        table = np.zeros(size, dtype=bool)
        found = re.compile(f"[{re.escape(marks)}]").search
        for token_id in range(self.num_text_tokens):
            table[token_id] = found(self._text_token(token_id)) is not None
        table[list(self._command_strings)] = False
        return table

    def is_sentence_end(self, token_id: int) -> bool:
        """Does the token's string contain a full stop, question or exclamation mark, (semi)colon or line feed?"""
        return token_id not in self._command_strings and any(
            mark in self._text_token(token_id) for mark in SENTENCE_END_MARKS)

    def fingerprint(self) -> str:
        """Hash of everything that decides the ids of a text: keys the token cache."""
        digest = hashlib.sha256(repr((type(self).__name__, self._fingerprint_parts())).encode())
        digest.update(repr([(command.string, command.id, command.strips_left) for command in self.commands]).encode())
        return digest.hexdigest()

    @abstractmethod
    def _fingerprint_parts(self) -> tuple[object, ...]:
        """Vocabulary hash and options of the subclass."""


def append_commands(first_id: int, switches: CommandSwitches, *, strips_left: bool) -> list[Command]:
    """gMASK, sMASK, dBLOCK, then sentinels, as far as the switches ask for them, from ``first_id`` on."""
    wanted: list[tuple[str, str, bool]] = []
    if switches.block_lm and switches.task_mask:
        wanted += [("gMASK", "[gMASK]", strips_left), ("sMASK", "[sMASK]", strips_left)]
    if switches.block_lm and switches.decoder_mask:
        wanted.append(("dBLOCK", "[dBLOCK]", False))
    for number in range(1, switches.num_sentinels + 1):
        wanted += [(f"MASK{number}", f"[MASK{number}]", strips_left),
                   (f"sop{number}", f"<|startofpiece{number}|>", False)]
    return [Command(name, string, first_id + offset, strips) for offset, (name, string, strips) in enumerate(wanted)]


def padded_vocab_size(num_tokens: int, divisor: int = 128) -> int:
    """Smallest multiple of ``divisor`` (``--make-vocab-size-divisible-by``) that is not below ``num_tokens``."""
    if divisor < 1:
        raise ValueError(f"--make-vocab-size-divisible-by must be at least 1 (got {divisor})")
    return -(-num_tokens // divisor) * divisor
