from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_utils.splits import load_split_indices, parse_split, shuffled_indices, split_indices


@pytest.mark.parametrize(("text", "shares"), [
    ("8,1,1", (0.8, 0.1, 0.1)), ("8/1/1", (0.8, 0.1, 0.1)), ("0.9", (0.9, 0.1, 0)), ("1", (1, 0, 0)),
    ("0.5,0.2", (0.5, 0.2, 0.3)), ("6,2,2,5", (0.6, 0.2, 0.2)), ("0,1,1", (0, 0.5, 0.5))])
def test_proportions(text: str, shares: tuple[float, ...]) -> None:
    assert parse_split(text) == pytest.approx(shares)


def test_parts_with_data_of_their_own_get_no_share() -> None:
    assert parse_split("90,5,5", has_valid_data=True) == pytest.approx([90 / 95, 0, 5 / 95])
    assert parse_split("90,5,5", has_valid_data=True, has_test_data=True) == [1, 0, 0]


@pytest.mark.parametrize("text", ["", "a,b", "-1,2", "0,0,0", "nan", "inf"])
def test_impossible_splits(text: str) -> None:
    with pytest.raises(ValueError, match="--split"):
        parse_split(text, has_valid_data=text == "0,0,0")


def test_documents_are_cut_in_order_with_carry() -> None:
    order = shuffled_indices(37)
    assert sorted(order) == list(range(37)) and np.array_equal(order, shuffled_indices(37))
    parts = split_indices([0.8, 0.1, 0.1], order)
    assert [len(part) for part in parts] == [29, 4, 4] and np.array_equal(np.concatenate(parts), order)
    tiny = split_indices(parse_split("949,50,1"), shuffled_indices(3))
    assert [len(part) for part in tiny] == [2, 1, 1]
    assert split_indices([0.5, 0.0, 0.5], order)[1] is None
    assert tiny[1][0] == shuffled_indices(3)[2] or tiny[2][0] == tiny[1][0]


def test_stored_order_must_fit_the_corpus(tmp_path: Path) -> None:
    file = tmp_path / "order.npy"
    np.save(file, np.array([2, 0, 1]))
    assert load_split_indices(file, 3).tolist() == [2, 0, 1]
    for wrong in (4, 2):
        with pytest.raises(ValueError, match="--load-splits"):
            load_split_indices(file, wrong)
    np.save(file, np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="--load-splits"):
        load_split_indices(file, 3)
