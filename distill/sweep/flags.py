"""The launcher's command line: its own flags, and words for the training script, which it passes on in order."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from distill.sweep.presets import Presets, load_presets, nearest
from distill.sweep.search_flags import add_search_flags
from distill.sweep.types import FlagPair

DATA_ROOT = "../GLM/data"
DEFAULT_SCRIPT = "distill/finetune.py"
DEFAULT_TASKS = "copa,wsc_generative,cb,rte,boolq,wic,wsc,multirc,record"
_OVERRIDE, _RATE, _ARG_RATE = "--ds_", "--rate_ds_", "--rate_arg_"
_STAGE = re.compile(r"--again_(\d+)__(\S+)")
_FLAG = re.compile(r"--[A-Za-z][\w-]*")
_DECLARED = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer__params__lr")


@dataclass(frozen=True)
class SweepArgs:
    """A command line of the launcher, taken apart.

    Attributes:
        words: as given.
        known: the launcher's own flags, by argparse's names.
        presets: what ``--model``, ``--script``, ``--tasks`` and ``--epoch_type`` name.
        tasks: the task presets, in order.
        forwarded: flags of the training script, for every stage.
        stage_flags: (K, flag) of ``--again_K__<flag>``, in the order given.
        overrides: path in the DeepSpeed file (``optimizer__params__lr``) -> text, maybe a list with ``;``.
        rates: the same paths -> factor.
        model_paths: task preset -> start checkpoint.
        chosen: flags (a stage's as ``--again_K__name``) whose value is that of a trial, not of the command line.
    """

    words: tuple[str, ...]
    known: argparse.Namespace
    presets: Presets
    tasks: tuple[str, ...]
    forwarded: tuple[FlagPair, ...]
    stage_flags: tuple[tuple[int, FlagPair], ...]
    overrides: Mapping[str, str]
    rates: Mapping[str, Fraction]
    model_paths: Mapping[str, str]
    chosen: frozenset[str] = frozenset()

    @property
    def data_root(self) -> str:
        """Where checkpoints and data lie: ``--data-root``, which is also passed on, or the published place."""
        return str(Path(dict(self.forwarded).get("--data-root") or DATA_ROOT).expanduser())

    @property
    def script(self) -> str:
        """The training script, as it is named."""
        return self.known.py_file or DEFAULT_SCRIPT

    @property
    def is_dry(self) -> bool:
        """Whether commands are printed only."""
        return self.known.test or bool(self.known.print_only) or not self.words


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells defaults, where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "") or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """No abbreviations: a flag of the training script is never taken for the beginning of another one."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(argv: Sequence[str]) -> SweepArgs:
    """Take a command line apart.

    Raises:
        SystemExit: for ``--help``.
        ValueError: words that are no flags, unknown presets, values of the wrong type.
    """
    words = tuple(argv)
    early = _Parser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset_path")
    presets = load_presets(early.parse_known_args(words)[0].preset_path)
    known, rest = build_parser(presets).parse_known_args(words)
    forwarded, stage_flags, overrides, rates = [], [], _declared(known, "ds_"), _declared(known, "rate_ds_")
    for name, value in _pairs(rest):
        if match := _STAGE.fullmatch(name):
            stage_flags.append((int(match[1]), (f"--{match[2]}", value)))
        elif name.startswith(_RATE):
            rates[name.removeprefix(_RATE)] = _factor(name, value)
        elif name.startswith(_OVERRIDE):
            overrides[name.removeprefix(_OVERRIDE)] = _needed(name, value)
        elif name.startswith(_ARG_RATE):
            raise ValueError(f"{name}: only --rate_arg_epochs is known")
        elif name.startswith("--again_"):
            raise ValueError(f"{name} is no stage flag; write --again_1__<flag> with two underscores")
        else:
            forwarded.append((name, value))
    return SweepArgs(words, known, presets, _tasks(known, presets), tuple(forwarded), tuple(stage_flags), overrides,
                     rates, {task: path for task in presets.task_names()
                             if (path := getattr(known, f"{task}_model_path")) is not None})


def build_parser(presets: Presets) -> argparse.ArgumentParser:
    """The parser of the launcher's own flags."""
    parser = _Parser(
        prog="distill/auto_tune.py", allow_abbrev=False, formatter_class=_HelpFormatter,
        usage="%(prog)s --model=M --tasks=A,B --flag=value …",
        description="Fine-tune a model on a list of tasks, one command after another or several side by side, and "
                    "collect the scores. Flags that are not listed here go to the training script (--data-root also "
                    "says where the launcher finds checkpoints and data). Without any argument, the commands of the "
                    "default presets and some samples are printed.")
    _add_plan_flags(parser, presets)
    _add_deepspeed_flags(parser)
    _add_stage_flags(parser)
    add_search_flags(parser)
    return parser


def flag_names(presets: Presets) -> list[str]:
    """Every flag of the launcher."""
    return [option for action in build_parser(presets)._actions for option in action.option_strings]


def factor(text: str) -> Fraction:
    """An exact factor (``0.25``, ``1/4``).

    Raises:
        argparse.ArgumentTypeError: no number, or one below 0.
    """
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no factor; write a number such as 0.25, or a fraction (1/4)")
    return value


def _add_plan_flags(parser: argparse.ArgumentParser, presets: Presets) -> None:
    group = parser.add_argument_group("Presets")
    group.add_argument("--model", default="block_tiny6", help=f"model preset: {', '.join(presets.models)}")
    group.add_argument("--tasks", default=DEFAULT_TASKS, help="task presets, in the order in which they run")
    group.add_argument("--script", default="finetune_superglue", help=f"command preset: {', '.join(presets.scripts)}")
    group.add_argument("--py_file", default="distill/finetune.py", help="training script")
    group.add_argument("--gpus", default="6", help="device ids, or hosts with ids (host:0,1@other:2)")
    group.add_argument("--epoch_type", default="EPOCH_SINGLE", help=f"table of epochs: {', '.join(presets.epochs)}")
    group.add_argument("--epoch_rate", type=factor, default=Fraction(1),
                       help="times every number of that table, rounded up")
    group.add_argument("--rate_arg_epochs", type=factor, default=Fraction(1),
                       help="times the --epochs of every command, rounded down")
    group.add_argument("--mask_ratio", default="0.1", help="masked share of seq_blank")
    group.add_argument("--model_path", default=None, metavar="PATH", help="start checkpoint, below --data-root")
    for task in presets.task_names():
        group.add_argument(f"--{task}_model_path", default=None, help=argparse.SUPPRESS)
    group.add_argument("--<task>_model_path", dest="_", metavar="PATH", help="start checkpoint of one task preset")
    group.add_argument("--save_sub", default=None,
                       help="folder for results below the start checkpoint (default: ft_<student_model>, or after the "
                            "command preset)")
    group.add_argument("--preset_path", default=None, metavar="FOLDER",
                       help="presets of your own, in the form of config/sweep")
    group.add_argument("--del_checkpoint_activations", action="store_true", help="leave out --checkpoint-activations")
    group.add_argument("--fix_module_parameters_mp", default="", metavar="A;B",
                       help="parameters that every rank holds whole where a checkpoint is cut for another "
                            "--model-parallel-size")
    group = parser.add_argument_group("Printing")
    group.add_argument("--test", action="store_true", help="print the commands and change nothing")
    group.add_argument("--show_tune", default="", metavar="FILE",
                       help="print the scores of a results file or study, and stop")
    group.add_argument("--show_presets", action="store_true",
                       help="print models with their numbers of parameters, tasks and teacher entries, and stop")


def _add_deepspeed_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "DeepSpeed file", "--ds_A__B=VALUE sets entry B of block A, whichever it is; 'x;y;z' is one value for each "
                          "task. A changed file is written to tmp_deepspeed_config/ when the command runs.")
    for path in _DECLARED:
        group.add_argument(f"--ds_{path}", default=None, metavar="VALUE[;…]",
                           help=f"value of {path.replace('__', '.')}")
    for path in _DECLARED[:2]:
        group.add_argument(f"--rate_ds_{path}", type=factor, default=None, metavar="FACTOR",
                           help=f"times --ds_{path}; whole numbers are rounded down")
    group.add_argument("--del_fp16", action="store_true", help="train in fp32, without ZeRO")
    group.add_argument("--big_task", default="record", help="tasks that need more memory")
    group.add_argument("--big_task_gpus", default=None,
                       help="device ids for these tasks; without it they run as the others do")
    group.add_argument("--big_task_dsc_suffix", default="_big_task",
                       help="suffix of the DeepSpeed file's name for these tasks")


