"""The data of a language-model task: evaluation files, and texts to train on if there are any."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_utils.block_lm import BlockLM, BlockLMConfig, collate_rows
from data_utils.tokenizers import Tokenizer
from tasks.data import Batch, TaskData, TrainLoader
from tasks.language_model import LANGUAGE_MODEL_TASKS
from tasks.language_model.spec import LanguageModelTask, Passage, PassageScore
from tasks.language_model.windows import Windows

_LOG = logging.getLogger(__name__)


class EvalTexts:
    """The passages of an evaluation file; iterating gives this rank's batches of windows. Over all ranks each window
    comes once, the longest first, so that the rows of a batch need little padding.

    Attributes:
        name: of the file, without its ending. data: all windows.
    """

    def __init__(self, name: str, data: Windows, *, batch_size: int, data_rank: int = 0, data_size: int = 1) -> None:
        self.name, self.data, self.batch_size = name, data, batch_size
        by_length = sorted(range(len(data)), key=lambda number: -sum(data.windows[number][2:]))
        self.numbers = by_length[data_rank::data_size]

    @property
    def passages(self) -> Sequence[Passage]:
        """All passages, whatever the rank."""
        return self.data.passages

    def __iter__(self) -> Iterator[tuple[Batch, list[int]]]:
        """Batches ``tokens, labels, loss_mask, position_ids, attention_mask`` and the numbers of their windows."""
        for start in range(0, len(self.numbers), self.batch_size):
            numbers = self.numbers[start:start + self.batch_size]
            yield collate_rows([self.data[number] for number in numbers]), numbers


def passage_scores(data: Windows, scores: dict[int, PassageScore]) -> list[PassageScore]:
    """The scores of all windows, by number, put together passage by passage. ValueError if a window has none."""
    if missing := sorted(set(range(len(data))) - set(scores)):
        raise ValueError(f"{len(missing)} of {len(data)} windows have no score, the first is number {missing[0]}; "
                         "collect the parts of all data-parallel ranks")
    parts: list[list[PassageScore]] = [[] for _ in data.passages]
    for number, window in enumerate(data.windows):
        parts[window.passage].append(scores[number])
    return [PassageScore(sum(part.loss for part in own), sum(part.tokens for part in own),
                         all(part.is_right for part in own)) for own in parts]


def passage_lines(task: LanguageModelTask, scores: Sequence[PassageScore]) -> list[dict[str, object]]:
    """What is written about each passage: its number, tokens, the sum of their losses and, where one word is asked for,
    whether it was found."""
    return [{"idx": number, "tokens": score.tokens, "loss": score.loss,
             **({"correct": score.is_right} if task.scores_last_word else {})} for number, score in enumerate(scores)]


def find_text(name: str, flag: str, args: Namespace) -> Path:
    """The file of a name: a path, or one below ``--data-dir``. FileNotFoundError says where it was looked for."""
    places = [Path(name), *([Path(args.data_dir) / name] if args.data_dir else [])]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{flag}={name}: no such file ({' or '.join(map(str, places))}); --task={args.task} reads "
                            "files: plain text, or JSON lines with a text each (.jsonl)")


def build_language_model_data(args: Namespace, tokenizer: Tokenizer, *, data_rank: int = 0, data_size: int = 1,
                              limit: int | None = None) -> TaskData:
    """The windows of ``--valid-data``, ``--test-data`` and, with ``--epochs`` above 0, ``--train-data``.

    Args:
        limit: make only so many windows of each file (dry runs).
    """
    task = LANGUAGE_MODEL_TASKS[args.task.lower()]
    objective = BlockLM(BlockLMConfig.from_args(args), tokenizer, args.seq_length)
    text_key = args.eval_text_key or args.text_key

    def windows(names: Sequence[str], flag: str, key: str = text_key) -> Windows:
        passages = []
        for path in (find_text(name, flag, args) for name in names):
            found = list(task.read(path, key))
            if not found:
                raise ValueError(f"{path} holds no text; name a file with at least one line of it")
            passages += found
        data = Windows(passages, tokenizer, objective, stride=None if task.scores_last_word else args.overlapping_eval,
                       unidirectional=args.unidirectional, limit=limit)
        if not len(data):
            raise ValueError(f"{flag}={' '.join(names)}: the tokenizer makes no token of these texts")
        _LOG.info("task %s: %d passages, %d windows of %s", task.name, len(data.passages), len(data), ", ".join(names))
        return data

    def train_loader(data: Windows, *, repeat: bool = True) -> TrainLoader:
        return TrainLoader(data, batch_size=args.batch_size, seed=args.seed, data_rank=data_rank, data_size=data_size,
                           collate=collate_rows, repeat=repeat)

    def eval_sets(names: Sequence[str], flag: str) -> tuple[EvalTexts, ...]:
        size = args.eval_batch_size or args.batch_size
        return tuple(EvalTexts(name, windows([path], flag), batch_size=size, data_rank=data_rank, data_size=data_size)
                     for name, path in zip(_stems(names), names))

    dev, test = eval_sets(args.valid_data, "--valid-data"), eval_sets(args.test_data or [], "--test-data")
    if not args.epochs:
        return TaskData(task, None, None, dev, test)
    train = train_loader(windows(args.train_data, "--train-data", args.text_key))
    return TaskData(task, train, train_loader(dev[0].data, repeat=False), dev, test)


def _stems(names: Sequence[str]) -> list[str]:
    """The names of files without folder and ending, made different where they are not."""
    stems = [Path(name).stem for name in names]
    return [stem if stems.count(stem) == 1 else f"{stem}-{number}" for number, stem in enumerate(stems)]
