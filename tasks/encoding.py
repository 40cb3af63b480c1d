"""From an example to the tensors of one sample.

Axes: c choices (with ``--segment-length``: rows), k labels, s ``--seq-length``, d decoded tokens (16), n prompt tokens.
A row is ``ENC``, side a, side b, ``eos`` (Part A, its length is ``sep``), then Part B: ``sop`` and the answer but for
its last token. Padding: tokens ``eos``, all else 0.
"""

from __future__ import annotations

import functools
import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from data_utils import block_lm
from data_utils.tokenizers import Tokenizer
from tasks.examples import Example
from tasks.patterns import Cloze, Piece, Word, tokenize_sides, truncate
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

Sample = dict[str, torch.Tensor]

#: Texts whose tokens are remembered: passages come again for every candidate, query and epoch.
CACHED_TEXTS = 8192

#: Room for an answer with ``--fast-decode``; longer ones are cut, and may lose their ``eop``.
DECODED_TOKENS = 16

_LOG = logging.getLogger(__name__)


def verbalizer_id(tokenizer: Tokenizer, word: str, *, with_blank: bool = True) -> int:
    """Id of a label word such as ``" Yes"``; ValueError if it is not one token.

    WordPiece strips, lower-cases and looks up. BPE and SentencePiece: our default encodes the word *with* its blank and
    requires exactly one id (`` Yes`` 3363 in GPT-2), falling back to the stripped word only if that fails, because
    GLM's published checkpoints were trained so. ``with_blank=False`` is the rule of the published distillation release
    (``Yes`` 5297), under which some tasks have no ids at all for GPT-2 (CB pattern 4: ``neither``).
    """
    return tokenizer.word_to_id(word if with_blank else word.strip(), keep_blank=with_blank)


