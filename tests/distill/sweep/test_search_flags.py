"""Flags of the running side: seeds, words that may differ, combinations that are refused."""

from __future__ import annotations

import argparse

import pytest

from distill.sweep.search_flags import add_search_flags, check_search_flags, parse_seeds, split_words


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_search_flags(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(("text", "seeds"), [
    (None, (None,)), ("3", (1234, 1235, 1236)), ("5,7", (5, 7)), ("1759,", (1759,)), (" 1 , 2 ", (1, 2))])
def test_seeds_are_a_number_of_seeds_or_a_list(text: str | None, seeds: tuple[int | None, ...]) -> None:
    assert parse_seeds(text, 1234) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,1", "1,-2", "0", "1759", ","])
def test_seeds_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds="):
        parse_seeds(text, 1234)


def test_words_that_say_how_to_run_are_told_from_those_that_say_what() -> None:
    words = ["--tasks=copa", "--parallel", "3", "--study=x", "--resume", "y", "--retry_failed", "--lr=1",
             "--trial_timeout=5"]
    assert split_words(words) == (("--tasks=copa", "--lr=1"), ("--parallel", "3", "--trial_timeout=5"))
    assert split_words(["--parallel"]) == ((), ("--parallel",))


@pytest.mark.parametrize(("words", "space", "message"), [
    (("--search=tpe",), {}, "no flag has values to search"), (("--pruner=asha",), {}, "compares configurations"),
    (("--n_trials=5",), {"has_space": True}, "runs every combination"),
    ((), {"has_space": True, "has_ranges": True}, "no grid"), (("--parallel=0",), {}, "--parallel=0"),
    (("--gpus_per_trial=0",), {}, "--gpus_per_trial=0"), (("--max_retries=-1",), {}, "--max_retries=-1"),
    (("--trial_timeout=0",), {}, "--trial_timeout=0"), (("--grace=-1",), {}, "--grace=-1"),
    (("--seeds=x",), {}, "--seeds=x")])
def test_combinations_without_a_meaning_are_refused(
        words: tuple[str, ...], space: dict[str, bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_search_flags(parsed(*words), **{"has_space": False, "has_ranges": False, **space})


def test_what_makes_sense_passes() -> None:
    check_search_flags(parsed(), has_space=False, has_ranges=False)
    check_search_flags(parsed("--search=tpe", "--n_trials=3", "--pruner=median", "--retry_wait=0", "--grace=0"),
                       has_space=True, has_ranges=True)
    assert parsed("--fast-dev-run").fast_dev_run == 2 and parsed().fast_dev_run == 0
