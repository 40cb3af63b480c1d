"""The made-up examples: every task that the generated world lacks has some, and its own reader takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_utils.stand_in import PUBLISHED_SIZES, copy_head, world_task, write_vocabulary, write_world_task
from data_utils.tokenizers import make_tokenizer
from tasks.data import make_split, read_split, split_file
from tasks.encoding import TaskEncoder
from tasks.registry import get_task, task_names
from tasks.samples import NUM_EXAMPLES, sampled_tasks, write_samples
from tasks.spec import TaskOptions

#: Cloze form, with the settings that make every task a comparison of choices.
OPTIONS = TaskOptions(cloze_eval=True, seq_length=64, wsc_negative=True)


def test_no_task_without_examples() -> None:
    missing = [task for task in task_names() if task not in sampled_tasks() and world_task(task) is None]
    assert missing == []


@pytest.mark.parametrize("task", task_names())
def test_samples_are_read_and_encoded(task: str, tmp_path: Path) -> None:
    spec = get_task(task, OPTIONS)
    splits = [make_split("train", for_training=True), make_split("dev"), make_split("test"), make_split("extra")]
    names = [spec.files.file_name(split.name) for split in splits]
    if (world := world_task(task)) is not None:
        write_world_task(world, tmp_path, names, 12)
    else:
        write_samples(spec, tmp_path, names)
    is_chinese = task in ("afqmc", "tnews", "cluewsc")
    kind = "ChineseSPTokenizer" if is_chinese else "GPT2BPETokenizer" if task < "m" else "BertWordPieceTokenizer"
    words = [word for one in spec.verbalizers.values() for word in one]
    tokenizer = make_tokenizer(kind, str(write_vocabulary(tmp_path / "vocabulary", kind, words)))
    assert tokenizer.num_tokens < PUBLISHED_SIZES[kind] / 4
    encoder = TaskEncoder(spec, OPTIONS, tokenizer)
    for split in splits:
        examples = read_split(spec, split_file(tmp_path, split, form=spec.files), split,
                              training_form=split.kind == "train")
        assert len(examples) >= (NUM_EXAMPLES if world is None else 2)
        assert all(len(encoder(example)["text"]) for example in examples[:4])


def test_the_head_of_a_file_is_a_file(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(f'{{"n": {number}}}\n' for number in range(9)))
    copy_head(lines, tmp_path / "out" / "a.jsonl", 3)
    assert (tmp_path / "out" / "a.jsonl").read_text().count("\n") == 4, "a line of names and three more"
    document = tmp_path / "b.json"
    document.write_text('{"version": "2", "data": [1, 2, 3]}')
    copy_head(document, tmp_path / "out" / "b.json", 3)
    assert (tmp_path / "out" / "b.json").read_text() == '{"version": "2", "data": [1, 2]}'
    folder = tmp_path / "train" / "high"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.txt").write_text("{}")
    copy_head(tmp_path / "train", tmp_path / "out" / "train", 2)
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 2
