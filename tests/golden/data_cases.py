"""Golden cases of the data room: the case again, with its outputs computed by this code.

``DATA_CASES`` maps the kind of a file to ``recompute(case, shared)``. Expected values are not read here; where an
output cannot be computed on this machine, :class:`Skipped` stands in its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from data_utils.block_lm import BlockLM, BlockLMConfig, Row, Sample, collate_rows
from data_utils.corpora.build import iter_source
from data_utils.corpora.documents import InMemoryDocuments
from data_utils.corpora.registry import resolve_source
from data_utils.datasets.block import BlockDataset
from data_utils.samplers import sequential_batches
from data_utils.span_masking import place_in_document, place_spans, span_length_weights
from data_utils.splits import parse_split, shuffled_indices, split_indices
from data_utils.tokenizers import CommandSwitches, Tokenizer, make_tokenizer
from data_utils.tokenizers.sentencepiece import ChineseSPTokenizer, chinese_commands
from data_utils.vocab_file import sort_vocabulary, vocab_file_text
from distill.vocab_init import build_vocab_map

Case = dict[str, Any]
# Golden name of a batch key -> our name.
BATCH_KEYS = {"text": "tokens", "target": "labels", "loss_mask": "loss_mask", "position_id": "position_ids",
              "attention_mask": "attention_mask"}
MODE_OF_TASK = {"bert": "bert", "gap_sentence": "sentence", "generation": "gpt"}
CHINESE_PIECES = 50_000
STATS_CORPUS = ("data", "text", "wiki-summaries", "train.jsonl")


@dataclass(frozen=True)
class Skipped:
    """An output that cannot be computed here, and why."""

    reason: str


def golden_tokenizer(name: str, shared: Path, **switches: Any) -> Tokenizer:
    """The tokenizer that golden files call ``name`` (``bert-base-uncased`` or ``bert``, ``gpt2``)."""
    kind = "GPT2BPETokenizer" if name.startswith("gpt2") else "BertWordPieceTokenizer"
    name = "bert-base-uncased" if name == "bert" else name
    return make_tokenizer(kind, name, cache_dir=str(shared / "data" / "vocab"), **switches)


def recompute_tokenization(case: Case, shared: Path) -> Case:
    """Commands, number of tokens, encoded and decoded texts of every tokenizer."""
    result: Case = {}
    for name, one in case.items():
        options = one["options"]
        switches = {"block_lm": options.get("block_symbols", True), "task_mask": options.get("task_mask", False),
                    "decoder_mask": options.get("decoder_mask", False)}
        computed = dict(one)
        if name.startswith("chinese"):
            fixed = options.get("fix_command_token", False)
            commands, computed["num_tokens"] = chinese_commands(
                CHINESE_PIECES, fix_command_token=fixed, switches=CommandSwitches(**switches))
            models = sorted((shared / "data" / "vocab").glob("*.model"))
            tokenizer = ChineseSPTokenizer(models[0], fix_command_token=fixed,
                                           switches=CommandSwitches(**switches)) if models else None
        else:
            tokenizer = golden_tokenizer(name.split("+")[0], shared, **switches)
            commands, computed["num_tokens"] = tokenizer.commands, tokenizer.num_tokens
        computed["commands"] = [{"name": c.name, "token": c.string, "id": c.id} for c in commands]
        missing = Skipped("no Chinese SentencePiece model in shared/data/vocab")
        if "encode" in one:
            computed["encode"] = [{"text": e["text"], "ids": tokenizer.encode(e["text"])}
                                  for e in one["encode"]] if tokenizer else missing
        if "decode" in one:
            computed["decode"] = [{"ids": e["ids"], "text": tokenizer.decode(e["ids"])}
                                  for e in one["decode"]] if tokenizer else missing
        result[name] = computed
    return result


def recompute_span_sampling(case: Case, shared: Path) -> Case:
    """Spans from the recorded draws."""
    tokenizer = golden_tokenizer(case.get("tokenizer", "bert-base-uncased"), shared)
    placement = []
    for one in case["placement"]:
        spans = place_in_document(one["span_lengths"], one["total_length"], one["offset"], _draws(one["drawn"]))
        placement.append({**one, "spans": [list(span) for span in spans]})
    documents = []
    for one in case["documents"]:
        spans = place_spans(np.array(one["text"]), one["lengths_in_order"], tokenizer.command_id("ENC"),
                            tokenizer.command_id("eos"), _draws(one["drawn"]))
        documents.append({**one, "spans": [list(span) for span in spans or ()]})
    return {**case, "placement": placement, "documents": documents}


def _draws(recorded: Sequence[int]) -> Callable[[int, int], int]:
    numbers = iter(recorded)
    return lambda low, high: next(numbers)


def recompute_block_dataset(case: Case, shared: Path) -> Case:
    """Samples of the data set, from its tokenized documents."""
    tokenizer = golden_tokenizer(case["tokenizer"], shared)
    documents = InMemoryDocuments(case["documents"], case.get("prompts"))
    cases, length = [], 0
    for one in case["cases"]:
        options = one["options"]
        dataset = BlockDataset(documents, tokenizer, case["max_seq_length"],
                               sample_across_documents=options.get("sample_across_doc", True),
                               non_sentence_start=options.get("non_sentence_start", 0.0))
        sample, length = dataset.sample(one["index"]), len(dataset)
        cases.append({**one, "text": sample.text.tolist(), "loss_mask": sample.loss_mask.tolist()})
    return {**case, "length": length, "cases": cases}


def recompute_splits_and_samplers(case: Case, shared: Path) -> Case:
    """Proportions and document indices of ``--split``; batches of the sampler."""
    splits = []
    for one in case["splits"]:
        shares = parse_split(one["split"], has_valid_data=one["valid_data_given"], has_test_data=one["test_data_given"])
        computed = {**one, "proportions": shares}
        for key in one:
            if key.startswith("indices_"):
                parts = split_indices(shares, shuffled_indices(int(key.removeprefix("indices_"))))
                computed[key] = [None if part is None else part.tolist() for part in parts]
        splits.append(computed)
    sampler = [{**one, "per_rank": [list(sequential_batches(
        one["num_samples"], one["global_batch"], rank, one["world_size"],
        start_batch=one["start_iter"] * one["gradient_accumulation_steps"], drop_last=one["drop_last"]))
        for rank in range(one["world_size"])]} for one in case["batch_sampler"]]
    return {**case, "splits": splits, "batch_sampler": sampler}


def golden_objective(case: Case, shared: Path) -> BlockLM:
    """The objective of a ``blocklm`` case, with the release's habit of leaving the ENC of later documents in."""
    options = dict(case["config"])
    options.pop("encoder_decoder", None)
    options["avg_block_length"] = options.pop("average_block_length")
    options["block_position"] = options.pop("block_position_encoding")
    config = BlockLMConfig(**options, keep_later_enc=True)
    tokenizer = golden_tokenizer(
        case["tokenizer"], shared, task_mask=config.task_mask,
        decoder_mask=config.block_mask_prob > 0 or config.context_mask_ratio > 0,
        num_sentinels=case["max_seq_length"] - 1 if config.sentinel_token else 0)
    return BlockLM(config, tokenizer, case["max_seq_length"])


