"""Readers, patterns and prediction lines of WiC, MultiRC, WSC, AX-b and AX-g; offsets of ReCoRD's entities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data_utils.tokenizers import Tokenizer
from tasks.data import EncodedExamples, EvalSet
from tasks.encoding import TaskEncoder
from tasks.evaluation import compute_metrics, predict, prediction_lines
from tasks.examples import Example, Split
from tasks.registry import get_task
from tasks.spec import TaskOptions
from tests.tasks.test_superglue import fill, lines, read, record_row, written

NEGATIVE = TaskOptions(cloze_eval=True, wsc_negative=True, seq_length=64)
GENERATIVE = TaskOptions(cloze_eval=True, seq_length=64)
TRAIN, DEV = Split("train", "train"), Split("dev", "dev")

WIC = {"word": "class", "sentence1": "A \u201cclass\u201d act.", "sentence2": "Real class.", "idx": 4, "label": True,
       "start1": 3, "end1": 8, "start2": 5, "end2": 10}


def test_wic() -> None:
    example, = read("wic", "train", WIC)
    assert (example.guid, example.text_a, example.label, dict(example.meta)) == (
        "train-4", 'A "class" act.', "true", {"word": "class"})
    assert [written(fill("wic", example, number)[0]) for number in range(3)] == [
        '["A "class" act." / "Real class."] Similar sense of "class"?_.',
        '[A "class" act.][ Real class.] Does class have the same meaning in both sentences?_',
        'class . Sense (1) (a) "[A "class" act.]" (_) "Real class."']
    spec = get_task("wic", TaskOptions())
    assert spec.verbalizers[1] == (" No", " Yes") and spec.verbalizers[2] == ("2", "b")
    assert spec.classifier_rows(example)[0] == ('class: A "class" act.', "Real class.", "")


def test_wic_without_labels(tokenizer: Tokenizer) -> None:
    row = {name: value for name, value in WIC.items() if name != "label"}
    example, = read("wic", "test", row)
    assert example.label == "false" and not example.is_labelled
    spec = get_task("wic", GENERATIVE)
    for one, labelled in ((example, False), (read("wic", "test", WIC)[0], True)):
        data = EncodedExamples([one], TaskEncoder(spec, GENERATIVE, tokenizer))
        assert EvalSet("test", data, batch_size=1).has_labels is labelled
    with pytest.raises(ValueError, match="'label' is missing"):
        read("wic", "train", row)


def multirc_row(**changes: Any) -> dict[str, Any]:
    answers = [{"text": "Ann", "idx": 8, "label": 1}, {"text": "Ben.", "idx": 9, "label": 0}]
    questions = [{"question": "Who ran? ", "idx": 2, "answers": answers},
                 {"question": "Who fell?", "idx": 3, "answers": [{"text": "Ben", "idx": 10, "label": 1}]}]
    return {"idx": 5, "version": 1.1, "passage": {"text": "Ann ran. Ben fell. ", "questions": questions}, **changes}


def test_multirc_reader_and_patterns() -> None:
    first, second, third = read("multirc", "dev", multirc_row())
    assert (first.guid, first.label, first.idx) == ("dev-p5-q2-a8", 1, [5, 2, 8])
    assert (third.guid, third.meta["question_idx"], third.meta["answer"]) == ("dev-p5-q3-a10", 3, "Ben")
    assert [written(fill("multirc", second, number)[0]) for number in range(5)] == [
        "[Ann ran. Ben fell]. Question: Who ran? Is it Ben.?_.",
        '[Ann ran. Ben fell]. Question: Who ran? Is the correct answer "Ben."?_.',
        '[Ann ran. Ben fell]. Based on the previous passage, Who ran? Is "Ben." a correct answer?_.',
        "[Ann ran. Ben fell] Who ran- [_]Ben.",
        "[Ann ran. Ben fell]. Question: Who ran? Ben.?_."]
    spec = get_task("multirc", TaskOptions())
    assert spec.verbalizers[0] == (" No", " Yes") and spec.verbalizers[3] == (" False", " True")
    assert spec.classifier_rows(second)[0].second == "Who ran?  answer: Ben."
    with pytest.raises(ValueError, match=r"field 'passage.questions\[0\]\.answers\[0\]\.idx' is missing"):
        read("multirc", "dev", multirc_row(passage={"text": "", "questions": [
            {"question": "q", "idx": 0, "answers": [{"text": "a"}]}]}))


def test_multirc_scores_and_prediction_file() -> None:
    spec = get_task("multirc", TaskOptions())
    examples = read("multirc", "dev", multirc_row(), multirc_row(idx=6, passage={"text": "T", "questions": [
        {"question": "Q", "idx": 4, "answers": [{"text": "x", "idx": 11, "label": 0}]}]}))
    scores = compute_metrics(spec, examples, [1, 1, 1, 0])
    assert list(scores.items()) == [("f1a", pytest.approx(0.8)), ("em", pytest.approx(2 / 3)), ("acc", 75.0)]
    assert prediction_lines(spec, examples, [1, 0, 1, 0]) == [
        {"idx": 5, "passage": {"questions": [
            {"idx": 2, "answers": [{"idx": 8, "label": 1}, {"idx": 9, "label": 0}]},
            {"idx": 3, "answers": [{"idx": 10, "label": 1}]}]}},
        {"idx": 6, "passage": {"questions": [{"idx": 4, "answers": [{"idx": 11, "label": 0}]}]}}]


def wsc_row(text: str = "Ann told Bea that he hit him.", phrase: str = "bea", start: int = 2, pronoun: str = "him",
            at: int = 6, **more: Any) -> dict[str, Any]:
    target = {"span1_text": phrase, "span1_index": start, "span2_text": pronoun, "span2_index": at}
    return {"text": text, "target": target, "idx": 7, "label": True, **more}


def wsc(split: Split, *rows: dict[str, Any], options: TaskOptions = NEGATIVE,
        training: bool | None = None) -> list[Example]:
    training = split.kind == "train" if training is None else training
    return get_task("wsc", options).read(lines(*rows), split, training)


def test_wsc_places() -> None:
    plain = TaskOptions()
    split_off, = wsc(TRAIN, wsc_row(), options=plain)
    assert split_off.text_a == "Ann told Bea that he hit him ."  # "him." is the pronoun and a full stop
    assert split_off.meta == {"span1_text": "bea", "span2_text": "him", "span1_index": 2, "span2_index": 6}
    for start, at in ((1, 3), (3, 5)):  # one word beside the right place
        moved, = wsc(TRAIN, wsc_row(start=start, pronoun="he", at=at), options=plain)
        assert (moved.meta["span1_index"], moved.meta["span2_index"]) == (2, 4)
    lost, = wsc(TRAIN, wsc_row(phrase="Cal", start=1), options=plain)
    assert lost.meta["span1_index"] == 1  # a phrase may be written otherwise than in the text; the pronoun may not
    with pytest.raises(ValueError, match=r"line 1: target.span2_text 'she' is not word 6.*'hit him\.'"):
        wsc(TRAIN, wsc_row(pronoun="she"), options=plain)
    for name, value in (("span1_index", -1), ("span2_index", 7)):
        row = wsc_row()
        row["target"][name] = value
        with pytest.raises(ValueError, match=rf"target.{name} = {value} lies outside the text, which has 7 words"):
            wsc(TRAIN, row, options=plain)


def test_wsc_forms_and_labels() -> None:
    false = {**wsc_row(candidates=[]), "label": False, "idx": 8}
    true = wsc_row(candidates=[])
    plain = wsc(TRAIN, true, false, options=TaskOptions())
    assert [one.label for one in plain] == ["True", "False"]
    for options in (NEGATIVE, GENERATIVE):  # only what is true can be learned from in a blank
        assert [one.label for one in wsc(TRAIN, true, false, options=options)] == ["True"]
        assert [one.label for one in wsc(DEV, true, false, options=options)] == ["True", "False"]
        assert len(wsc(DEV, true, false, options=options, training=True)) == 1
        unlabeled = {name: value for name, value in false.items() if name != "label"}
        assert len(wsc(Split("unlabeled", "unlabeled"), unlabeled, options=options, training=True)) == 1
    specs = [get_task("wsc", options) for options in (TaskOptions(), GENERATIVE, NEGATIVE)]
    assert [(one.head, one.is_multi_choice, one.variable_num_choices, one.num_classes) for one in specs] == [
        ("classification", False, False, 2), ("language_model", False, False, 2), ("multi_token", True, True, None)]
    # The right choice is the phrase itself in training; in evaluation the label is False or True.
    assert specs[2].label_index(wsc(TRAIN, true)[0]) == 0
    assert [specs[2].label_index(one) for one in wsc(DEV, true, false)] == [1, 0]
    assert specs[2].predicted_label(plain[0], 1) == "True"
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [-3.0, -2.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    assert predict(scores, mask, specs[2]).tolist() == [1, 0, 1]


def test_wsc_candidates() -> None:
    names = [f"n{index}" for index in range(20)]
    row = wsc_row(candidates=[{"text": name} for name in (names[0], *names)])
    groups = wsc(TRAIN, row)
    assert [one.meta["candidates"] for one in groups] == [names[:9], names[9:18], names[18:] + names[:7]]
    assert {(one.guid, one.idx, one.right_choice, one.num_choices) for one in groups} == {("train-7", 7, 0, 1)}
    whole, = wsc(DEV, row)
    assert whole.meta["candidates"] == names and whole.right_choice is None
    assert [len(one.meta["candidates"]) for one in wsc(TRAIN, wsc_row(candidates=[]))] == [0]
    with pytest.raises(ValueError, match="line 1: field 'candidates' is missing: --wsc-negative needs.*wsc_negative"):
        wsc(TRAIN, wsc_row())


def test_wsc_patterns() -> None:
    example, = wsc(TRAIN, wsc_row(candidates=[{"text": "Ann"}]))
    text = "[Ann told Bea that he hit *him* .]"
    for number, end in enumerate((
            " The pronoun '*him*' refers to_.", " In the previous sentence, the pronoun '*him*' refers to_.",
            " Question: In the passage above, what does the pronoun '*him*' refer to? Answer:_.")):
        for options, answers in ((NEGATIVE, [" bea", " Ann"]), (GENERATIVE, [" bea"])):
            options = TaskOptions(**{**vars(options), "pattern_id": number})
            clozes = get_task("wsc", options).fill(example, options)
            assert [(written(one), one.answer) for one in clozes] == [(text + end, answer) for answer in answers]
    assert get_task("wsc", TaskOptions()).classifier_rows(example)[0] == ("Ann told Bea that he hit *him* .", "bea", "")


def test_diagnostic_sets() -> None:
    row = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": "entailment", "idx": 3, "logic": ""}
    example, = read("ax-b", "test", row)
    assert (example.guid, example.text_a, example.text_b, example.label) == (
        "test-3", "It rains.", "It is wet.", "entailment")
    assert written(fill("ax-b", example, 1)[0]) == "[It is wet]?‖_,[ It rains.]"
    spec = get_task("ax-b", TaskOptions())
    examples = [Example("", "", label=label) for label in ("entailment", "entailment", "not_entailment")]
    scores = compute_metrics(spec, examples, [0, 1, 1])
    assert scores == {"accuracy": pytest.approx(200 / 3), "matthews": pytest.approx(0.5)}
    gender, = read("ax-g", "test", {"premise": "p", "hypothesis": "h", "label": "not_entailment", "idx": 0})
    assert gender.label == "not_entailment" and list(get_task("ax-g", TaskOptions()).metrics) == ["accuracy"]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (4, 3), (0, 11), (11, 11)])
def test_record_entities_lie_inside_the_passage(start: int, end: int) -> None:
    row = record_row(1, ["N00"])
    row["passage"]["text"] = "N00 is here"
    row["passage"]["entities"].append({"start": start, "end": end})
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 1: passage\.entities\[1\]\.start = {start}, end = {end}: .*"
                                         "inside its passage of 11 characters"):
        read("record", "train", row)
