"""A short form of the soak: four fixed draws of it. The long form is ``python -m tests.soak``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

import pytest
import torch

from tests.helpers.faults import Fault, Nursery
from tests.soak import Different, Setting, Soak, check_codes, differences, draw_setting


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as warm:
        yield warm


@pytest.fixture(scope="module")
def soak(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Soak:
    return Soak(nursery, tmp_path_factory.mktemp("soak"), seed=SEED)


SEED = 1
#: Draws of that seed that differ in stage, ranks and engine, and whose faults happen.
DRAWS = (1, 3, 7, 8)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("number", DRAWS)
def test_a_run_that_something_happened_to_is_resumed_exactly(soak: Soak, number: int) -> None:
    drawn: list[tuple[Setting, list[Fault]]] = []
    verdict = soak.run(number, lambda setting, faults: drawn.append((setting, faults)))
    assert verdict.startswith("equal from"), (verdict, drawn[-1])


def test_draws_follow_from_the_seed_and_cover_every_choice() -> None:
    settings = [draw_setting(Random(f"1/{number}")) for number in range(200)]
    assert settings == [draw_setting(Random(f"1/{number}")) for number in range(200)]
    assert {setting.stage for setting in settings} == {"pretrain", "finetune"}
    assert {setting.engine for setting in settings} == {"plain", "zero-0", "zero-1", "zero-2"}
    assert {(setting.ranks, setting.model_parallel) for setting in settings} == {(1, 1), (2, 1), (2, 2)}
    assert not any(setting.bf16 and setting.engine == "zero-0" for setting in settings)


def test_every_bit_counts() -> None:
    one = {"a": [torch.tensor([1.0]), 0.1], "b": None}
    assert list(differences(one, {"a": [torch.tensor([1.0]), 0.1], "b": None})) == []
    next_float = torch.nextafter(torch.tensor([1.0]), torch.tensor([2.0]))
    found = list(differences(one, {"a": [next_float, math.nextafter(0.1, 1)], "c": None}))
    assert [path for path, _ in found] == ["/a/0", "/a/1", "/b", "/c"]


def test_who_may_be_done_when_another_rank_is_killed() -> None:
    last_file = Fault("kill", "change", 38, rank=0)
    check_codes(last_file, [-9, 0])
    check_codes(last_file, [-9, 1])
    for fault, codes in ((last_file, [0, -9]), (last_file, [1, 1]), (Fault("kill", "step", 3, rank=0), [-9, 0])):
        with pytest.raises(Different):
            check_codes(fault, codes)
