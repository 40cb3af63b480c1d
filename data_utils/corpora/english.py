"""Language filter (``--filter-english``, corpus ``openwebtext``) with fastText's language model, an optional extra."""

from __future__ import annotations

import importlib
from pathlib import Path

MODEL_NAMES = ("lid.176.bin", "lid.176.ftz")


class EnglishFilter:
    """Judges whether a text is English.

    Raises:
        ValueError: the ``fasttext`` package or its model file is missing.
    """

    def __init__(self, data_root: str | Path) -> None:
        candidates = [folder / name for folder in (Path(data_root), Path(".")) for name in MODEL_NAMES]
        model_file = next((file for file in candidates if file.is_file()), None)
        if model_file is None:
            raise ValueError(
                f"filtering for English (--filter-english, corpus openwebtext) needs fastText's language model: put "
                f"{MODEL_NAMES[0]} in {data_root}, or give the files by path and without --filter-english")
        try:
            fasttext = importlib.import_module("fasttext")  # optional package
        except ImportError as error:
            raise ValueError("filtering for English needs the package fasttext: install it, or give the files by path "
                             "and without --filter-english") from error
        self._model = fasttext.load_model(str(model_file))

    def __call__(self, text: str) -> bool:
        labels, _ = self._model.predict(text.replace("\n", " "))
        return labels[0] == "__label__en"
