"""AFQMC, TNEWS and CLUEWSC (Xu et al. 2020, CLUE): Chinese tasks, for the tokenizer ChineseSPTokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.examples import Example, Line, Split
from tasks.files import FileFormat, read_lines
from tasks.glue.tables import classifier_rows, column, table_reader
from tasks.patterns import MASK, SLOT, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec

_FILES = FileFormat(read_lines, {name: f"{name}.json" for name in ("train", "dev", "test")}, suffix=".json")
_AFQMC_LABELS = ("0", "1")
_TNEWS_WORDS = {
    "100": "故事", "101": "文化", "102": "娱乐", "103": "体育", "104": "金融", "106": "居家", "107": "汽车",
    "108": "教育", "109": "科技", "110": "军事", "112": "旅游", "113": "世界", "114": "股票", "115": "农业",
    "116": "游戏",
}
_WSC_LABELS = ("false", "true")


def _fill_afqmc(example: Example, options: TaskOptions) -> list[Cloze]:
    first, second = cut(example.text_a), cut(example.text_b or "")
    if options.pattern_id == 0:
        return [Cloze((first, "？"), ("你是说", second, "？", MASK, "。"))]
    return [Cloze((first, "？"), (MASK, "，", second))]


def _fill_tnews(example: Example, options: TaskOptions) -> list[Cloze]:
    return [Cloze(("标题：", cut(example.text_a), "关键词：", cut(example.text_b or ""), "类别：", MASK))]


def _read_wsc(lines: Sequence[Line], split: Split, training_form: bool) -> list[Example]:
    return [Example(f"{split.name}-{number}", _marked(line), label=line.label(_WSC_LABELS, split), idx=-1,
                    meta={name: line.child("target").text(name) for name in ("span1_text", "span2_text")})
            for number, line in enumerate(lines)]


def _marked(line: Line) -> str:
    """The text with ``#`` around the noun (span1) and ``*`` around the pronoun (span2), by character index."""
    text, target, marks = line.text("text"), line.child("target"), []
    for name, mark in (("span1", "#"), ("span2", "*")):
        start, span = target.get(f"{name}_index", int), target.text(f"{name}_text")
        if not 0 <= start <= start + len(span) <= len(text):
            raise target.error(f"target.{name}_index = {start}: {span!r} does not lie inside the text of {len(text)} "
                               "characters (from 0)")
        marks += [(start, mark), (start + len(span), mark)]
    for place, mark in sorted(marks, reverse=True):
        text = text[:place] + mark + text[place:]
    return text


def _fill_wsc(example: Example, options: TaskOptions) -> list[Cloze]:
    text, noun = cut(example.text_a), example.meta["span1_text"]
    pronoun = f"代词'*{example.meta['span2_text']}*'"
    if options.pattern_id == 0:
        return [Cloze((SLOT, text, pronoun, MASK, f"指#{noun}#."))]
    return [Cloze(("在如下的句子中：", text, pronoun, MASK, f"指'#{noun}#'."))]


AFQMC = TaskSpec(
    name="afqmc",
    labels=_AFQMC_LABELS,
    read=table_reader(_AFQMC_LABELS, column("sentence1"), column("sentence2")),
    fill=_fill_afqmc,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1),
    verbalizers=dict.fromkeys((0, 1), ("▁不是", "▁是")),
    files=_FILES,
)
TNEWS = TaskSpec(
    name="tnews",
    labels=tuple(_TNEWS_WORDS),
    read=table_reader(tuple(_TNEWS_WORDS), column("sentence"), column("keywords")),
    fill=_fill_tnews,
    classifier_rows=classifier_rows,
    pattern_ids=(0,),
    verbalizers={0: tuple(_TNEWS_WORDS.values())},
    files=_FILES,
)
CLUEWSC = TaskSpec(
    name="cluewsc",
    labels=_WSC_LABELS,
    read=_read_wsc,
    fill=_fill_wsc,
    classifier_rows=classifier_rows,
    pattern_ids=(0, 1),
    verbalizers=dict.fromkeys((0, 1), ("不是", "是")),
    files=_FILES,
)
TASKS = (AFQMC, TNEWS, CLUEWSC)
