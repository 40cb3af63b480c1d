"""Building the compact vocabulary of a student (GLMD, Tan et al. 2023, arXiv:2306.06625, section 3.3).

The most frequent tokens keep a row; every other one is served by the kept token that the teacher finds most similar.

Legend: v padded vocabulary, k rows, d dropped ids, e width of the teacher's word table.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data_utils.vocab_file import read_vocab_file
from distill.truncate import backbone
from model.parallel.groups import parallel_state, use_parallel_state

logger = logging.getLogger(__name__)

METHODS = ("decoder", "cosine", "euclidean")
#: Elements of one block of similarities: 64 MiB in fp32.
_BLOCK_ELEMENTS = 1 << 24


def add_vocab_flags(parser: argparse.ArgumentParser) -> None:
    """The group "vocabulary compression"."""
    group = parser.add_argument_group("vocabulary compression")
    group.add_argument("--map_vocab_size", type=float, default=0.0,
                       help="rows of the student's word table; below 1: share of the tokenizer's tokens; 0 = off")
    group.add_argument("--unmap_vocab_output", action="store_true",
                       help="logits over the rows of the compact table instead of all token ids")
    group.add_argument("--student_build_map_vocab", action="store_true",
                       help="build the map at the start of a run that loads no student weights")
    group.add_argument("--student_map_vocab_tn", type=int, default=None,
                       help="teacher whose word table picks the substitutes; absent or negative: the unknown token")
    group.add_argument("--student_map_vocab_method", default="decoder",
                       help="similarity of a dropped and a kept token: decoder (dot product), cosine or euclidean")
    group.add_argument("--map_vocab_file", default=None,
                       help="the vocabulary sort file; default: <tokenizer type>_<model type>.txt beside the "
                            "vocabulary or in --cache-dir")


def check_vocab_flags(args: Any) -> None:
    """Raise ValueError for flags that exclude each other."""
    if args.student_map_vocab_method not in METHODS:
        raise ValueError(f"--student_map_vocab_method={args.student_map_vocab_method} must be one of "
                         f"{', '.join(METHODS)}")
    if args.student_build_map_vocab and not args.map_vocab_size:
        raise ValueError("--student_build_map_vocab needs --map_vocab_size")
    for name in ("distill_logit_mask_map", "logitsdistil_teacher_input_ids_map"):
        if getattr(args, name, False) and not args.map_vocab_size:
            logger.warning("--%s has no effect without --map_vocab_size", name)
    if args.unmap_vocab_output and not args.map_vocab_size:
        raise ValueError("--unmap_vocab_output needs --map_vocab_size")


def resolve_map_size(value: float, num_tokens: int, vocab_size: int, divisor: int) -> int:
    """Rows of a compact table for a flag's value; 0 where the feature is off.

    Args:
        value: a share of ``num_tokens`` (the unpadded vocabulary) if below 1, else a number.
        vocab_size: the padded vocabulary; a result that is not smaller switches the feature off.
        divisor: the result is rounded up to a multiple of it.

    Raises:
        ValueError: a negative value.
    """
    if not value:
        return 0
    if value < 0:
        raise ValueError(f"map_vocab_size={value:g} (--map_vocab_size, for teachers --teacher_ and --mt_map_vocab_size)"
                         " must be 0 (off), a share below 1, or a number")
    count = int(value * num_tokens) if value < 1 else int(value)
    rows = -(-count // divisor) * divisor
    if rows >= vocab_size:
        logger.info("map_vocab_size %g gives %d rows, no fewer than the vocabulary's %d: no compact vocabulary",
                    value, rows, vocab_size)
        return 0
    if 1 <= value < 16:
        logger.warning("map_vocab_size %g means %d token(s), not a share: rounded up to %d rows", value, count, rows)
    return rows


def sort_file_path(args: Any) -> Path:
    """Where the vocabulary sort file is looked for; the first place that has it, else the first place."""
    if args.map_vocab_file:
        return Path(args.map_vocab_file)
    model_type = args.tokenizer_model_type or "default"
    given = Path(model_type)
    name = f"{args.tokenizer_type}_{given.stem if given.exists() else model_type}.txt"
    folders = ([given.parent] if given.exists() else []) + (
        [given] if given.is_dir() else []) + ([Path(args.cache_dir)] if args.cache_dir else []) + [
            Path(".pytorch_pretrained_bert")]
    places = [folder / name for folder in folders]
    return next((place for place in places if place.is_file()), places[0])


def protected_ids(tokenizer: Any, words: Iterable[str]) -> set[int]:
    """Ids that may never be dropped: commands, and answer words (as given and lower-cased) that are one token."""
    protected = {command.id for command in tokenizer.commands}
    for word in words:
        for form in (word, word.lower()):
            for keep_blank in (False, True):
                try:
                    protected.add(tokenizer.word_to_id(form, keep_blank=keep_blank))
                except ValueError:  # not a single token in this vocabulary, so no verbalizer either
                    continue
    return protected


def set_up_vocab_map(glm: nn.Module, teachers: Sequence[nn.Module], args: Any, tokenizer: Any, *,
                     resumes: bool = False, answer_words: Iterable[str] = ()) -> None:
    """Build the student's map where ``--student_build_map_vocab`` asks for it.

    Every rank of the model-parallel group has to call it.

    Args:
        resumes: ``--load`` has found a checkpoint to go on from, which brings its map.
        answer_words: verbalizers of the tasks; the kept rows have to have room for them and for the commands.

    Raises:
        ValueError: there is no such teacher, the student has neither a map nor a way to one, or the sort file or the
            size would drop a command.
    """
    if glm.vocab_map is None:
        return
    if resumes or args.load_pretrained:
        if args.student_build_map_vocab:
            logger.warning("--student_build_map_vocab is ignored: the map comes with the loaded weights")
        return
    if not args.student_build_map_vocab:
        glm.vocab_map.rows_of(torch.tensor([0]))  # raises: there is no map, and nothing that would bring one
    number = args.student_map_vocab_tn
    table = None
    if number is not None and number >= 0:
        if number >= len(teachers):
            raise ValueError(f"--student_map_vocab_tn={number}: there are {len(teachers)} teachers, counted from 0")
        teacher = backbone(teachers[number])
        with use_parallel_state(getattr(teacher, "parallel_state", None)):
            table = whole_word_table(teacher)
    tokens = tokenizer.token_strings()
    path = sort_file_path(args)
    order = read_vocab_file(path, tokens)
    config = glm.config
    protected = protected_ids(tokenizer, answer_words)
    tensors = build_vocab_map(order, config.vocab_size, config.num_word_rows, unk_id=tokenizer.command_id("unk"),
                              num_protected=len(protected), table=table, method=args.student_map_vocab_method)
    _check_protected(protected.difference(order[:config.num_word_rows]), tokenizer, tokens, path)
    glm.vocab_map.set(tensors)
    used = tensors["target_pos_to_origin_id"][config.num_word_rows:]
    logger.info("compact vocabulary from %s: %d of %d ids keep a row; %d different substitutes, such as %s", path,
                config.num_word_rows, config.vocab_size, len(used.unique()), _examples(tensors, tokens, order))


def _check_protected(dropped: set[int], tokenizer: Any, tokens: list[str], path: Path) -> None:
    """ValueError for a sort file that puts commands among the dropped tokens; a warning for answer words."""
    if not dropped:
        return
    names = ", ".join(tokens[token] for token in sorted(dropped)[:5])
    commands = dropped & {command.id for command in tokenizer.commands}
    message = f"{path} does not keep {len(dropped)} protected token(s), such as {names}"
    if commands:
        raise ValueError(f"{message}: a model without a row for {tokens[min(commands)]} cannot work; make the file by "
                         "python distill/vocab_sort.py")
    logger.warning("%s: tasks with these answers are read by substitutes", message)


def _examples(tensors: dict[str, torch.Tensor], tokens: list[str], order: list[int], number: int = 20) -> str:
    rows = int(tensors["origin_id_mask_map"].sum())
    substitutes = tensors["target_pos_to_origin_id"][rows:]
    return ", ".join(f"{tokens[token]} -> {tokens[int(other)] if int(other) < len(tokens) else 'padding'}"
                     for token, other in list(zip(order[rows:], substitutes))[:number])


def whole_word_table(glm: nn.Module) -> torch.Tensor:
    """[v, e]: the word table of all ranks, a row for every token id (a compact table is expanded)."""
    table = glm.word_embedding_weight.detach()
    if glm.vocab_map is not None:
        table = glm.vocab_map.expand(table)
    state = parallel_state()
    if state.model_size == 1:
        return table
    shards = [torch.empty_like(table) for _ in range(state.model_size)]
    dist.all_gather(shards, table.contiguous(), group=state.model_group)
    return torch.cat(shards)


@torch.no_grad()
def nearest_kept(table: torch.Tensor, kept: torch.Tensor, dropped: torch.Tensor, method: str) -> torch.Tensor:
    """For each dropped id, the position in ``kept`` of the most similar kept id; the first of equals wins.

    Args:
        table: [v, e] the teacher's whole word table.
        kept: int64 [k], dropped: int64 [d].
        method: ``decoder`` a.b (the table is tied to the output layer: the logit of k at the vector of d),
            ``cosine``, or ``euclidean`` -|a - b|^2.

    Returns:
        int64 [d].
    """
    table = table.float() if table.dtype in (torch.float16, torch.bfloat16) else table
    keys = table[kept]
    if method == "cosine":
        keys = torch.nn.functional.normalize(keys, dim=-1, eps=1e-12)
    result = torch.empty(len(dropped), dtype=torch.long, device=table.device)
    step = max(1, _BLOCK_ELEMENTS // max(1, len(kept)))
    for start in range(0, len(dropped), step):
        queries = table[dropped[start:start + step]]
        scores = queries @ keys.T
        if method == "euclidean":
            # |a|^2 is the same for all candidates of a row and left out.
            scores = 2 * scores - keys.square().sum(-1)
        result[start:start + step] = scores.argmax(dim=-1)
    return result


def build_vocab_map(sort_ids: Sequence[int], vocab_size: int, num_rows: int, *, unk_id: int, num_protected: int = 0,
                    table: torch.Tensor | None = None, method: str = "decoder") -> dict[str, torch.Tensor]:
    """The three tensors of a :class:`model.vocab_map.VocabMap`.

    Args:
        sort_ids: ids of the unpadded vocabulary in sorted order (:func:`data_utils.vocab_file.read_vocab_file`); ids
            from there to ``vocab_size`` are padding and come last.
        num_rows: k, how many of them keep a row.
        num_protected: tokens at the front that must not be dropped.
        table: a teacher's word table [v, e]; None replaces every dropped token by ``unk_id``.

    Raises:
        ValueError: fewer rows than protected tokens, or an unknown token that is itself dropped.
    """
    if num_rows < num_protected:
        raise ValueError(f"--map_vocab_size: {num_rows} rows are fewer than the {num_protected} tokens that must not "
                         "be dropped")
    order = torch.tensor([*sort_ids, *range(len(sort_ids), vocab_size)], dtype=torch.long)
    kept, dropped = order[:num_rows], order[num_rows:]
    to_row = torch.empty(vocab_size, dtype=torch.long)
    to_row[kept] = torch.arange(num_rows)
    if table is None:
        if unk_id not in kept:
            raise ValueError(f"the unknown token (id {unk_id}) would be dropped itself; raise --map_vocab_size")
        rows = torch.full((len(dropped),), int(to_row[unk_id]))
    else:
        rows = nearest_kept(table, kept.to(table.device), dropped.to(table.device), method).cpu()
    to_row[dropped] = rows
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[kept] = True
    return {"origin_id_to_target_pos": to_row, "origin_id_mask_map": mask,
            "target_pos_to_origin_id": torch.cat([kept, kept[rows]])}
