"""A method reads its own flags, the shared ones, sizes and the stage; every flag is read or spoken for."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest

from distill.distill_flags import WITHOUT_EFFECT, add_shared_flags
from distill.distill_model import METHODS  # not from distill.student: this registers all of them
from distill.multi_teacher_model import COMBINERS
from tests.helpers.shared import REPOSITORY

#: Sizes, the stage, the length of schedules and the number of passes, which every method may read.
COMMON = {"finetune", "num_layers", "hidden_size", "num_attention_heads", "mt_hidden_size", "mt_has_loss",
          "lr_decay_iters", "block_lm_ratio", "forward_repeat_num", "ignore_first_backward_gard"}
SHARED_PREFIXES = ("distill_", "distil_", "teacher_")


def flags_of(add_flags: object) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return {action.dest for action in parser._actions}


def names_read(path: Path) -> set[str]:
    """Attributes of ``args`` or ``self.args`` in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if (isinstance(owner, ast.Name) and owner.id == "args") or (
                    isinstance(owner, ast.Attribute) and owner.attr == "args"):
                names.add(node.attr)
    return names


def file_of(cls: type) -> Path:
    return REPOSITORY / (cls.__module__.replace(".", "/") + ".py")


OWNERS = {cls.__name__: cls for cls in (*METHODS.values(), *COMBINERS.values())}


@pytest.mark.parametrize("name", OWNERS)
def test_only_own_and_shared_flags_are_read(name: str) -> None:
    cls = OWNERS[name]
    foreign = {flag for flag in names_read(file_of(cls)) - flags_of(cls.add_flags) - COMMON
               if not flag.startswith(SHARED_PREFIXES)}
    assert not foreign


@pytest.mark.parametrize("name", [*OWNERS, "shared"])
def test_every_flag_acts_or_is_spoken_for(name: str) -> None:
    """Each flag's name (or the end of it, where names are composed) stands in the code beside its registration."""
    owned = flags_of(OWNERS[name].add_flags if name in OWNERS else add_shared_flags)
    files = [file_of(OWNERS[name])] if name in OWNERS else [
        REPOSITORY / "distill" / file for file in (
            "student.py", "truncate.py", "training/forward_step.py", "training/random_data.py")]
    text = "\n".join(path.read_text() for path in files)
    composed = {"distill_ft_soft", "distill_ft_hard", "distill_pt_soft", "distill_pt_hard", "distill_soft_rate",
                "distill_hard_rate"}
    for flag in owned - set(WITHOUT_EFFECT) - composed:
        assert f"args.{flag}" in text or f'"{flag}"' in text, flag
