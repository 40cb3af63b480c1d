"""The block language-model objective of GLM (Du et al. 2022, arXiv:2103.10360): corrupted text, then its blanks.

A sample is turned into *Part A*, the text with every span replaced by one mask token, and *Part B*, the spans in
prediction order, each behind a ``sop``. Part A is seen by everybody, Part B is causal (``sep`` = length of Part A).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from data_utils import span_masking
from data_utils.span_masking import Span
from data_utils.tokenizers.base import WIDE_SENTENCE_END_MARKS, Tokenizer

MODES = ("bert", "sentence", "gpt")
_MAX_REDRAWS = 8


class Sample(NamedTuple):
    """Token ids and loss mask of one sample, both [n] int64, not padded."""

    text: np.ndarray
    loss_mask: np.ndarray


class Row(NamedTuple):
    """One row of a batch before padding; ``position_ids`` is [2, s] ([s] for masked LM), the others [s] int64."""

    tokens: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    sep: int


@dataclass(frozen=True)
class BlockLMConfig:
    """Options of the objective; each field is the flag of that name.

    ``keep_later_enc`` has no flag: it keeps the ENC of later documents in their first sentence (the release does).
    """

    bert_prob: float = 0.5
    gap_sentence_prob: float = 0.0
    gap_sentence_ratio: float = 0.15
    gpt_min_ratio: float = 0.5
    gpt_infill_prob: float = 0.5
    avg_block_length: float = 3
    single_span_prob: float = 0.0
    short_seq_prob: float = 0.0
    block_mask_prob: float = 0.0
    context_mask_ratio: float = 0.0
    task_mask: bool = False
    shuffle_blocks: bool = True
    block_position: bool = True
    random_position: bool = False
    sentinel_token: bool = False
    masked_lm: bool = False
    keep_later_enc: bool = False

    def __post_init__(self) -> None:
        if self.bert_prob + self.gap_sentence_prob > 1 + 1e-9:
            raise ValueError(f"--bert-prob={self.bert_prob} and --gap-sentence-prob={self.gap_sentence_prob} add up to "
                             "more than 1; the rest, 1 - both, is the generation mode")
        for name in ("bert_prob", "gap_sentence_prob", "gap_sentence_ratio", "gpt_min_ratio", "gpt_infill_prob",
                     "single_span_prob", "short_seq_prob", "block_mask_prob", "context_mask_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must lie between 0 and 1 (got {getattr(self, name)})")
        if self.avg_block_length <= 0:
            raise ValueError(f"--avg-block-length must be positive (got {self.avg_block_length})")
        if self.masked_lm and self.bert_prob + self.gap_sentence_prob < 1 - 1e-9:
            raise ValueError(f"--masked-lm masks spans in place and has no generation mode; set --bert-prob (now "
                             f"{self.bert_prob}) and --gap-sentence-prob ({self.gap_sentence_prob}) to add up to 1")

    @classmethod
    def from_args(cls, args: object) -> BlockLMConfig:
        """The options from the command line's namespace."""
        same = {name: getattr(args, name) for name in (
            "bert_prob", "gap_sentence_prob", "gap_sentence_ratio", "gpt_min_ratio", "gpt_infill_prob",
            "avg_block_length", "single_span_prob", "short_seq_prob", "block_mask_prob", "context_mask_ratio",
            "task_mask", "random_position", "sentinel_token", "masked_lm")}
        return cls(shuffle_blocks=not args.no_shuffle_block, block_position=not args.no_block_position, **same)


