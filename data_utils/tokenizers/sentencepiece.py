"""The Chinese SentencePiece tokenizer, with the release's two tables of command ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import sentencepiece

from data_utils.tokenizers.base import Command, CommandSwitches, Tokenizer, append_commands


class ChineseSPTokenizer(Tokenizer):
    """A SentencePiece model with commands after its pieces, see :func:`chinese_commands`."""

    def __init__(self, model_file: str | Path, *, fix_command_token: bool = False,
                 switches: CommandSwitches | None = None) -> None:
        switches = switches or CommandSwitches()
        model = Path(model_file).read_bytes()
        self._content_hash = hashlib.sha256(model).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self._model.get_piece_size()
        commands, num_tokens = chinese_commands(size, fix_command_token=fix_command_token, switches=switches)
        super().__init__(size, commands, num_tokens)

    def _encode_stretches(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), out_type=int)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the pieces; commands appear as their strings."""
        parts: list[str] = []
        run: list[int] = []
        for token_id in ids:
            if token_id in self._command_strings:
                parts += [self._model.decode(run) if run else "", self._command_strings[token_id]]
                run = []
            else:
                run.append(int(token_id))
        return "".join(parts) + (self._model.decode(run) if run else "")

    def word_to_id(self, word: str, *, keep_blank: bool = False) -> int:
        if keep_blank:
            ids = self.encode_plain(word)
            if len(ids) == 1:
                return ids[0]
        token_id = self._model.piece_to_id(word)
        if token_id == self._model.unk_id() and word != self._model.id_to_piece(token_id):
            raise ValueError(f"verbalizer {word!r} is not one piece of this SentencePiece model; choose another word, "
                             "or train multi-token (--multi-token)")
        return token_id

    def _text_token(self, token_id: int) -> str:
        return self._model.id_to_piece(token_id)

    def _fingerprint_parts(self) -> tuple[object, ...]:
        return (self._content_hash,)

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        state["_model"] = self._model.serialized_model_proto()
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._model = sentencepiece.SentencePieceProcessor(model_proto=state["_model"])


def chinese_commands(num_pieces: int, *, fix_command_token: bool,
                     switches: CommandSwitches) -> tuple[list[Command], int]:
    """Commands and total number of tokens.

    With ``n`` pieces: pad = eos = n, sep n+1, ENC n+2, MASK n+3, unk n+4, sop n+6, eop n+7.

    Args:
        fix_command_token: ``--fix-command-token``. Without it the number of tokens is one too small and gMASK (or
            dBLOCK) shares the id of eop; with it every command has an id of its own and sMASK comes before gMASK.
            Both tables are kept because published checkpoints depend on them.
    """
    commands = [
        Command("pad", "<|endoftext|>", num_pieces), Command("eos", "<|endoftext|>", num_pieces),
        Command("sep", "[SEP]", num_pieces + 1), Command("ENC", "[CLS]", num_pieces + 2),
        Command("MASK", "[MASK]", num_pieces + 3, strips_left=True), Command("unk", "[UNK]", num_pieces + 4)]
    if not switches.block_lm:
        return commands, num_pieces + 5
    commands += [Command("sop", "<|startofpiece|>", num_pieces + 6), Command("eop", "<|endofpiece|>", num_pieces + 7)]
    num_tokens = num_pieces + (8 if fix_command_token else 7)
    extra = append_commands(num_tokens, switches, strips_left=True)
    if fix_command_token and switches.task_mask:
        g_mask, s_mask, *rest = extra
        extra = [replace(s_mask, id=g_mask.id), replace(g_mask, id=s_mask.id), *rest]
    return commands + extra, num_tokens + len(extra)
