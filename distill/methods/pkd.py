"""PKD-Skip (Sun et al. 2019, arXiv:1908.09355): hidden states of evenly spaced teacher layers, patiently.

    L = beta sum_k mse(n(hid_s(k)), n(hid_t(seg k)))  +  (1 - alpha) label loss  +  alpha soft loss

over the inner layers k = 1 .. S - 1, the embeddings with ``--pkd_use_embed`` and the final state unless
``--pkd_wo_final``; of the class token only with ``--pkd_only_cls``; ``n`` divides by the L2 norm with
``--pkd_normalized_patience``. A term of the prediction exists if its shared switch is on. Departures from the paper:
the squared error is the mean over batch and width, not the sum over the width (beta = 100 is tuned to that); hidden
states are read through the LayerNorm that follows them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from distill.layer_maps import hidden_state, uniform_layer_map
from distill.losses import mse
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.taps import Hook


@register_method("pkd")
class PKD(GLMStudent):
    """Flags ``--pkd_*``; adds no parameters."""

    switches = "--pkd_beta above 0 with at least one layer to compare"

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: PKD")
        group.add_argument("--pkd_normalized_patience", action="store_true", help="divide hidden states by their norm")
        group.add_argument("--pkd_alpha", type=float, default=0.5,
                           help="weight of the teacher's predictions; the labels have 1 - alpha")
        group.add_argument("--pkd_beta", type=float, default=100.0, help="weight of the hidden states; 0 = off")
        group.add_argument("--pkd_use_embed", action="store_true", help="with the embeddings")
        group.add_argument("--pkd_wo_final", action="store_true", help="without the final hidden state")
        group.add_argument("--pkd_only_cls", action="store_true", help="the class token only")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if not 0.0 <= args.pkd_alpha <= 1.0:
            raise ValueError(f"--pkd_alpha={args.pkd_alpha} must be between 0 (labels only) and 1 (teacher only)")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        self.check_equal_widths(teacher, *(pair.student for pair in self.pairs(teacher.index)),
                                way_out="set --hidden-size, or --pkd_beta=0 for predictions only")

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        depth, t_depth = self.config.num_layers, self.teachers[t_no].num_layers
        if not self.args.pkd_beta:
            return ()
        seg = uniform_layer_map(depth, t_depth)
        states = range(0 if self.args.pkd_use_embed else 1, depth + (0 if self.args.pkd_wo_final else 1))
        return tuple(Pair("hidden_states", hidden_state(k, depth), hidden_state(seg[k], t_depth)) for k in states)

    def pair_loss(self, pair: Pair, student: torch.Tensor, teacher: torch.Tensor, *, keep_batch: bool,
                  t_no: int) -> torch.Tensor:
        if self.args.pkd_only_cls:
            student, teacher = student[:, 0], teacher[:, 0]
        if self.args.pkd_normalized_patience:
            student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
        return mse(student, teacher, keep_batch=keep_batch)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        return self.args.pkd_beta * self.sum_pairs(s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch=keep_batch,
                                                   t_no=t_no)

    def pre_loss(self, *args: Any, return_dict: bool = False, **kwargs: Any) -> Loss | dict[str, Loss]:
        """The shared prediction terms, recorded before their weights ``alpha`` and ``1 - alpha``."""
        parts = super().pre_loss(*args, return_dict=True, **kwargs)
        weights = {"soft": self.args.pkd_alpha, "hard": 1.0 - self.args.pkd_alpha}
        parts = {name: weight * parts[name] for name, weight in weights.items() if name in parts}
        total = sum(parts.values(), 0.0)
        return {**parts, "loss": total} if return_dict else total

    def prediction_terms(self) -> list[str]:
        alpha = self.args.pkd_alpha
        return [f"{term} x {weight:g}" for term in super().prediction_terms()
                if (weight := 1.0 - alpha if term.startswith("hard label") else alpha)]
