"""The launcher's command line: what it takes, what it passes on, what it refuses."""

from __future__ import annotations

from fractions import Fraction

import pytest

from distill.sweep.flags import flag_names, parse
from tests.helpers.shared import require_shared


def test_unknown_words_are_passed_on_in_order() -> None:
    sweep = parse(["--student_model=kd", "--gpus", "2,3", "--text=a=b=c", "--switch", "--lr", "-1e-5",
                   "--model=block_tiny4", "--task=X", "--save", "a b", "--last"])
    assert sweep.forwarded == (("--student_model", "kd"), ("--text", "a=b=c"), ("--switch", None), ("--lr", "-1e-5"),
                               ("--task", "X"), ("--save", "a b"), ("--last", None))
    assert (sweep.known.gpus, sweep.known.model, sweep.known.save_sub) == ("2,3", "block_tiny4", None)


def test_stage_flags_and_deepspeed_values() -> None:
    sweep = parse(["--again_1__distill_temperature=2", "--again_12__x", "--again_1__y", "3", "--ds_a__b=1;2", "--ds_c",
                   "5", "--rate_ds_a__b=1/8", "--rate_ds_gradient_accumulation_steps=0.1", "--cb_model_path=p"])
    assert sweep.stage_flags == ((1, ("--distill_temperature", "2")), (12, ("--x", None)), (1, ("--y", "3")))
    assert sweep.overrides == {"a__b": "1;2", "c": "5"}
    assert sweep.rates == {"a__b": Fraction(1, 8), "gradient_accumulation_steps": Fraction(1, 10)}
    assert sweep.model_paths == {"cb": "p"} and sweep.forwarded == ()


@pytest.mark.parametrize(("words", "message"), [
    (["stray"], "'stray' belongs to no flag"),
    (["--a=1", "stray"], "'stray' belongs to no flag"),
    (["-u"], "'-u' is no flag"),
    (["--"], "'--' is no flag"),
    (["--model=block_tiny5"], "--model=block_tiny5 is not known: did you mean block_tiny"),
    (["--script=finetune"], "--script=finetune is not known"),
    (["--epoch_type=EPOCH_1"], "did you mean EPOCH_0"),
    (["--tasks=copa,copo"], "'copo' is no task preset of --script=finetune_superglue: did you mean copa"),
    (["--tasks=seq_xsum"], "it belongs to --script=finetune_seq2seq"),
    (["--tasks=copa,cb,copa"], "--tasks names copa twice"),
    (["--tasks=copa,"], "'' is no task preset"),
    (["--epoch_rate=fast"], "--epoch_rate: 'fast' is no factor"),
    (["--rate_ds_a=-1"], "--rate_ds_a: '-1' is no factor"),
    (["--rate_arg_lr=2"], "only --rate_arg_epochs"),
    (["--ds_a"], "--ds_a needs a value"),
    (["--again_1_x=2"], "--again_1_x is no stage flag"),
    (["--preset_path=nowhere"], "--preset_path=nowhere is no folder"),
    (["--test=1"], "ignored explicit argument '1'"),
])
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(words)


def test_no_flag_is_taken_for_the_beginning_of_another() -> None:
    """The published launcher read --save=x as --save_sub=x, and stopped at --epoch=3."""
    sweep = parse(["--save=x", "--epoch=3", "--show=1"])
    assert sweep.forwarded == (("--save", "x"), ("--epoch", "3"), ("--show", "1"))


def test_defaults_and_dry_runs() -> None:
    sweep = parse([])
    assert sweep.is_dry and sweep.known.py_file == "distill/finetune.py" and sweep.known.gpus == "6"
    assert sweep.tasks == ("copa", "wsc_generative", "cb", "rte", "boolq", "wic", "wsc", "multirc", "record")
    assert parse(["--test"]).is_dry and parse(["--print_only=json"]).is_dry and not parse(["--gpus=1"]).is_dry


def test_every_published_flag_is_there() -> None:
    text = (require_shared("spec") / "flags.md").read_text(encoding="utf-8")
    table = text[text.index("## Sweep launcher"):].split("\n## ")[0]
    wanted = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `--")}
    assert len(wanted) > 25
    assert wanted - set(flag_names(parse([]).presets)) == {"--again_K__<flag>"}


def test_help_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "block_tiny6" in text and "--again_K__<flag>" in text and "None" not in text
