from __future__ import annotations

import argparse

import pytest

from tasks.flags import add_task_flags, check_task_flags
from tasks.registry import get_task, task_names
from tasks.spec import TaskOptions


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_task_flags(parser)
    return parser.parse_args(words)


def test_defaults() -> None:
    assert vars(parsed()) == {
        "finetune": False, "task": None, "train_split": "train", "cloze_eval": False, "pattern_id": 0,
        "multi_token": False, "segment_length": 0, "loss_func": "cross_entropy", "wsc_negative": False,
        "length_penalty": 0.0, "adapet": False, "pool_token": "cls", "fast_decode": False, "block_lm_ratio": 0.0,
        "few_superglue": False, "fix_variable_num_choices": False, "unidirectional": False, "src_seq_length": None,
        "tgt_seq_length": None, "continuous_prompt": False, "num_prompt_tokens": 0, "prompt_func": "lstm",
        "prefix_prompt": 0, "prompt_init": False}


@pytest.mark.parametrize("task", ["COPA", "CB", "RTE", "BoolQ", "ReCoRD", "WiC", "MultiRC", "AX-b", "AX-g", "MNLI"])
def test_published_task_words_pass(task: str) -> None:
    check_task_flags(parsed("--finetune", f"--task={task}", "--cloze-eval", "--pattern-id=0"))


def test_published_words_of_wsc_pass() -> None:
    check_task_flags(parsed("--task=WSC", "--cloze-eval", "--wsc-negative", "--loss-func=mix", "--length-penalty=1",
                            "--pattern-id=2", "--multi-token"))
    check_task_flags(parsed("--task=WSC"))


@pytest.mark.parametrize(("words", "message"), [
    ([], "--finetune needs --task"),
    (["--task=Copaa"], "--task=Copaa: unknown task .did you mean 'copa'"),
    (["--task=xstance"], "--task=xstance: unknown task.*available: copa, cb, rte"),
    (["--task=RTE", "--cloze-eval", "--pattern-id=5"], "--pattern-id=5: task rte has the patterns 0, 1, 2, 3, 4"),
    (["--task=RTE", "--multi-token"], "--multi-token scores answers.*--cloze-eval"),
    (["--task=RTE", "--cloze-eval", "--length-penalty=1"], "--length-penalty=1.0 needs answers of several tokens"),
    (["--task=RTE", "--adapet"], "--adapet compares label words"),
    (["--task=RTE", "--cloze-eval", "--wsc-negative"], "--wsc-negative belongs to --task=WSC, got --task=RTE"),
    (["--task=WSC", "--wsc-negative"], "--wsc-negative ranks candidates.*--cloze-eval"),
    (["--task=squad", "--cloze-eval"], "--loss-func=cross_entropy there is nothing.*--loss-func=generative"),
])
def test_what_cannot_act_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task_flags(parsed(*words))


@pytest.mark.parametrize("words", [
    ["--task=COPA", "--block-lm-ratio=0.5"], ["--task=COPA", "--segment-length=3"], ["--task=COPA", "--fast-decode"],
    ["--task=WSC"],
    ["--task=RTE", "--continuous-prompt", "--num-prompt-tokens=3", "--prompt-init"],
    ["--task=RTE", "--prefix-prompt=3", "--prompt-func=mlp"], ["--task=WSC", "--prefix-prompt=3"],
], ids=" ".join)
def test_forms_that_are_trained(words: list[str]) -> None:
    check_task_flags(parsed("--cloze-eval", *words))


@pytest.mark.parametrize("word", ["--src-seq-length=9", "--tgt-seq-length=9"])
def test_options_of_tasks_that_are_missing(word: str) -> None:
    with pytest.raises(ValueError, match="belongs to .*, which this version does not have"):
        check_task_flags(parsed("--task=COPA", "--cloze-eval", word))


@pytest.mark.parametrize("task", ["blank", "CNN_DM_original", "xsum"])
def test_tasks_that_are_missing(task: str) -> None:
    with pytest.raises(ValueError, match=f"--task={task}: sequence-to-sequence tasks and blank filling are not built"):
        check_task_flags(parsed(f"--task={task}"))