def label_word_ids(spec: TaskSpec, args: Namespace, tokenizer: Tokenizer) -> list[int]:
    """The token ids of the task's label words, ascending; none where the choices are the answers."""
    words = spec.verbalizers.get(TaskOptions.from_args(args).pattern_id, ())
    return sorted({token for word in words for token in tokenizer.encode(word)})


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
    ``target`` [k] (verbalizer ids) and ``logit_mask`` [s] (1 at ``sop``). With prompt tokens ``prompt_pos`` [n].

    - Multi-choice samples have a leading axis c everywhere, and ``target`` [c, s], ``logit_mask`` [c, s] mark each
      answer. With ``--segment-length`` the axis is that of pieces of answers, and ``segment_id`` [rows] says to which
      choice a row belongs (:func:`tasks.losses.sum_segments`).
    - With ``--fast-decode`` the text is encoded once, without Part B, and each answer apart: ``dec_text`` [c, d],
      ``dec_position`` [c, 2, d], ``dec_mask`` [c] (= sep), ``dec_target`` and ``dec_logit_mask`` [c, d].
    - The language-model form (WSC without candidates) is ``text``, ``target``, ``loss_mask`` [s], ``position_id``
      [2, s], ``attention_mask`` [] (= sep), ``label`` [].
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
        spec, options = self.spec, self.options
        if not options.cloze_eval:
            rows = [self._classifier_row(row) for row in spec.classifier_rows(example)]
            sample = self._part_a_tensors(rows)
        elif options.fast_decode and spec.head == "multi_token":
            sample = self._fast_decode_sample(example)
        elif options.segment_length and spec.head == "multi_token":
            rows, choices = self._pieces_of_answers(example)
            sample = self._cloze_tensors(rows) | {"segment_id": torch.tensor(choices)}
        else:
            rows = [self._cloze_row(example, cloze, self._answer_ids(cloze.answer)) for cloze in self._clozes(example)]
            sample = self._cloze_tensors(rows)
        if not (spec.is_multi_choice or "dec_text" in sample):
            sample = {name: tensor[0] for name, tensor in sample.items()}
        if self.word_ids:
            sample["target"] = torch.tensor(self.word_ids)
        if spec.head == "language_model":
            names = {"position": "position_id", "mask": "attention_mask", "logit_mask": "loss_mask"}
            sample = {names.get(name, name): tensor for name, tensor in sample.items()}
        sample["label"] = torch.tensor(spec.label_index(example))
        return sample

    def labelled_text(self, example: Example) -> block_lm.Sample:
        """Part A with the right answer in its blank: a text of the blank-filling objective (``--block-lm-ratio``)."""
        if example.label is None or not example.is_labelled:
            raise ValueError(f"example {example.guid} of task {self.spec.name} has no label; --block-lm-ratio reads "
                             "texts with their answers and needs labelled training data")
        label, clozes = self.spec.label_index(example), self._clozes(example)
        if self.spec.is_multi_choice:
            cloze, answer = clozes[label], self._answer_ids(clozes[label].answer)[:-1]
        elif self.spec.head == "language_model":
            cloze, answer = clozes[0], self._answer_ids(clozes[0].answer)[:-1]
        else:
            cloze, answer = clozes[0], [self.word_ids[label]]
        row = self._cloze_row(example, cloze, answer)
        text = np.array([*row.part_a[:row.blank], *answer, *row.part_a[row.blank + 1:]], dtype=np.int64)
        loss_mask = np.ones_like(text)
        loss_mask[0] = 0  # ENC, as in the samples of the pre-training data
        return block_lm.Sample(text, loss_mask)

    def _clozes(self, example: Example) -> list[Cloze]:
        clozes = self.spec.fill(example, self.options)
        if self.spec.is_multi_token and clozes[0].answer is None:  # --multi-token: the label words are the choices
            return [clozes[0].with_answer(word) for word in self.words]
        return clozes

    def _cloze_row(self, example: Example, cloze: Cloze, answer: Sequence[int], before_mask: Sequence[int] = ()) -> Row:
        """Part A, shortened so that it and the answer fit, and Part B; ``before_mask`` stands in front of the blank."""
        options = self.options
        side_a, side_b = tokenize_sides(cloze, self._tokenize, self.mask_id,
                                        options.num_prompt_tokens if options.continuous_prompt else 0, before_mask)
        side_a.insert(0, Piece([0] * options.prefix_prompt, is_prompt=True))
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

    def _pieces_of_answers(self, example: Example) -> tuple[list[Row], list[int]]:
        """A row for each piece of ``--segment-length`` tokens of each answer, behind the earlier pieces; its choice."""
        rows, choices, size = [], [], self.options.segment_length
        for choice, cloze in enumerate(self._clozes(example)):
            answer = self._answer_ids(cloze.answer)
            for start in range(0, len(answer), size):
                rows.append(self._cloze_row(example, cloze, answer[start:start + size], answer[:start]))
                choices.append(choice)
        return rows, choices

    def _fast_decode_sample(self, example: Example) -> Sample:
        """Part A once for all choices, and a row of ``DECODED_TOKENS`` for each answer."""
        clozes = self._clozes(example)
        if len({(cloze.side_a, cloze.side_b) for cloze in clozes}) > 1:
            raise ValueError("--fast-decode encodes the text once for all choices, but pattern "
                             f"{self.options.pattern_id} of task {self.spec.name} has the choices in its text; choose "
                             "another --pattern-id")
        row = self._cloze_row(example, clozes[0], ())
        sample = self._part_a_tensors([replace(row, part_b=(), targets=())])
        sample = {name: tensor[0] for name, tensor in sample.items()}
        answers = [self._answer_ids(cloze.answer)[:DECODED_TOKENS] for cloze in clozes]
        decoded = [replace(row, part_a=(), part_b=[self.sop_id, *answer[:-1]], targets=answer) for answer in answers]
        tensors = self._tensors(decoded, DECODED_TOKENS)
        tensors["mask"] = torch.full_like(tensors["mask"], len(row.part_a))
        return sample | {f"dec_{name}": tensor for name, tensor in tensors.items()}

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

    def _cloze_tensors(self, rows: Sequence[Row]) -> Sample:
        return self._with_prompt(self._tensors(rows, self.options.seq_length), rows)

    def _part_a_tensors(self, rows: Sequence[Row]) -> Sample:
        """The tensors of rows without Part B."""
        sample = self._tensors(rows, self.options.seq_length)
        return self._with_prompt({name: sample[name] for name in ("text", "position", "mask")}, rows)

    def _with_prompt(self, sample: Sample, rows: Sequence[Row]) -> Sample:
        if self.options.cloze_eval and (self.options.prefix_prompt or self.options.continuous_prompt):
            sample["prompt_pos"] = torch.tensor([row.prompt_positions for row in rows], dtype=torch.long)
        return sample

    def _tensors(self, rows: Sequence[Row], width: int) -> Sample:
        """The rows, padded: text, target, logit_mask [c, width], position [c, 2, width], mask [c]."""
        text = np.full((len(rows), width), self.eos_id)
        row0, row1, target, logit_mask = (np.zeros_like(text) for _ in range(4))
        for c, row in enumerate(rows):
            sep, end = len(row.part_a), len(row.part_a) + len(row.part_b)
            text[c, :sep] = row.part_a
            text[c, sep:end] = row.part_b
            row0[c, :sep] = range(sep)
            row0[c, sep:end] = row.blank
            row1[c, sep:end] = 1 if self.options.no_block_position else range(1, end - sep + 1)
            target[c, sep:sep + len(row.targets)] = row.targets
            logit_mask[c, sep:end] = 1
        arrays = {"text": text, "position": row0 if self.options.masked_lm else np.stack((row0, row1), axis=1),
                  "mask": np.array([len(row.part_a) for row in rows]), "target": target, "logit_mask": logit_mask}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
