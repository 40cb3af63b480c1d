"""Which sample stands where: pure functions of the global sample number.

Micro-batch ``k`` of data-parallel rank ``r`` (of ``D``, ``B`` samples each) holds the global sample numbers
``k·B·D + r·B … k·B·D + r·B + B - 1``. An iteration thus covers the same numbers however it is cut in micro-batches
and ranks, and a resumed run only has to know its micro-batch number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random


def sample_numbers(batch_number: int, batch_size: int, data_rank: int, data_size: int) -> range:
    """Global sample numbers of one rank's micro-batch."""
    first = (batch_number * data_size + data_rank) * batch_size
    return range(first, first + batch_size)


@dataclass(frozen=True)
class SampleOrder:
    """From global sample number to index in the data set: in turn, or drawn with replacement (``--shuffle``)."""

    length: int
    shuffle: bool = False
    seed: int = 0

    def index(self, number: int) -> int:
        if self.shuffle:
            return Random(f"order/{self.seed}/{number}").randrange(self.length)
        return number % self.length


def sequential_batches(num_samples: int, global_batch: int, rank: int, world_size: int, *, start_batch: int = 0,
                       drop_last: bool = True) -> Iterator[list[int]]:
    """One pass over the indices in global batches; ``rank`` takes its equal consecutive slice of each.

    Args:
        start_batch: global batches (of all micro-steps) that are skipped.
        drop_last: leave out an incomplete last batch.

    Raises:
        ValueError: the global batch does not divide.
    """
    if global_batch % world_size:
        raise ValueError(f"a global batch of {global_batch} does not divide over {world_size} ranks")
    for start in range(start_batch * global_batch, num_samples, global_batch):
        size = min(global_batch, num_samples - start)
        if size < global_batch and drop_last:
            return
        yield list(range(start + rank * size // world_size, start + (rank + 1) * size // world_size))
