from __future__ import annotations

import argparse

import pytest

from data_utils.flags import DEAD_FLAGS, REFUSED_FLAGS, add_data_flags, check_data_flags
from data_utils.tokenizers import tokenizer_from_args


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_data_flags(parser)
    return parser.parse_args(words)


def test_defaults_of_the_published_parser() -> None:
    args = parse()
    expected = {"tokenizer_type": "BertWordPieceTokenizer", "split": "1000,1,1", "seq_length": 512, "num_workers": 2,
                "text_key": "sentence", "bert_prob": 0.5, "gap_sentence_ratio": 0.15, "gpt_infill_prob": 0.5,
                "gpt_min_ratio": 0.5, "avg_block_length": 3, "short_seq_prob": 0.0, "data_root": "../GLM/data"}
    assert {name: getattr(args, name) for name in expected} == expected
    check_data_flags(args)


@pytest.mark.parametrize("flag", sorted(REFUSED_FLAGS))
def test_refused_flags_say_why(flag: str) -> None:
    values = {"--multi-task-data": ["mnli"], "--multi-task-ratio": ["0.1"]}.get(flag, [])
    with pytest.raises(ValueError, match=f"{flag} is refused"):
        check_data_flags(parse(flag, *values))


@pytest.mark.parametrize("flag", sorted(DEAD_FLAGS))
def test_dead_flags_are_warned_about(flag: str, caplog: pytest.LogCaptureFixture) -> None:
    check_data_flags(parse(flag, *([] if flag == "--presplit-sentences" else ["3"])))
    assert f"{flag} has no effect" in caplog.text


@pytest.mark.parametrize("words", [("--seq-length", "-1"), ("--num-workers", "-1"), ("--non-sentence-start", "2"),
                                   ("--load-splits", "a", "--save-splits", "b")])
def test_impossible_values(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=words[0]):
        check_data_flags(parse(*words))


def test_switches_decide_the_commands(vocab_file: object) -> None:
    given = ("--block-lm", "--tokenizer-model-type", str(vocab_file))
    assert not tokenizer_from_args(parse(*given)).has_command("dBLOCK")
    assert tokenizer_from_args(parse(*given, "--block-mask-prob", "0.1")).has_command("dBLOCK")
    assert tokenizer_from_args(parse(*given, "--context-mask-ratio", "0.1")).has_command("dBLOCK")
    assert tokenizer_from_args(parse(*given, "--task-mask")).has_command("gMASK")
    args = parse(*given, "--sentinel-token")
    args.max_position_embeddings = 5
    assert tokenizer_from_args(args).has_command("sop4") and not tokenizer_from_args(args).has_command("sop5")
