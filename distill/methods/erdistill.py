"""ERDistill (no paper known): relations between the tokens, and what a hidden state says about the vocabulary.

For a student state X_s and a teacher state X_t, with G = X X^T and the word table E:

    local  = mse(G_s / s, G_t / s)         or  KL(softmax(G_t / sqrt s) || softmax(G_s / sqrt s))
    global = mse(X_s E_s^T, X_t E_t^T)     or  KL of the same

``mse`` with ``--erdistill_inter_mse``. The sum runs over the pairs of ``--erdistill_inter``. All positions count,
padding included; the scale is the length ``s``, not the width, so the widths may differ. The gradient reaches E_s too.

Legend: ``b`` rows of the batch, ``s`` sequence, ``h`` width, ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill.layer_maps import hidden_state, uniform_layer_map
from distill.losses.relations import projection_loss, relation_loss
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.taps import Hook, tapped

#: Weight of the last inner state in ``1plus``.
_LESSER = 0.1


@register_method("erdistill")
class ERDistill(GLMStudent):
    """Flags ``--erdistill_*``; adds no parameters."""

    switches = "--erdistill_inter (all, two, one or 1plus) without both --erdistill_wo_local and --erdistill_wo_global"

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: ERDistill")
        group.add_argument("--erdistill_inter", default="all", choices=("all", "one", "two", "1plus", ""),
                           help="hidden states: all, the final one, the last two, the last two both against the "
                                "teacher's final one (the first weighs 0.1), or none")
        group.add_argument("--erdistill_inter_mse", action="store_true", help="squared error instead of KL")
        group.add_argument("--erdistill_wo_global", action="store_true", help="no comparison over the vocabulary")
        group.add_argument("--erdistill_wo_local", action="store_true", help="no comparison of token relations")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        width = self.config.hidden_size
        widths = {self.seen_widths.get(pair.student, width) for pair in self.pairs(teacher.index)}
        widths |= {teacher.hidden_size} if widths and self.widths_are_fitted else set()
        if "global" in self._kinds() and widths - {width}:
            raise ValueError(f"ERDistill multiplies hidden states by the word tables of width {width} (--hidden-size) "
                             f"and {teacher.hidden_size} (--teacher_hidden_size), but another part of the command "
                             "projects them to one width first; add --erdistill_wo_global")

    def intermediate_terms(self) -> list[str]:
        shared = ["logits_parallel"] if self.args.distill_logits_parallel else []
        return [*(self._kinds() if self.args.erdistill_inter else ()), *shared]

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        depth, t_depth = self.config.num_layers, self.teachers[t_no].num_layers
        which = self.args.erdistill_inter
        if not which or not self._kinds():
            return ()
        final = _pair(depth, depth, t_depth, t_depth)
        if which == "one":
            return (final,)
        if which == "1plus":
            return _pair(depth - 1, depth, t_depth, t_depth, _LESSER), final
        seg = uniform_layer_map(depth, t_depth)
        return tuple(_pair(k, depth, seg[k], t_depth) for k in range(0 if which == "all" else depth - 1, depth + 1))

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, t_model: nn.Module | None = None,
                   **kwargs: Any) -> Loss:
        pairs, kind = self.pairs(t_no), "mse" if self.args.erdistill_inter_mse else "kl"
        states = [(tapped(s_inter_vars, s_hook, *pair.student), tapped(t_inter_vars, t_hook, *pair.teacher))
                  for pair in pairs]
        terms: dict[str, list[torch.Tensor]] = {name: [] for name in self._kinds()}
        if "local" in terms:
            terms["local"] = [_local(*pair, kind, keep_batch) for pair in states]
        if "global" in terms and pairs:
            student, teacher = _Vocabulary(self.origin_model), _Vocabulary(t_model)
            terms["global"] = [projection_loss(*student.factors(s), *teacher.factors(t), kind=kind,
                                               keep_batch=keep_batch) for s, t in states]
        loss: Loss = 0.0
        for name, values in terms.items():
            for number, (pair, value) in enumerate(zip(pairs, values, strict=True)):
                self.add_summary(f"inter_loss/{name}.{number}", value)
                loss = loss + pair.weight * value
        return loss

    @property
    def teacher_weights(self) -> str:
        off = self.args.erdistill_wo_global or not self.args.erdistill_inter
        return "" if off else "erdistill reads the teachers' word tables (--erdistill_wo_global does without)"

    def _kinds(self) -> list[str]:
        return [name for name, is_off in (("local", self.args.erdistill_wo_local),
                                          ("global", self.args.erdistill_wo_global)) if not is_off]


def _pair(k: int, depth: int, t_k: int, t_depth: int, weight: float = 1.0) -> Pair:
    return Pair("hidden_states", hidden_state(k, depth), hidden_state(t_k, t_depth), weight=weight)


def _local(student: torch.Tensor, teacher: torch.Tensor, kind: str, keep_batch: bool) -> torch.Tensor:
    length = student.shape[1]
    scale = 1 / length if kind == "mse" else length ** -0.5
    return relation_loss(student.unsqueeze(1), teacher.unsqueeze(1), kind=kind, scale=scale, keep_batch=keep_batch)


class _Vocabulary:
    """A model's map from hidden states to the original vocabulary, as its output layer has it.

    A factorised table is reached through the model's own reduction of the width; a compact one is expanded to the
    original ids, which student and teacher share.
    """

    def __init__(self, model: nn.Module) -> None:
        while not hasattr(model, "word_embedding_weight"):
            model = model.model  # a task head
        self.model = model
        self.table = model.word_embedding_weight  # [v/p, h]
        if getattr(model, "vocab_map", None) is not None:
            self.table = model.vocab_map.expand(self.table)

    def factors(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(X, E)`` whose product is the logits: [b, s, e] and [v/p, e]."""
        if self.model.config.compress_word_emb:
            hidden = self.model.decompress_emb_mlp(hidden.to(self.table.dtype))
        return hidden, self.table
