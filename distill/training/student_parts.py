"""Weights out of another student's checkpoint: its trained teachers, or its combiner."""

from __future__ import annotations

from typing import Any

from torch import nn

from model.checkpoint.load import LoadReport, load_into, read_module_state
from model.checkpoint.naming import canonical_name, resolve_checkpoint
from model.checkpoint.nonparameters import restore_nonparameters
from model.parallel.groups import parallel_state
from model.parallel.sharding import ShardSpec, shard_spec_of

COMBINER = "student.multi_teacher_model."


def teacher_prefix(t_no: int) -> str:
    """Where a student's checkpoint keeps teacher ``t_no`` (``--mt_has_grad``)."""
    return f"student.teacher_model_{t_no}."


def load_student_part(module: nn.Module, path: str, prefix: str, *, flag: str, args: Any) -> LoadReport:
    """Fill ``module`` from the entries of a student's checkpoint under ``prefix``.

    The checkpoint may have another model-parallel size, and a precision wrapper's ``module.`` behind the prefix.

    Args:
        flag: that gave ``path``, for messages.

    Raises:
        ValueError: no such entry, or entries that do not fit.
    """
    targets = {canonical_name(name): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    if not targets:
        raise ValueError(f"{flag}={path}: there is nothing to load, {type(module).__name__} has no parameters; remove "
                         "the flag")

    def spec_of(name: str) -> ShardSpec | None:
        own = canonical_name(name.removeprefix(prefix))
        return shard_spec_of(targets[own]) if name.startswith(prefix) and own in targets else None

    state = parallel_state()
    stored, extras = read_module_state(resolve_checkpoint(path), mp_rank=state.model_rank, mp_size=state.model_size,
                                       spec_of=spec_of, trust_pickle=args.trust_checkpoint)
    part = {canonical_name(name.removeprefix(prefix)): tensor for name, tensor in stored.items()
            if name.startswith(prefix)}
    if not part:
        raise ValueError(f"{flag}={path}: the checkpoint has no entry under {prefix} (teachers are saved by "
                         "--mt_has_grad, a combiner by the --multi_teacher_model that has parameters)")
    if prefix != COMBINER:
        restore_nonparameters(module, {name: value for name, value in extras.items() if name == "gelu"}, part,
                              where=path)
    return load_into(targets, part, where=f"{path} ({prefix}*)")
