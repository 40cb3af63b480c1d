"""Annealing-KD (Jafari et al., EACL 2021, arXiv:2104.07163): regress on teacher logits whose scale grows step by step.

    L = mse(s, phi t),   phi in stairs from 1 / T to 1   (:func:`distill.schedules.annealing_factor`)

That is the paper's first phase; its second, labels only, is an ordinary fine-tuning run on the result.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from distill.schedules import annealing_factor
from distill.student import GLMStudent, Loss, register_method


@register_method("annealing_kd")
class AnnealingKD(GLMStudent):
    """Flag ``--annealing_kd_max_t``. Reads only the prediction logits."""

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: Annealing-KD")
        group.add_argument("--annealing_kd_max_t", type=float, default=7.0,
                           help="T: number of stairs, the temperature at the start")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        stage = "ft" if args.finetune else "pt"
        if not (getattr(args, f"distill_{stage}_soft") and getattr(args, f"distill_{stage}_soft_mse")):
            raise ValueError("annealing_kd scales the teacher's logits in the squared error: add "
                             f"--distill_{stage}_soft and --distill_{stage}_soft_mse")
        if args.annealing_kd_max_t <= 0:
            raise ValueError(f"--annealing_kd_max_t={args.annealing_kd_max_t} must be above 0")

    def pre_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, loss: Loss,
                 loss_mask: torch.Tensor | None = None, return_dict: bool = False, labels: torch.Tensor | None = None,
                 keep_batch: bool = False, t_no: int = 0, mse_t_w: float = 1.0,
                 logit_mask: torch.Tensor | None = None, **kwargs: Any) -> Loss | dict[str, Loss]:
        """The base's, with the teacher's logits times phi."""
        phi = annealing_factor(self.run.iteration, self.run.train_iters, self.args.annealing_kd_max_t)
        self.add_summary("pre_loss/fai_t", phi)
        return super().pre_loss(s_logits, t_logits, loss, loss_mask, return_dict, labels, keep_batch, t_no,
                                phi * mse_t_w, logit_mask, **kwargs)