def golden_row(objective: BlockLM, row: Case) -> Row:
    """A row laid out from its description, which leaves nothing to chance."""
    text = np.array(row["text"], dtype=np.int64)
    loss_mask = np.array(row.get("loss_mask", np.ones_like(text)), dtype=np.int64)
    if row["kind"] == "suffix":
        return objective.lay_out_suffix(Sample(text, loss_mask), row["division"])
    spans = [tuple(span) for span in row["spans"]]
    if row["kind"] == "masked_lm":
        return objective.lay_out_masked(Sample(text, loss_mask), spans)
    laid_out = objective.lay_out_spans(text, spans, MODE_OF_TASK[row["task"]], position_bias=row["position_bias"])
    laid_out.tokens[row["decoder_masked"]] = objective.dblock
    return laid_out


def golden_batch(rows: Sequence[Row], mode: str) -> Case:
    """A batch under the names of the golden files."""
    batch = collate_rows(rows)
    return {golden: batch[ours].tolist() for golden, ours in BATCH_KEYS.items()} | {"mode": mode}


def seeded_batch(case: Case, shared: Path) -> Case:
    """The batch from samples and seed alone, in the release's order of draws."""
    objective = golden_objective(case, shared)
    samples = [Sample(np.array(one["text"], dtype=np.int64), np.array(one["loss_mask"], dtype=np.int64))
               for one in case["input_samples"]]
    seed = case["rng_seed"]
    return golden_batch(*objective.release_rows(samples, Random(seed), Random(1000 + seed)))


def recompute_blocklm(case: Case, shared: Path) -> Case:
    """Batches from their rows (``rows`` describes every draw, so it is an input)."""
    cases = []
    for one in case["cases"]:
        objective = golden_objective(one, shared)
        mode = MODE_OF_TASK[one["rows"][0].get("task", "bert")]
        cases.append({**one, "batch": golden_batch([golden_row(objective, row) for row in one["rows"]], mode)})
    return {**case, "cases": cases}


def recompute_stats(case: Case, shared: Path) -> Case:
    """Statistics of the training path (objective drawn per sample) over real documents."""
    corpus = shared.joinpath(*STATS_CORPUS)
    expected = {average: (np.diff(span_length_weights(float(average)), prepend=0)
                          / span_length_weights(float(average))[-1])[:15].tolist()
                for average in case["expected_span_length_distribution"] if average != "comment"}
    expected["comment"] = case["expected_span_length_distribution"].get("comment")
    if not corpus.exists():
        return {**case, "runs": {name: Skipped(f"no {'/'.join(STATS_CORPUS)}") for name in case["runs"]}}
    texts = [text for _, text in itertools.islice(iter_source(resolve_source(str(corpus))), 2000)]
    runs = {}
    for name, run in case["runs"].items():
        objective = golden_objective({**run, "max_seq_length": run["seq_length"]}, shared)
        tokenizer = golden_tokenizer(run["tokenizer"], shared)
        documents = InMemoryDocuments(tokenizer.encode_batch(texts))
        dataset = BlockDataset(documents, tokenizer, run["seq_length"],
                               sample_across_documents=run["dataset_options"].get("sample_across_doc", True))
        runs[name] = {**run, **_statistics(objective, dataset, run["samples"])}
    return {**case, "expected_span_length_distribution": expected, "runs": runs}


