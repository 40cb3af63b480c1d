"""Where a run writes: ``<--save>/<experiment>`` for checkpoints, ``tensorboard`` below it for records and results."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from model.checkpoint.naming import (
    BEST_TAG,
    BEST_TRACKER,
    LATEST_TRACKER,
    TRAINING_TRACKER,
    CheckpointLocation,
    read_tracker,
    resolve_checkpoint,
)

#: Replaced by the time in the name of a fine-tuning experiment; the published sweeps write it ("automatic time").
TIME_PLACEHOLDER = "自动时间"
RESULTS, TEST_RESULTS = "results.json", "test_results.json"


@dataclass(frozen=True)
class RunFolder:
    """The run's folders.

    Attributes:
        name: of the experiment.
        checkpoints: None if nothing may be saved.
        logs: metrics, TensorBoard files, results and predictions; None for none of these.
    """

    name: str
    checkpoints: Path | None
    logs: Path | None


def plan_run_folder(args: Any) -> RunFolder:
    """Decide the folders; nothing is made yet. The same on all ranks.

    Pretraining appends the time to the experiment's name, unless ``--load`` continues a run: then its folder goes on.
    """
    name, root = args.experiment_name, Path(args.save) if args.save else None
    if args.finetune:
        name = name.replace(TIME_PLACEHOLDER, _common_time())
    elif args.load and not args.new_save_directory and Path(args.load).exists():
        location = checkpoint_to_resume(args.load)
        directory = (location.directory if location else Path(args.load)).resolve()
        name, root = directory.name, root or directory.parent
    else:
        name = f"{name}_{_common_time()}"
    run = root / name if root is not None else None
    logs = Path(args.log_dir) if args.log_dir else run / "tensorboard" if run is not None else None
    if args.summary_dir and not args.log_dir and (logs is None or args.custom_no_summary_writer):
        logs = Path(args.summary_dir) / "runs" / name
    return RunFolder(name, None if args.custom_no_save_checkpoint else run, logs)


def checkpoint_to_resume(path: str | Path, own_folder: Path | None = None) -> CheckpointLocation | None:
    """The checkpoint that ``--load`` goes on from; None if there is none yet, as after a kill before the first one.

    Args:
        own_folder: of this run. Only there may "best", which has no training state, come before the first checkpoint.

    Raises:
        FileNotFoundError, ValueError: see :func:`resolve_checkpoint`.
    """
    folder = Path(path)
    if not folder.exists():
        return None
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if TRAINING_TRACKER not in names:
        published, tags = read_tracker(folder), [name for name in names if name.isdigit()]
        is_own = own_folder is not None and folder.resolve() == own_folder.resolve()
        is_unpublished = published is None and folder.is_dir() and all(map(_is_of_an_unpublished_run, names))
        if is_unpublished or (published == BEST_TAG and is_own):
            # A folder under the name of an iteration is whole, though no tracker names it yet.
            return CheckpointLocation(folder, max(tags, key=int)) if tags else None
    return resolve_checkpoint(folder, training_state=True)


def _is_of_an_unpublished_run(name: str) -> bool:
    """Whether a killed run may have left it in its folder before it named a checkpoint in a tracker."""
    return (name in ("tensorboard", BEST_TAG, BEST_TRACKER) or name.isdigit() or name.endswith(".new")
            or name in {f".{tracker}.tmp" for tracker in (BEST_TRACKER, LATEST_TRACKER, TRAINING_TRACKER)})


def refuse_to_overwrite(folder: RunFolder, args: Any) -> None:
    """Stop before the first step where an earlier run of the same name has results.

    Raises:
        ValueError: ``test_results.json`` exists, without ``--overwrite`` or ``--load``.
    """
    results = folder.logs / TEST_RESULTS if folder.logs else None
    if results is not None and results.exists() and not (args.overwrite or args.load):
        raise ValueError(
            f"{results} exists: this experiment has been run. Choose another --experiment-name, add --overwrite, or "
            f"continue it with --load")


def _common_time() -> str:
    """The time of rank 0, ``yymmdd_HHMMSS.ffffff``."""
    now = [datetime.now().strftime("%y%m%d_%H%M%S.%f")]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(now, src=0)
    return now[0]
