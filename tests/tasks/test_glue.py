"""Readers and patterns of the GLUE-type tasks, on small files of their formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_utils.tokenizers import Tokenizer
from tasks.data import make_split, read_split, split_file
from tasks.encoding import TaskEncoder
from tasks.examples import Example
from tasks.glue import TASKS
from tasks.registry import get_task
from tasks.spec import TaskOptions
from tests.tasks.test_superglue import fill, lines, written

CLOZE = TaskOptions(cloze_eval=True)

#: task -> (file of the training set, its content, text_a, text_b, label)
FILES = {
    "mnli": ("train.tsv", "index\tsentence1\tsentence2\tgold_label\n0\tIt – rains.\tWet?\tneutral\n",
             "It – rains.", "Wet?", "neutral"),
    "sst2": ("train.tsv", "sentence\tlabel\nA \"good film\t1\n", 'A "good film', None, "1"),
    "cola": ("train.tsv", "gj04\t0\t*\tBooks the.\n", "Books the.", None, "0"),
    "mrpc": ("train.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tOne.\tTwo.\n", "One.", "Two.", "1"),
    "qqp": ("train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\n1\t3\t4\tWhy?\tHow?\t0\n",
            "Why?", "How?", "0"),
    "qnli": ("train.tsv", "index\tquestion\tsentence\tlabel\n0\tWho?\tAnn.\tentailment\n", "Who?", "Ann.",
             "entailment"),
    "agnews": ("train.csv", '"4","New\\chip","Faster, it says"\n', "New chip", "Faster, it says", "4"),
    "yahoo": ("train.csv", '"10","Why\\nnot","","Be\\cause"\n', "Why not ", "Be cause", "10"),
    "yelp-full": ("train.csv", '"5","Good\\nfood, \\""really\\"""\n', 'Good food,  "really "', None, "5"),
    "afqmc": ("train.json", '{"sentence1": "一", "sentence2": "二", "label": "0"}\n', "一", "二", "0"),
    "tnews": ("train.json", '{"label": "108", "label_desc": "x", "sentence": "一", "keywords": "二"}\n', "一", "二",
              "108"),
    "cluewsc": ("train.json", json.dumps({"text": "甲说他走", "label": "true", "idx": 0, "target": {
        "span1_text": "甲", "span1_index": 0, "span2_text": "他", "span2_index": 2}}) + "\n",
        "#甲#说*他*走", None, "true"),
}


@pytest.mark.parametrize("task", FILES)
def test_file_becomes_examples(task: str, tmp_path: Path) -> None:
    name, content, text_a, text_b, label = FILES[task]
    (tmp_path / name).write_text(content, encoding="utf-8")
    spec, split = get_task(task, CLOZE), make_split("train", for_training=True)
    example, = read_split(spec, split_file(tmp_path, split, form=spec.files), split, training_form=True)
    assert (example.guid, example.idx, example.num_choices) == ("train-0", -1, 1)
    assert (example.text_a, example.text_b, example.label) == (text_a, text_b, label)


def test_cola_test_file_has_names() -> None:
    spec = get_task("cola", CLOZE)
    assert list(spec.metrics) == ["accuracy", "matthews"]


