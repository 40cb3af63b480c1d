"""How similar the inner tensors of student and teacher are (``--distil_analysis_inter``): numbers to look at, no loss.

Student state k meets teacher state seg(k) of the uniform layer map. Each pair of equal shape gives ``MSE_x`` and
``KL<tau>_x``, tau^2 KL of the softmaxes over the last axis at several temperatures; each pair that is equal in all but
its last axis also gives them for the self-relations ``X X^T / sqrt(width)``, as ``self-MSE_x`` and ``self-KL<tau>_x``.
``x`` is ``HS1`` … ``HS<S>`` (hidden states, ``HS1`` the embeddings), ``Q1`` …, ``K1`` …, ``V1`` …, ``Att1`` …
(attention scores), ``Emb`` (the *final output*: the release's name, kept) and ``Pred`` (vocabulary logits). Attention
and logits have no self-relations. A method that projects tapped states (TinyBERT) shows them projected.

Axes: b rows, s sequence, n heads, p model-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.layer_maps import Path, attention_scores, hidden_state, uniform_layer_map
from distill.losses import kl_divergence, mse
from model.taps import Hook, merge_hooks, tapped

TEMPERATURES = (1, 5, 10, 15, 20)


@dataclass(frozen=True)
class Comparison:
    """A student tensor beside a teacher tensor, under the name ``x`` of the summaries."""

    name: str
    student: Path
    teacher: Path
    partition: str | None = None
    has_relation: bool = True


def comparisons(depth: int, t_depth: int) -> list[Comparison]:
    """What is compared between models of these depths."""
    seg = uniform_layer_map(depth, t_depth)
    found = [Comparison(f"HS{k + 1}", hidden_state(k, depth), hidden_state(seg[k], t_depth)) for k in range(depth)]
    for letter, name in (("Q", "query_layer"), ("K", "key_layer"), ("V", "value_layer")):
        found += [Comparison(f"{letter}{k}", ("transformer", "layers", k - 1, name),
                             ("transformer", "layers", seg[k] - 1, name), "heads") for k in range(1, depth + 1)]
    found += [Comparison(f"Att{k}", attention_scores(k), attention_scores(seg[k]), "heads", has_relation=False)
              for k in range(1, depth + 1)]
    return [*found, Comparison("Emb", hidden_state(depth, depth), hidden_state(t_depth, t_depth)),
            Comparison("Pred", ("logits_parallel",), ("logits_parallel",), "vocab", has_relation=False)]


def analysis_hook(paths: Sequence[Path]) -> Hook:
    """The hook that taps these places."""
    hooks = []
    for path in paths:
        hook: Any = None
        for key in reversed(path):
            hook = {key: hook}
        hooks.append(hook)
    return merge_hooks(*hooks)


@torch.no_grad()
def similarities(pairs: Sequence[Comparison], s_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                 t_inter_vars: Sequence[torch.Tensor], t_hook: Hook) -> Iterator[tuple[str, torch.Tensor]]:
    """(tag, scalar) of every number; the same on all model-parallel ranks. Pairs that do not fit give none."""
    for pair in pairs:
        student, teacher = tapped(s_inter_vars, s_hook, *pair.student), tapped(t_inter_vars, t_hook, *pair.teacher)
        if student.shape == teacher.shape:
            yield from _measures(pair.name, student, teacher, pair.partition)
        if pair.has_relation and student.shape[:-1] == teacher.shape[:-1]:
            for tag, value in _measures(pair.name, self_relation(student), self_relation(teacher), pair.partition):
                yield f"self-{tag}", value


def misfits(pairs: Sequence[Comparison], s_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
            t_inter_vars: Sequence[torch.Tensor], t_hook: Hook) -> list[str]:
    """The pairs of unequal shape, in words."""
    shapes = [(pair.name, tuple(tapped(s_inter_vars, s_hook, *pair.student).shape),
               tuple(tapped(t_inter_vars, t_hook, *pair.teacher).shape)) for pair in pairs]
    return [f"{name} {student} vs {teacher}" for name, student, teacher in shapes if student != teacher]


def self_relation(x: torch.Tensor) -> torch.Tensor:
    """``X X^T / sqrt(width)`` over the positions: [..., s, d] -> [..., s, s]."""
    return x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5


def _measures(name: str, student: torch.Tensor, teacher: torch.Tensor,
              partition: str | None) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"MSE_{name}", mse(student, teacher, partition=partition)
    for tau in TEMPERATURES:
        yield f"KL{tau}_{name}", tau ** 2 * kl_divergence(student, teacher, temperature=tau, partition=partition)
