"""Data of a dry run: what exists is taken (its beginning), what does not is made up in a temporary folder.

Every function returns the arguments that it changes, and appends to ``notes`` a line for each replacement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_utils import stand_in
from data_utils.corpora import resolve_source
from data_utils.corpora.registry import find_legacy
from data_utils.tokenizers import Tokenizer, tokenizer_from_args
from distill.vocab_init import sort_file_path
from tasks.data import make_split, split_file
from tasks.language_model.data import find_text
from tasks.language_model.spec import LanguageModelTask
from tasks.registry import Task
from tasks.samples import write_samples

#: Documents of a corpus, and lines of a task's file, that are read.
MAX_DOCUMENTS = 1000
MAX_LINES = 16
_DATA_KINDS = ("train", "valid", "test")
Changes = dict[str, Any]


def find_tokenizer(args: Any) -> Tokenizer | None:
    """The tokenizer of the command, None if its vocabulary is not on this machine."""
    try:
        return tokenizer_from_args(args)
    except FileNotFoundError:
        return None


def stand_in_vocabulary(args: Any, folder: Path, task: Task | None, notes: list[str], *, write: bool) -> Changes:
    """A small vocabulary in place of one that is missing; the sizes of compact vocabularies follow it."""
    path = folder / "vocabulary"
    if write:
        path = stand_in.write_vocabulary(path, args.tokenizer_type, _label_words(task))
    elif args.tokenizer_type == "BertWordPieceTokenizer":
        path = path / "vocab.txt"
    elif args.tokenizer_type == "ChineseSPTokenizer":
        path = path / "cog-pretrain.model"
    notes.append(f"no vocabulary {args.tokenizer_model_type or 'of the default name'}: a small one of the generated "
                 "world")
    changes: Changes = {"tokenizer_model_type": str(path)}
    if args.map_vocab_size >= 1:
        share = args.map_vocab_size / stand_in.PUBLISHED_SIZES[args.tokenizer_type]
        changes["map_vocab_size"] = share
        notes.append(f"--map_vocab_size={args.map_vocab_size:g} becomes the same share ({share:.2f}) of it")
    return changes


def _label_words(task: Task | None) -> list[str]:
    return [word for words in task.verbalizers.values() for word in words] if task else []


def vocabulary_map(args: Any, folder: Path, tokenizer: Tokenizer, task: Task | None, notes: list[str], *,
                   write: bool) -> Changes:
    """A compact vocabulary is built, since no weights bring one; so is its sort file where none is in reach."""
    changes: Changes = {}
    if args.teacher_map_vocab_size or any(entry.strip("0.") for entry in args.mt_map_vocab_size.split(":")):
        notes.append("the teachers' compact vocabularies would come with their weights: left out")
        changes.update(teacher_map_vocab_size=0.0, mt_map_vocab_size="")
    if not args.map_vocab_size:
        return changes
    changes["student_build_map_vocab"] = True
    if not args.student_build_map_vocab:
        notes.append("the compact vocabulary would come with the weights: one is built")
    if not sort_file_path(args).is_file():
        path = folder / "vocabulary_order.txt"
        if write:
            stand_in.write_sort_file(path, tokenizer, _label_words(task))
        notes.append(f"no vocabulary sort file {sort_file_path(args)}: one is made of the generated world")
        changes["map_vocab_file"] = str(path)
    return changes


def text_data(args: Any, folder: Path, notes: list[str], *, write: bool) -> Changes:
    """Corpora of pretraining: a missing one is replaced by text of the generated world."""
    changes: Changes = {}
    for kind in _DATA_KINDS:
        names = getattr(args, f"{kind}_data") or []
        missing = [name for name in names if not _has_corpus(name, args)]
        if not missing:
            continue
        path = folder / "text" / f"{kind}.jsonl"
        if write:
            stand_in.write_text(path, MAX_DOCUMENTS, for_training=kind == "train")
        notes += [f"no corpus {name}: text of the generated world" for name in missing]
        changes[f"{kind}_data"] = list(dict.fromkeys(str(path) if name in missing else name for name in names))
        if args.filter_english:
            notes.append("--filter-english is left out: the generated world is English")
            changes["filter_english"] = False
    if args.load_splits:
        notes.append("--load-splits is left out: it is the order of the whole corpus")
        changes["load_splits"] = None
    return changes


def _has_corpus(name: str, args: Any) -> bool:
    """Raises ValueError for a path that is there but cannot be a corpus."""
    if find_legacy(name, args.data_root) is not None:
        return True
    try:
        resolve_source(name, data_root=args.data_root, text_key=args.text_key, loose_json=args.loose_json)
    except FileNotFoundError:
        return False
    return True


def task_data(args: Any, folder: Path, task: Task, notes: list[str], *, write: bool) -> Changes:
    """The first lines of a task's files, or examples of the generated world, or made-up ones in its official form."""
    if isinstance(task, LanguageModelTask):
        return _passages(args, folder, notes, write=write)
    if not args.data_dir:
        return {}
    splits = [make_split(name) for name in [*(args.valid_data or ["dev"]), *(args.test_data or [])]]
    if args.epochs != 0:
        splits.insert(0, make_split(args.train_split, for_training=True))
    form, target = task.files, folder / "task"
    if Path(args.data_dir).is_dir():
        for split in splits:
            source = split_file(args.data_dir, split, args.few_superglue, form)
            if write:
                stand_in.copy_head(source, target / source.name, MAX_LINES)
        return {"data_dir": str(target)}
    files = dict.fromkeys(form.file_name(split.name, args.few_superglue) for split in splits)
    world = stand_in.world_task(task.name)
    notes.append(f"no folder {args.data_dir}: "
                 + (f"{world} of the generated world" if world else f"made-up examples in the form of {task.name}"))
    if write and world:
        stand_in.write_world_task(world, target, files, MAX_LINES)
    elif write:
        write_samples(task, target, files)
    return {"data_dir": str(target)}


def _passages(args: Any, folder: Path, notes: list[str], *, write: bool) -> Changes:
    """Files of a language-model task: text of the generated world in place of a missing one."""
    changes: Changes = {}
    for kind in _DATA_KINDS:
        names = list(getattr(args, f"{kind}_data") or []) if kind != "train" or args.epochs else []
        for number, name in enumerate(names):
            try:
                find_text(name, f"--{kind}-data", args)
            except FileNotFoundError:
                path = folder / "text" / f"{kind}-{number}{Path(name).suffix}"
                if write:
                    stand_in.write_text(path, MAX_LINES, for_training=kind == "train")
                notes.append(f"no file {name}: text of the generated world")
                names[number] = str(path)
        if names:
            changes[f"{kind}_data"] = names
    return changes
