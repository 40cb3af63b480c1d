"""Teachers at another model-parallel size than the student (``--teacher-model-parallel-size``).

A teacher is built, loaded and run under groups of its own. Its groups and the student's are consecutive ranks, and one
size divides the other, so that they nest:

* **smaller** teacher groups: all ranks of a teacher's group belong to one student and have the same batch;
* **larger** ones: a teacher serves several students, one batch after the other. Each batch goes to all of its ranks.

Whatever the teacher hands over is then cut as the student's own tensors are; the losses see no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.parallel.groups import ParallelState, make_parallel_state, parallel_state, use_parallel_state
from model.taps import HEAD_PARTITIONED_TAPS

Batch = Mapping[str, torch.Tensor]
Outputs = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


class TeacherParallel:
    """Runs teachers that are cut over ``state`` for a student that is cut over the current groups.

    Args:
        state: the teachers' groups; see :func:`teacher_parallel`.
    """

    def __init__(self, state: ParallelState) -> None:
        self.state = state

    @property
    def is_shared(self) -> bool:
        """Whether a teacher serves several students."""
        return self.state.model_size > parallel_state().model_size

    def run(self, batch: Batch, run: Callable[[Batch], Outputs], names: Sequence[str], *, is_cut: bool) -> Outputs:
        """Output and tapped tensors of a teacher, cut as the student's.

        Every rank has to call it in step.

        Args:
            batch: this rank's.
            run: one forward pass of the teacher.
            names: of the tapped tensors.
            is_cut: the output is a slice of the vocabulary.
        """
        student, size = parallel_state(), self.state.model_size
        own, result = self.state.model_rank - self.state.model_rank % student.model_size, None
        firsts = range(0, size, student.model_size) if self.is_shared else [own]
        for first in firsts:
            shared = self._shared(batch, first) if self.is_shared else batch
            with use_parallel_state(self.state), torch.no_grad():
                output, inter_vars = run(shared)
            output = self._recut(output, student, -1) if is_cut else output
            taps = tuple(self._recut(value, student, axis) if (axis := cut_axis(name)) is not None else value
                         for name, value in zip(names, inter_vars, strict=True))
            if first == own:
                result = output, taps
        return result

    def _shared(self, batch: Batch, first: int) -> Batch:
        """The batch of the teacher's rank ``first``, on all its ranks."""
        group, is_source = self.state.model_group, self.state.model_rank == first
        source = dist.get_global_rank(group, first)
        device = next(iter(batch.values())).device
        header: list[Any] = [[(name, tuple(x.shape), x.dtype) for name, x in batch.items()] if is_source else None]
        dist.broadcast_object_list(header, src=source, group=group, device=device)
        shared = {}
        for name, shape, dtype in header[0]:
            tensor = batch[name].contiguous() if is_source else torch.empty(shape, dtype=dtype, device=device)
            dist.broadcast(tensor, src=source, group=group)
            shared[name] = tensor
        return shared

    def _recut(self, x: torch.Tensor, student: ParallelState, axis: int) -> torch.Tensor:
        """Shards of the teacher's ranks along ``axis`` -> this rank's shard among the student's."""
        if self.state.model_size > 1:
            x = x.contiguous()
            shards = [torch.empty_like(x) for _ in range(self.state.model_size)]
            dist.all_gather(shards, x, group=self.state.model_group)
            x = torch.cat(shards, dim=axis)
        return x.chunk(student.model_size, dim=axis)[student.model_rank].contiguous()


def cut_axis(name: str) -> int | None:
    """The axis along which a tapped tensor is cut over the ranks; None if every rank has it whole."""
    last = name.rpartition(".")[2]
    if last == "logits_parallel" or last.startswith("mixed_") or last == "context_layer":
        return -1
    return 1 if last in HEAD_PARTITIONED_TAPS else None


def teacher_parallel(args: Any) -> TeacherParallel | None:
    """The teachers' groups for ``--teacher-model-parallel-size``; None if they are the student's.

    Every rank has to call it. Raises ValueError if neither size divides the other, or for flags that need equal ones.
    """
    size, own = args.teacher_model_parallel_size, parallel_state().model_size
    if size is None or size == own:
        return None
    if size < 1 or size % own and own % size:
        raise ValueError(f"--teacher-model-parallel-size={size} and --model-parallel-size={own}: one has to divide the "
                         "other")
    if args.mt_has_grad:
        raise ValueError(f"--teacher-model-parallel-size={size} is for frozen teachers; those of --mt_has_grad are cut "
                         f"as the student is (--model-parallel-size={own}): remove one of the two")
    return TeacherParallel(make_parallel_state(size, "--teacher-model-parallel-size"))


def remember_groups(teacher: nn.Module, parallel: TeacherParallel | None) -> None:
    """Note on a teacher's GLM how it is cut, for what reads its weights (truncation, a vocabulary map)."""
    for module in teacher.modules():
        if parallel is not None and hasattr(module, "word_embeddings"):
            module.parallel_state = parallel.state
