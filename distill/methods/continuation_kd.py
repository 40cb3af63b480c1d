"""Continuation-KD (Jafari et al. 2022, arXiv:2212.05998): from the teacher's logits to the labels, with a gate.

    soft_b = rate_s mean (s_b - phi t_b)^2
    L = mean_b [ psi hard + (1 - psi) soft_b 1{soft_b > margin phi} ]

phi as in Annealing-KD, psi = iteration / (den E) until sep E, then 1. Departure from the paper: it describes a hinge
above the margin; here a sample that passes the gate counts with its whole soft loss (kept for equal numbers with the
release).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from distill.losses import reduce_rows
from distill.schedules import annealing_factor
from distill.student import GLMStudent, Loss, register_method


@register_method("continuation_kd")
class ContinuationKD(GLMStudent):
    """Flags ``--continuation_kd_*``. Reads only the prediction logits."""

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: Continuation-KD")
        group.add_argument("--continuation_kd_max_t", type=float, default=10.0,
                           help="T: number of stairs of phi, the temperature at the start")
        group.add_argument("--continuation_kd_margin", type=float, default=1.0,
                           help="a sample's soft loss counts only above margin x phi, then as a whole")
        group.add_argument("--continuation_kd_psi_sep", type=float, default=0.666,
                           help="share of the run after which only labels are learnt")
        group.add_argument("--continuation_kd_psi_denominator", type=float, default=1.333,
                           help="until then the labels weigh: share of the run gone by / this number")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        stage = "ft" if args.finetune else "pt"
        if not (getattr(args, f"distill_{stage}_soft") and getattr(args, f"distill_{stage}_soft_mse")):
            raise ValueError("continuation_kd scales the teacher's logits in the squared error: add "
                             f"--distill_{stage}_soft and --distill_{stage}_soft_mse")
        if not getattr(args, f"distill_{stage}_hard") or args.distill_hard_rate == 0:
            raise ValueError("continuation_kd learns labels only from --continuation_kd_psi_sep of the run on: add "
                             f"--distill_{stage}_hard with a --distill_hard_rate above 0")
        for name in ("continuation_kd_max_t", "continuation_kd_psi_denominator"):
            if getattr(args, name) <= 0:
                raise ValueError(f"--{name}={getattr(args, name)} must be above 0")
        if min(args.continuation_kd_psi_sep, 1.0) > args.continuation_kd_psi_denominator:
            raise ValueError(
                f"--continuation_kd_psi_sep={args.continuation_kd_psi_sep} above --continuation_kd_psi_denominator="
                f"{args.continuation_kd_psi_denominator} gives the soft loss a negative weight; raise the denominator")

    def label_weight(self) -> float:
        """``psi``, a pure function of the iteration."""
        iteration, total, args = self.run.iteration, max(1, self.run.train_iters), self.args
        if iteration > args.continuation_kd_psi_sep * total:
            return 1.0
        return iteration / (args.continuation_kd_psi_denominator * total)

    def pre_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, loss: Loss,
                 loss_mask: torch.Tensor | None = None, return_dict: bool = False, labels: torch.Tensor | None = None,
                 keep_batch: bool = False, t_no: int = 0, mse_t_w: float = 1.0,
                 logit_mask: torch.Tensor | None = None, **kwargs: Any) -> Loss | dict[str, Loss]:
        """The base's terms per sample, gated and weighted. ``loss`` is per sample, or the mean that stands for all."""
        phi = annealing_factor(self.run.iteration, self.run.train_iters, self.args.continuation_kd_max_t)
        psi = self.label_weight()
        self.add_summary("pre_loss/fai_t", phi)
        self.add_summary("pre_loss/psi", psi)
        parts = super().pre_loss(s_logits, t_logits, loss, loss_mask, return_dict=True, labels=labels, keep_batch=True,
                                 t_no=t_no, mse_t_w=phi * mse_t_w, logit_mask=logit_mask, **kwargs)
        parts["hard"] = psi * parts["hard"]
        if "soft" in parts:
            is_open = parts["soft"] > self.args.continuation_kd_margin * phi
            parts["soft"] = (1.0 - psi) * torch.where(is_open, parts["soft"], 0.0)  # [b]
        if not keep_batch:
            parts = {name: reduce_rows(torch.as_tensor(value)) for name, value in parts.items()}
        parts["loss"] = sum((parts[name] for name in ("soft", "hard") if name in parts), 0.0)
        return parts if return_dict else parts["loss"]
