"""Layer maps: the closed form against its table and its properties."""

from __future__ import annotations

import json
import random

import pytest

from distill.layer_maps import attention_scores, hidden_state, random_layer_map, uniform_layer_map
from tests.helpers.shared import require_shared

TABLE = {
    (6, 12): (0, 2, 4, 6, 8, 10, 12), (5, 12): (0, 3, 6, 9, 11, 12), (6, 10): (0, 2, 4, 6, 8, 9, 10),
    (4, 12): (0, 3, 6, 9, 12), (8, 12): (0, 2, 4, 6, 8, 9, 10, 11, 12), (7, 12): (0, 2, 4, 6, 8, 10, 11, 12),
    (9, 12): (0, 2, 4, 6, 7, 8, 9, 10, 11, 12), (6, 9): (0, 2, 4, 6, 7, 8, 9), (4, 10): (0, 3, 6, 9, 10),
    (3, 10): (0, 4, 8, 10), (10, 24): (0, 3, 6, 9, 12, 15, 18, 21, 22, 23, 24), (3, 3): (0, 1, 2, 3), (1, 7): (0, 7)}


@pytest.mark.parametrize(("depths", "expected"), TABLE.items())
def test_table(depths: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert uniform_layer_map(*depths) == expected


def test_every_map_cuts_the_whole_teacher_with_long_blocks_first() -> None:
    for teacher in range(1, 40):
        for student in range(1, teacher + 1):
            ends = uniform_layer_map(student, teacher)
            sizes = [b - a for a, b in zip(ends, ends[1:], strict=False)]
            assert len(sizes) == student and ends[-1] == teacher
            assert sizes == sorted(sizes, reverse=True) and min(sizes) >= 1


def test_golden_layer_map() -> None:
    golden = json.loads(require_shared("golden", "layer_map.json").read_text())
    for student, maps in golden.items():
        for teacher, ends in maps.items():
            assert list(uniform_layer_map(int(student), int(teacher)))[-len(ends):] == ends


def test_a_deeper_student_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"student layers <= teacher layers: student 6 .* teacher 4"):
        uniform_layer_map(6, 4)
    with pytest.raises(ValueError, match=r"student layers <= teacher layers: student 6 .* teacher 4"):
        random_layer_map(6, 4, random.Random(0))


def test_random_layers_are_distinct_ascending_and_cover_everything() -> None:
    seen = set()
    for seed in range(200):
        drawn = random_layer_map(3, 6, random.Random(seed))
        assert drawn[0] == 0 and drawn[-1] == 6 and list(drawn) == sorted(set(drawn))
        seen.update(drawn[1:-1])
    assert seen == {1, 2, 3, 4, 5}


def test_paths() -> None:
    assert hidden_state(0, 4) == ("transformer", "layers", 0, "layernorm_output")
    assert hidden_state(4, 4) == ("transformer", "output")
    assert attention_scores(4) == ("transformer", "layers", 3, "attention_scores")
    with pytest.raises(ValueError, match="hidden states 0 to 4, not 5"):
        hidden_state(5, 4)
