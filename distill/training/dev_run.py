"""``--fast-dev-run``: would this very command start, and does every loss term and gradient come out finite?

The command is checked with the sizes that it gives, then run for a few steps with narrow layers, short texts and small
batches, in a temporary folder. Heads, layers, losses, engine and launcher are those of the command. Weights are random;
vocabularies, corpora and tasks that are not on this machine are made up, each with a printed line.
"""

from __future__ import annotations

import copy
import logging
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_utils.stand_in import PUBLISHED_SIZES
from data_utils.tokenizers import tokenizer_from_args
from distill.arguments import replace_args
from distill.teachers import teacher_specs
from distill.training import dev_data, dev_sizes
from distill.training.dev_bert import small_bert
from distill.training.rehearsal import Rehearsal
from distill.training.run_folder import plan_run_folder, refuse_to_overwrite
from distill.training.setup import STOPPED, Runtime
from model.checkpoint.naming import resolve_checkpoint, shard_files
from model.parallel import backend
from model.parallel.groups import parallel_state
from tasks.registry import Task, find_task

logger = logging.getLogger(__name__)

MAX_BATCH, MAX_ACCUMULATION = 4, 2
#: Lengths to choose from: the longest with which a step forms no more attention weights than this, else the shortest.
LENGTHS = (128, 96, 64, 48)
MAX_ATTENTION = 40_000_000
#: Exit code of a dry run that found something.
FAILED = 1
_NEVER = 2 ** 31


def dev_run(args: Any, runtime: Runtime, stage: Callable[[Any, Runtime, Rehearsal], bool]) -> int:
    """Try a command out.

    Args:
        args: of the command, as it was given.
        stage: :func:`run_pretraining` or :func:`run_finetuning`.

    Returns:
        The exit code: 0, or :data:`FAILED` if a loss term or the gradient is not what training needs.

    Raises:
        ValueError, FileNotFoundError: what would keep the command from starting.
    """
    began = time.monotonic()
    with _stopped_by_signal(), _scratch_folder(runtime) as folder:
        small = _prepare(args, folder, runtime)
        rehearsal = Rehearsal(args.fast_dev_run, dev_data.MAX_DOCUMENTS)
        started = time.monotonic()
        with _true_paths(args, small):
            if not stage(small, runtime, rehearsal):
                return STOPPED
        problems = _of_all_ranks(rehearsal.problems())
    now = time.monotonic()
    logger.info("\nfast-dev-run: %d step(s) in %.1f s, %.1f s in all\n%s", len(rehearsal.steps), now - started,
                now - began, rehearsal.table())
    if problems:
        logger.error("fast-dev-run FAILED: %s", "; ".join(problems))
        return FAILED
    logger.info("fast-dev-run ok: the command starts%s",
                ", every loss term and the gradient are finite" if rehearsal.trains else "; nothing is trained")
    return 0


@contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """SIGTERM ends the run in the ordinary way, so that the temporary folder goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _scratch_folder(runtime: Runtime) -> Iterator[Path]:
    """One folder for all ranks, removed at the end; every node has it under the same path."""
    name = [tempfile.mkdtemp(prefix="glmkd-dev-run-") if runtime.is_main else None]
    if _is_parallel():
        dist.broadcast_object_list(name, src=0)
    folder = Path(name[0])
    folder.mkdir(exist_ok=True)
    try:
        yield folder
        if _is_parallel():
            dist.barrier()
    finally:
        if runtime.launch.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _true_paths(given: Any, small: Any) -> Iterator[None]:
    """Complaints about a copied data file name the file that was copied."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if not given.data_dir or str(small.data_dir) not in str(error):
            raise
        raise type(error)(str(error).replace(str(small.data_dir), str(given.data_dir))) from error


def _is_parallel() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _of_all_ranks(problems: list[str]) -> list[str]:
    if not _is_parallel():
        return problems
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, problems)
    return list(dict.fromkeys(problem for part in found for problem in part))


