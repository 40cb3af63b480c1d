from __future__ import annotations

import pytest

from data_utils.samplers import SampleOrder, sample_numbers, sequential_batches


def numbers(iteration: int, micro_batches: int, batch_size: int, ranks: int) -> list[int]:
    return [number for micro in range(micro_batches) for rank in range(ranks)
            for number in sample_numbers(iteration * micro_batches + micro, batch_size, rank, ranks)]


def test_an_iteration_holds_the_same_samples_however_it_is_cut() -> None:
    for iteration in range(3):
        whole = numbers(iteration, 1, 8, 1)
        assert whole == list(range(8 * iteration, 8 * iteration + 8))
        assert numbers(iteration, 2, 4, 1) == numbers(iteration, 1, 4, 2) == numbers(iteration, 2, 2, 2) == whole


def test_order() -> None:
    assert [SampleOrder(3).index(number) for number in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    shuffled = [SampleOrder(50, shuffle=True, seed=1).index(number) for number in range(2000)]
    assert set(shuffled) == set(range(50)) and shuffled[:50] != shuffled[50:100]
    assert shuffled == [SampleOrder(50, shuffle=True, seed=1).index(number) for number in range(2000)]
    assert shuffled != [SampleOrder(50, shuffle=True, seed=2).index(number) for number in range(2000)]


def test_sequential_batches() -> None:
    per_rank = [list(sequential_batches(11, 4, rank, 2)) for rank in range(2)]
    assert per_rank == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert list(sequential_batches(11, 4, 0, 1, start_batch=1, drop_last=False)) == [[4, 5, 6, 7], [8, 9, 10]]
    assert list(sequential_batches(3, 4, 0, 1)) == []
    with pytest.raises(ValueError, match="does not divide"):
        list(sequential_batches(11, 5, 0, 2))
