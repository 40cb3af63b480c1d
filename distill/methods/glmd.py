"""GLMD (Tan et al. 2023, arXiv:2306.06625): only the vocabulary logits, at all positions, part A included.

    L = tau^2 mean_{b,s} m KL(softmax(t / tau) || softmax(s / tau))    or    mean_{b,s,v} m (s - t)^2

with no intermediate layers and no labels. Stage 1 (pretraining, then fine-tuning) uses a high temperature; stage 2
learns the teacher's task predictions (``--distill_ft_soft --logitsdistil_wo_inter``). Masked positions count in the
mean.

Legend: ``b`` rows of the batch (samples x choices), ``s`` sequence, ``v`` vocabulary, ``p`` model-parallel ranks.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch

from distill.losses import kl_divergence, mse, position_pad_mask
from distill.losses.top_n import (
    raise_to_minimum,
    resolve_top_n,
    threshold_hinge,
    top_entries,
    vocabulary_size,
)
from distill.student import GLMStudent, Loss, register_method
from model.taps import Hook, tapped

logger = logging.getLogger(__name__)


@register_method("logitsdistil")
class GLMD(GLMStudent):
    """General language model distillation by vocabulary logits (flags ``--logitsdistil_*``)."""

    switches = "remove --logitsdistil_wo_inter"

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: GLMD (logitsdistil)")
        group.add_argument("--logitsdistil_mask_pad", action="store_true", help="leave padding out of the loss")
        group.add_argument("--logitsdistil_mask_a", action="store_true",
                           help="leave part A (and padding) out of the loss")
        group.add_argument("--logitsdistil_mse", action="store_true", help="squared error of the logits instead of KL")
        group.add_argument("--logitsdistil_top_n", type=float, default=None,
                           help="only the teacher's n best entries (below 1: that share of the vocabulary), plus a "
                                "hinge that pushes the student's other entries down")
        group.add_argument("--logitsdistil_teacher_min", action="store_true",
                           help="with top_n: set the teacher's other entries to its minimum instead")
        group.add_argument("--logitsdistil_wo_inter", action="store_true",
                           help="no loss on vocabulary logits (stage 2)")
        group.add_argument("--logitsdistil_teacher_input_ids_map", action="store_true",
                           help="the teacher reads the substitutes of dropped tokens, as the student does")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if args.logitsdistil_teacher_min and args.logitsdistil_top_n is None:
            raise ValueError("--logitsdistil_teacher_min needs --logitsdistil_top_n: it says how many entries are kept")
        if args.distill_logits_parallel and not args.logitsdistil_wo_inter:
            logger.warning("--distill_logits_parallel adds the loss on vocabulary logits a second time")

    @property
    def batch_coupled(self) -> str:
        args = self.args
        if args.logitsdistil_top_n is None or args.logitsdistil_teacher_min or args.logitsdistil_wo_inter:
            return ""
        return "the hinge of --logitsdistil_top_n is normalised over the whole micro-batch"

    def intermediate_terms(self) -> list[str]:
        if self.args.logitsdistil_wo_inter:
            return ["logits_parallel"] if self.args.distill_logits_parallel else []
        return ["vocabulary logits"]

    def get_teacher_hook(self, t_no: int = 0, **kwargs: Any) -> Hook:
        return {} if self.args.logitsdistil_wo_inter else {"logits_parallel": None}

    def get_student_hook(self, **kwargs: Any) -> Hook:
        if self.args.logitsdistil_wo_inter:
            return {}
        return {"logits_parallel": None, **({"position_ids": None} if self.args.logitsdistil_mask_pad else {})}

    def get_teacher_hook_op(self, t_no: int = 0, **kwargs: Any) -> dict[str, Any]:
        vocab_map = getattr(self.origin_model, "vocab_map", None)
        if not self.args.logitsdistil_teacher_input_ids_map or vocab_map is None:
            return {}
        return {"input_ids": lambda input_ids: vocab_map.substituted(input_ids)}

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, loss_mask: torch.Tensor | None = None,
                   logit_mask: torch.Tensor | None = None, **kwargs: Any) -> Loss:
        if self.args.logitsdistil_wo_inter:
            return 0.0
        student, teacher = self.comparable_logits(tapped(s_inter_vars, s_hook, "logits_parallel"),
                                                  tapped(t_inter_vars, t_hook, "logits_parallel"))
        mask = self._mask(s_inter_vars, s_hook, loss_mask, logit_mask)
        hinge, partition = None, "vocab"
        if self.args.logitsdistil_top_n is not None:
            n = resolve_top_n(self.args.logitsdistil_top_n, vocabulary_size(teacher))
            if self.args.logitsdistil_teacher_min:
                teacher = raise_to_minimum(teacher, n)
            else:
                top = top_entries(teacher, n)
                hinge, number, student = threshold_hinge(student, top, mask=mask, keep_batch=keep_batch)
                self.add_summary("inter_loss/s_logits_threshold", hinge)
                self.add_summary("inter_loss/s_logits_threshold_count_nonzero", number)
                teacher, partition = top.values, None
        loss = self._distance(student, teacher, mask, keep_batch, partition)
        self.add_summary("inter_loss/logits_parallel", loss)
        return loss if hinge is None else loss + hinge

    def _distance(self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, keep_batch: bool,
                  partition: str | None) -> torch.Tensor:
        if self.args.logitsdistil_mse:
            return mse(student, teacher, mask=mask, keep_batch=keep_batch, partition=partition)
        tau = self.args.distill_temperature
        return tau ** 2 * kl_divergence(student, teacher, mask=mask, keep_batch=keep_batch, temperature=tau,
                                        partition=partition)

    def _mask(self, s_inter_vars: Sequence[torch.Tensor], s_hook: Hook, loss_mask: torch.Tensor | None,
              logit_mask: torch.Tensor | None) -> torch.Tensor | None:
        """[b, s], or None where nothing is masked."""
        masks = []
        if self.args.logitsdistil_mask_pad:
            masks.append(position_pad_mask(tapped(s_inter_vars, s_hook, "position_ids")))
        if self.args.logitsdistil_mask_a:
            part_b = loss_mask if loss_mask is not None else logit_mask
            if part_b is None:
                raise ValueError("--logitsdistil_mask_a needs a mask of part B, which this task does not have; "
                                 "it exists in language-model and cloze tasks (--cloze-eval)")
            masks.append(part_b.reshape(-1, part_b.shape[-1]))
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] * masks[1]
