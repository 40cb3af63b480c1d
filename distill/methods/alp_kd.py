"""ALP-KD (Passban et al. 2021, arXiv:2012.14022): each student layer meets a mixture of all teacher layers.

    alpha_kj = softmax_j(s_k . t_j),      L = lambda sum_k mse(s_k, sum_j alpha_kj t_j)

with the class tokens ``s_k`` of the student's hidden states 1 .. S and ``t_j`` of the teacher's 1 .. T. The scores are
not scaled, and the gradient flows through alpha. Departures: hidden states are read through the LayerNorm that follows
them. Published runs had no lambda (it was read nowhere); ``--alp_kd_lambda=1`` reproduces them.

Legend: ``k`` student layers, ``j`` teacher layers, ``b`` rows of the batch, ``h`` width.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from distill.layer_maps import hidden_state
from distill.losses import mse
from distill.student import GLMStudent, Loss, TeacherSpec, register_method
from model.taps import Hook, layer_hook, merge_hooks, tapped


@register_method("alp_kd")
class ALPKD(GLMStudent):
    """Flag ``--alp_kd_lambda``; adds no parameters."""

    switches = "--alp_kd_lambda above 0"

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: ALP-KD")
        group.add_argument("--alp_kd_lambda", type=float, default=0.2,
                           help="weight of the hidden states; 0 = off; 1 reproduces published runs")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        depth = self.config.num_layers
        if self.args.alp_kd_lambda:
            self.check_equal_widths(teacher, *(hidden_state(k, depth) for k in range(1, depth + 1)),
                                    way_out="set --hidden-size, or --alp_kd_lambda=0 for predictions only")

    def intermediate_terms(self) -> list[str]:
        shared = ["logits_parallel"] if self.args.distill_logits_parallel else []
        return ["hidden_states", *shared] if self.args.alp_kd_lambda else shared

    def get_teacher_hook(self, t_no: int = 0, **kwargs: Any) -> Hook:
        return self._hook(self.teachers[t_no].num_layers)

    def get_student_hook(self, **kwargs: Any) -> Hook:
        return self._hook(self.config.num_layers)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        if not self.args.alp_kd_lambda:
            return 0.0
        student = _class_tokens(s_inter_vars, s_hook, self.config.num_layers)
        teacher = _class_tokens(t_inter_vars, t_hook, self.teachers[t_no].num_layers)
        alpha = torch.einsum("kbh,jbh->kbj", student, teacher).softmax(dim=-1)
        mixtures = torch.einsum("kbj,jbh->kbh", alpha, teacher)
        loss: Loss = 0.0
        for number, (own, mixture) in enumerate(zip(student, mixtures, strict=True)):
            term = mse(own, mixture, keep_batch=keep_batch)
            self.add_summary(f"inter_loss/hidden_states.{number}", term)
            loss = loss + term
        return self.args.alp_kd_lambda * loss

    def _hook(self, depth: int) -> Hook:
        if not self.args.alp_kd_lambda:
            return {}
        return merge_hooks(layer_hook(dict.fromkeys(range(1, depth), "layernorm_output")),
                           {"transformer": {"output": None}})


def _class_tokens(inter_vars: Sequence[torch.Tensor], hook: Hook, depth: int) -> torch.Tensor:
    """The class token (position 0) of hidden states 1 .. depth, [depth, b, h]."""
    return torch.stack([tapped(inter_vars, hook, *hidden_state(k, depth))[:, 0] for k in range(1, depth + 1)])
