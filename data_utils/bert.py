"""Where a published BERT lies (``--pretrained-bert``): a folder, or a name that has been downloaded before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_utils.tokenizers import BertWordPieceTokenizer
from data_utils.tokenizers.base import CommandSwitches
from data_utils.tokenizers.files import find_wordpiece, lowers, vocabulary_roots

CONFIG = "config.json"
VOCABULARY = "vocab.txt"
#: Owner of the published BERTs on the Hugging Face hub, which their short names leave out.
_OWNER = "google-bert"


@dataclass(frozen=True)
class BertFiles:
    """A BERT on this machine: the folder with ``config.json`` and weights, its vocabulary, and whether that is for
    lower-case text."""

    folder: Path
    vocabulary: Path
    lower_case: bool

    def tokenizer(self) -> BertWordPieceTokenizer:
        """Without the tokens that GLM adds."""
        return BertWordPieceTokenizer(self.vocabulary, lower_case=self.lower_case,
                                      switches=CommandSwitches(block_lm=False))


def find_bert(model_type: str | None, cache_dir: str | None = None) -> BertFiles:
    """The BERT that ``--tokenizer-model-type`` names; nothing is downloaded.

    A name is looked up below ``cache_dir`` and the folders of vocabularies, then in the cache of the Hugging Face hub.

    Raises:
        ValueError: no name. FileNotFoundError: the model is not on this machine; the message says where to put it.
    """
    folder = _find_folder(model_type, cache_dir)
    vocabulary, settings = folder / VOCABULARY, folder / "tokenizer_config.json"
    if not vocabulary.is_file():
        vocabulary, _ = find_wordpiece(model_type, cache_dir)
    lower_case = lowers(Path(model_type).name)
    if settings.is_file():
        lower_case = bool(json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", lower_case))
    return BertFiles(folder, vocabulary, lower_case)


def _find_folder(model_type: str | None, cache_dir: str | None) -> Path:
    if not model_type:
        raise ValueError("--pretrained-bert starts from the BERT that --tokenizer-model-type names: give a folder with "
                         "config.json, vocab.txt and weights, or a name such as bert-base-uncased")
    if Path(model_type).is_dir():
        if not (Path(model_type) / CONFIG).is_file():
            raise FileNotFoundError(f"--tokenizer-model-type={model_type} has no {CONFIG}; --pretrained-bert needs the "
                                    f"model's whole folder: {CONFIG}, {VOCABULARY} and its weights")
        return Path(model_type)
    roots = list(vocabulary_roots(cache_dir))
    candidates = [root / model_type for root in roots]
    candidates += [folder for root in _hubs(cache_dir) for folder in _snapshots(root, model_type)]
    for folder in candidates:
        if (folder / CONFIG).is_file():
            return folder
    raise FileNotFoundError(
        f"no BERT for --tokenizer-model-type={model_type}: looked for {CONFIG} in "
        f"{', '.join(str(root / model_type) for root in roots)} and in the Hugging Face cache. Nothing is downloaded: "
        f"put the model's folder ({CONFIG}, {VOCABULARY}, weights) there, or give its path as --tokenizer-model-type")


def _hubs(cache_dir: str | None) -> Iterator[Path]:
    """The folders in which the hub's client keeps what it has downloaded."""
    if cache_dir:
        yield Path(cache_dir)
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    yield Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def _snapshots(hub: Path, name: str) -> Iterator[Path]:
    """The downloaded versions of a model, the current one first."""
    for full_name in (name, f"{_OWNER}/{name}"):
        folder = hub / f"models--{full_name.replace('/', '--')}"
        reference = folder / "refs" / "main"
        if reference.is_file():
            yield folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
        yield from sorted(folder.glob("snapshots/*"))
