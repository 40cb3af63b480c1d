"""From an example to the tensors of one sample.

Axes: c choices, k labels, s ``--seq-length``, n prompt tokens. A row is ``ENC``, side a, side b, ``eos`` (Part A, its
length is ``sep``), then Part B: ``sop`` and the answer but for its last token. Padding: tokens ``eos``, all else 0.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_utils.tokenizers import Tokenizer
from tasks.examples import Example
from tasks.patterns import Cloze, Piece, Word, tokenize_sides, truncate
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

Sample = dict[str, torch.Tensor]

#: Texts whose tokens are remembered: passages come again for every candidate, query and epoch.
CACHED_TEXTS = 8192

_LOG = logging.getLogger(__name__)


def verbalizer_id(tokenizer: Tokenizer, word: str, *, with_blank: bool = True) -> int:
    """Id of a label word such as ``" Yes"``; ValueError if it is not one token.

    WordPiece strips, lower-cases and looks up. BPE and SentencePiece: our default encodes the word *with* its blank and
    requires exactly one id (`` Yes`` 3363 in GPT-2), falling back to the stripped word only if that fails, because
    GLM's published checkpoints were trained so. ``with_blank=False`` is the rule of the published distillation release
    (``Yes`` 5297), under which some tasks have no ids at all for GPT-2 (CB pattern 4: ``neither``).
    """
    return tokenizer.word_to_id(word if with_blank else word.strip(), keep_blank=with_blank)


@dataclass(frozen=True)
class Row:
    """The tokens of one row: Part A, the position of its blank, Part B with its targets, prompt positions."""

    part_a: Sequence[int]
    blank: int = 0
    part_b: Sequence[int] = ()
    targets: Sequence[int] = ()
    prompt_positions: Sequence[int] = ()


class TaskEncoder:
    """Encodes the examples of one task. Calls are independent of each other; only token lists are remembered.

    Keys of a sample (int64): ``text`` [s], ``position`` [2, s], ``mask`` [] (= sep), ``label`` []; in cloze form also
    ``target`` [k] (verbalizer ids) and ``logit_mask`` [s] (1 at ``sop``). Multi-choice samples have a leading axis c
    everywhere, and ``target`` [c, s], ``logit_mask`` [c, s] mark each answer. With prompt tokens ``prompt_pos`` [n].
    """

    def __init__(self, spec: TaskSpec, options: TaskOptions, tokenizer: Tokenizer) -> None:
        self.spec, self.options, self.tokenizer = spec, options, tokenizer
        self.enc_id, self.eos_id = tokenizer.command_id("ENC"), tokenizer.command_id("eos")
        self._tokenize = functools.lru_cache(CACHED_TEXTS)(tokenizer.encode)
        self._warned = False
        self.words = spec.verbalizers.get(options.pattern_id, ()) if options.cloze_eval else ()
        if options.cloze_eval:
            self.sop_id, self.eop_id = tokenizer.command_id("sop"), tokenizer.command_id("eop")
            self.mask_id = tokenizer.command_id("MASK")
        else:
            self.sep_id = tokenizer.command_id("sep")
        self.word_ids = [] if spec.is_multi_token else [self.word_id(word) for word in self.words]

    def word_id(self, word: str) -> int:
        """The verbalizer id of a word, by the rule of the options."""
        return verbalizer_id(self.tokenizer, word, with_blank=self.options.bpe_word_with_blank)

    def __call__(self, example: Example) -> Sample:
        """The sample; ValueError naming the example if its fixed parts are longer than ``--seq-length``."""
        if self.options.cloze_eval:
            rows = [self._cloze_row(example, cloze) for cloze in self._clozes(example)]
        else:
            rows = [self._classifier_row(row) for row in self.spec.classifier_rows(example)]
        sample = self._tensors(rows)
        if not self.spec.is_multi_choice:
            sample = {name: tensor[0] for name, tensor in sample.items()}
        if self.word_ids:
            sample["target"] = torch.tensor(self.word_ids)
        sample["label"] = torch.tensor(self.spec.label_index(example))
        return sample

    def _clozes(self, example: Example) -> list[Cloze]:
        clozes = self.spec.fill(example, self.options)
        if self.spec.is_multi_token and not self.spec.choices_are_answers:  # --multi-token: the label words are choices
            return [clozes[0].with_answer(word) for word in self.words]
        return clozes

    def _cloze_row(self, example: Example, cloze: Cloze) -> Row:
        options = self.options
        side_a, side_b = tokenize_sides(cloze, self._tokenize, self.mask_id,
                                        options.num_prompt_tokens if options.continuous_prompt else 0)
        side_a.insert(0, Piece([0] * options.prefix_prompt, is_prompt=True))
        answer = self._answer_ids(cloze.answer)
        pieces = [*side_a, *side_b]
        length = sum(len(piece.ids) for piece in pieces) + len(answer) + (2 if answer else 3)
        try:
            truncate(side_a, side_b, length - options.seq_length)
        except ValueError as error:
            raise ValueError(f"example {example.guid} of task {self.spec.name} does not fit into --seq-length="
                             f"{options.seq_length}: {error}; raise --seq-length, or shorten the example") from error
        part_a, prompt_positions = [self.enc_id], []
        for piece in pieces:
            if piece.is_prompt:
                prompt_positions.extend(range(len(part_a), len(part_a) + len(piece.ids)))
            part_a.extend(piece.ids)
        part_a.append(self.eos_id)
        return Row(part_a, part_a.index(self.mask_id), [self.sop_id, *answer[:-1]], answer, prompt_positions)

    def _answer_ids(self, answer: str | Word | None) -> list[int]:
        if answer is None:
            return []
        return [*([self.word_id(answer.text)] if isinstance(answer, Word) else self._tokenize(answer)), self.eop_id]

    def _classifier_row(self, row: ClassifierRow) -> Row:
        """``ENC first sep second`` cut hard, then ``eos``: a long first text drops the second (as published)."""
        suffix = self._tokenize(row.suffix) if row.suffix else []
        ids = [self.enc_id, *self._tokenize(row.first), self.sep_id, *self._tokenize(row.second), *suffix]
        limit = self.options.seq_length - 1
        if len(ids) > limit and not self._warned:
            self._warned = True
            _LOG.warning("task %s: an input of %d tokens is cut to --seq-length=%d at its end, which may drop its "
                         "second text; further ones are cut silently", self.spec.name, len(ids) + 1, limit + 1)
        return Row([*ids[:limit], self.eos_id])

    def _tensors(self, rows: Sequence[Row]) -> Sample:
        """The rows, padded: text [c, s], position [c, 2, s], mask [c]; in cloze form target and logit_mask [c, s]."""
        shape = (len(rows), self.options.seq_length)
        text = torch.full(shape, self.eos_id)
        row0, row1, target, logit_mask = (torch.zeros_like(text) for _ in range(4))
        for c, row in enumerate(rows):
            sep, end = len(row.part_a), len(row.part_a) + len(row.part_b)
            text[c, :end] = torch.tensor([*row.part_a, *row.part_b])
            row0[c, :sep] = torch.arange(sep)
            row0[c, sep:end] = row.blank
            row1[c, sep:end] = 1 if self.options.no_block_position else torch.arange(1, end - sep + 1)
            target[c, sep:sep + len(row.targets)] = torch.tensor(row.targets, dtype=torch.long)
            logit_mask[c, sep:end] = 1
        position = row0 if self.options.masked_lm else torch.stack((row0, row1), dim=1)
        sample = {"text": text, "position": position, "mask": torch.tensor([len(row.part_a) for row in rows])}
        if self.options.cloze_eval:
            sample |= {"target": target, "logit_mask": logit_mask}
        if self.options.prefix_prompt or self.options.continuous_prompt:
            sample["prompt_pos"] = torch.tensor([row.prompt_positions for row in rows], dtype=torch.long)
        return sample