def _prepare(args: Any, folder: Path, runtime: Runtime) -> Any:
    """Check the given command and make the small one."""
    notes: list[str] = []
    task = find_task(args.task, args) if args.finetune else None
    if task is not None:
        refuse_to_overwrite(plan_run_folder(args), args)
    writes = runtime.launch.local_rank == 0
    # Data first: what is wrong with a path is found in no time.
    changes = (dev_data.text_data(args, folder, notes, write=writes) if task is None else
               dev_data.task_data(args, folder, task, notes, write=writes))
    if args.pretrained_bert:
        changes.update(small_bert(args, folder, task, notes, write=writes))
        notes += [f"{name}: random weights instead of {path}" for name, path in _checkpoints(args)]
        small = replace_args(args, **changes, **_bounds(args, task, notes), **_outputs(args, folder), **_weights(args))
        _tell(notes, f"batch {small.batch_size} x {small.gradient_accumulation_steps}, sequence {small.seq_length}, in "
                     f"{folder}")
        return small
    tokenizer = dev_data.find_tokenizer(args)
    outline_tokens = tokenizer.num_tokens if tokenizer else _guessed_tokens(args)
    _check_given_sizes(args, outline_tokens, task, notes)
    if tokenizer is None:
        changes.update(dev_data.stand_in_vocabulary(args, folder, task, notes, write=writes))
        if _is_parallel():
            dist.barrier()
        tokenizer = tokenizer_from_args(replace_args(args, **changes))
    small = replace_args(args, **changes)
    changes = dev_data.vocabulary_map(small, folder, tokenizer, task, notes, write=writes)
    small = replace_args(small, **changes, **_bounds(args, task, notes), **_outputs(args, folder), **_weights(args))
    divisor, narrow = dev_sizes.shrunk_widths(small, tokenizer.num_tokens, task)
    small = replace_args(small, **narrow)
    _tell(notes, f"widths divided by {divisor} (--hidden-size {small.hidden_size}), batch {small.batch_size} x "
                 f"{small.gradient_accumulation_steps}, sequence {small.seq_length}, random weights, in {folder}")
    return small


def _tell(notes: list[str], sizes: str) -> None:
    """Print what was replaced, once every rank has its files."""
    if _is_parallel():
        dist.barrier()
    for note in [*notes, sizes]:
        logger.info("fast-dev-run: %s", note)


def _checkpoints(args: Any) -> list[tuple[str, str]]:
    """The checkpoints that the command names: flag or teacher, and path."""
    named = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in ("load", "load_pretrained")]
    named += [] if args.teacher_random_para else [
        (f"teacher {spec.index}", spec.load_pretrained) for spec in teacher_specs(args)]
    named += [(f"--{name}", getattr(args, name)) for name in ("mt_model_load", "mt_load_from_s")]
    return [(name, path) for name, path in named if path]


def _guessed_tokens(args: Any) -> int:
    """Size of a vocabulary that is missing: that of a checkpoint of the command, else the published one."""
    paths = [path for _, path in _checkpoints(args) if dev_sizes.exists(path)]
    sizes = [dev_sizes.stored_vocabulary(path, args) for path in paths] if not args.map_vocab_size else []
    return next((size for size in sizes if size), PUBLISHED_SIZES[args.tokenizer_type])


def _check_given_sizes(args: Any, num_tokens: int, task: Task | None, notes: list[str]) -> None:
    """The rules of model, method and combiner, and the headers of the checkpoints that are there."""
    given = dev_sizes.outline(args, num_tokens, task)
    models = {"--load": given.model, "--load-pretrained": given.model,
              **{f"teacher {number}": teacher for number, teacher in enumerate(given.teachers)}}
    for name, path in _checkpoints(args):
        if not dev_sizes.exists(path):
            notes.append(f"{name}: no checkpoint {path}: random weights")
            continue
        if name in models:
            try:
                dev_sizes.check_header(path, models[name], args, resuming=name == "--load")
            except ValueError as error:
                if not name.startswith("teacher"):
                    raise
                raise ValueError(f"{name}: {error} (for a teacher, flags of sizes begin with --teacher_ or --mt_)"
                                 ) from error
            notes.append(f"{name}: {path} fits; random weights take its place")
        if name == "--load":
            count = len(shard_files(resolve_checkpoint(path, training_state=True).folder))
            if count != args.given_model_parallel_size:
                raise ValueError(f"--load={path} was saved with --model-parallel-size={count}, this run has "
                                 f"{args.given_model_parallel_size}: the optimizer state cannot be cut anew. Convert "
                                 "the weights with change_mp.py and start with --load-pretrained")


