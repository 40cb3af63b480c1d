"""A student cut out of the front of a teacher (``--student_truncate_tn``).

Every tensor of the GLM that both have is copied; of unequal sizes, the common leading part of each axis. So the student
gets the teacher's embeddings, first layers and final LayerNorm. Sizes are those of whole tensors, whatever the
model-parallel size, and of the fused projection Q, K and V are cut one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.parallel.groups import parallel_state, use_parallel_state
from model.parallel.sharding import ShardSpec, shard_spec_of

logger = logging.getLogger(__name__)


def backbone(model: nn.Module) -> nn.Module:
    """The GLM inside task heads and the student wrapper."""
    while True:
        inner = getattr(model, "origin_model", None) or getattr(model, "model", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def truncate_teacher(student: nn.Module, teachers: Sequence[nn.Module], args: Any) -> bool:
    """Fill the student from teacher ``--student_truncate_tn``; returns whether anything was asked for.

    Has to run before the optimizer copies its master weights, or they have to be refreshed. Every rank of the
    model-parallel group has to call it. Raises ValueError if there is no such teacher.
    """
    number = args.student_truncate_tn
    if number is None or number < 0:
        return False
    if number >= len(teachers):
        raise ValueError(f"--student_truncate_tn={number}: there are {len(teachers)} teachers, counted from 0")
    if getattr(args, "load_pretrained", None):
        logger.warning("--student_truncate_tn=%d overwrites the weights of --load-pretrained", number)
    copied = copy_front(backbone(student), backbone(teachers[number]))
    logger.info("the student starts from the front of teacher %d (%d tensors)", number, len(copied))
    return True


@torch.no_grad()
def copy_front(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Copy the leading part of each tensor of the same name; returns the names."""
    source = dict(teacher.named_parameters())
    copied = []
    for name, parameter in student.named_parameters():
        if name not in source:
            continue
        spec = shard_spec_of(parameter)
        whole = _whole(parameter, spec)
        _copy_blocks(whole, _source_of(name, source[name], student, teacher), spec)
        state = parallel_state()
        parameter.copy_(spec.shard(whole, state.model_rank, state.model_size))
        copied.append(name)
    return copied


def _source_of(name: str, parameter: torch.Tensor, student: nn.Module, teacher: nn.Module) -> torch.Tensor:
    """The teacher's whole tensor; of its word table, the rows of the student's compact vocabulary."""
    with use_parallel_state(getattr(teacher, "parallel_state", None)):
        whole = _whole(parameter, shard_spec_of(parameter))
    if name != "word_embeddings.weight":
        return whole
    teacher_map, student_map = getattr(teacher, "vocab_map", None), getattr(student, "vocab_map", None)
    if teacher_map is not None:
        whole = whole[teacher_map.rows_of(torch.arange(teacher_map.vocab_size, device=whole.device))]
    if student_map is not None:
        whole = whole[student_map.ids_of_rows().to(whole.device)]
    return whole


def _copy_blocks(target: torch.Tensor, source: torch.Tensor, spec: ShardSpec) -> None:
    dim = spec.dim or 0
    for target_block, source_block in zip(target.chunk(spec.blocks, dim), source.chunk(spec.blocks, dim), strict=True):
        front = tuple(slice(0, min(sizes)) for sizes in zip(target_block.shape, source_block.shape, strict=True))
        target_block[front] = source_block[front].to(target.dtype)


def _whole(parameter: torch.Tensor, spec: ShardSpec) -> torch.Tensor:
    """A copy of the tensor with the shards of all ranks."""
    state = parallel_state()
    own = parameter.detach().clone(memory_format=torch.contiguous_format)
    if not spec.is_sharded or state.model_size == 1:
        return own
    shards = [torch.empty_like(own) for _ in range(state.model_size)]
    dist.all_gather(shards, own, group=state.model_group)
    return spec.merge(shards)
