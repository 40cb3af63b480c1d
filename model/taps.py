"""Which inner tensors a forward pass returns, and which operations replace some of them.

A *hook* is the nested dict that methods write: names as keys, ``"transformer" -> "layers" -> index -> name`` for the
layers, ``None`` as leaf. :class:`TapRequest` makes it a fixed, sorted tuple of dotted names. A forward pass returns the
tapped tensors as extra outputs in that order, so they keep their gradient across an activation-checkpoint boundary;
nothing is recorded by side effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

TOP_TAPS = ("words_embeddings", "position_ids", "logits_parallel")
TRANSFORMER_TAPS = ("embeddings", "output")
LAYER_TAPS = (
    "layernorm_output", "mixed_query_layer", "mixed_key_layer", "mixed_value_layer", "query_layer", "key_layer",
    "value_layer", "attention_scores", "attention_probs", "context_layer", "post_attention_layernorm", "tf_output")
#: Tensors whose axis 1 (or last axis, for ``mixed_*`` and ``context_layer``) holds this rank's heads only.
HEAD_PARTITIONED_TAPS = (
    "mixed_query_layer", "mixed_key_layer", "mixed_value_layer", "query_layer", "key_layer", "value_layer",
    "attention_scores", "attention_probs", "context_layer")

Hook = dict[Any, Any]
"""A nested hook dict."""


def layer_hook(layers: Mapping[int, str | Sequence[str]]) -> Hook:
    """A hook for tensors inside layers: ``layer_hook({5: ("attention_scores", "value_layer")})``, layers from 0."""
    return {"transformer": {"layers": {
        index: dict.fromkeys((names,) if isinstance(names, str) else names)
        for index, names in layers.items()}}}


def merge_hooks(*hooks: Hook | None) -> Hook:
    """The union of several hooks, as a new dict with fresh ``None`` leaves; asking twice for a tensor is harmless."""
    merged: Hook = {}
    for hook in hooks:
        for key, value in (hook or {}).items():
            if isinstance(value, Mapping):
                merged[key] = merge_hooks(merged.get(key) or {}, value)
            else:
                merged.setdefault(key, None)
    return merged


@dataclass(frozen=True)
class TapRequest:
    """The tensors one forward pass has to return: dotted names, sorted, without repetition."""

    names: tuple[str, ...] = ()

    @classmethod
    def from_hook(cls, hook: Hook | None, num_layers: int) -> TapRequest:
        """Flatten a nested hook. Raises ValueError for a name or layer that does not exist, with the known ones."""
        names = {".".join(str(key) for key in path) for path in _leaf_paths(hook or {})}
        for name in names:
            _check_name(name, num_layers)
        return cls(tuple(sorted(names)))

    def fill(self, hook: Hook) -> Hook:
        """Put the index of each tensor into the leaves of ``hook`` (in place) and return it."""
        index = {name: position for position, name in enumerate(self.names)}
        for path in list(_leaf_paths(hook)):
            node = hook
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = index[".".join(str(key) for key in path)]
        return hook

    def layer_names(self, layer: int) -> tuple[str, ...]:
        """Names of the tensors wanted inside one layer, without their path."""
        prefix = f"transformer.layers.{layer}."
        return tuple(name[len(prefix):] for name in self.names if name.startswith(prefix))

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __bool__(self) -> bool:
        return bool(self.names)


def tapped(inter_vars: Sequence[Any], hook: Hook, *path: str | int) -> Any:
    """The tensor that a filled hook names: ``tapped(vars, hook, "transformer", "layers", 5, "attention_scores")``."""
    node: Any = hook
    for key in path:
        node = node[key]
    return inter_vars[node]


def has_tap(hook: Hook | None, *path: str | int) -> bool:
    """Whether a hook asks for the tensor at ``path``."""
    node: Any = hook or {}
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return not isinstance(node, Mapping)


def operate(operations: Mapping[str, Any] | None, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, or what the operation of that name makes of it; entries that are no callables are ignored."""
    operation = (operations or {}).get(name)
    return operation(**{name: tensor}) if callable(operation) else tensor


def _leaf_paths(hook: Hook, prefix: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    for key, value in hook.items():
        if isinstance(value, Mapping):
            yield from _leaf_paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def _check_name(name: str, num_layers: int) -> None:
    parts = name.split(".")
    if len(parts) == 1 and name in TOP_TAPS:
        return
    if parts[0] == "transformer":
        if len(parts) == 2 and parts[1] in TRANSFORMER_TAPS:
            return
        if len(parts) == 4 and parts[1] == "layers" and parts[3] in LAYER_TAPS:
            if parts[2].isdigit() and int(parts[2]) < num_layers:
                return
            raise ValueError(f"hook asks for {name!r}, but the model has layers 0 to {num_layers - 1}")
    raise ValueError(
        f"hook asks for {name!r}, which no forward pass returns. Known: {', '.join(TOP_TAPS)}; "
        f"transformer.{{{', '.join(TRANSFORMER_TAPS)}}}; transformer.layers.<i>.{{{', '.join(LAYER_TAPS)}}}")