class BlockLM:
    """Turns samples into rows. Stateless: every draw comes from the generator handed in.

    Args:
        max_length: ``--seq-length``, the longest sample (a row is longer: two tokens a span).

    Raises:
        ValueError: an option needs a command that the tokenizer lacks, or a longer sequence.
    """

    def __init__(self, config: BlockLMConfig, tokenizer: Tokenizer, max_length: int) -> None:
        self.config, self.max_length = config, max_length
        self.enc, self.eos = tokenizer.command_id("ENC"), tokenizer.command_id("eos")
        self.sop, self.eop = (-1, -1) if config.masked_lm else (
            tokenizer.command_id("sop"), tokenizer.command_id("eop"))
        mask = tokenizer.command_id("MASK")
        self.mask_of_mode = {
            "bert": mask,
            "sentence": tokenizer.command_id("sMASK") if config.task_mask else mask,
            "gpt": tokenizer.command_id("gMASK") if config.task_mask else mask}
        needs_dblock = config.block_mask_prob > 0 or config.context_mask_ratio > 0
        self.dblock = tokenizer.command_id("dBLOCK") if needs_dblock else -1
        if config.short_seq_prob > 0 and max_length <= 33:
            raise ValueError(f"--short-seq-prob={config.short_seq_prob} needs --seq-length above 33 (got {max_length})")
        self._is_end = tokenizer.sentence_ends(WIDE_SENTENCE_END_MARKS)
        self._weights = span_masking.span_length_weights(config.avg_block_length)
        self._sentinels = _sentinel_ids(tokenizer, mask, self.sop) if config.sentinel_token else None

    # --- from samples to rows ---------------------------------------------------------------------------------------

    def training_rows(self, sample: Sample, rng: Random) -> tuple[list[Row], str]:
        """Rows of one sample in a mode of its own (one row; several where short sequences cut it).

        Departure from the release, which drops a sample whose spans do not fit: lengths are drawn again, at last one
        token is masked, so that a batch keeps its size.
        """
        samples, mode, single = self._draw_mode([sample], rng)
        rows: list[Row] = []
        for piece in samples:
            row = None
            for _ in range(_MAX_REDRAWS):
                row = self._row(piece, mode, rng, single=single, longest=len(piece.text), shortest=len(piece.text))
                if row is not None and row.loss_mask.any():
                    break
            else:
                row = self._one_token_row(piece, rng)
            rows.append(row)
        return rows, mode

    def release_rows(self, samples: Sequence[Sample], rng: Random,
                     dblock_rng: Random | None = None) -> tuple[list[Row], str]:
        """Rows of a batch with one mode for all, in the release's order of draws; samples that do not fit are dropped.

        The golden cases were recorded with this order; training uses :meth:`training_rows`.
        """
        samples, mode, single = self._draw_mode(list(samples), rng)
        if mode == "gpt":
            sizes = [len(sample.text) for sample in samples]
            generated = self._draw_generated(rng, min(sizes), max(sizes))
            rows = [self._generation_row(sample, generated, rng) for sample in samples]
        else:
            rows = [self._row(sample, mode, rng, single=single, dblock_rng=dblock_rng) for sample in samples]
        return [row for row in rows if row is not None], mode

    def _draw_mode(self, samples: list[Sample], rng: Random) -> tuple[list[Sample], str, bool]:
        config = self.config
        if rng.random() < config.short_seq_prob:
            samples = self._cut_short(samples, rng)
        if rng.random() < config.single_span_prob:
            return samples, "bert", True
        point = rng.random()
        if point < config.bert_prob:
            return samples, "bert", False
        return samples, ("sentence" if point < config.bert_prob + config.gap_sentence_prob else "gpt"), False

    def _row(self, sample: Sample, mode: str, rng: Random, *, single: bool = False, dblock_rng: Random | None = None,
             longest: int = 0, shortest: int = 0) -> Row | None:
        if mode == "gpt":
            return self._generation_row(sample, self._draw_generated(rng, shortest, longest), rng)
        config, text = self.config, sample.text
        if mode == "sentence":
            spans = span_masking.sentence_spans(text, self._is_end, self.enc, self.eos,
                                                keep_later_enc=config.keep_later_enc)
            spans = span_masking.choose_sentences(rng, spans, int(config.gap_sentence_ratio * len(text)))
            return self._lay_out(sample, spans, mode, rng, dblock_rng)
        lengths = span_masking.draw_span_lengths(
            rng, self._weights, int(span_masking.MASK_RATIO * len(text)), single=single)
        return self._place_and_lay_out(sample, lengths, mode, rng, dblock_rng)

    def _place_and_lay_out(self, sample: Sample, lengths: list[int], mode: str, rng: Random,
                           dblock_rng: Random | None = None) -> Row | None:
        rng.shuffle(lengths)
        rng.shuffle(lengths)  # Twice, as in the release: seeded batches stay reproducible.
        spans = span_masking.place_spans(sample.text, lengths, self.enc, self.eos, rng.randint)
        return None if spans is None else self._lay_out(sample, spans, mode, rng, dblock_rng)

    def _lay_out(self, sample: Sample, spans: list[Span], mode: str, rng: Random, dblock_rng: Random | None) -> Row:
        config = self.config
        if config.masked_lm:
            return self.lay_out_masked(sample, spans)
        bias = 0
        if mode == "bert" and config.random_position:
            last = len(sample.text) - sum(end - start for start, end in spans) + len(spans) - 1
            if last < self.max_length - 1:
                bias = rng.randrange(self.max_length - last)
        if config.shuffle_blocks:
            rng.shuffle(spans)
        else:
            spans.sort()
        row = self.lay_out_spans(sample.text, spans, mode, position_bias=bias)
        if mode == "bert" and self.dblock >= 0:
            row.tokens[self._draw_dblocks(row, spans, len(sample.text), dblock_rng or rng)] = self.dblock
        return row

    def _draw_generated(self, rng: Random, shortest: int, longest: int) -> int:
        low = int(self.config.gpt_min_ratio * shortest)
        return rng.randint(low, max(low, longest - 2))

    def _generation_row(self, sample: Sample, generated: int, rng: Random) -> Row | None:
        size = len(sample.text)
        generated = max(min(generated, size - 2), 0)
        many = (sample.text[:-1] == self.eos).any()
        if many or rng.random() < self.config.gpt_infill_prob:
            return self.lay_out_suffix(sample, size - generated)
        return self._place_and_lay_out(sample, [generated], "gpt", rng) if generated else None

    def _one_token_row(self, sample: Sample, rng: Random) -> Row:
        """Last resort for a very short sample: one blank of one token, or none where nothing may be masked."""
        spans = span_masking.place_spans(sample.text, [1], self.enc, self.eos, rng.randint) or []
        if self.config.masked_lm:
            return self.lay_out_masked(sample, spans)
        return self.lay_out_spans(sample.text, spans, "bert")

    def _cut_short(self, samples: list[Sample], rng: Random) -> list[Sample]:
        length = rng.randrange(32, self.max_length - 1)
        count = (self.max_length - 1) // length
        pieces: list[Sample] = []
        for text, loss_mask in samples:
            for start, end in span_masking.cut_short_pieces(
                    rng, text, length, count, self._is_end, self.enc, self.eos):
                pieces.append(Sample(np.concatenate(([self.enc], text[start:end])),
                                     np.concatenate(([0], loss_mask[start:end]))))
        return pieces

    def _draw_dblocks(self, row: Row, spans: list[Span], size: int, rng: Random) -> list[int]:
        """Positions of the row whose input becomes dBLOCK; targets stay."""
        config, chosen = self.config, []
        if config.context_mask_ratio > 0:
            masks = set(row.position_ids[0, row.sep:].tolist())
            near = sorted({position + step for position in masks for step in (-3, -2, -1, 1, 2, 3)
                           if 0 <= position + step < row.sep} - masks)
            chosen += rng.sample(near, min(int(config.context_mask_ratio * size), len(near)))
        if config.block_mask_prob > 0:
            position = row.sep
            for start, end in spans:
                chosen += [position + 1 + step for step in range(end - start)
                           if rng.random() < config.block_mask_prob]
                position += end - start + 1
        return chosen

    # --- layout: no draws below -------------------------------------------------------------------------------------

    def lay_out_spans(self, text: np.ndarray, spans: Sequence[Span], mode: str, *, position_bias: int = 0) -> Row:
        """The row of a sample with ``spans`` in prediction order; ``position_bias`` is added to position row 0."""
        size, count = len(text), len(spans)
        if not count:
            positions = np.stack((np.arange(size), np.zeros(size, dtype=np.int64)))
            return Row(text.copy(), text.copy(), np.zeros(size, dtype=np.int64), positions, size)
        starts, ends = np.array(spans, dtype=np.int64).T
        edges = np.zeros(size + 1, dtype=np.int64)
        np.add.at(edges, starts + 1, 1)
        np.subtract.at(edges, ends, 1)
        keep = np.cumsum(edges[:size]) == 0
        corrupted = text.copy()
        corrupted[starts] = self.mask_of_mode[mode] if self._sentinels is None else self._sentinels[0, :count]
        part_a = corrupted[keep]
        sep = len(part_a)
        mask_positions = (np.cumsum(keep) - 1)[starts]

        widths = ends - starts + 1  # sop and the span
        total = int(widths.sum())
        step = np.arange(total) - np.repeat(np.cumsum(widths) - widths, widths)  # 0 … l in each span
        source = np.repeat(starts, widths) + step
        inputs = text[source - 1]
        inputs[step == 0] = self.sop if self._sentinels is None else self._sentinels[1, :count]
        targets = text[np.minimum(source, size - 1)]
        targets[np.cumsum(widths) - 1] = self.eop

        positions = np.zeros((2, sep + total), dtype=np.int64)
        positions[0, :sep] = np.arange(sep)
        positions[0, sep:] = np.repeat(mask_positions, widths) if self._sentinels is None else self.max_length
        positions[0] += position_bias
        positions[1, sep:] = step + 1 if self.config.block_position else 1
        loss_mask = np.zeros(sep + total, dtype=np.int64)
        loss_mask[sep:] = 1
        return Row(np.concatenate((part_a, inputs)), np.concatenate((part_a, targets)), loss_mask, positions, sep)

    def lay_out_suffix(self, sample: Sample, division: int) -> Row:
        """Mode ``gpt``: the text from ``division`` on is generated behind a mask; there is no eop."""
        text, loss_mask = sample
        generated = len(text) - division
        head = np.append(text[:division], self.mask_of_mode["gpt"])
        sep = division + 1
        inputs = np.concatenate(([self.sop], text[division:-1]))[:generated]
        positions = np.zeros((2, sep + generated), dtype=np.int64)
        positions[0] = np.minimum(np.arange(sep + generated), division)
        positions[1, sep:] = np.arange(1, generated + 1) if self.config.block_position else 1
        return Row(np.concatenate((head, inputs)), np.concatenate((head, text[division:])),
                   np.concatenate((np.zeros(sep, dtype=np.int64), loss_mask[division:])), positions, sep)

    def lay_out_masked(self, sample: Sample, spans: Sequence[Span]) -> Row:
        """Masked LM: spans become MASK in place, one row of positions, ``sep`` = n."""
        text, data_mask = sample
        tokens, loss_mask = text.copy(), np.zeros_like(data_mask)
        for start, end in spans:
            tokens[start:end] = self.mask_of_mode["bert"]
            loss_mask[start:end] = data_mask[start:end]
        return Row(tokens, text.copy(), loss_mask, np.arange(len(text)), len(text))


