"""WiC, WSC and MultiRC of the world: labels follow from facts and senses, splits are kept, the readers take all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_utils.tokenizers import make_tokenizer
from data_utils.world.diagnostics import MEN, WOMEN
from data_utils.world.more_tasks import MENTIONS_OF_CONTEXTS, make_senses
from data_utils.world.tasks import LABELS, question_key
from tasks.data import make_split, read_split
from tasks.encoding import TaskEncoder
from tasks.registry import get_task
from tasks.spec import TaskOptions
from tests.data_utils.world.conftest import read_lines
from tests.data_utils.world.judge import PARTS, parse_fact

FOLDERS = ("WiC", "WSC", "WSC-negative", "MultiRC")
Facts = dict[tuple[str, str], dict]


@pytest.fixture(scope="module")
def table(facts: list[dict]) -> Facts:
    """(subject, relation) -> the fact."""
    return {(fact["subject"], fact["relation"]): fact for fact in facts if "relation" in fact}


def questions(world: Path, folder: str) -> Iterator[tuple[str, dict]]:
    for part in PARTS:
        for example in read_lines(world / f"tasks/{folder}/{part}.jsonl"):
            yield part, example


def sense_of(word: str, sentence: str, people: str = r"[A-Z][a-z]+") -> int:
    found = {sense.sense for sense in make_senses() if sense.word == word for context in sense.contexts
             if re.fullmatch(re.escape(context).replace(re.escape("{p}"), people) + r"\.", sentence, re.IGNORECASE)}
    assert len(found) == 1, sentence
    return found.pop()


def test_wic_labels_and_offsets(world: Path) -> None:
    splits = {sense.word: sense.split for sense in make_senses()}
    assert set(splits.values()) == {"train", "heldout"} and len(splits) == len(make_senses()) / 2
    for part, example in questions(world, "WiC"):
        sentences = [example["sentence1"], example["sentence2"]]
        for number, sentence in enumerate(sentences, start=1):
            span = sentence[example[f"start{number}"]:example[f"end{number}"]]
            assert span.lower() == example["word"] and len(re.findall(rf"\b{span}\b", sentence)) == 1
        first, second = (sense_of(example["word"], sentence) for sentence in sentences)
        assert splits[example["word"]] in PARTS[part] and sentences[0] != sentences[1]
        assert example.get("label", first == second) is (first == second)


def test_senses_are_told(world: Path) -> None:
    text = " ".join(line["text"] for line in read_lines(world / "text/train.jsonl"))
    for sense in make_senses():
        for context in sense.contexts:
            pattern = re.escape(context).replace(re.escape("{p}"), r"[A-Z][a-z]+")
            assert len(re.findall(pattern, text, re.IGNORECASE)) >= MENTIONS_OF_CONTEXTS / 3, context
    assert [line["word"] for line in read_lines(world / "senses.jsonl")] == [sense.word for sense in make_senses()]


WSC_ENDS = {
    "material": r"is made of (\w+)", "place": r"belongs in the (\w+)", "use": r"is good for (\w+)",
    "class": r"is an? (\w+)", "habitat": r"lives in the (\w+)", "diet": r"eats (\w+)", "size": r"is (large|small)",
    "colour": r"is (\w+)",
}


def test_wsc_referent_follows_from_one_fact(world: Path, table: Facts) -> None:
    for part, example in questions(world, "WSC-negative"):
        words, target = example["text"].split(), example["target"]
        assert words[target["span2_index"]] == "it"
        start = target["span1_index"]
        assert " ".join(words[start:start + 2]) == target["span1_text"]
        asked = target["span1_text"].removeprefix("the ")
        (other,) = (one["text"].removeprefix("the ") for one in example["candidates"] if one["text"].startswith("the "))
        end = example["text"].split(" it ")[1].rstrip(".")
        relation, value = next((name, match.group(1)) for name, form in WSC_ENDS.items()
                               if (match := re.fullmatch(form, end)) and (asked, name) in table)
        values = [table[subject, relation]["value"] for subject in (asked, other)]
        assert values.count(value) == 1 and {table[one, relation]["split"] for one in (asked, other)} <= PARTS[part]
        assert example.get("label", values[0] == value) is (values[0] == value)
        assert all(one["text"] in example["text"] for one in example["candidates"])


def test_wsc_without_candidates_is_the_same(world: Path) -> None:
    with_candidates = [example for _, example in questions(world, "WSC-negative")]
    assert all(example.pop("candidates") for example in with_candidates)
    assert with_candidates == [example for _, example in questions(world, "WSC")]


def test_multirc_labels(world: Path, table: Facts) -> None:
    relations = {"Where": ("town", "region"), "What is": ("pet", "class"), "What does": ("owns", "material")}
    for part, example in questions(world, "MultiRC"):
        passage = example["passage"]
        for sentence in re.findall(r"[^.]+\.", passage["text"]):
            readings = list(parse_fact(sentence.strip()))
            assert any(table[subject, relation]["value"] == value for relation, subject, value in readings
                       if (subject, relation) in table), sentence
        for question in passage["questions"]:
            asked = question["question"]
            relation, derived = next(pair for start, pair in relations.items() if asked.startswith(start))
            person = re.search(r"\b[A-Z]\w+\b(?=[ ?])", asked.split(" ", 1)[1]).group()
            value = table[person, relation]
            follows = table[value["value"], derived]
            splits = {value["split"]}
            for answer in question["answers"]:
                last = answer["text"].split()[-1]
                right = last in (value["value"], follows["value"])
                if last in {fact["value"] for (_, name), fact in table.items() if name == derived}:
                    splits.add(follows["split"])
                assert ("label" in answer) is (part != "unlabeled") and answer.get("label", right) == right
            assert splits <= PARTS[part]


def test_multirc_numbers_are_unique(world: Path) -> None:
    for part in PARTS:
        asked = [question for line in read_lines(world / f"tasks/MultiRC/{part}.jsonl")
                 for question in line["passage"]["questions"]]
        numbers = [[question["idx"] for question in asked], [a["idx"] for q in asked for a in q["answers"]]]
        assert all(len(found) == len(set(found)) for found in numbers)


def test_diagnostic_sets(world: Path, table: Facts) -> None:
    asked = {(line["premise"], line["hypothesis"]) for part in PARTS
             for line in read_lines(world / f"tasks/RTE/{part}.jsonl")}
    broad, gender = (read_lines(world / f"tasks/{name}/{name}.jsonl") for name in ("AX-b", "AX-g"))
    pairs = [(line["sentence1"], line["sentence2"]) for line in broad]
    assert len(set(pairs)) == len(pairs) and not set(pairs) & asked
    heldout = {name for (name, _), fact in table.items() if fact["split"] == "heldout"}
    people = "|".join((*WOMEN, *MEN))
    for first, second in zip(gender[::2], gender[1::2]):
        assert first["pair_id"] == second["pair_id"] and first["label"] == second["label"]
        texts = [re.sub(rf"\b({people})\b", "X", f"{line['premise']} / {line['hypothesis']}")
                 for line in (first, second)]
        assert texts[0] == texts[1] and any(re.search(rf"\b{name}\b", texts[0]) for name in heldout)
    for name, lines in (("ax-b", broad), ("ax-g", gender)):
        assert Counter(line["label"] for line in lines) == {"entailment": 100, "not_entailment": 100}
        spec = get_task(name, TaskOptions(cloze_eval=True))
        path = world / f"tasks/{spec.files.file_name('dev').removesuffix('.jsonl')}/{spec.files.file_name('dev')}"
        assert len(read_split(spec, path, make_split("dev"), training_form=False)) == 200


@pytest.mark.parametrize("folder", FOLDERS)
def test_parts_share_no_question_and_labels_are_balanced(world: Path, folder: str) -> None:
    found = list(questions(world, folder))
    keys = [question_key(example) for _, example in found]
    assert len(keys) == len(set(keys))
    task = folder.removesuffix("-negative")
    for part in ("train", "val", "test") if LABELS[task] != (None,) else ():
        counts = Counter(example["label"] for one, example in found if one == part)
        assert set(counts) == {False, True} and abs(counts[False] - counts[True]) <= 1


def test_every_word_is_one_token(world: Path) -> None:
    texts = [line["text"] for line in read_lines(world / "text/train.jsonl")]
    for folder in ("WiC", "WSC", "MultiRC"):
        texts += [str(example) for _, example in questions(world, folder)]
    words = {word for text in texts for word in re.findall(r"\b[A-Za-z]+\b", text)} - {
        "idx", "label", "version", "questions", "answers", "target", "text", "word"}  # names of fields
    for kind, path in (("BertWordPieceTokenizer", world / "vocab.txt"), ("GPT2BPETokenizer", world / "gpt2")):
        tokenizer = make_tokenizer(kind, str(path))
        assert not [word for word in sorted(words) if len(tokenizer.encode_plain(f" {word}")) != 1]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("cloze_eval", [False, True])
def test_readers_take_every_part(world: Path, folder: str, cloze_eval: bool) -> None:
    options = TaskOptions(cloze_eval=cloze_eval, seq_length=128, wsc_negative=folder == "WSC-negative")
    spec = get_task(folder.removesuffix("-negative"), options)
    encoder = TaskEncoder(spec, options, make_tokenizer("BertWordPieceTokenizer", str(world / "vocab.txt")))
    for name, stem in (("train", "train"), ("dev", "val"), ("test", "test"), ("unlabeled", "unlabeled")):
        path = world / f"tasks/{folder}/{stem}.jsonl"
        examples = read_split(spec, path, make_split(name), training_form=name == "train")
        assert len(examples) >= len(read_lines(path)) / 2  # cloze WSC trains on what is true alone
        assert encoder(examples[0])["text"].shape[-1] == 128
