"""AG News and Yahoo Answers (Zhang et al. 2015): what is a text about? ``train.csv``, ``test.csv``, no dev file."""

from __future__ import annotations

from tasks.examples import Example, Line
from tasks.glue.tables import Text, classifier_rows, csv_files, table_reader
from tasks.patterns import MASK, Cloze, cut
from tasks.spec import TaskOptions, TaskSpec

_AGNEWS_WORDS = (" World", " Sports", " Business", " Tech")
_YAHOO_WORDS = (" Society", " Science", " Health", " Education", " Computer", " Sports", " Business", " Entertainment",
                " Relationship", " Politics")


def without_backslashes(text: str) -> str:
    """The text with each backslash, together with an ``n`` behind it, replaced by a blank."""
    return text.replace("\\n", " ").replace("\\", " ")


def _agnews_text(name: str) -> Text:
    return lambda line: line.text(name).replace("\\", " ")


def _question(line: Line) -> str:
    """Title and body of a question."""
    return " ".join(without_backslashes(line.text(name)) for name in ("title", "body"))


def _answer(line: Line) -> str:
    return without_backslashes(line.text("answer"))


def _fill(example: Example, pattern_id: int, kind: str) -> list[Cloze]:
    first, second = cut(example.text_a), cut(example.text_b or "")
    return [Cloze((
        (MASK, ":", first, second),
        (MASK, kind, first, second),
        (first, "(", MASK, ")", second),
        (first, second, "(", MASK, ")"),
        ("[ Category:", MASK, "]", first, second),
        (MASK, "-", first, second),
    )[pattern_id])]


def _fill_agnews(example: Example, options: TaskOptions) -> list[Cloze]:
    return _fill(example, options.pattern_id, " News:")


def _fill_yahoo(example: Example, options: TaskOptions) -> list[Cloze]:
    return _fill(example, options.pattern_id, " Question:")


def numbered(words: tuple[str, ...]) -> tuple[str, ...]:
    """The labels "1", "2", ... of so many classes."""
    return tuple(str(number + 1) for number in range(len(words)))


AGNEWS = TaskSpec(
    name="agnews",
    labels=numbered(_AGNEWS_WORDS),
    read=table_reader(numbered(_AGNEWS_WORDS), _agnews_text("title"), _agnews_text("description")),
    fill=_fill_agnews,
    classifier_rows=classifier_rows,
    pattern_ids=tuple(range(6)),
    verbalizers=dict.fromkeys(range(6), _AGNEWS_WORDS),
    files=csv_files("label", "title", "description"),
)
YAHOO = TaskSpec(
    name="yahoo",
    labels=numbered(_YAHOO_WORDS),
    read=table_reader(numbered(_YAHOO_WORDS), _question, _answer),
    fill=_fill_yahoo,
    classifier_rows=classifier_rows,
    pattern_ids=tuple(range(6)),
    verbalizers=dict.fromkeys(range(6), _YAHOO_WORDS),
    files=csv_files("label", "title", "body", "answer"),
)
TASKS = (AGNEWS, YAHOO)
