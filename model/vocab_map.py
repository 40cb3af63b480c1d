"""The compact vocabulary of GLMD (Tan et al. 2023, arXiv:2306.06625, section 3.3): fewer rows than token ids.

Legend: v padded vocabulary, k rows of the compact table, e width of the table, p model-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from model.parallel.groups import parallel_state
from model.parallel.mappings import all_gather_last, all_reduce, own_slice_last
from model.parallel.sharding import ROWS

MAP_NAMES = ("origin_id_to_target_pos", "origin_id_mask_map", "target_pos_to_origin_id")


class VocabMap(torch.nn.Module):
    """Which row serves which token id.

    Holds no parameters and no state-dict entries: the tensors travel in a checkpoint under
    ``important_nonparameters`` as ``glm.map_vocab_paras``.

    Attributes:
        origin_id_to_target_pos: int64 [v], row of every id; a dropped id has the row of its substitute.
        origin_id_mask_map: bool [v], True where the id has a row of its own.
        target_pos_to_origin_id: int64 [v], id of every row; entries from k on: the substitutes of the dropped ids.
    """

    def __init__(self, vocab_size: int, num_rows: int) -> None:
        super().__init__()
        self.vocab_size, self.num_rows = vocab_size, num_rows
        for name in MAP_NAMES:
            self.register_buffer(name, None, persistent=False)

    @property
    def is_built(self) -> bool:
        return self.origin_id_to_target_pos is not None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The three tensors by name, on the CPU; empty before they are set."""
        return {name: getattr(self, name).cpu() for name in MAP_NAMES} if self.is_built else {}

    def set(self, tensors: Mapping[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        """Take over a map. Raises ValueError if it does not fit the sizes or contradicts itself."""
        to_row = tensors["origin_id_to_target_pos"].long()
        kept = tensors["origin_id_mask_map"].bool()
        to_id = tensors["target_pos_to_origin_id"].long()
        if not (len(to_row) == len(kept) == len(to_id) == self.vocab_size):
            raise ValueError(f"the vocabulary map is for {len(to_row)} token ids, the model has {self.vocab_size}")
        own = to_id[:self.num_rows]
        if int(kept.sum()) != self.num_rows:
            raise ValueError(f"the checkpoint has a compact vocabulary of {int(kept.sum())} rows, the model has "
                             f"{self.num_rows}; pass --map_vocab_size={int(kept.sum())}")
        rows = torch.arange(self.num_rows)
        if (int(to_row.min()) < 0 or int(to_row.max()) >= self.num_rows or len(own.unique()) != self.num_rows
                or not torch.equal(to_row[own], rows) or not bool(kept[own].all())):
            raise ValueError("the vocabulary map contradicts itself: a kept id must point to its row and back")
        for name, tensor in zip(MAP_NAMES, (to_row, kept, to_id), strict=True):
            setattr(self, name, tensor.to(device))

    def rows_of(self, ids: torch.Tensor) -> torch.Tensor:
        """The row of each id, same shape. Raises ValueError before a map is set."""
        self._check()
        return self.origin_id_to_target_pos[ids]

    def ids_of_rows(self) -> torch.Tensor:
        """int64 [k], the id that each row belongs to. Raises ValueError before a map is set."""
        self._check()
        return self.target_pos_to_origin_id[:self.num_rows]

    def expand(self, table: torch.Tensor) -> torch.Tensor:
        """This rank's rows [k/p, e] of the compact table -> rows of this rank's slice of original ids, [v/p, e].

        The rows of the slice may lie on any rank, and several ids share a row: the gradient of a row is the sum over
        its ids on all ranks.
        """
        self._check()
        state = parallel_state()
        first = state.model_rank * (self.vocab_size // state.model_size)
        ids = self.origin_id_to_target_pos[first:first + self.vocab_size // state.model_size]
        return (table if state.model_size == 1 else _GatherRows.apply(table))[ids]

    def substituted(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids with every dropped one replaced by its substitute, same shape."""
        return self.target_pos_to_origin_id[self.rows_of(ids)]

    def kept_columns(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of kept ids, ascending: [..., v/p] -> [..., number of kept ids in this rank's slice].

        The slices of the ranks may have unequal widths.
        """
        self._check()
        first = parallel_state().model_rank * logits.shape[-1]
        kept = self.origin_id_mask_map[first:first + logits.shape[-1]]
        return logits[..., kept.nonzero().squeeze(-1)]

    def in_table_order(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits over all ids as logits over the rows of the table: [..., v/p] -> [..., k/p]."""
        state = parallel_state()
        ids = ROWS.shard(self.ids_of_rows(), state.model_rank, state.model_size)
        return (logits if state.model_size == 1 else _GatherColumns.apply(logits))[..., ids]

    def _check(self) -> None:
        if not self.is_built:
            raise ValueError("the compact vocabulary has no map yet: pass --student_build_map_vocab or load a "
                             "checkpoint that has one")


class _GatherRows(torch.autograd.Function):
    """The whole table on every rank; each rank uses other rows of it, so the gradients are summed before cutting."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        state = parallel_state()
        parts = [torch.empty_like(rows) for _ in range(state.model_size)]
        dist.all_gather(parts, rows.contiguous(), group=state.model_group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        state = parallel_state()
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=state.model_group)
        return ROWS.shard(grad, state.model_rank, state.model_size)


class _GatherColumns(torch.autograd.Function):
    """As :class:`_GatherRows`, on the last axis."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return all_gather_last(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return own_slice_last(all_reduce(grad))
