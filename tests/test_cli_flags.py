"""The frozen list of flags. Adding or removing one is a visible act: run this file as a script to rewrite the list.

    python -m tests.test_cli_flags
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from distill.arguments import FINETUNE, PRETRAIN, build_parser, parse_args
from tests.helpers.shared import require_shared

LIST = Path(__file__).with_name("cli_flags.txt")
#: Methods of the published commands that this version has.
READY = ("KD", "PD", "TinyBERT", "LogitsDistil (old form)", "LogitsDistil (new form)", "Prefix-pretrain (004)",
         "Example: TinyBERT 340M-66M", "DGKD", "MT-BERT", "RL-KD", "TMKD", "Uncertainty")
BASE_GROUPS = (
    "Model", "Tokenizer and data", "Pre-training objective", "Optimisation", "Learning-rate schedule", "Precision",
    "Parallelism and DeepSpeed", "Saving and loading", "Evaluation", "Fine-tuning and tasks", "Text generation",
    "Logging and bookkeeping", "Vocabulary compression", "Distillation base", "Single teacher", "Method: TinyBERT",
    "Method: GLMD (logitsdistil)", "Multi-teacher: model lists", "Multi-teacher: MT-BERT", "Multi-teacher: Uncertainty",
    "Multi-teacher: RL-KD", "Multi-teacher: MixMT", "Analysis", "Randomised data")


def current_flags() -> list[str]:
    """Every flag with its default."""
    actions = [action for action in build_parser()._actions if action.dest != "help"]
    return sorted(f"{' '.join(action.option_strings)} = {action.default!r}" for action in actions)


def test_the_list_of_flags_is_the_frozen_one() -> None:
    assert current_flags() == LIST.read_text(encoding="utf-8").splitlines(), "rewrite: python -m tests.test_cli_flags"


def test_both_stages_have_the_same_flags() -> None:
    first, second = ({option for action in build_parser(stage)._actions for option in action.option_strings}
                     for stage in (PRETRAIN, FINETUNE))
    assert first == second


def test_every_published_flag_is_registered() -> None:
    text = (require_shared("spec") / "flags.md").read_text(encoding="utf-8")
    known = build_parser()._option_string_actions
    group, missing, seen = "", [], 0
    for line in text.splitlines():
        group = line[3:].strip() if line.startswith("## ") else group
        match = re.match(r"\| `(--[^`]+)` \|", line)
        if match and group in BASE_GROUPS:
            seen += 1
            missing += [] if match[1] in known else [match[1]]
    assert missing == [] and seen > 200


def published_commands() -> list[dict]:
    commands = json.loads((require_shared("spec") / "seed_commands.json").read_text(encoding="utf-8"))
    return [command for command in commands
            if command["method"] in READY and command["kind"] in ("pretrain", "finetune") and "expect" not in command]


@pytest.mark.parametrize("form", ["args", "args_runnable"])
def test_the_published_commands_parse(form: str) -> None:
    logging.disable(logging.WARNING)
    try:
        # Lists such as l1:l2 stand for the reader's own numbers.
        commands = [command for command in published_commands() if form != "args" or not command["placeholders"]]
        for command in commands:
            args = parse_args(command[form], command["kind"])
            assert args.deepspeed and args.ds_config["gradient_clipping"] == 1
            assert args.hidden_size in (384, 768) and not any("has no effect" in note for note in args.start_notes)
    finally:
        logging.disable(logging.NOTSET)
    assert len(commands) > 20


if __name__ == "__main__":
    LIST.write_text("\n".join(current_flags()) + "\n", encoding="utf-8")
