"""Universal-KD (Wu et al., EMNLP 2021, aclanthology:2021.emnlp-main.603): each student layer learns an attention
mixture of all teacher layers.

    s_k = P_k pool(hid_s k),  t_j = Q_j pool(hid_t j),  alpha_kj = softmax_j(s_k . t_j)
    L = gamma sum_k mean_b KL(softmax(sum_j alpha_kj t_j) || softmax(s_k)),     k = 1..S-1, j = 1..T-1

The pool is the first position, or the mean over all positions (padding too). With ``--universal_kd_cg`` the final
states are the only layer of either side. Departure from the paper: it projects to class scores, grounded in the label
loss; here the width is free and nothing supervises the projections but this loss, whose gradient flows through alpha
and the mixture into Q.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill.flag_types import width
from distill.losses import kl_divergence
from distill.student import GLMStudent, Loss, TeacherSpec, register_method
from model.parallel.groups import parallel_state
from model.parallel.layers import ColumnParallelLinear
from model.taps import Hook, layer_hook, tapped


@register_method("universal_kd")
class UniversalKD(GLMStudent):
    """Flags ``--universal_kd_*``. Parameters: ``s_fit_dense.<k-1>`` (u, h_s), ``t_fit_dense_<n>.<j-1>`` (u, h_t)."""

    has_projections = True
    switches = "--universal_kd_gamma above 0 without --universal_kd_wo_inter"

    def __init__(self, language_model: nn.Module, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        width = args.universal_kd_size or self.config.hidden_size
        if width % parallel_state().model_size != 0:
            raise ValueError(f"--universal_kd_size: the projected width {width} is not divisible by "
                             f"--model-parallel-size {parallel_state().model_size}")
        for spec in self.teachers:
            self.add_module(f"t_fit_dense_{spec.index}", self._fit_layers(spec.num_layers, spec.hidden_size, width))
        self.s_fit_dense = self._fit_layers(self.config.num_layers, self.config.hidden_size, width)

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: Universal-KD")
        group.add_argument("--universal_kd_wo_inter", action="store_true", help="no intermediate loss (last stage)")
        group.add_argument("--universal_kd_cg", action="store_true", help="only the final states")
        group.add_argument("--universal_kd_avg", action="store_true", help="mean over positions instead of the first")
        group.add_argument("--universal_kd_gamma", type=float, default=0.5, help="weight of the intermediate loss")
        group.add_argument("--universal_kd_size", type=width, default=0, help="projected width; 0 = the student's")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if args.universal_kd_size < 0:
            raise ValueError(f"--universal_kd_size={args.universal_kd_size} must be a width, or 0 for the student's")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        if self._has_terms() and not self.args.universal_kd_cg and min(self.config.num_layers, teacher.num_layers) < 2:
            raise ValueError(
                f"Universal-KD needs an inner layer on both sides: student {self.config.num_layers} (--num-layers), "
                f"teacher {teacher.num_layers} (--teacher_num_layers), both at least 2, or --universal_kd_cg")

    def intermediate_terms(self) -> list[str]:
        own = ["hidden_states"] if self._has_terms() else []
        return own + (["logits_parallel"] if self.args.distill_logits_parallel else [])

    def get_teacher_hook(self, t_no: int = 0, **kwargs: Any) -> Hook:
        return self._hook(self.teachers[t_no].num_layers)

    def get_student_hook(self, **kwargs: Any) -> Hook:
        return self._hook(self.config.num_layers)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        if not self._has_terms():
            return 0.0
        student = self._project(self.s_fit_dense, s_inter_vars, s_hook, self.config.num_layers)
        teacher = self._project(getattr(self, f"t_fit_dense_{t_no}"), t_inter_vars, t_hook,
                                self.teachers[t_no].num_layers)
        attention = torch.softmax(student @ teacher.transpose(1, 2), dim=-1)  # [b, S-1, T-1]
        mixtures = attention @ teacher
        loss: Loss = 0.0
        for k in range(student.shape[1]):
            term = self.args.universal_kd_gamma * kl_divergence(student[:, k], mixtures[:, k], keep_batch=keep_batch)
            self.add_summary(f"inter_loss/hidden_states.{k}", term)
            loss = loss + term
        return loss

    def _project(self, layers: nn.ModuleList, inter_vars: Sequence[torch.Tensor], hook: Hook,
                 depth: int) -> torch.Tensor:
        """Projected pools of one model, [b, layers, u]."""
        paths = [("transformer", "output")] if self.args.universal_kd_cg else [
            ("transformer", "layers", k, "layernorm_output") for k in range(1, depth)]
        states = [tapped(inter_vars, hook, *path) for path in paths]
        pooled = [state.mean(dim=1) if self.args.universal_kd_avg else state[:, 0] for state in states]
        return torch.stack([self.apply_layer(layer, x) for layer, x in zip(layers, pooled, strict=True)], dim=1)

    def _hook(self, depth: int) -> Hook:
        if not self._has_terms():
            return {}
        if self.args.universal_kd_cg:
            return {"transformer": {"output": None}}
        return layer_hook(dict.fromkeys(range(1, depth), "layernorm_output"))

    def _has_terms(self) -> bool:
        return not self.args.universal_kd_wo_inter and self.args.universal_kd_gamma != 0.0

    def _fit_layers(self, depth: int, hidden_size: int, width: int) -> nn.ModuleList:
        count = 1 if self.args.universal_kd_cg else depth - 1
        return nn.ModuleList(ColumnParallelLinear(hidden_size, width, bias=False, gather_output=True)
                             for _ in range(count))