def test_an_option_of_language_model_tasks_elsewhere() -> None:
    with pytest.raises(ValueError, match="--unidirectional belongs to the tasks language_model, lambda, wikitext"):
        check_task_flags(parsed("--task=COPA", "--cloze-eval", "--unidirectional"))
    args = parsed("--task=COPA", "--cloze-eval")
    args.overlapping_eval = 8
    with pytest.raises(ValueError, match="--overlapping-eval belongs to the tasks"):
        check_task_flags(args)


@pytest.mark.parametrize(("words", "message"), [
    (["--task=RTE", "--cloze-eval", "--segment-length=3"], "--segment-length=3 needs answers.*--multi-token"),
    (["--task=WSC", "--cloze-eval", "--fast-decode"], "--fast-decode=True needs answers.*WSC: --wsc-negative"),
    (["--task=COPA", "--cloze-eval", "--segment-length=-1"], "--segment-length=-1 must not be negative"),
    (["--task=COPA", "--cloze-eval", "--segment-length=2", "--fast-decode"], "which --fast-decode does not know"),
    (["--task=ReCoRD", "--cloze-eval", "--segment-length=2", "--fix_variable_num_choices"], "leave one of both out"),
    (["--task=RTE", "--cloze-eval", "--continuous-prompt"], "--num-prompt-tokens=N .* belong together"),
    (["--task=RTE", "--cloze-eval", "--num-prompt-tokens=2"], "--num-prompt-tokens=N .* belong together"),
    (["--task=RTE", "--cloze-eval", "--prefix-prompt=-2"], "--prefix-prompt=-2 must not be negative"),
    (["--task=RTE", "--cloze-eval", "--prompt-init"], "--prompt-init shapes a continuous prompt, and there is none"),
    (["--task=RTE", "--prompt-func=mlp"], "--prompt-func=mlp shapes a continuous prompt"),
    (["--task=WSC", "--cloze-eval", "--loss-func=mix"], "--loss-func=mix compares answers.*--wsc-negative"),
    (["--task=WSC", "--cloze-eval", "--adapet"], "--adapet compares answers"),
    (["--task=RTE", "--prefix-prompt=2"], "--prefix-prompt puts tokens.*--cloze-eval"),
    (["--task=RTE", "--cloze-eval", "--block-lm-ratio=1", "--prefix-prompt=2"], "places of prompt tokens would"),
    (["--task=RTE", "--block-lm-ratio=1"], "--block-lm-ratio trains on patterns.*--cloze-eval"),
    (["--task=RTE", "--cloze-eval", "--block-lm-ratio=-1"], "--block-lm-ratio=-1.0 must not be negative"),
])
def test_options_that_contradict_each_other(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task_flags(parsed(*words))


def test_cloze_needs_block_symbols() -> None:
    args = parsed("--task=RTE", "--cloze-eval")
    args.block_lm = False
    with pytest.raises(ValueError, match="--block-lm"):
        check_task_flags(args)


def test_heads() -> None:
    superglue = ("copa", "cb", "rte", "boolq", "wic", "wsc", "multirc", "record", "ax-b", "ax-g")
    assert task_names()[:10] == superglue
    cloze, plain = TaskOptions(cloze_eval=True), TaskOptions()
    table = {name: (get_task(name, cloze).head, get_task(name, plain).head, get_task(name, plain).num_classes)
             for name in superglue}
    one_word = ("single_token", "classification", 2)
    choices = ("multi_token", "classification", None)
    assert table == {"copa": choices, "record": choices, "cb": ("single_token", "classification", 3), "rte": one_word,
                     "boolq": one_word, "wic": one_word, "multirc": one_word, "ax-b": one_word, "ax-g": one_word,
                     "wsc": ("language_model", "classification", 2)}
    assert get_task("RTE", TaskOptions(cloze_eval=True, multi_token=True)).is_multi_token
    assert get_task("copa", plain).is_multi_choice and not get_task("rte", plain).is_multi_choice
    assert [name for name in task_names() if get_task(name, cloze).variable_num_choices] == ["record", "race"]
