"""GPT-2's byte-level BPE, in the layout of GPT-2 or of RoBERTa (which numbers its commands inside the vocabulary)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers

from data_utils.tokenizers.base import Command, CommandSwitches, Tokenizer, append_commands

_END_OF_TEXT = "<|endoftext|>"


class GPT2BPETokenizer(Tokenizer):
    """Byte-level BPE from ``vocab.json`` and ``merges.txt``.

    GPT-2 layout (the vocabulary holds ``<|endoftext|>``): that token is pad and eos, all other commands follow the
    vocabulary. RoBERTa layout (the vocabulary holds ``<s> </s> <unk> <mask>``): pad, eos and sep are ``</s>``, ENC is
    ``<s>``, MASK is ``<mask>``, and only the block symbols follow the vocabulary.

    Raises:
        ValueError: the vocabulary fits neither layout.
    """

    def __init__(self, vocab_file: str | Path, merges_file: str | Path, *,
                 switches: CommandSwitches | None = None) -> None:
        switches = switches or CommandSwitches()
        vocabulary: dict[str, int] = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
        merges_text = Path(merges_file).read_text(encoding="utf-8")
        size = max(vocabulary.values()) + 1
        self._vocabulary = vocabulary
        self._tokens = [""] * size
        for token, token_id in vocabulary.items():
            self._tokens[token_id] = token
        self._content_hash = hashlib.sha256((json.dumps(vocabulary, sort_keys=True) + merges_text).encode()).hexdigest()
        commands = _commands(vocabulary, size, switches, vocab_file)
        super().__init__(size, commands, max(size, max(command.id for command in commands) + 1))
        merges = [tuple(line.split(" ")) for line in merges_text.split("\n")
                  if line.strip() and not line.startswith("#version")]
        # An unknown character becomes id 0, as in the release; a vocabulary with all 256 byte symbols has none.
        engine = Engine(models.BPE(vocabulary, merges, unk_token=self._tokens[0]))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._engine = engine
        self._bytes = decoders.ByteLevel()

    def _encode_stretches(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._engine.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the bytes (broken UTF-8 becomes U+FFFD); commands appear as their strings."""
        parts: list[str] = []
        run: list[str] = []
        for token_id in ids:
            if token_id in self._command_strings:
                parts += [self._bytes.decode(run) if run else "", self._command_strings[token_id]]
                run = []
            else:
                run.append(self.id_to_token(token_id))
        return "".join(parts) + (self._bytes.decode(run) if run else "")

    def word_to_id(self, word: str, *, keep_blank: bool = False) -> int:
        if keep_blank:
            ids = self.encode_plain(word)
            if len(ids) == 1:
                return ids[0]
        stripped = word.strip()
        if stripped not in self._vocabulary:
            raise ValueError(f"verbalizer {word!r} (looked up as {stripped!r}) is not one piece of this BPE "
                             "vocabulary; choose another word, or train multi-token (--multi-token)")
        return self._vocabulary[stripped]

    def _text_token(self, token_id: int) -> str:
        return self._tokens[token_id]

    def _fingerprint_parts(self) -> tuple[object, ...]:
        return (self._content_hash,)


def _commands(vocabulary: dict[str, int], size: int, switches: CommandSwitches, source: str | Path) -> list[Command]:
    if _END_OF_TEXT in vocabulary:
        end = vocabulary[_END_OF_TEXT]
        commands = [Command("pad", _END_OF_TEXT, end), Command("eos", _END_OF_TEXT, end)]
        if switches.block_lm:
            commands += [
                Command("sop", "<|startofpiece|>", size), Command("eop", "<|endofpiece|>", size + 1),
                Command("ENC", "[CLS]", size + 2), Command("MASK", "[MASK]", size + 3, strips_left=True),
                Command("sep", "[SEP]", size + 4), Command("unk", "[UNK]", size + 5)]
            commands += append_commands(size + 6, switches, strips_left=True)
        return commands
    if all(token in vocabulary for token in ("<s>", "</s>", "<unk>", "<mask>")):
        end = vocabulary["</s>"]
        commands = [
            Command("pad", _END_OF_TEXT, end), Command("eos", _END_OF_TEXT, end), Command("sep", "[SEP]", end),
            Command("ENC", "[CLS]", vocabulary["<s>"]),
            Command("MASK", "[MASK]", vocabulary["<mask>"], strips_left=True),
            Command("unk", "[UNK]", vocabulary["<unk>"])]
        if switches.block_lm:
            commands += [Command("sop", "<|startofpiece|>", size), Command("eop", "<|endofpiece|>", size + 1)]
            commands += append_commands(size + 2, switches, strips_left=True)
        return commands
    raise ValueError(f"{source} is neither a GPT-2 vocabulary (it lacks {_END_OF_TEXT}) nor a RoBERTa one "
                     "(<s>, </s>, <unk>, <mask>); add the missing tokens to the file")
