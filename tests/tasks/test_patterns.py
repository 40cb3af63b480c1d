from __future__ import annotations

import random

import pytest

from tasks.patterns import MASK, SLOT, Cloze, Piece, check_pattern_id, cut, tokenize_sides, truncate


def slow_truncate(side_a: list[Piece], side_b: list[Piece], excess: int) -> None:
    """The rule as it is written: one token after the other."""
    for _ in range(excess):
        counts = [sum(len(piece.ids) for piece in side if piece.can_shorten) for side in (side_a, side_b)]
        side = side_a if counts[0] > counts[1] else side_b
        piece = [one for one in side if one.can_shorten and one.ids][-1]
        piece.ids = piece.ids[:-1]


@pytest.mark.parametrize("seed", range(30))
def test_truncation_is_the_rule_token_by_token(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [[(draw.randint(0, 6), draw.random() < 0.6) for _ in range(draw.randint(1, 4))] for _ in range(2)]
    total = sum(length for side in lengths for length, can_shorten in side if can_shorten)
    for excess in range(total + 1):
        fast, slow = ([[Piece(list(range(length)), flag) for length, flag in side] for side in lengths]
                      for _ in range(2))
        truncate(*fast, excess)
        slow_truncate(*slow, excess)
        assert fast == slow
    with pytest.raises(ValueError, match=f"{total + 1} tokens too long, and only {total} can be removed"):
        truncate(*fast, total + 1) if total == 0 else truncate(
            *[[Piece(list(range(length)), flag) for length, flag in side] for side in lengths], total + 1)


def test_parts_become_pieces() -> None:
    cloze = Cloze((SLOT, "ab", cut("cde")), (MASK, SLOT, "f"))
    side_a, side_b = tokenize_sides(cloze, lambda text: [ord(one) for one in text], mask_id=7)
    assert [(list(piece.ids), piece.can_shorten) for piece in side_a] == [([], False), ([97, 98], False),
                                                                           ([99, 100, 101], True)]
    assert [list(piece.ids) for piece in side_b] == [[7], [], [102]]


@pytest.mark.parametrize(("tokens", "shares"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (4, [2, 2, 0]), (5, [2, 2, 1]),
                                                (6, [2, 2, 2])])
def test_prompt_tokens_fill_the_slots_in_order(tokens: int, shares: list[int]) -> None:
    side_a, side_b = tokenize_sides(Cloze((SLOT, "x", SLOT), (MASK, SLOT)), lambda text: [1], 7, tokens)
    assert [len(piece.ids) for piece in (*side_a, *side_b) if piece.is_prompt] == shares


def test_unknown_pattern_names_the_known_ones() -> None:
    check_pattern_id("rte", 4, range(5))
    with pytest.raises(ValueError, match="--pattern-id=5: task rte has the patterns 0, 1, 2, 3, 4"):
        check_pattern_id("rte", 5, range(5))