def _add_stage_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "Distillation and stages", "--again_K__<flag> adds a further stage K to every task: the flags of the first "
        "stage, replaced by those of the same name; a flag that is repeated as it was is left out. A further stage "
        "starts from the result of the first one (see --stage_from).")
    group.add_argument("--task_t_load", default=None, metavar="ENTRY",
                       help="teachers, by the name of an entry; without it there are no further stages")
    group.add_argument("--task_t_load_path", default="distill/task_t_load.json", help="file of the entries")


def _declared(known: argparse.Namespace, prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in vars(known).items()
            if name.startswith(prefix) and value is not None}


def _pairs(words: Sequence[str]) -> Iterator[FlagPair]:
    """Flags from words; a word that is no flag is the value of the flag before it."""
    pending: str | None = None
    for word in words:
        if _is_flag(word):
            if pending is not None:
                yield pending, None
            name, equals, value = word.partition("=")
            if not _FLAG.fullmatch(name):
                raise ValueError(f"{word!r} is no flag; write --name, --name=value or --name value")
            pending = None if equals else name
            if equals:
                yield name, value
        elif pending is None:
            raise ValueError(f"{word!r} belongs to no flag; write --name=value, in quotes where the value has spaces")
        else:
            yield pending, word
            pending = None
    if pending is not None:
        yield pending, None


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-[\d.].*", word)


def _factor(name: str, value: str | None) -> Fraction:
    try:
        return factor(_needed(name, value))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from None


def _needed(name: str, value: str | None) -> str:
    if not value:
        raise ValueError(f"{name} needs a value")
    return value


def _tasks(known: argparse.Namespace, presets: Presets) -> tuple[str, ...]:
    """The task presets of ``--tasks``."""
    names = [name.strip() for name in known.tasks.split(",")]
    for kind, name, table in (("--model", known.model, presets.models), ("--script", known.script, presets.scripts),
                              ("--epoch_type", known.epoch_type, presets.epochs)):
        if name not in table:
            raise ValueError(f"{kind}={name} is not known{nearest(name, table)}; there are {', '.join(table)}")
    table = presets.scripts[known.script].tasks
    for name in names:
        if name not in table:
            home = next((script for script, preset in presets.scripts.items() if name in preset.tasks), None)
            hint = f"; it belongs to --script={home}" if home else nearest(name, table)
            raise ValueError(f"--tasks: {name!r} is no task preset of --script={known.script}{hint}; there are "
                             f"{', '.join(table)}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--tasks names {twice[0]} twice; to try several values of a flag write --flag=grid:a,b")
    return tuple(names)
