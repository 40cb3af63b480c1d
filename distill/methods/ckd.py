"""CKD (Park, Kim, Yang, EMNLP 2021, arXiv:2109.08359): relations of words in a layer, and of the layers of a word.

    L = w1 (word pairs) + w2 (word angles) + w3 (layer pairs) + w4 (layer angles)

over the hidden states k = 0..S of the student and seg(k) of the teacher (:mod:`distill.losses.context_relations`).
The mean of each term counts all pairs or triples, the diagonal too: ``K sum u_i u_j``, ``K w^2 sum u``, ``K^2 sum u``,
``K^3 sum u`` with K = S + 1 states and u = 1 for real tokens of the micro-batch. Neighbours in the window of the word
angles may be padding. Widths may differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from distill.layer_maps import uniform_layer_map
from distill.losses import position_pad_mask, reduce_rows
from distill.losses.context_relations import layer_angles, layer_pairs, word_angles, word_pairs
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.taps import Hook, merge_hooks, tapped


@register_method("ckd")
class CKD(GLMStudent):
    """Flags ``--ckd_*``. No parameters."""

    switches = "a weight --ckd_wrdist_w, --ckd_wrangle_w, --ckd_ltrdist_w or --ckd_ltrangle_w above 0"

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: CKD")
        group.add_argument("--ckd_window_size", type=int, default=21,
                           help="words around a word between which angles are taken, itself included (odd)")
        group.add_argument("--ckd_wrdist_w", type=float, default=1.0, help="weight: pairs of words of a layer")
        group.add_argument("--ckd_ltrdist_w", type=float, default=1.0, help="weight: pairs of layers of a word")
        group.add_argument("--ckd_wrangle_w", type=float, default=10.0, help="weight: angles of words of a layer")
        group.add_argument("--ckd_ltrangle_w", type=float, default=10.0, help="weight: angles of layers of a word")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if args.ckd_window_size < 1 or args.ckd_window_size % 2 == 0:
            raise ValueError(f"--ckd_window_size={args.ckd_window_size} must be odd: a word and as many on either side")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        uniform_layer_map(self.config.num_layers, teacher.num_layers)

    @property
    def batch_coupled(self) -> str:
        return "the means are taken over the real tokens of the micro-batch" if self._weights() else ""

    def intermediate_terms(self) -> list[str]:
        return [*self._weights(), *(name for name in super().intermediate_terms() if name != "hidden_states")]

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        return self.hidden_state_pairs(t_no) if self._weights() else ()

    def get_student_hook(self, **kwargs: Any) -> Hook:
        return merge_hooks(super().get_student_hook(), {"position_ids": None} if self._weights() else {})

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        pairs = self.pairs(t_no)
        if not pairs:
            return 0.0
        mask = position_pad_mask(tapped(s_inter_vars, s_hook, "position_ids"))
        student = [tapped(s_inter_vars, s_hook, *pair.student) for pair in pairs]  # K x [b, s, h]
        teacher = [tapped(t_inter_vars, t_hook, *pair.teacher) for pair in pairs]
        loss: Loss = 0.0
        for name, weight in self._weights().items():
            term = weight * reduce_rows(self._term(name, student, teacher, mask), keep_batch=keep_batch)
            self.add_summary(f"inter_loss/{name}", term)
            loss = loss + term
        return loss

    def _term(self, name: str, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor],
              mask: torch.Tensor) -> torch.Tensor:
        """One relation, [b], whose mean is its loss."""
        count, real, layers, window = len(mask), mask.sum(dim=-1), len(student), self.args.ckd_window_size
        if name.startswith("wr"):
            by_layer = zip(student, teacher, strict=True)
            if name == "wrdist":
                sums = sum(word_pairs(s, t, mask) for s, t in by_layer)
                return sums * (count / (layers * real.square().sum()))
            sums = sum(word_angles(s, t, mask, window=window) for s, t in by_layer)
            return sums * (count / (layers * window ** 2 * real.sum()))
        relation, power = (layer_pairs, 2) if name == "ltrdist" else (layer_angles, 3)
        sums = relation(torch.stack(list(student), dim=2), torch.stack(list(teacher), dim=2), mask)
        return sums * (count / (layers ** power * real.sum()))

    def _weights(self) -> dict[str, float]:
        """The active terms in the order of the formula."""
        args = self.args
        weights = {"wrdist": args.ckd_wrdist_w, "wrangle": args.ckd_wrangle_w, "ltrdist": args.ckd_ltrdist_w,
                   "ltrangle": args.ckd_ltrangle_w}
        return {name: weight for name, weight in weights.items() if weight}