def _longest(args: Any, samples: int, task: Task | None) -> int:
    """Tokens of a row; deep models with many heads get shorter ones."""
    rows = samples * (task.max_num_choices or 4 if task is not None and task.is_multi_choice else 1)
    heads = args.num_layers * args.num_attention_heads + sum(
        spec.num_layers * spec.num_attention_heads for spec in teacher_specs(args))
    return next((length for length in LENGTHS if rows * heads * length ** 2 <= MAX_ATTENTION), LENGTHS[-1])


def _bounds(args: Any, task: Task | None, notes: list[str]) -> dict[str, Any]:
    """Batches, lengths and intervals."""
    on_gpu, steps = backend.has_gpu(), args.fast_dev_run
    accumulation = min(args.gradient_accumulation_steps, MAX_ACCUMULATION)
    batch_size = min(args.batch_size, MAX_BATCH)
    longest = _longest(args, batch_size * accumulation, task)
    precision = {} if on_gpu else dict.fromkeys(("fp16", "bf16", "teacher_fp16", "teacher_bf16"), False)
    if not on_gpu and any(getattr(args, name) for name in ("bf16", "teacher_bf16")):
        notes.append("bf16 becomes fp32")
    scatter = args.loader_scatter
    if scatter and parallel_state().data_size % scatter:
        notes.append(f"--loader-scatter={scatter} is left out: there are {parallel_state().data_size} data-parallel "
                     "rank(s) here")
        scatter = None
    return {
        **precision, "batch_size": batch_size, "gradient_accumulation_steps": accumulation,
        "eval_batch_size": min(args.eval_batch_size, MAX_BATCH), "seq_length": min(args.seq_length, longest),
        "overlapping_eval": min(args.overlapping_eval, longest // 2),
        "eval_seq_length": args.eval_seq_length and min(args.eval_seq_length, longest),
        "loader_scatter": scatter, "num_workers": 0, "train_iters": min(args.train_iters, steps),
        "epochs": args.epochs and steps * accumulation, "eval_interval": steps, "eval_iters": 1,
        "eval_epoch": _NEVER, "save_epoch": _NEVER, "save_interval": 0, "save_interval_time": 0.0, "log_interval": 1,
        "custom_first_eval": False, "ft_final_save": True, "custom_no_summary_writer": True,
        "ds_config": _small_ds_config(args.ds_config, batch_size, accumulation, on_gpu)}


def _small_ds_config(config: dict[str, Any] | None, batch_size: int, accumulation: int,
                     on_gpu: bool) -> dict[str, Any] | None:
    if config is None:
        return None
    config = {**copy.deepcopy(config), "train_micro_batch_size_per_gpu": batch_size,
              "gradient_accumulation_steps": accumulation}
    if not on_gpu:
        config.pop("fp16", None)
        config.pop("bf16", None)
    return config


def _outputs(args: Any, folder: Path) -> dict[str, Any]:
    """Everything that a run writes goes to the temporary folder; what was not asked for stays so. Only the scores for
    which a sweep waits (``--custom_tmp_result``) go where it looks for them."""
    paths = {name: str(folder / name) for name in ("save", "summary_dir", "save_test_data") if getattr(args, name)}
    if args.save_splits:
        paths["save_splits"] = str(folder / "splits.npy")
    return {**paths, "log_dir": str(folder / "logs")}


def _weights(args: Any) -> dict[str, Any]:
    """Nothing is loaded."""
    return {"load": None, "load_pretrained": None, "teacher_random_para": True, "mt_model_load": None,
            "mt_load_from_s": None}
