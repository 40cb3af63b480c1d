"""What a task is (:class:`TaskSpec`) and the options of the command line that shape it (:class:`TaskOptions`)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from tasks.examples import Example, Label, Line, Split
from tasks.files import JSON_LINES, FileFormat
from tasks.metrics import Metric, accuracy
from tasks.patterns import Cloze


@dataclass(frozen=True)
class TaskOptions:
    """The options that readers, patterns and encoder need; field names are those of the flags.

    ``bpe_word_with_blank`` has no flag: see :func:`tasks.encoding.verbalizer_id`.
    """

    cloze_eval: bool = False
    pattern_id: int = 0
    multi_token: bool = False
    seq_length: int = 512
    no_block_position: bool = False
    masked_lm: bool = False
    few_superglue: bool = False
    fix_variable_num_choices: bool = False
    continuous_prompt: bool = False
    num_prompt_tokens: int = 0
    prefix_prompt: int = 0
    wsc_negative: bool = False
    fast_decode: bool = False
    segment_length: int = 0
    bpe_word_with_blank: bool = True

    @classmethod
    def from_args(cls, args: Namespace) -> TaskOptions:
        """Reads the flags that ``args`` has; the others keep their defaults."""
        return cls(**{one.name: getattr(args, one.name) for one in fields(cls) if hasattr(args, one.name)})


class ClassifierRow(NamedTuple):
    """Texts of the classifier form: ``ENC first sep second``; ``suffix`` is tokenized apart and follows directly."""

    first: str
    second: str
    suffix: str = ""


Reader = Callable[[Sequence[Line], Split, bool], list[Example]]


@dataclass(frozen=True)
class TaskSpec:
    """One task.

    Attributes:
        name: in lower case.
        labels: in the order of the model's outputs.
        read: ``read(lines, split, training_form)`` -> examples in file order.
        files: which files hold the splits, and their format.
        fill: ``fill(example, options)`` -> one filled pattern without answer, or one with answer for each choice.
        classifier_rows: the same for the form without ``--cloze-eval``; None where the task has no such form.
        pattern_ids: the known values of ``--pattern-id``.
        verbalizers: pattern id -> label words in label order (empty where the choices are the answers).
        metrics: name -> function, the first one decides which epoch is best.
        choices_are_answers: the choices stand in the example (COPA, ReCoRD, ...) instead of being the labels.
        variable_num_choices, max_num_choices: whether examples differ in their number of choices, and its bound in
            training; only then does a batch say which choices are real.
        first_choice_is_true: choice 0 is what the question asks about (WSC with candidates): the prediction is label 1
            where it wins, label 0 where another choice does.
        prediction: ``prediction(example, index)`` -> what the prediction file says; default: the label.
        prediction_lines: all lines of the prediction file, where they are not one ``{"idx", "label"}`` an example.
        adapt: ``adapt(spec, options)`` -> the task as these options want it.
        is_multi_token, head: filled in by :func:`tasks.registry.get_task`. ``head`` is "multi_token" (answers of
            several tokens, one row a choice), "single_token" (label words in the blank), "language_model" (one text,
            the loss is that of its blank; WSC without candidates) or "classification".
    """

    name: str
    labels: tuple[Label, ...]
    read: Reader
    fill: Callable[[Example, TaskOptions], list[Cloze]]
    classifier_rows: Callable[[Example], list[ClassifierRow]] | None
    pattern_ids: tuple[int, ...]
    verbalizers: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": accuracy})
    files: FileFormat = JSON_LINES
    choices_are_answers: bool = False
    variable_num_choices: bool = False
    max_num_choices: int | None = None
    first_choice_is_true: bool = False
    prediction: Callable[[Example, int], object] | None = None
    prediction_lines: Callable[[Sequence[Example], Sequence[int]], list[dict[str, object]]] | None = None
    adapt: Callable[[TaskSpec, TaskOptions], TaskSpec] | None = None
    is_multi_token: bool = False
    head: str = "classification"

    @property
    def is_multi_choice(self) -> bool:
        """Whether a sample has one row a choice: ``text`` is [c, s] instead of [s]."""
        return self.head != "language_model" and (self.is_multi_token or self.choices_are_answers)

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classification head; None: one score a choice."""
        return None if self.choices_are_answers else len(self.labels)

    def label_index(self, example: Example) -> int:
        """Index of the example's right choice or label; 0 where it has none."""
        if example.right_choice is not None:
            return example.right_choice
        return 0 if example.label is None else self.labels.index(example.label)

    def predicted_label(self, example: Example, index: int) -> object:
        """What the prediction file says for the predicted choice or class ``index``."""
        return self.prediction(example, index) if self.prediction else self.labels[index]