def test_labels_are_checked_in_tables(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t2\n")
    with pytest.raises(ValueError, match=r"train\.tsv, line 3: label '2' is none of '0', '1'"):
        read_split(get_task("sst2", CLOZE), tmp_path / "train.tsv", make_split("train"), training_form=True)
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tgood\n")
    for task in ("sst2", "cola"):
        example, = read_split(get_task(task, CLOZE), tmp_path / "test.tsv", make_split("test"), training_form=False)
        assert example.label is None and example.text_a == "good"


def test_patterns_of_pairs() -> None:
    pair = Example("", "It rains.", "The street is wet!", "1", -1)
    assert [written(fill("mnli", pair, number)[0]) for number in range(4)] == [
        '"[It rains]" ?‖_, "[The street is wet!]"', "[It rains]?‖_,[The street is wet!]"] * 2
    assert [written(fill("mrpc", pair, number)[0]) for number in range(2)] == [
        "[It rains.]‖_, [the street is wet!]", "[It rains.]‖ Does it mean that[the street is wet]?_"]
    assert [written(fill("qqp", pair, number)[0]) for number in range(2)] == [
        "[It rains.]‖ Do you mean [the street is wet!]_.", "[It rains.]‖_, [the street is wet!]"]
    assert [written(fill("qnli", Example("", "Is it wet?", "It rains."), number)[0]) for number in range(3)] == [
        "[It rains.] Question:[ Is it wet]? Do you know the answer?_.",
        "[It rains.] Based on the previous passage, do you know the answer[ Is it wet]?_.",
        "Based on the following passage, do you know the answer[ Is it wet]?_.[ It rains.]"]
    assert [written(fill("yahoo", pair, number)[0]) for number in range(3)] == [
        "_:[It rains.][The street is wet!]", "_ Question:[It rains.][The street is wet!]",
        "[It rains.](_)[The street is wet!]"]
    assert [written(fill("afqmc", Example("", "一", "二"), number)[0]) for number in range(2)] == [
        "[一]？‖你是说[二]？_。", "[一]？‖_，[二]"]


def test_patterns_of_single_texts() -> None:
    text = Example("", "It rains.")
    assert written(fill("sst2", text, 1)[0]) == "[It rains.] It was_."
    assert written(fill("cola", text, 0)[0]) == '"[It rains.]" This is_.'
    assert [written(fill("yelp-polarity", text, number)[0]) for number in range(4)] == [
        "It was_.[It rains.]", "[It rains.]. All in all, it was_.", "Just_!‖[It rains.]",
        "[It rains.]‖ In summary, the restaurant is_."]
    assert written(fill("tnews", Example("", "一", "二"), 0)[0]) == "标题：[一]关键词：[二]类别：_"
    winograd = Example("", "#甲#说*他*走", meta={"span1_text": "甲", "span2_text": "他"})
    assert [written(fill("cluewsc", winograd, number)[0]) for number in range(2)] == [
        "[#甲#说*他*走]代词'*他*'_指#甲#.", "在如下的句子中：[#甲#说*他*走]代词'*他*'_指'#甲#'."]


def test_words_stand_for_labels() -> None:
    for spec in TASKS:
        if not spec.choices_are_answers:
            assert set(spec.verbalizers) == set(spec.pattern_ids)
            assert {len(words) for words in spec.verbalizers.values()} == {len(spec.labels)}
        assert next(iter(spec.metrics)) == "accuracy"
    assert get_task("tnews", CLOZE).verbalizers[0][spec_index("tnews", "116")] == "游戏"
    assert get_task("yelp-full", CLOZE).verbalizers[2][spec_index("yelp-full", "3")] == " okay"
    assert get_task("mnli-mm", CLOZE).verbalizers[0][spec_index("mnli-mm", "entailment")] == " Right"


def spec_index(task: str, label: str) -> int:
    return get_task(task, CLOZE).labels.index(label)


def test_cluewsc_offsets() -> None:
    row = {"text": "甲说他", "label": "true", "target": {"span1_text": "甲说", "span1_index": 2, "span2_text": "他",
                                                      "span2_index": 2}}
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1: target.span1_index = 2: '甲说' does not lie inside"):
        get_task("cluewsc", CLOZE).read(lines(row), make_split("train"), True)


RACE = {"answers": ["B", "A"], "options": [["w", "x", "y", "z"], ["1", "2", "3", "4"]],
        "questions": ["Who ran?", "He _ ran _."], "article": "Ann ran.", "id": "high1.txt"}


def test_race(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for level in ("middle", "high"):
        (tmp_path / "dev" / level).mkdir(parents=True)
    (tmp_path / "dev" / "high" / "1.txt").write_text(json.dumps(RACE))
    (tmp_path / "dev" / "middle" / "2.txt").write_text(json.dumps(RACE))
    spec, split = get_task("race", CLOZE), make_split("dev")

    def examples() -> list[Example]:
        return read_split(spec, split_file(tmp_path, split, form=spec.files), split, training_form=False)

    first, second, third, _ = examples()
    assert (first.guid, first.idx, first.label) == ("dev-p1.txt-q0", ["dev", "1.txt", 0], "B")
    assert (second.label, third.guid) == ("A", "dev-p2.txt-q0")
    assert [(written(one), one.answer) for one in spec.fill(first, CLOZE)][1] == (
        "[Ann ran.]‖ Question:[ Who ran?] Answer:_", " x")
    assert written(spec.fill(second, CLOZE)[0]) == "[Ann ran.]‖[ He]_[ ran _.]"
    previous = TaskOptions(cloze_eval=True, pattern_id=1)
    assert [written(spec.fill(one, previous)[0]) for one in (first, second)] == [
        "[Ann ran.]‖ Based on the previous passage,[ Who ran?]_",
        "[Ann ran.]‖ Based on the previous passage,[ He]_[ ran _.]"]
    plain = TaskOptions(seq_length=48)
    sample = TaskEncoder(get_task("race", plain), plain, tokenizer)(first)
    assert sample["text"].shape == (4, 48) and sample["label"].item() == 1
    (tmp_path / "dev" / "middle" / "1.txt").write_text(json.dumps(RACE))  # the same name in both levels
    assert [one.guid for one in examples()][::2] == ["dev-phigh/1.txt-q0", "dev-pmiddle/1.txt-q0", "dev-p2.txt-q0"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"answers": ["B"]}, "2 questions, 2 lists of options and 1 answers"),
    ({"options": [["w"], ["1", "2", "3", "4"]]}, r"options\[0\] must be a list of 4 texts"),
    ({"questions": ["Who?", 3]}, r"questions\[1\] must be a text, got 3"),
    ({"answers": ["B", "E"]}, "label 'E' is none of 'A', 'B', 'C', 'D'"),
])
def test_race_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1: " + message):
        get_task("race", CLOZE).read(lines({**RACE, **changes}), make_split("train"), True)


def test_squad_has_no_classifier() -> None:
    with pytest.raises(ValueError, match="--task=SQuAD has no form with a classification head; give --cloze-eval"):
        get_task("SQuAD", TaskOptions())
    spec = get_task("squad", CLOZE)
    assert (spec.head, spec.is_multi_choice, spec.variable_num_choices) == ("multi_token", True, False)