def _statistics(objective: BlockLM, dataset: BlockDataset, samples: int) -> Case:
    modes: list[str] = []
    ratios: dict[str, list[float]] = {}
    lengths: list[int] = []
    first_ranks: list[float] = []
    num_rows = num_dropped = num_dblock = num_inputs = num_suffix = 0
    for number in range(samples):
        sample = dataset.sample(number)
        rows, mode = objective.training_rows(sample, Random(f"stats/{number}"))
        modes.append(mode)
        for row in rows:
            num_rows += 1
            starts = np.flatnonzero(row.position_ids[1, row.sep:] == 1)
            spans = np.diff(np.append(starts, len(row.tokens) - row.sep)) - 1
            is_suffix = mode == "gpt" and row.labels[-1] != objective.eop
            num_suffix += is_suffix
            masked = len(row.tokens) - row.sep if is_suffix else int(spans.sum())
            size = row.sep + masked - (1 if is_suffix else len(starts))  # tokens of the text
            ratios.setdefault(mode, []).append(masked / size)
            num_dropped += not row.loss_mask.any()
            if mode == "bert":
                lengths += spans.tolist()
                num_inputs += int(spans.sum())
                num_dblock += int((row.tokens[row.sep:] == objective.dblock).sum())
                if len(starts) > 1:
                    places = row.position_ids[0, row.sep:][starts]
                    first_ranks.append(float((places < places[0]).sum() / (len(places) - 1)))
    counted = np.bincount(lengths) if lengths else np.zeros(1, dtype=np.int64)
    return {
        "mode_fraction_of_batches": {mode: modes.count(mode) / samples for mode in sorted(set(modes))},
        "mean_masked_ratio": {mode: float(np.mean(values)) for mode, values in ratios.items()},
        "std_masked_ratio": {mode: float(np.std(values)) for mode, values in ratios.items()},
        "span_length_histogram_bert": {str(length): int(n) for length, n in enumerate(counted) if n},
        "span_length_mean_bert": float(np.mean(lengths)) if lengths else None,
        "relative_rank_of_first_predicted_span_mean": float(np.mean(first_ranks)) if first_ranks else None,
        "dropped_rows_fraction": num_dropped / num_rows,
        "decoder_masked_fraction_bert": num_dblock / num_inputs if num_inputs else None,
        "gpt_suffix_layout_fraction": num_suffix / modes.count("gpt") if "gpt" in modes else None,
    }


def recompute_vocab_compression(case: Case, shared: Path) -> Case:
    """The vocabulary sort file, and the maps that are built from it."""
    counts, protected = dict(map(tuple, case["counts_in_first_seen_order"])), set(case["protected_ids"])
    text = vocab_file_text(case["tokens"], counts, protected)
    order = sort_vocabulary(len(case["tokens"]), counts, protected)
    table = torch.tensor(case["teacher_embeddings"])
    maps = []
    for one in case["maps"]:
        similar = {} if one["method"] == "unk" else {"table": table, "method": one["method"]}
        tensors = build_vocab_map(
            order, one["padded_vocab_size"], one["compact_size"], unk_id=case["unk_id"], **similar)
        maps.append({**one, **{name: tensor.long().tolist() for name, tensor in tensors.items()}})
    return {**case, "expected_file_lines": text.splitlines(), "maps": maps}


DATA_CASES: dict[str, Callable[[Case, Path], Case]] = {
    "tokenization": recompute_tokenization,
    "span_sampling": recompute_span_sampling,
    "block_dataset": recompute_block_dataset,
    "splits_and_samplers": recompute_splits_and_samplers,
    "blocklm": recompute_blocklm,
    "stats": recompute_stats,
    "vocab_compression": recompute_vocab_compression,
}


def data_kind_of(case: Case) -> str | None:
    """The kind of a golden file by its keys, None where it is none of ours."""
    if "counts_in_first_seen_order" in case:
        return "vocab_compression"
    if "placement" in case:
        return "span_sampling"
    if "batch_sampler" in case:
        return "splits_and_samplers"
    if "runs" in case and "tolerances" in case:
        return "stats"
    if "documents" in case and "cases" in case:
        return "block_dataset"
    if case.get("cases") and "rng_seed" in case["cases"][0]:
        return "blocklm"
    if case and all(isinstance(one, dict) and "commands" in one for one in case.values()):
        return "tokenization"
    return None
