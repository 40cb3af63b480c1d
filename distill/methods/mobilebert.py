"""MobileBERT (Sun et al. 2020, arXiv:2004.02984, section 3.5): progressive transfer of feature maps and attention.

Layer after layer from the bottom, q = 1..S, each for an equal part of the run, then labels in the last part:

    L = w [ sum_{k=1..q} c_k KL(att_t(seg k) || att_s(k)) + sum_{k=0..q} c_k mse(hid_s(k), hid_t(seg k)) ]

with ``c_k`` = r below q and 1 at q; when all layers are done, all terms stay on with c = 1 and the prediction loss
joins them. The bottleneck shape itself is :mod:`model.bottleneck`. Departures from the paper: learnt layers get a
smaller loss weight r instead of a smaller learning rate, and the last part has no soft labels unless
``--distill_pt_soft`` adds them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from distill.layer_maps import attention_scores, hidden_state, uniform_layer_map
from distill.losses import kl_divergence, mse
from distill.schedules import transfer_stage
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.taps import Hook


@register_method("mobilebert")
class MobileBERT(GLMStudent):
    """Flags ``--mobilebert_*``. No parameters; the stage is a pure function of the iteration."""

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: MobileBERT")
        group.add_argument("--mobilebert_kd_w", type=float, default=0.5, help="weight of the intermediate loss")
        group.add_argument("--mobilebert_pkt_small_lr", type=float, default=0.1,
                           help="weight of layers that have been learnt, while others are")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if args.mobilebert_kd_w <= 0:
            raise ValueError(f"--mobilebert_kd_w={args.mobilebert_kd_w} must be above 0: until the last stage there is "
                             "no other loss")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        uniform_layer_map(self.config.num_layers, teacher.num_layers)
        for what, own, other, flag in (
                ("hidden sizes", self.config.hidden_size, teacher.hidden_size, "hidden-size"),
                ("numbers of heads", self.config.num_attention_heads, teacher.num_attention_heads,
                 "num-attention-heads")):
            if own != other and not (what == "hidden sizes" and self.widths_are_fitted):
                raise ValueError(f"MobileBERT needs equal {what}: student {own} (--{flag}) vs teacher {other} "
                                 f"(--teacher_{flag.replace('-', '_')})")

    @property
    def stage(self) -> int:
        """q: the layer that is being learnt, from 1; one more than the student has layers in the last part."""
        return transfer_stage(self.run.iteration, self._transfer_length(), self.config.num_layers)

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        depth, t_depth = self.config.num_layers, self.teachers[t_no].num_layers
        seg, stage = uniform_layer_map(depth, t_depth), self.stage
        weights = [1.0 if stage > depth or k == stage else self.args.mobilebert_pkt_small_lr for k in range(depth + 1)]
        last = min(stage, depth)
        attention = (Pair("attention_scores", attention_scores(k), attention_scores(seg[k]), "heads", weights[k])
                     for k in range(1, last + 1))
        states = (Pair("hidden_states", hidden_state(k, depth), hidden_state(seg[k], t_depth), weight=weights[k])
                  for k in range(last + 1))
        return *attention, *states

    def pair_loss(self, pair: Pair, student: torch.Tensor, teacher: torch.Tensor, *, keep_batch: bool,
                  t_no: int) -> torch.Tensor:
        loss = kl_divergence if pair.kind == "attention_scores" else mse
        return loss(student, teacher, keep_batch=keep_batch, partition=pair.partition)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        return self.args.mobilebert_kd_w * self.sum_pairs(s_inter_vars, t_inter_vars, s_hook, t_hook,
                                                          keep_batch=keep_batch, t_no=t_no)

    def pre_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, loss: Loss,
                 loss_mask: torch.Tensor | None = None, return_dict: bool = False, labels: torch.Tensor | None = None,
                 keep_batch: bool = False, t_no: int = 0, mse_t_w: float = 1.0,
                 logit_mask: torch.Tensor | None = None, **kwargs: Any) -> Loss | dict[str, Loss]:
        """Nothing until all layers are learnt, then the base's."""
        if self.stage <= self.config.num_layers:
            return {"loss": 0.0} if return_dict else 0.0
        return super().pre_loss(s_logits, t_logits, loss, loss_mask, return_dict, labels, keep_batch, t_no, mse_t_w,
                                logit_mask, **kwargs)

    def _transfer_length(self) -> int:
        """Length of the transfer in the unit of the iteration; ``--lr-decay-iters`` counts optimizer steps."""
        steps = self.args.lr_decay_iters
        if not steps:
            return self.run.train_iters
        return steps * self.run.accumulation_steps if self.args.finetune else steps
