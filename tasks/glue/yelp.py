"""Yelp reviews (Zhang et al. 2015): good or bad (yelp-polarity), or how many stars (yelp-full)?"""

from __future__ import annotations

from tasks.examples import Example, Line
from tasks.glue.tables import classifier_rows, csv_files, table_reader
from tasks.glue.topics import numbered, without_backslashes
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec


def _review(line: Line) -> str:
    return without_backslashes(line.text("review"))


def _fill(example: Example, options: TaskOptions) -> list[Cloze]:
    text = cut(example.text_a)
    if options.pattern_id == 0:
        return [Cloze(("It was", MASK, ".", text))]
    if options.pattern_id == 1:
        return [Cloze((text, ". All in all, it was", MASK, "."))]
    if options.pattern_id == 2:
        return [Cloze(("Just", MASK, "!"), (text,))]
    return [Cloze((text,), (" In summary, the restaurant is", MASK, "."))]


def _task(name: str, words: tuple[str, ...]) -> TaskSpec:
    return TaskSpec(
        name=name,
        labels=numbered(words),
        read=table_reader(numbered(words), _review),
        fill=_fill,
        classifier_rows=classifier_rows,
        pattern_ids=(0, 1, 2, 3),
        verbalizers=dict.fromkeys(range(4), words),
        files=csv_files("label", "review"),
    )


TASKS = (_task("yelp-polarity", (" bad", " good")),
         _task("yelp-full", (" terrible", " bad", " okay", " good", " great")))
