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


@pytest.mark.parametrize("task", ["COPA", "CB", "RTE", "BoolQ", "ReCoRD"])
def test_published_task_words_pass(task: str) -> None:
    check_task_flags(parsed("--finetune", f"--task={task}", "--cloze-eval", "--pattern-id=0"))


@pytest.mark.parametrize(("words", "message"), [
    ([], "--finetune needs --task"),
    (["--task=Copaa"], "--task=Copaa: unknown task .did you mean 'copa'"),
    (["--task=WiC"], "--task=WiC: this task is not available yet; available: copa, cb, rte, boolq, record"),
    (["--task=RTE", "--cloze-eval", "--pattern-id=5"], "--pattern-id=5: task rte has the patterns 0, 1, 2, 3, 4"),
    (["--task=RTE", "--continuous-prompt"], "--continuous-prompt belongs to continuous prompts"),
    (["--task=COPA", "--fast-decode"], "--fast-decode belongs to"),
    (["--task=COPA", "--segment-length=3"], "--segment-length belongs to"),
    (["--task=COPA", "--block-lm-ratio=0.5"], "--block-lm-ratio belongs to"),
    (["--task=RTE", "--multi-token"], "--multi-token scores answers.*--cloze-eval"),
    (["--task=RTE", "--cloze-eval", "--length-penalty=1"], "--length-penalty=1.0 needs answers of several tokens"),
    (["--task=RTE", "--adapet"], "--adapet compares label words"),
])
def test_what_cannot_act_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task_flags(parsed(*words))


def test_cloze_needs_block_symbols() -> None:
    args = parsed("--task=RTE", "--cloze-eval")
    args.block_lm = False
    with pytest.raises(ValueError, match="--block-lm"):
        check_task_flags(args)


def test_heads() -> None:
    assert set(task_names()) == {"copa", "cb", "rte", "boolq", "record"}
    cloze, plain = TaskOptions(cloze_eval=True), TaskOptions()
    table = {name: (get_task(name, cloze).head, get_task(name, plain).head, get_task(name, plain).num_classes)
             for name in task_names()}
    assert table == {"copa": ("multi_token", "classification", None), "record": ("multi_token", "classification", None),
                     "cb": ("single_token", "classification", 3), "rte": ("single_token", "classification", 2),
                     "boolq": ("single_token", "classification", 2)}
    assert get_task("RTE", TaskOptions(cloze_eval=True, multi_token=True)).is_multi_token
    assert get_task("copa", plain).is_multi_choice and not get_task("rte", plain).is_multi_choice
    assert [name for name in task_names() if get_task(name, plain).variable_num_choices] == ["record"]
