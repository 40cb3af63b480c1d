"""Reading weights into a model: names, model-parallel size, position tables and shapes are brought in line, or the
difference is named.

Axes: P is ``--max-position-embeddings``; position tables have P + 1 rows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoint.huggingface import check_sizes, read_merged, tell_other_pooling
from model.checkpoint.naming import CheckpointLocation, canonical_name, resolve_checkpoint, shard_files
from model.checkpoint.nonparameters import backbone_of, restore_nonparameters
from model.checkpoint.reshard import (
    PRESERVED,
    SpecOf,
    State,
    plan,
    read_payload,
    reshard_for_rank,
    specs_of_payload,
)
from model.parallel.sharding import ShardSpec, shard_spec_of

logger = logging.getLogger(__name__)

#: Layers of a distillation student: a student checkpoint is an ordinary GLM checkpoint beside them.
STUDENT_PREFIXES = ("student.",)
#: Layers of a classification head, for callers that want the backbone only.
HEAD_PREFIXES = ("pool_layer.", "multichoice_head.")

_POSITION_TABLE = re.compile(r"(.*\.)?(block_)?position_embeddings\.weight")


@dataclass
class LoadReport:
    """What a load did.

    Attributes:
        missing: parameters of the model that the file does not have; they keep their values.
        unexpected: parameters of the file that the model does not have, all of them allowed by the caller.
        resized: position tables that were longer than the stored ones.
        extras: the other entries of the file (``iteration``, ``important_nonparameters`` …).
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)


def read_module_state(source: CheckpointLocation | str | Path, *, mp_rank: int, mp_size: int,
                      spec_of: SpecOf | None = None, trust_pickle: bool = False,
                      safe_classes: Iterable[Any] = ()) -> tuple[State, dict[str, Any]]:
    """Read this rank's part of a checkpoint of any model-parallel size that divides the tensors, or of a folder in the
    Hugging Face layout.

    Args:
        spec_of: how a parameter (canonical name) is cut, for files that do not say it; None for "don't know".
        trust_pickle, safe_classes: see :func:`model.checkpoint.files.safe_load`; a folder in the Hugging Face layout
            is read in the safe mode only.

    Returns:
        canonical name -> this rank's tensor on the CPU, in the stored dtype; and the other entries of the file. If the
        size changes, only those that do not belong to one rank's optimizer are kept.

    Raises:
        FileNotFoundError, ValueError: see :func:`resolve_checkpoint` and :func:`read_payload`; a tensor that does not
            divide; two entries for one parameter.
    """
    location = source if isinstance(source, CheckpointLocation) else resolve_checkpoint(source)
    folder = location.folder
    files = [folder] if location.merged else shard_files(folder)
    sources, parts, part = plan(len(files), mp_size, mp_rank)
    payloads = [read_merged(folder)] if location.merged else [
        read_payload(files[rank], trust_pickle, safe_classes=safe_classes) for rank in sources]
    extras = {key: value for key, value in payloads[0].items() if key not in ("module", "shard_specs")}
    if len(files) == mp_size:
        return _with_canonical_names(payloads[0]["module"], files[mp_rank]), extras
    specs = specs_of_payload(payloads[0], spec_of)
    try:
        state = reshard_for_rank([payload["module"] for payload in payloads], specs, parts, part)
    except ValueError as error:
        raise ValueError(f"{folder} has model-parallel size {len(files)} and cannot be read at --model-parallel-size="
                         f"{mp_size}: {error}") from error
    logger.info("%s has %d model-parallel file(s); resharded for size %d", folder, len(files), mp_size)
    return _with_canonical_names(state, folder), {key: extras[key] for key in PRESERVED if key in extras}


def _with_canonical_names(state: State, where: Path) -> State:
    result: State = {}
    for name, tensor in state.items():
        canonical = canonical_name(name)
        if canonical in result:
            raise ValueError(f"{where} holds {canonical} twice, the second time as {name}")
        result[canonical] = tensor
    return result


def iteration_of(extras: Mapping[str, Any]) -> int:
    """The stored iteration; very old files call it ``total_iters``. 0 where there is none."""
    return int(extras.get("iteration") or extras.get("total_iters") or 0)


def load_backbone(model: nn.Module, path: CheckpointLocation | str | Path, *, mp_rank: int, mp_size: int,
                  allowed_unexpected: Iterable[str] = STUDENT_PREFIXES, trust_pickle: bool = False) -> LoadReport:
    """``--load-pretrained``: weights and vocabulary map, into a GLM (also one inside a head or a student).

    A model in the Hugging Face layout is compared with the GLM's sizes first.

    Args:
        allowed_unexpected: prefixes of parameters that the file may have and the model lacks.

    Raises:
        ValueError: see :func:`load_into`, :func:`check_sizes` and :func:`restore_nonparameters`.
    """
    targets = {canonical_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}

    def spec_of(name: str) -> ShardSpec | None:
        return shard_spec_of(targets[name]) if name in targets else None

    location = path if isinstance(path, CheckpointLocation) else resolve_checkpoint(path)
    backbone = backbone_of(model)
    if location.merged and backbone is not None:
        check_sizes(location.folder, backbone.config)
    state, extras = read_module_state(location, mp_rank=mp_rank, mp_size=mp_size, spec_of=spec_of,
                                      trust_pickle=trust_pickle)
    where = str(path.folder if isinstance(path, CheckpointLocation) else path)
    restore_nonparameters(model, extras, state, where=where)
    report = load_into(targets, state, where=where, allowed_unexpected=allowed_unexpected)
    report.extras = extras
    if location.merged and {"pool_layer.weight"} & set(targets) & set(state):
        tell_other_pooling(location.folder, getattr(model, "pool_token", None))
    return report


