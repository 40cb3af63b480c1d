"""WSC (Levesque et al. 2012, in SuperGLUE): does a pronoun refer to a given noun phrase?

Three forms. With a classification head: the text and the phrase. With ``--cloze-eval`` the phrase is generated behind
a question (a language-model task). With ``--cloze-eval --wsc-negative`` the phrase competes with candidates, other noun
phrases of the text, which stand in the field ``candidates`` of the files in a folder of their own (``WSC-negative``).
In the two cloze forms only examples whose label is True say anything to train on; the others are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from tasks.examples import Example, Line, Split, standard_punctuation
from tasks.patterns import MASK, SLOT, Cloze, cut
from tasks.spec import ClassifierRow, TaskOptions, TaskSpec

LABELS = ("False", "True")
MAX_TRAINING_CHOICES = 10


def read(lines: Sequence[Line], split: Split, training_form: bool, *, options: TaskOptions) -> list[Example]:
    """Examples in file order; with candidates, training examples of more than 9 become several."""
    examples = []
    for line in lines:
        example = _example(line, split)
        if options.wsc_negative and options.cloze_eval:
            candidates = _candidates(line)
            example = replace(example, meta={**example.meta, "candidates": candidates})
        is_trained_on = training_form or split.kind in ("train", "unlabeled")
        if not (options.cloze_eval and is_trained_on):
            examples.append(example)
        elif split.kind == "unlabeled" or example.label == LABELS[1]:
            examples += _with_few_candidates(example) if options.wsc_negative else [example]
    return examples


def _example(line: Line, split: Split) -> Example:
    target = line.child("target")
    phrase, pronoun = (_span(target, name) for name in ("span1_text", "span2_text"))
    words = standard_punctuation(line.text("text")).split()
    start, at = (_place(words, target, name) for name in ("span1_index", "span2_index"))
    start = _find([word.lower() for word in words], phrase.lower().split(), start)
    at = _find(words, [pronoun], at)
    if words[at] != pronoun and words[at].startswith(pronoun):  # "him." is the pronoun and its full stop
        words[at:at + 1] = [pronoun, words[at][len(pronoun):]]
    if words[at] != pronoun:
        raise target.error(f"target.span2_text {pronoun!r} is not word {at} of the text, nor the word before or after "
                           f"it (there: {' '.join(words[max(at - 1, 0):at + 2])!r}); words are separated by blanks and "
                           "count from 0")
    label = line.label(tuple(label.lower() for label in LABELS), split)
    meta = {"span1_text": phrase, "span2_text": pronoun, "span1_index": start, "span2_index": at}
    idx = line.idx()
    return Example(f"{split.name}-{idx}", " ".join(words), label=None if label is None else label.capitalize(),
                   idx=idx, meta=meta)


def _span(target: Line, name: str) -> str:
    text = target.text(name)
    if not text.strip():
        raise target.error(f"target.{name} is empty; it must be words of the text")
    return text


def _place(words: Sequence[str], target: Line, name: str) -> int:
    index = target.get(name, int)
    if not 0 <= index < len(words):
        raise target.error(f"target.{name} = {index} lies outside the text, which has {len(words)} words (from 0)")
    return index


def _find(words: Sequence[str], wanted: Sequence[str], index: int) -> int:
    """Where ``wanted`` stands: at ``index``, or one word before or after it; else ``index``."""
    for start in (index, index - 1, index + 1):
        if start >= 0 and list(words[start:start + len(wanted)]) == list(wanted):
            return start
    return index


def _candidates(line: Line) -> list[str]:
    """The texts of the candidates without repetitions."""
    if "candidates" not in line.fields:
        raise line.error("field 'candidates' is missing: --wsc-negative needs WSC files with candidates (a list of "
                         "objects with 'text'); make them with python -m tasks.superglue.wsc_negative WSC WSC-negative "
                         "and give that folder as --data-dir, or leave --wsc-negative out")
    return list(dict.fromkeys(candidate.text("text") for candidate in line.children("candidates")))


def _with_few_candidates(example: Example) -> list[Example]:
    """The example with at most 9 candidates beside its phrase: in groups, the last one filled up from the first."""
    candidates, size = example.meta["candidates"], MAX_TRAINING_CHOICES - 1
    groups = [candidates[start:start + size] for start in range(0, len(candidates), size)] or [[]]
    if len(groups) > 1:
        groups[-1] = groups[-1] + candidates[:size - len(groups[-1])]
    return [replace(example, meta={**example.meta, "candidates": group}, right_choice=0) for group in groups]


def _marked(example: Example) -> str:
    """The text with its pronoun as ``*word*``."""
    words = example.text_a.split()
    words[example.meta["span2_index"]] = f"*{words[example.meta['span2_index']]}*"
    return " ".join(words)


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    text, pronoun = cut(_marked(example)), example.meta["span2_text"]
    if options.pattern_id == 0:
        cloze = Cloze((SLOT, text, SLOT, f" The pronoun '*{pronoun}*' refers to", SLOT, MASK, "."))
    elif options.pattern_id == 1:
        question = f" In the previous sentence, the pronoun '*{pronoun}*' refers to"
        cloze = Cloze((SLOT, text, SLOT, question, SLOT, MASK, "."))
    else:
        question = f" Question: In the passage above, what does the pronoun '*{pronoun}*' refer to?"
        cloze = Cloze((SLOT, text, SLOT, question, SLOT, " Answer:", MASK, "."))
    candidates = example.meta["candidates"] if options.wsc_negative else []
    return [cloze.with_answer(f" {phrase}") for phrase in (example.meta["span1_text"], *candidates)]


def _classifier_rows(example: Example) -> list[ClassifierRow]:
    return [ClassifierRow(_marked(example), example.meta["span1_text"])]


def _adapt(spec: TaskSpec, options: TaskOptions) -> TaskSpec:
    spec = replace(spec, read=functools.partial(read, options=options))
    if not options.cloze_eval:
        return spec
    if not options.wsc_negative:
        return replace(spec, head="language_model")
    return replace(spec, choices_are_answers=True, variable_num_choices=True, max_num_choices=MAX_TRAINING_CHOICES,
                   first_choice_is_true=True)


TASK = TaskSpec(
    name="wsc",
    labels=LABELS,
    read=functools.partial(read, options=TaskOptions()),
    fill=_fill,
    classifier_rows=_classifier_rows,
    pattern_ids=(0, 1, 2),
    adapt=_adapt,
)
