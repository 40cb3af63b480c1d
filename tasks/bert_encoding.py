"""From an example to the tensors of a sample for a published BERT (``--pretrained-bert``).

Axes: c choices, s ``--seq-length``. A row is ``[CLS] first [SEP] second [SEP]``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from data_utils.tokenizers import Tokenizer
from tasks.encoding import CACHED_TEXTS, Sample
from tasks.examples import Example
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

#: ``[CLS]`` and two ``[SEP]``.
_SPECIAL_TOKENS = 3


class BertEncoder:
    """Encodes the examples of one task, by the texts of its form with a classification head.

    Keys of a sample (int64): ``text``, ``types`` (0 up to the first ``[SEP]``, then 1) and ``padding_mask`` (1 where
    there is no padding), each [s] or, where the choices stand in the example, [c, s]; ``label`` [].
    """

    def __init__(self, spec: TaskSpec, options: TaskOptions, tokenizer: Tokenizer) -> None:
        self.spec, self.options, self.tokenizer = spec, options, tokenizer
        self._tokenize = functools.lru_cache(CACHED_TEXTS)(tokenizer.encode)

    def __call__(self, example: Example) -> Sample:
        """The sample. Texts that are too long lose tokens at the end of the longer one."""
        rows = [self._row(row) for row in self.spec.classifier_rows(example)]
        width = self.options.seq_length
        text = np.full((len(rows), width), self.tokenizer.pad_id)
        types, padding_mask = np.zeros_like(text), np.zeros_like(text)
        for index, (first, second) in enumerate(rows):
            size = len(first) + len(second)
            text[index, :size] = [*first, *second]
            types[index, len(first):size] = 1
            padding_mask[index, :size] = 1
        arrays = {"text": text, "types": types, "padding_mask": padding_mask}
        sample = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if not self.spec.is_multi_choice:
            sample = {name: tensor[0] for name, tensor in sample.items()}
        sample["label"] = torch.tensor(self.spec.label_index(example))
        return sample

    def _row(self, row: ClassifierRow) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens of both segments, special ones included."""
        room = self.options.seq_length - _SPECIAL_TOKENS
        suffix = self._tokenize(row.suffix)[:room] if row.suffix else []
        first, second = shortened(self._tokenize(row.first), self._tokenize(row.second), room - len(suffix))
        enc, sep = self.tokenizer.command_id("ENC"), self.tokenizer.command_id("sep")
        last = [*second, *suffix]
        return [enc, *first, sep], [*last, sep] if last else []


def shortened(first: Sequence[int], second: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """Both lists without the tokens at the end of the longer one that have no room."""
    half = room // 2
    if len(first) + len(second) <= room:
        return first, second
    if len(second) <= half:
        return first[:room - len(second)], second
    if len(first) <= room - half:
        return first, second[:room - len(first)]
    return first[:room - half], second[:half]
