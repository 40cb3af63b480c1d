"""Small vocabularies and corpora made on the spot, so that these tests need nothing outside the repository."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from data_utils.tokenizers import Tokenizer, make_tokenizer

WORDS = ("the cat sat on a mat and dog ran to town . , ! ? ; : ' \" - [ ] @ yes no rain falls when it is cold because "
         "##s ##ing ##ed river bank bread oven warm ice glass fell broke σας é").split()
SENTENCES = ("The cat sat on the mat.", "A dog ran to town!", "Rain falls when it is cold.",
             "Is the oven warm?", "The glass fell; it broke.", "Bread is warm because the oven is warm.")


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes in GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT vocabulary in an order of its own."""
    file = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" if letter not in WORDS]
    pieces = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" if f"##{letter}" not in WORDS]
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *pieces]) + "\n",
                    encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 vocabulary with a handful of merges."""
    folder = tmp_path_factory.mktemp("bpe")
    merges = ["t h", "th e", "Ġ the", "c a", "ca t", "Ġ cat", "Y e", "Ye s", "Ġ Yes"]
    tokens = [*byte_symbols(), *("".join(merge.split()) for merge in merges), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of a few dozen pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, vocab_size=48, hard_vocab_limit=False,
        minloglevel=2)
    file = tmp_path_factory.mktemp("sentencepiece") / "small.model"
    file.write_bytes(model.getvalue())
    return file


@pytest.fixture(scope="session")
def tokenizer(vocab_file: Path) -> Tokenizer:
    """WordPiece with all commands."""
    return make_tokenizer("BertWordPieceTokenizer", str(vocab_file), task_mask=True, decoder_mask=True)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents of one to six sentences, with empty lines between some of them."""
    lines = [" ".join(SENTENCES[(number + step) % 6] for step in range(1 + number % 6)) for number in range(120)]
    lines[10] = ""
    file = tmp_path_factory.mktemp("corpus") / "small.txt"
    file.write_text("\n".join(lines) + "\n")
    return file
