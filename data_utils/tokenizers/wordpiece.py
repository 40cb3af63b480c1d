"""BERT's WordPiece: the classic basic tokenizer, then greedy longest match with ``##`` continuations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer as Engine
from tokenizers import models, normalizers, pre_tokenizers

from data_utils.tokenizers.base import Command, CommandSwitches, Tokenizer, append_commands

_CACHED_WORDS = 200_000
_CACHED_WORD_LENGTH = 40
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f]").search
_REQUIRED = (("pad", "[PAD]"), ("ENC", "[CLS]"), ("MASK", "[MASK]"), ("unk", "[UNK]"), ("sep", "[SEP]"),
             ("eos", "[PAD]"))


class BertWordPieceTokenizer(Tokenizer):
    """WordPiece over any vocabulary file (one token a line, line number = id).

    ``[PAD] [UNK] [CLS] [SEP] [MASK]`` are looked up in the file; the block symbols get the ids after its end. The end
    of a document and padding are both ``[PAD]``. A word of more than 100 characters, or one that cannot be covered, is
    one ``[UNK]``.

    Raises:
        ValueError: the file lacks one of the five tokens, or names a token twice.
    """

    def __init__(self, vocab_file: str | Path, *, lower_case: bool = True,
                 switches: CommandSwitches | None = None) -> None:
        switches = switches or CommandSwitches()
        vocabulary, self._tokens = _read_vocabulary(Path(vocab_file))
        self._vocabulary, self._lower_case = vocabulary, lower_case
        missing = [string for _, string in _REQUIRED if string not in vocabulary]
        if missing:
            raise ValueError(f"{vocab_file} lacks {', '.join(dict.fromkeys(missing))}; a BERT vocabulary file needs "
                             "[PAD], [UNK], [CLS], [SEP] and [MASK] on lines of their own")
        commands = [Command(name, string, vocabulary[string]) for name, string in _REQUIRED]
        size = len(self._tokens)
        if switches.block_lm:
            commands += [Command("sop", "<|startofpiece|>", size), Command("eop", "<|endofpiece|>", size + 1)]
            commands += append_commands(size + 2, switches, strips_left=False)
        super().__init__(size, commands, max(size, commands[-1].id + 1))
        engine = Engine(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
        engine.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=lower_case, lowercase=lower_case)
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._words = _WordCache(engine, lower_case)

    def _encode_stretches(self, texts: Sequence[str]) -> list[list[int]]:
        # Nothing of the procedure looks across white space, so words can be remembered: five times faster than the
        # engine on whole texts. Control characters count as white space for str.split(), but are dropped by BERT.
        word_ids = self._words.__getitem__
        return [self._words.encode(text) if _CONTROL(text) else list(chain.from_iterable(map(word_ids, text.split())))
                for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens joined by blanks, ``##`` pieces glued on; ids outside the vocabulary file are dropped."""
        tokens = [self._tokens[token_id] for token_id in ids if 0 <= token_id < self.num_text_tokens]
        return " ".join(tokens).replace(" ##", "").strip()

    def word_to_id(self, word: str, *, keep_blank: bool = False) -> int:
        stripped = word.strip().lower() if self._lower_case else word.strip()
        if stripped not in self._vocabulary:
            raise ValueError(f"verbalizer {word!r} is not a token of this WordPiece vocabulary; choose a word that is, "
                             "or train multi-token (--multi-token)")
        return self._vocabulary[stripped]

    def _text_token(self, token_id: int) -> str:
        return self._tokens[token_id]

    def _fingerprint_parts(self) -> tuple[object, ...]:
        return hashlib.sha256("\n".join(self._tokens).encode()).hexdigest(), self._lower_case


class _WordCache(dict[str, list[int]]):
    """Ids of white-space separated words, filled on demand; forgets everything when it grows too large."""

    def __init__(self, engine: Engine, lower_case: bool) -> None:
        super().__init__()
        self._engine, self._lower_case = engine, lower_case

    def encode(self, text: str) -> list[int]:
        if self._lower_case and "Σ" in text:  # The engine lowers letter by letter and does not know the final sigma.
            text = text.lower()
        return self._engine.encode(text, add_special_tokens=False).ids

    def __missing__(self, word: str) -> list[int]:
        ids = self.encode(word)
        if len(word) <= _CACHED_WORD_LENGTH:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def __reduce__(self) -> tuple[object, ...]:
        return _WordCache, (self._engine, self._lower_case)  # a copy starts empty


def _read_vocabulary(path: Path) -> tuple[dict[str, int], list[str]]:
    tokens = [line.strip() for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise ValueError(f"{path} has {len(tokens)} lines but {len(vocabulary)} different tokens ({twice!r} stands "
                         "twice); every line must be a token of its own")
    return vocabulary, tokens
