"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): soft labels, labels, and the direction of the final hidden state.

    L = a_ce tau^2 KL(t / tau || s / tau; m_ce)  +  a_mlm * label loss  +  a_cos mean_{b,s} [m (1 - cos(o)) + 1 - m]

with the final states ``o`` of both models. The three weights alone decide; the shared switches
``--distill_{pt,ft}_{soft,hard}`` are not read. The cosine term exists where there is a loss mask (pretraining and
language-model tasks). Its constant ``1 - m`` at masked positions has no gradient (``--distill_mask_wo_constant`` drops
it). Departure from the paper: the student starts from the first teacher layers (``--student_truncate_tn``), not from
every other one.

Legend: ``b`` rows of the batch, ``s`` sequence, ``h`` width.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill.layer_maps import Path
from distill.losses import cosine_distance
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.taps import Hook, tapped

logger = logging.getLogger(__name__)


@register_method("distilbert")
class DistilBERT(GLMStudent):
    """Flags ``--distilbert_*``.

    With ``--distilbert_fix_layernorm`` the outputs of the last blocks are compared through a LayerNorm of our own:
    parameters ``layernorm`` (h_s), trained, and ``t_layernorm`` (h_t), fixed at weight 1 and bias 0.
    """

    switches = "a --distilbert_alpha_* above 0"

    def __init__(self, language_model: nn.Module, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        if args.distilbert_fix_layernorm:
            self.layernorm = nn.LayerNorm(self.config.hidden_size)
            self.t_layernorm = nn.LayerNorm(self.args.teacher_hidden_size).requires_grad_(False)

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: DistilBERT")
        for name, text in (("ce", "the teacher's predictions"), ("mlm", "the labels"),
                           ("cos", "the direction of the final hidden state (where there is a loss mask)")):
            group.add_argument(f"--distilbert_alpha_{name}", type=float, default=1.0,
                               help=f"weight of {text}; not above 0: off")
        group.add_argument("--distilbert_fix_layernorm", action="store_true",
                           help="compare the last blocks through LayerNorms of our own, the teacher's fixed")
        group.add_argument("--distilbert_cos_mask_padding", action="store_true",
                           help="cosine term: leave out padding only, not part A")
        group.add_argument("--distilbert_ce_mask_padding", action="store_true",
                           help="predictions: leave out padding only, not part A")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        for pair in self.pairs(teacher.index):
            self.check_equal_widths(teacher, pair.student,
                                    way_out="set --hidden-size, or drop the term with --distilbert_alpha_cos=0")

    def check_terms(self, others: Sequence[str] = ()) -> None:
        super().check_terms(others)
        stage = "ft" if self.args.finetune else "pt"
        for name in (f"distill_{stage}_soft", f"distill_{stage}_hard"):
            if getattr(self.args, name):
                logger.warning("--%s has no effect on distilbert: the --distilbert_alpha_* decide", name)

    def prediction_terms(self) -> list[str]:
        args, terms = self.args, []
        if args.distilbert_alpha_ce > 0:
            terms.append(f"soft kl x {args.distilbert_alpha_ce:g}, temperature {args.distill_temperature:g}")
        if args.distilbert_alpha_mlm > 0:
            terms.append(f"hard label x {args.distilbert_alpha_mlm:g}")
        return terms

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        alpha, depths = self.args.distilbert_alpha_cos, (self.config.num_layers, self.teachers[t_no].num_layers)
        if alpha <= 0 or not self.has_token_labels:
            return ()
        return (Pair("distilbert_alpha_cos", *map(self._place, depths), weight=alpha),)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, loss_mask: torch.Tensor | None = None,
                   labels: torch.Tensor | None = None, **kwargs: Any) -> Loss:
        if not self.pairs(t_no) or loss_mask is None:
            return 0.0
        pair = self.pairs(t_no)[0]
        student, teacher = tapped(s_inter_vars, s_hook, *pair.student), tapped(t_inter_vars, t_hook, *pair.teacher)
        if self.args.distilbert_fix_layernorm:
            student = self.apply_layer(self.layernorm, student)
            teacher = self.apply_layer(self.t_layernorm, teacher)
        mask = _mask(loss_mask, labels, self.args.distilbert_cos_mask_padding)
        loss = pair.weight * cosine_distance(student, teacher, mask=mask, keep_batch=keep_batch,
                                             wo_constant=self.args.distill_mask_wo_constant)
        self.add_summary("inter_loss/distilbert_alpha_cos", loss)
        return loss

    def pre_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, loss: Loss,
                 loss_mask: torch.Tensor | None = None, return_dict: bool = False, labels: torch.Tensor | None = None,
                 keep_batch: bool = False, **kwargs: Any) -> Loss | dict[str, Loss]:
        args, parts = self.args, {}
        if args.distilbert_alpha_ce > 0:
            mask = None
            if loss_mask is not None and not args.distill_wo_loss_mask:
                mask = _mask(loss_mask, labels, args.distilbert_ce_mask_padding)
            parts["soft"] = args.distilbert_alpha_ce * self.soft_loss(s_logits, t_logits, kind="kl", mask=mask,
                                                                      keep_batch=keep_batch)
            self.add_summary("pre_loss/distilbert_alpha_ce", parts["soft"])
        if args.distilbert_alpha_mlm > 0:
            parts["hard"] = args.distilbert_alpha_mlm * loss
            self.add_summary("pre_loss/distilbert_alpha_mlm", parts["hard"])
        total = sum(parts.values(), 0.0)
        return {**parts, "loss": total} if return_dict else total

    def _place(self, depth: int) -> Path:
        if self.args.distilbert_fix_layernorm:
            return "transformer", "layers", depth - 1, "tf_output"
        return "transformer", "output"


def _mask(loss_mask: torch.Tensor, labels: torch.Tensor | None, only_padding: bool) -> torch.Tensor:
    """[b, s]: part B, or every token (padding has label 0)."""
    return labels > 0 if only_padding and labels is not None else loss_mask
