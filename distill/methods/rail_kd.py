"""RAIL-KD (Haidar et al. 2022, arXiv:2109.10164): inner states of the student meet randomly chosen ones of the teacher.

Every state is averaged over all positions; ``x_1 .. x_m`` are these averages in order of depth, ``n`` the L2 norm:

    concatenated:   z = n(W [x_1; ..; x_m] + b),              loss = rate sum_b |z_s - z_t|^2
    layer by layer: z_i = n(W x_i + b), one W for all layers, loss = rate sum_b sum_i alpha |z_s,i - z_t,i|^2

The teacher's layers are drawn anew every so many epochs. Departures from the paper: one projection for all layers in
the second form, and padding counts in the averages. The loss is a sum over the batch, so its weight grows with the
micro-batch (kept, the published rate was tuned with it); ``--rail_kd_batch_mean`` averages.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from distill.flag_types import width
from distill.layer_maps import hidden_state, random_layer_map, uniform_layer_map
from distill.losses import reduce_rows
from distill.schedules import redraw_period
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.parallel.groups import parallel_state
from model.parallel.layers import ColumnParallelLinear
from model.taps import Hook, tapped

logger = logging.getLogger(__name__)


@register_method("rail_kd")
class RailKD(GLMStudent):
    """Flags ``--rail_kd_*``. Parameters: ``s_fit_dense`` and one ``t_fit_dense_<n>`` for each teacher, (u, width)."""

    has_projections = True
    switches = "--rail_kd_inter_rate above 0"

    def __init__(self, language_model: Any, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        self._told: dict[int, tuple[int, ...]] = {}
        if args.rail_kd_u % parallel_state().model_size != 0:
            raise ValueError(f"--rail_kd_u={args.rail_kd_u} is not divisible by --model-parallel-size "
                             f"{parallel_state().model_size}")
        joined = max(1, self._num_states()) if args.rail_kd_concatenated else 1
        for spec in self.teachers:
            self.add_module(f"t_fit_dense_{spec.index}", self._fit_layer(joined * spec.hidden_size))
        self.s_fit_dense = self._fit_layer(joined * self.config.hidden_size)

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: RAIL-KD")
        group.add_argument("--rail_kd_inter_rate", type=float, default=0.3334, help="weight of the intermediate loss")
        group.add_argument("--rail_kd_layer_wise_alpha", type=float, default=1.0,
                           help="weight of each layer without rail_kd_concatenated")
        group.add_argument("--rail_kd_u", type=width, default=128, help="width that states are projected to")
        group.add_argument("--rail_kd_epochs", type=int, default=1,
                           help="redraw every so many epochs of fine-tuning; 0 = by iterations")
        group.add_argument("--rail_kd_iters", type=int, default=3000,
                           help="redraw every so many iterations, in pretraining or with epochs = 0")
        group.add_argument("--rail_kd_concatenated", action="store_true", help="project all states at once")
        group.add_argument("--rail_kd_has_embed", action="store_true", help="include the embeddings")
        group.add_argument("--rail_kd_has_final", action="store_true", help="include the final states")
        group.add_argument("--rail_kd_show_hook_change", action="store_true", help="log every draw")
        group.add_argument("--rail_kd_no_random", action="store_true", help="evenly spaced layers instead of random")
        group.add_argument("--rail_kd_batch_mean", action="store_true", help="mean over the batch instead of sum")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if args.rail_kd_u < 1:
            raise ValueError(f"--rail_kd_u={args.rail_kd_u} must be at least 1")
        if not args.rail_kd_no_random and args.rail_kd_epochs <= 0 and args.rail_kd_iters <= 0:
            raise ValueError("RAIL-KD draws layers anew from time to time: set --rail_kd_epochs or --rail_kd_iters "
                             "above 0, or --rail_kd_no_random")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        self.layer_map(teacher.index)
        if self._num_states() < 1:
            raise ValueError(
                f"RAIL-KD compares inner states, and a student of {self.config.num_layers} layer (--num-layers) has "
                "none between its embeddings and its final states; add --rail_kd_has_embed or --rail_kd_has_final")

    @property
    def batch_coupled(self) -> str:
        if self.args.rail_kd_batch_mean or not self.args.rail_kd_inter_rate:
            return ""
        return "the loss is a sum over the micro-batch (--rail_kd_batch_mean averages)"

    def layer_map(self, t_no: int) -> tuple[int, ...]:
        """Numbers of the states of teacher ``t_no`` that meet states 0..S of the student."""
        depth, t_depth, args = self.config.num_layers, self.teachers[t_no].num_layers, self.args
        if args.rail_kd_no_random:
            return uniform_layer_map(depth, t_depth)
        period = redraw_period(epoch=self.run.epoch, iteration=self.run.iteration,
                               every_epochs=args.rail_kd_epochs if args.finetune else 0,
                               every_iterations=args.rail_kd_iters)
        inner = self.draw("rail_kd_layers", lambda generator: random_layer_map(depth, t_depth, generator)[1:-1], t_no,
                          *period)
        layers = (0, *(int(layer) for layer in inner), t_depth)
        if args.rail_kd_show_hook_change and self._told.get(t_no) != layers:
            self._told[t_no] = layers
            logger.info("rail_kd: layers of teacher %d in %s %d: %s", t_no, *period, list(inner))
        return layers

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        if not self.args.rail_kd_inter_rate:
            return ()
        depth, t_depth = self.config.num_layers, self.teachers[t_no].num_layers
        seg = self.layer_map(t_no)
        return tuple(Pair("hidden_states", hidden_state(k, depth), hidden_state(seg[k], t_depth))
                     for k in self._states())

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        pairs = self.pairs(t_no)
        if not pairs:
            return 0.0
        student = self._project(self.s_fit_dense, [tapped(s_inter_vars, s_hook, *pair.student) for pair in pairs])
        teacher = self._project(getattr(self, f"t_fit_dense_{t_no}"),
                                [tapped(t_inter_vars, t_hook, *pair.teacher) for pair in pairs])
        rows = (student - teacher).square().sum(dim=(1, 2))  # [b]
        if not self.args.rail_kd_concatenated:
            rows = rows * self.args.rail_kd_layer_wise_alpha
        if not self.args.rail_kd_batch_mean:
            rows = rows * len(rows)
        loss = reduce_rows(rows, keep_batch=keep_batch)
        self.add_summary("inter_loss/hidden_states", loss)
        return self.args.rail_kd_inter_rate * loss

    def _project(self, layer: ColumnParallelLinear, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Unit vectors [b, m, u] of m states [b, s, h]; one of all states, [b, 1, u], in the concatenated form."""
        pooled = torch.stack([state.mean(dim=1) for state in states], dim=1)  # [b, m, h]
        if self.args.rail_kd_concatenated:
            pooled = pooled.flatten(1).unsqueeze(1)
        return F.normalize(self.apply_layer(layer, pooled), dim=-1)

    def _states(self) -> range:
        """Numbers of the student's states that are compared."""
        return range(0 if self.args.rail_kd_has_embed else 1,
                     self.config.num_layers + int(self.args.rail_kd_has_final))

    def _num_states(self) -> int:
        return len(self._states())

    def _fit_layer(self, width: int) -> ColumnParallelLinear:
        return ColumnParallelLinear(width, self.args.rail_kd_u, gather_output=True)