def collate_rows(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Batch of rows, padded with 0 on the right to the longest.

    Returns:
        int64 tensors ``tokens``, ``labels``, ``loss_mask`` [b, s], ``position_ids`` [b, 2, s] ([b, s] for masked LM)
        and ``attention_mask`` [b], the length of Part A.
    """
    if not rows:
        raise ValueError("a batch needs at least one row (no sample of it had room for its spans)")
    longest = max(len(row.tokens) for row in rows)
    shape = (len(rows), longest)
    two_rows = rows[0].position_ids.ndim == 2
    arrays = {name: np.zeros(shape, dtype=np.int64) for name in ("tokens", "labels", "loss_mask")}
    arrays["position_ids"] = np.zeros((len(rows), 2, longest) if two_rows else shape, dtype=np.int64)
    for index, row in enumerate(rows):
        size = len(row.tokens)
        for name, array in arrays.items():
            array[index, ..., :size] = getattr(row, name)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    batch["attention_mask"] = torch.tensor([row.sep for row in rows], dtype=torch.int64)
    return batch


def _sentinel_ids(tokenizer: Tokenizer, mask: int, sop: int) -> np.ndarray:
    """[2, k]: mask and start ids of the i-th predicted span."""
    pairs = [(mask, sop)]
    while tokenizer.has_command(f"MASK{len(pairs)}"):
        number = len(pairs)
        pairs.append((tokenizer.command_id(f"MASK{number}"), tokenizer.command_id(f"sop{number}")))
    if len(pairs) == 1:
        raise ValueError("--sentinel-token needs a tokenizer with sentinels (BertWordPieceTokenizer, "
                         "--max-position-embeddings above 1)")
    return np.array(pairs, dtype=np.int64).T