@torch.no_grad()
def load_into(targets: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], *, where: str,
              allowed_unexpected: Iterable[str] = ()) -> LoadReport:
    """Copy tensors by name into parameters of any dtype and device; nothing is written if anything is wrong.

    Position tables may be longer than the stored ones: the stored rows come first, the others keep their values.

    Args:
        targets: name -> parameter or buffer, all that should be filled.
        where: the checkpoint, for messages.
        allowed_unexpected: prefixes of names that ``state`` may have beside the targets.

    Raises:
        ValueError: unexpected names, shapes that do not fit (all of them in one message, with the flags to look at), or
            no name in common.
    """
    report = LoadReport(missing=sorted(set(targets) - set(state)), unexpected=sorted(set(state) - set(targets)))
    refused = [name for name in report.unexpected if not name.startswith(tuple(allowed_unexpected))]
    if targets and len(report.missing) == len(targets):
        raise ValueError(f"{where} has no parameter of this model (it has {_some(list(state))}; the model wants "
                         f"{_some(report.missing)}): the path belongs to another model")
    if refused:
        raise ValueError(f"{where} has parameters that the model lacks: {_some(refused)}. {_hint_unexpected(refused)}")
    _check_shapes(targets, state, where)
    for name, target in targets.items():
        if name not in state:
            continue
        stored = state[name]
        if stored.shape != target.shape:
            target[:len(stored)].copy_(stored)
            report.resized.append(name)
        else:
            target.copy_(stored)
    if report.missing:
        logger.warning("%s lacks %d parameters, which keep their initial values: %s", where, len(report.missing),
                       _some(report.missing))
    if report.unexpected:
        logger.info("%s: %d parameters were not used: %s", where, len(report.unexpected), _some(report.unexpected))
    for name in report.resized:
        logger.info("%s: %s grew from %d to %d rows; the new rows keep their initial values", where, name,
                    len(state[name]), len(targets[name]))
    return report


def _check_shapes(targets: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], where: str) -> None:
    lines, flags = [], []
    for name, target in targets.items():
        stored = state.get(name)
        if stored is None or stored.shape == target.shape:
            continue
        if _POSITION_TABLE.fullmatch(name) and stored.shape[1:] == target.shape[1:]:
            if len(stored) < len(target):
                continue
            lines.append(f"{name}: the checkpoint has {len(stored)} rows, the model {len(target)}")
            flags.append(f"--max-position-embeddings (at least {len(stored) - 1} for this checkpoint, it is "
                         f"{len(target) - 1})")
            continue
        lines.append(f"{name}: the checkpoint has {list(stored.shape)}, the model {list(target.shape)}")
        flags += _flags_behind(name, stored, target)
    if lines:
        shown = lines[:3] + ([f"and {len(lines) - 3} more"] if len(lines) > 3 else [])
        raise ValueError(f"{where} does not fit the model: {'; '.join(shown)}. "
                         f"Look at {'; '.join(dict.fromkeys(flags))}")


def _flags_behind(name: str, stored: torch.Tensor, target: torch.Tensor) -> list[str]:
    """The flags that decide a shape, for teachers with the prefix ``--teacher_``."""
    if name == "word_embeddings.weight":
        flags = [] if stored.shape[1:] == target.shape[1:] else ["--hidden-size, --compress_word_emb"]
        if stored.shape[0] != target.shape[0]:
            flags.append("--tokenizer-type, --tokenizer-model-type, --task-mask, --make-vocab-size-divisible-by, "
                         "--map_vocab_size (size of the vocabulary)")
        return flags
    if name == "multichoice_head.weight":
        return ["--task (number of classes), --hidden-size"]
    if name.startswith("student."):
        return ["the sizes of student and teachers (--hidden-size, --teacher_hidden_size, …)"]
    return ["--hidden-size, --inverted_bottleneck_mode, --ib_hidden_size"]


def _hint_unexpected(names: list[str]) -> str:
    if layers := sorted({int(match[1]) for name in names
                         if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}):
        return f"It has a layer {layers[-1]}: look at --num-layers (at least {layers[-1] + 1})"
    if any("block_position" in name for name in names):
        return "It was trained with block positions: add --block-lm"
    if any(name.startswith(HEAD_PREFIXES) for name in names):
        return "It has a classification head; a model with --cloze-eval has none"
    if any(name.startswith("student.") for name in names):
        return "They are layers of a distillation method: give the same --student_model and options"
    return "Give the options with which the checkpoint was made"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
