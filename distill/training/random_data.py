"""Randomised data (``--distill_random_data``): token ids without meaning, for passes that learn from teachers alone.

Labels, masks and positions stay as they are, so hard labels make no sense on such a pass.

Axes: b samples, c choices, s sequence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch

from distill.distill_flags import pass_numbers
from distill.student import GLMStudent
from model.parallel.groups import parallel_state

Batch = Mapping[str, torch.Tensor]


def randomised(batch: Batch, student: GLMStudent, num_tokens: int) -> Batch:
    """The batch of the pass ``student.run.repeat``: the given one, unless this pass gets random data.

    ``replace`` puts random ids in the place of the token ids; ``dual`` makes a batch of twice the rows, the random copy
    behind. The ids are the same on all ranks of a model-parallel group, and again after a resume.

    Args:
        batch: with token ids under ``tokens`` [b, s] or ``text`` [b, s] or [b, c, s], and those of answers apart under
            ``dec_text`` [b, c, d]; it is not changed.
        num_tokens: ids are drawn below it (the padding of the vocabulary has none).
    """
    args, run = student.args, student.run
    passes = pass_numbers(args.distill_random_data_n, "distill_random_data_n")
    if not args.distill_random_data or run.repeat not in passes:
        return batch
    method, ids = args.distill_random_data_method, {}
    for name in ("tokens", "text", "dec_text"):
        if name in batch:
            draw = "distill_random_data" if name != "dec_text" else "distill_random_answers"
            ids[name] = student.draw(
                draw, lambda generator, given=batch[name]: random_ids(given, method, num_tokens, generator),
                run.iteration, run.micro_step, run.repeat, parallel_state().data_rank)
    if args.distill_random_data == "replace":
        return {**batch, **ids}
    return {key: torch.cat([value, ids.get(key, value)]) for key, value in batch.items()}


def random_ids(ids: torch.Tensor, method: str, num_tokens: int, generator: random.Random) -> torch.Tensor:
    """``shuffle`` permutes all ids of the batch, over samples and padding; ``sample`` draws uniformly."""
    seeded = torch.Generator().manual_seed(generator.getrandbits(63))
    if method == "shuffle":
        order = torch.randperm(ids.numel(), generator=seeded).to(ids.device)
        return ids.flatten()[order].view_as(ids)
    return torch.randint(num_tokens, ids.shape, generator=seeded, dtype=ids.dtype).to(ids.device)
