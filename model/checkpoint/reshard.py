"""Changing the number of model-parallel files of a checkpoint.

Every tensor follows its :class:`ShardSpec`: ours are stored in the file beside the tensors; for files of older programs
a table by exact parameter path gives it. Nothing is guessed from a part of a name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.files import atomic_save, remove_folder, rename_folder, safe_load
from model.checkpoint.naming import (
    BEST_TRACKER,
    LATEST_TRACKER,
    canonical_name,
    is_redundant,
    read_tracker,
    resolve_checkpoint,
    shard_files,
    shard_path,
    write_tracker,
)
from model.parallel.sharding import COLUMNS, QKV_ROWS, REPLICATED, ROWS, ShardSpec

logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]
SpecOf = Callable[[str], ShardSpec | None]

#: Entries that survive a change of size; all others but ``module`` become None (no optimizer state survives).
PRESERVED = (
    "lr_scheduler", "skipped_steps", "global_steps", "global_samples", "dp_world_size", "iteration", "total_iters",
    "client_lr_scheduler", "np_rng_state", "random_rng_state", "torch_rng_state", "cuda_rng_state",
    "rng_tracker_states", "important_nonparameters", "gelu")
#: Copies of one replicated tensor may drift apart by rounding; more than this part of its largest value is no rounding.
REPLICA_TOLERANCE = 1e-2

_LAYER = r"transformer\.layers\.\d+\."
_TABLE: tuple[tuple[str, ShardSpec], ...] = (
    (r"word_embeddings\.weight", ROWS),
    (r"(compress_emb_mlp|decompress_emb_mlp|ib_emb_mlp)\.(weight|bias)", ROWS),
    (r"transformer\.(block_)?position_embeddings\.weight", REPLICATED),
    (r"transformer\.final_layernorm\.(weight|bias)", REPLICATED),
    (r"transformer\.r_[wr]_bias", ROWS),
    (_LAYER + r"(input|post_attention|ib_linear_out)_layernorm\.(weight|bias)", REPLICATED),
    (_LAYER + r"ib_mlp_layernorm\.\d+\.(weight|bias)", REPLICATED),
    (_LAYER + r"attention\.query_key_value\.(weight|bias)", QKV_ROWS),
    (_LAYER + r"attention\.relative\.(weight|bias)", ROWS),
    (_LAYER + r"attention\.dense\.weight", COLUMNS),
    (_LAYER + r"attention\.dense\.bias", REPLICATED),
    (_LAYER + r"(mlp|ib_mlp\.\d+)\.dense_h_to_4h\.(weight|bias)", ROWS),
    (_LAYER + r"(mlp|ib_mlp\.\d+)\.dense_4h_to_h\.weight", COLUMNS),
    (_LAYER + r"(mlp|ib_mlp\.\d+)\.dense_4h_to_h\.bias", REPLICATED),
    (_LAYER + r"ib_linear_(in|out)\.(weight|bias)", ROWS),
    (r"prompt_spell\..+", REPLICATED),
    (r"(pool_layer|multichoice_head)\.(weight|bias)", REPLICATED),
    # Layers of distillation methods. tinybert's fit layers are plain unless --tinybert_fit_parallel was given, which
    # an old file does not say; the fit layers of the multi-teacher combiner are always cut.
    (r"student\.([A-Z]\w*\.)?fit_dense(_\d+)?\.(weight|bias)", REPLICATED),
    (r"student\.([A-Z]\w*\.)?[st]_fit_dense(_\d+)?(\.\d+)?\.(weight|bias)", ROWS),
    (r"student\.multi_teacher_model\.([A-Z]\w*\.)?fit_dense(_\d+)?\.(weight|bias)", ROWS),
    (r"student\.(multi_teacher_model\.)?([A-Z]\w*\.)?t?_?layernorm(_\d+)?\.(weight|bias)", REPLICATED),
    (r"student\.multi_teacher_model\.([A-Z]\w*\.)?agent_semantic_mt_loss\.(weight|bias)", REPLICATED),
)
_COMPILED = tuple((re.compile(pattern), spec) for pattern, spec in _TABLE)
#: In front of a second backbone inside a student's file.
_INNER_BACKBONE = re.compile(r"student\.(teacher_model_\d+|[^.]+\.origin_model)\.")


def default_spec(name: str, ndim: int) -> ShardSpec:
    """The cut of a parameter of an old file, by its exact path.

    Raises:
        ValueError: the path is not in the table, or the tensor has too few axes for its cut.
    """
    path = canonical_name(_INNER_BACKBONE.sub("", canonical_name(name)))
    for pattern, spec in _COMPILED:
        if pattern.fullmatch(path):
            if spec.dim is not None and spec.dim >= ndim:
                raise ValueError(f"{name} has {ndim} axes and is cut along axis {spec.dim}: not a tensor of this model")
            return spec
    raise ValueError(
        f"the checkpoint does not say how {name} is cut over the model-parallel ranks, and it is none of the known "
        "parameters; name it in --fix_module_parameters if every rank holds it whole")


def specs_of_payload(payload: Mapping[str, Any], spec_of: SpecOf | None = None,
                     fixed: Iterable[str] = ()) -> dict[str, ShardSpec]:
    """The cut of every tensor of a file's ``module``, by its name there.

    In this order: ``fixed`` (names that are replicated whatever else is said), what the file itself states, ``spec_of``
    (asked with the canonical name; None for "don't know"), :func:`default_spec`.
    """
    stored, fixed = payload.get("shard_specs") or {}, set(fixed)
    specs = {}
    for name, tensor in payload["module"].items():
        if name in fixed or canonical_name(name) in fixed:
            specs[name] = REPLICATED
        elif name in stored:
            specs[name] = ShardSpec(*stored[name])
        else:
            known = spec_of(canonical_name(name)) if spec_of else None
            specs[name] = known if known is not None else default_spec(name, tensor.dim())
    return specs


def reshard(states: Sequence[State], specs: Mapping[str, ShardSpec], target: int) -> list[State]:
    """The same tensors in ``target`` parts. Any sizes go that divide the tensors.

    Raises:
        ValueError: the parts have different names, copies of a replicated tensor differ, an axis does not divide.
    """
    _check_same_names(states)
    results: list[State] = [{} for _ in range(target)]
    for name in states[0]:
        for result, part in zip(results, _reshard_tensor(name, [state[name] for state in states], specs[name], target)):
            result[name] = part
    return results


def reshard_for_rank(states: Sequence[State], specs: Mapping[str, ShardSpec], target: int, rank: int) -> State:
    """Part ``rank`` of :func:`reshard` without keeping the others."""
    _check_same_names(states)
    return {name: _reshard_tensor(name, [state[name] for state in states], specs[name], target)[rank]
            for name in states[0]}


def _check_same_names(states: Sequence[State]) -> None:
    for rank, state in enumerate(states):
        if different := sorted(set(state) ^ set(states[0])):
            raise ValueError(f"the files of the model-parallel ranks 0 and {rank} hold different parameters "
                             f"({', '.join(different[:5])}): they belong to different checkpoints")


def _reshard_tensor(name: str, parts: Sequence[torch.Tensor], spec: ShardSpec, target: int) -> list[torch.Tensor]:
    if not spec.is_sharded:
        _check_replicas(name, parts)
        return [parts[0]] * target
    try:
        return spec.split(spec.merge(list(parts)), target)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_replicas(name: str, parts: Sequence[torch.Tensor]) -> None:
    first = parts[0]
    for rank, part in enumerate(parts[1:], start=1):
        if part.shape != first.shape:
            raise ValueError(f"{name} should be the same on every rank, but ranks 0 and {rank} hold shapes "
                             f"{list(first.shape)} and {list(part.shape)}")
        if torch.equal(part, first):
            continue
        deviation = (part.double() - first.double()).abs().max().item()
        if not deviation <= REPLICA_TOLERANCE * first.double().abs().max().item():
            raise ValueError(
                f"{name} should be the same on every rank, but ranks 0 and {rank} differ by {deviation:.3g}: the files "
                "belong to different checkpoints, or the layer is cut and the file does not say so")
        logger.warning("%s differs by %.3g between ranks 0 and %d; the copy of rank 0 is kept", name, deviation, rank)


def plan(source: int, target: int, rank: int) -> tuple[range, int, int]:
    """What ``rank`` of ``target`` needs of ``source`` files: which files, in how many parts to cut them once they are
    merged, and which part is the rank's. All files if neither size divides the other."""
    if source % target == 0:
        count = source // target
        return range(rank * count, (rank + 1) * count), 1, 0
    if target % source == 0:
        parts = target // source
        return range(rank // parts, rank // parts + 1), parts, rank % parts
    return range(source), target, rank


def change_mp(path: str | Path, size: int, fix_module_parameters: Iterable[str] = (), *,
              trust_pickle: bool = False) -> str:
    """Write the checkpoint at ``path`` again for ``size`` model-parallel ranks and return the new folder.

    The result is ``<path>_MP<size>`` with tracker and tag folder if the input has them, else with the files directly in
    it. It appears in one step; the input is not touched. If the checkpoint has that size already, or is read at every
    size (Hugging Face layout), ``path`` is returned.

    Args:
        fix_module_parameters: names of tensors that every rank holds whole, whatever the file or the table says.

    Raises:
        FileNotFoundError: no checkpoint at ``path``.
        ValueError: sizes that do not fit, damaged files, or an existing result with another content.
    """
    path, fixed = Path(path), frozenset(fix_module_parameters)
    location = resolve_checkpoint(path)
    if location.merged:
        logger.info("%s holds one whole model, which is read at every model-parallel size as it is", path)
        return str(path)
    files = shard_files(location.folder)
    _check_sizes(path, len(files), size)
    if len(files) == size:
        logger.info("%s has model-parallel size %d already", path, size)
        return str(path)
    output = Path(f"{path if path.name not in ('', '..') else path.resolve()}_MP{size}")
    # A path of one checkpoint's folder resolves to its parent; then the files go directly into the new folder.
    tag = location.tag if location.directory == path else ""
    if output.exists():
        _check_equal(output, tag, files, size, fixed, trust_pickle)
        logger.info("%s exists already and holds the same", output)
        return str(output)
    partial = output.with_name(f"{output.name}.partial")
    remove_folder(partial)
    for rank, payload in enumerate(_converted_payloads(files, size, fixed, trust_pickle)):
        atomic_save(payload, shard_path(partial, tag, rank))
    if tag:
        if tag == "best" and (best := read_tracker(path, BEST_TRACKER)) is not None:
            write_tracker(partial, f"{best}\n", BEST_TRACKER)
        write_tracker(partial, f"{tag}\n", LATEST_TRACKER)
    rename_folder(partial, output)
    logger.info("%s (%d files) -> %s (%d files)", path, len(files), output, size)
    return str(output)


def _check_sizes(path: Path, present: int, size: int) -> None:
    if size < 1:
        raise ValueError(f"the new model-parallel size has to be at least 1, it is {size}")
    if size % present and present % size:
        raise ValueError(f"{path} has model-parallel size {present}; the new size has to divide it or be a multiple, "
                         f"{size} does neither; go by way of 1")


def _converted_payloads(files: Sequence[Path], size: int, fixed: Iterable[str],
                        trust_pickle: bool) -> Iterator[dict[str, Any]]:
    """Content of the new files in rank order. Each old file is read once, and only those for one new file are held."""
    loaded: range | None = None
    sources: list[dict[str, Any]] = []
    for rank in range(size):
        needed, parts, part = plan(len(files), size, rank)
        if needed != loaded:
            sources, loaded = [read_payload(files[source], trust_pickle) for source in needed], needed
        specs = specs_of_payload(sources[0], fixed=fixed)
        module = reshard_for_rank([payload["module"] for payload in sources], specs, parts, part)
        kept = {key: value if key in PRESERVED else None for key, value in sources[0].items()}
        yield {**kept, "module": compact(module), "mp_world_size": size,
               "shard_specs": {name: [spec.dim, spec.blocks] for name, spec in specs.items()}}


def _check_equal(output: Path, tag: str, files: Sequence[Path], size: int, fixed: Iterable[str],
                 trust_pickle: bool) -> None:
    refusal = ValueError(f"{output} exists and does not hold this checkpoint at model-parallel size {size}; "
                         "nothing was written: move it away, or remove it")
    if (read_tracker(output) or "") != tag or shard_path(output, tag, size).exists():
        raise refusal
    for rank, payload in enumerate(_converted_payloads(files, size, fixed, trust_pickle)):
        present, expected = shard_path(output, tag, rank), payload["module"]
        module = read_payload(present, trust_pickle)["module"] if present.is_file() else {}
        if set(module) != set(expected) or not all(torch.equal(module[name], expected[name]) for name in expected):
            raise refusal


def read_payload(path: Path, trust_pickle: bool = False, *, safe_classes: Iterable[Any] = ()) -> dict[str, Any]:
    """One file of one rank; ``module`` holds tensors only, without second copies of the backbone.

    Raises:
        ValueError: no dict with a ``module`` of tensors.
    """
    payload = safe_load(path, trust_pickle, safe_classes=safe_classes)
    module = payload.get("module") if isinstance(payload, dict) else None
    if not isinstance(module, dict):
        found = ", ".join(map(str, list(payload)[:8])) if isinstance(payload, dict) else type(payload).__name__
        raise ValueError(f"{path} has no entry 'module' with the parameters (found: {found}): not a checkpoint of this "
                         "program")
    wrong = [name for name, value in module.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise ValueError(f"{path}: module.{wrong[0]} is no tensor ({type(module[wrong[0]]).__name__})")
    return {**payload, "module": {name: value for name, value in module.items()
                                  if not is_redundant(canonical_name(name))}}


def compact(state: Mapping[str, torch.Tensor]) -> State:
    """CPU copies that own their memory where a tensor is a view of something larger, which would be saved whole."""
    result = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
        result[name] = tensor.clone() if is_view else tensor
    return result
