"""A small WordPiece vocabulary (any text encodes: letters are in it) and a writer of JSON lines."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from data_utils.tokenizers import Tokenizer, make_tokenizer

WORDS = ("yes no maybe true false neither because so or question answer the man woman slid razor chin his stubble grew "
         "disappeared is it rain wet a b").split()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    characters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *string.punctuation, *characters,
              *(f"##{one}" for one in characters)]
    path.write_text("\n".join(dict.fromkeys(tokens)) + "\n")
    return make_tokenizer("BertWordPieceTokenizer", str(path))


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, *rows: Mapping[str, object] | str) -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path
    return write
