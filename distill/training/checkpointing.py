"""A run on disk: everything that has to be known to go on as if it had never stopped.

Each model-parallel rank of data-parallel rank 0 writes ``mp_rank_XX_model_states.pt``: weights, schedule, random states
of all its data-parallel ranks, data position, state of the method, and the optimizer where all of them have the same.
With ZeRO every rank writes its part of the optimizer to ``zero_pp_rank_D_mp_rank_XX_optim_states.pt``.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distill.training.run_folder import checkpoint_to_resume
from distill.training.session import Best, Session
from model.checkpoint.files import safe_load
from model.checkpoint.load import load_into, read_module_state
from model.checkpoint.naming import (
    BEST_TAG,
    CheckpointLocation,
    canonical_name,
    shard_files,
    stored_folder,
)
from model.checkpoint.nonparameters import restore_nonparameters
from model.checkpoint.rng import capture_rng_states, restore_rng_states
from model.checkpoint.save import module_payload, save_checkpoint
from model.parallel.groups import parallel_state
from model.parallel.random import get_tracker_state, set_tracker_state

logger = logging.getLogger(__name__)

TRACKER_NAME = "model-parallel-rng"


def save_training_state(session: Session, *, tracker: bool = True) -> None:
    """Save everything under the current iteration. Every rank has to call it; does nothing without ``--save``.

    Args:
        tracker: also name it in ``latest_checkpointed_iteration.txt`` (fine-tuning leaves ``best`` there).
    """
    directory = session.folder.checkpoints
    if directory is None:
        return
    args, state, tag = session.args, parallel_state(), str(session.iteration)
    has_optimizer = session.engine is not None and not args.no_save_optim
    rng_states = None if args.no_save_rng else _gather_over_data_parallel(_capture_rng())
    memories = _gather_over_data_parallel(_combiner_memory(session))
    payload = None
    if state.data_rank == 0:
        payload = {**module_payload(session.model), **_progress(session)}
        if rng_states is not None:
            payload["data_parallel_rng_states"] = rng_states
        if any(memories):
            payload["data_parallel_combiner_memory"] = memories
        if has_optimizer:
            payload["client_lr_scheduler" if args.deepspeed else "lr_scheduler"] = session.schedule.state_dict()
            payload["optimizer"] = None if session.engine.is_sharded else session.engine.state_dict()
    more = {}
    if has_optimizer and session.engine.is_sharded:
        more[_optimizer_file(args.bf16)] = {"optimizer_state_dict": session.engine.state_dict()}
    save_checkpoint(
        directory, tag, payload, mp_rank=state.model_rank, mp_size=state.model_size, more=more,
        is_first_rank=session.runtime.is_main, agree=_first_problem, tracker=tracker, training_state=True)
    logger.info("saved iteration %s to %s", tag, directory / tag)


def save_best(session: Session) -> None:
    """Save the weights as ``best``, which stays whole while it is replaced. Every rank has to call it."""
    directory = session.folder.checkpoints
    if directory is None:
        return
    state = parallel_state()
    payload = None
    if state.data_rank == 0:
        payload = {**module_payload(session.model, only_trainable=True), **_progress(session)}
    save_checkpoint(
        directory, BEST_TAG, payload, mp_rank=state.model_rank, mp_size=state.model_size,
        is_first_rank=session.runtime.is_main, agree=_first_problem, best_iteration=session.iteration)


def load_best(session: Session) -> bool:
    """Put the weights of ``best`` into the model, for the last evaluation; False if there is none."""
    directory = session.folder.checkpoints
    if directory is None or stored_folder(directory, BEST_TAG) is None:
        # A run that goes on in another folder may have had its best before.
        directory = session.resumed_from
    if directory is None or stored_folder(directory, BEST_TAG) is None:
        return False
    state, extras = _read(CheckpointLocation(directory, BEST_TAG), session)
    restore_nonparameters(session.model, extras, state, where=str(directory / BEST_TAG))
    load_into(_targets(session.model), state, where=str(directory / BEST_TAG))
    return True


def resume(session: Session) -> bool:
    """``--load``: restore weights, optimizer, schedule, position, random states, method and best score.

    Returns:
        Whether there was something to resume; a path that does not exist starts from scratch, with a warning.

    Raises:
        ValueError: another number of model-parallel ranks, parameters that do not fit, another optimizer layout.
    """
    args = session.args
    if args.load is None:
        return False
    location = checkpoint_to_resume(args.load, session.folder.checkpoints)
    if location is None:
        logger.warning("--load=%s %s: starting from scratch", args.load,
                       "holds no checkpoint to go on from yet" if Path(args.load).exists() else "does not exist")
        return False
    size = parallel_state().model_size
    if (count := len(shard_files(location.folder))) != size:
        raise ValueError(
            f"--load={args.load} was saved with --model-parallel-size={count}, this run has {size}: the optimizer "
            f"state cannot be cut anew. Convert the weights with change_mp.py and start with --load-pretrained")
    state, extras = _read(location, session)
    restore_nonparameters(session.model, extras, state, where=str(location.folder))
    report = load_into(_targets(session.model), state, where=str(location.folder))
    if report.missing:
        raise ValueError(f"--load={args.load} lacks {', '.join(report.missing[:5])}: it belongs to another run; start "
                         f"from its weights with --load-pretrained")
    if location.release:
        _refresh_masters(session)
        return True
    session.resumed_from = location.directory
    _restore_progress(session, extras)
    _restore_combiner(session, extras)
    _restore_optimizer(session, location, extras)
    if not args.no_load_rng and (states := extras.get("data_parallel_rng_states")):
        _restore_rng(states)
    logger.info("resumed from iteration %d of %s", session.iteration, location.folder)
    return True


def _read(location: CheckpointLocation, session: Session) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    state = parallel_state()
    return read_module_state(location, mp_rank=state.model_rank, mp_size=state.model_size,
                             trust_pickle=session.args.trust_checkpoint)


def _targets(model: nn.Module) -> dict[str, torch.Tensor]:
    return {canonical_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}


def _progress(session: Session) -> dict[str, Any]:
    """What has been done so far, in plain values."""
    # A method with a state that does not follow from the iteration has method_state() and load_method_state(state).
    method_state = getattr(session.context.student, "method_state", None)
    return {
        "iteration": session.iteration,
        "training": {
            "position": session.position, "steps": session.steps, "epochs_done": session.epochs_done,
            "pending_from": session.pending_from, "cut": _cut(session),
            "train_iters": session.run.train_iters, "best": asdict(session.best)},
        "method_state": method_state() if method_state is not None else {}}


def _cut(session: Session) -> dict[str, int]:
    """How the run cuts its data; positions are counted in these pieces."""
    return {"batch_size": session.args.batch_size, "accumulation": session.source.accumulation if session.source else 1,
            "data_parallel": parallel_state().data_size}


def _check_cut(session: Session, saved: dict[str, int]) -> None:
    own = _cut(session)
    if session.source is not None and saved != own:
        words = [", ".join(f"{name.replace('_', '-')} {value}" for name, value in cut.items()) for cut in (saved, own)]
        raise ValueError(f"--load={session.args.load} was saved by a run with {words[0]}; this one has {words[1]}, and "
                         "the place in the data is counted in these. Keep --batch-size, accumulation and the number of "
                         "ranks, or start from the weights with --load-pretrained")


def _combiner_memory(session: Session) -> dict[str, Any]:
    """What the combiner carries from step to step beside its parameters, on the CPU."""
    combiner = session.context.combiner
    return {} if combiner is None else _on_cpu(combiner.memory())


def _on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_cpu(entry) for name, entry in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _restore_combiner(session: Session, extras: dict[str, Any]) -> None:
    memories, rank = extras.get("data_parallel_combiner_memory"), parallel_state().data_rank
    if session.context.combiner is None or not memories:
        return
    if len(memories) != parallel_state().data_size:
        logger.warning("the combiner starts without memory: the checkpoint has that of %d data-parallel ranks, this "
                       "run has %d", len(memories), parallel_state().data_size)
        return
    session.context.combiner.restore_memory(memories[rank])


def _restore_progress(session: Session, extras: dict[str, Any]) -> None:
    training = extras.get("training")
    if training is None:
        # Written by another program: its iterations are ours, in pretraining.
        session.position = int(extras.get("iteration") or 0) * session.source.per_iteration
        session.steps = int(extras.get("iteration") or 0)
        return
    _check_cut(session, training.get("cut", _cut(session)))
    session.position, session.steps = int(training["position"]), int(training["steps"])
    session.epochs_done = int(training["epochs_done"])
    session.pending_from = training.get("pending_from")
    session.best = Best(**training["best"])
    if extras.get("method_state"):
        session.context.student.load_method_state(extras["method_state"])


def _restore_optimizer(session: Session, location: CheckpointLocation, extras: dict[str, Any]) -> None:
    args, engine = session.args, session.engine
    if engine is None:
        return
    schedule = extras.get("client_lr_scheduler") or extras.get("lr_scheduler")
    if schedule and not args.no_load_lr_scheduler:
        session.schedule.load_state_dict(schedule)
    if args.no_load_optim:
        _refresh_masters(session)
        return
    if engine.is_sharded:
        path = location.folder / _optimizer_file(args.bf16)
        if not path.is_file():
            raise ValueError(f"{path} is missing: the run was saved by another number of ranks, or without ZeRO; add "
                             f"--no-load-optim to go on with a fresh optimizer")
        engine.load_state_dict(safe_load(path, args.trust_checkpoint)["optimizer_state_dict"])
        return
    state = extras.get("optimizer")
    if state is None:
        raise ValueError(f"{location.folder} has no optimizer state for this engine; add --no-load-optim to go on with "
                         f"a fresh optimizer")
    engine.load_state_dict(state)


def _refresh_masters(session: Session) -> None:
    if session.engine is not None:
        session.engine.refresh_master_weights()


def _optimizer_file(bf16: bool) -> str:
    state = parallel_state()
    prefix = "bf16_" if bf16 else ""
    return f"{prefix}zero_pp_rank_{state.data_rank}_mp_rank_{state.model_rank:02d}_optim_states.pt"


def _capture_rng() -> dict[str, Any]:
    tracker = get_tracker_state()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return capture_rng_states({} if tracker is None else {TRACKER_NAME: tracker}, cuda)


def _restore_rng(states: list[dict[str, Any]]) -> None:
    rank = parallel_state().data_rank
    if len(states) != parallel_state().data_size:
        logger.warning("the checkpoint has random states of %d data-parallel ranks, this run has %d", len(states),
                       parallel_state().data_size)
    mine = states[rank % len(states)]
    restore_rng_states(mine)
    if mine.get("cuda_rng_state") is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["cuda_rng_state"])
    if mine.get("rng_tracker_states"):
        set_tracker_state(mine["rng_tracker_states"][TRACKER_NAME])


def _gather_over_data_parallel(value: Any) -> list[Any]:
    state = parallel_state()
    if state.data_size == 1:
        return [value]
    gathered: list[Any] = [None] * state.data_size
    dist.all_gather_object(gathered, value, group=state.data_group)
    return gathered


def _first_problem(problem: str) -> str:
    """Wait for all ranks; the first problem that one of them has, "" if none has any."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return problem
    problems: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((text for text in problems if text), "")
