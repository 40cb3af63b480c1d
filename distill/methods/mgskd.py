"""MGSKD (Liu, Tao, Feng, Zhao, ACL 2022, aclanthology:2022.acl-long.71): relations of tokens and spans in lower
layers, of samples in upper ones.

    L = sum_{k < m} (w_token T(hid k) + w_span T(spans of hid k)) + sum_{k >= m} w_sample S(hid k),    k = 0..S

T compares products of pairs and angles of triplets inside a sample, S the angles between samples
(:mod:`distill.losses.granular_relations`). Departures from the paper: spans are random segments instead of the phrases
of a chunker, and the layers in between are chosen evenly.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from distill.layer_maps import uniform_layer_map
from distill.losses import position_pad_mask, reduce_rows
from distill.losses.granular_relations import sample_relations, span_means, token_relations
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.parallel.groups import parallel_state
from model.taps import Hook, merge_hooks, tapped


@register_method("mgskd")
class MGSKD(GLMStudent):
    """Flags ``--mgskd_*``. No parameters; widths may differ."""

    switches = "remove --mgskd_wo_inter"

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: MGSKD")
        group.add_argument("--mgskd_weight_sample", type=float, default=4.0, help="weight of relations of samples")
        group.add_argument("--mgskd_weight_token", type=float, default=1.0, help="weight of relations of tokens")
        group.add_argument("--mgskd_weight_span", type=float, default=1.0, help="weight of relations of spans")
        group.add_argument("--mgskd_sample_level_m", type=int, default=2,
                           help="first state (0 = embeddings) whose samples are compared, instead of its tokens")
        group.add_argument("--mgskd_triplet_k1", type=int, default=20, help="vertices of angles, chosen by the teacher")
        group.add_argument("--mgskd_triplet_k2", type=int, default=20, help="neighbours of each vertex")
        group.add_argument("--mgskd_multi_heads", type=int, default=64, help="parts that a state is cut into")
        group.add_argument("--mgskd_span_max_rate", type=float, default=0.4,
                           help="number of spans as a share of the sequence length; 0 = no spans")
        group.add_argument("--mgskd_wo_inter", action="store_true", help="no intermediate loss (last stage)")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        for name in ("mgskd_triplet_k1", "mgskd_triplet_k2", "mgskd_multi_heads"):
            if getattr(args, name) < 1:
                raise ValueError(f"--{name}={getattr(args, name)} must be at least 1")
        if not 0.0 <= args.mgskd_span_max_rate <= 1.0:
            raise ValueError(f"--mgskd_span_max_rate={args.mgskd_span_max_rate} must lie between 0 (no spans) and 1")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        if self.args.mgskd_wo_inter:
            return
        uniform_layer_map(self.config.num_layers, teacher.num_layers)
        heads = self.args.mgskd_multi_heads
        for width, flag in ((self.config.hidden_size, "--hidden-size"),
                            (teacher.hidden_size, "--teacher_hidden_size")):
            if width % heads != 0:
                raise ValueError(f"MGSKD cuts states into --mgskd_multi_heads={heads} parts, which does not divide "
                                 f"{flag} {width}; choose a common divisor of both widths")

    @property
    def batch_coupled(self) -> str:
        return "relations are normalised over, and formed between, all samples" if self._has_terms() else ""

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        return self.hidden_state_pairs(t_no) if self._has_terms() else ()

    def get_student_hook(self, **kwargs: Any) -> Hook:
        return merge_hooks(super().get_student_hook(), {"position_ids": None} if self._has_terms() else {})

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        pairs = self.pairs(t_no)
        if not pairs:
            return 0.0
        mask = position_pad_mask(tapped(s_inter_vars, s_hook, "position_ids"))
        lengths = self.span_lengths(mask.shape[1])
        loss: Loss = 0.0
        for k, pair in enumerate(pairs):
            rows = self._relations(k, tapped(s_inter_vars, s_hook, *pair.student),
                                   tapped(t_inter_vars, t_hook, *pair.teacher), mask, lengths)
            term = reduce_rows(rows, keep_batch=keep_batch)
            self.add_summary(f"inter_loss/hidden_states.{k}", term)
            loss = loss + term
        return loss

    def span_lengths(self, length: int) -> list[int]:
        """Lengths of this step's spans, which sum to ``length``; empty without spans. One draw serves all layers."""
        run, count = self.run, int(length * self.args.mgskd_span_max_rate)
        if count == 0:
            return []
        lengths = self.draw("mgskd_span_lengths", lambda generator: draw_lengths(length, count, generator),
                            run.iteration, run.micro_step, run.repeat, parallel_state().data_rank)
        return [int(value) for value in lengths]

    def _relations(self, k: int, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor,
                   lengths: Sequence[int]) -> torch.Tensor:
        """The weighted loss of state k, [b]."""
        args = self.args
        if k >= args.mgskd_sample_level_m:
            return args.mgskd_weight_sample * sample_relations(student, teacher, mask,
                                                               num_heads=args.mgskd_multi_heads)
        sizes = {"num_heads": args.mgskd_multi_heads, "num_vertices": args.mgskd_triplet_k1,
                 "num_neighbours": args.mgskd_triplet_k2}
        rows = student.new_zeros(len(student))
        if args.mgskd_weight_token:
            rows = rows + args.mgskd_weight_token * token_relations(student, teacher, mask, **sizes)
        if args.mgskd_weight_span and lengths:
            has_token = (span_means(mask.unsqueeze(-1), lengths) > 0).squeeze(-1)
            rows = rows + args.mgskd_weight_span * token_relations(
                span_means(student, lengths), span_means(teacher, lengths), has_token, **sizes)
        return rows

    def _has_terms(self) -> bool:
        args = self.args
        below = args.mgskd_weight_token or (args.mgskd_weight_span and args.mgskd_span_max_rate)
        above = args.mgskd_weight_sample and args.mgskd_sample_level_m <= self.config.num_layers
        return not args.mgskd_wo_inter and bool((below and args.mgskd_sample_level_m > 0) or above)


def draw_lengths(length: int, count: int, generator: random.Random) -> list[int]:
    """``count`` random lengths of at least 1 that sum to ``length``: shares of ``|N(0, 1)|``, remainder to the last."""
    shares = [abs(generator.gauss(0.0, 1.0)) for _ in range(count)]
    total = math.fsum(shares) or 1.0
    lengths = [math.floor(share / total * (length - count)) + 1 for share in shares]
    missing = length - sum(lengths)
    return [value + int(index >= count - missing) for index, value in enumerate(lengths)]
