"""The flags shared by all methods, their checks, and the ones without effect."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from distill.flag_types import fraction

logger = logging.getLogger(__name__)

#: Flags that are accepted and have nothing to do: dest -> why.
WITHOUT_EFFECT: dict[str, str] = {
    "enable_parallel_entropy": "losses never gather the logits, with or without it",
    "avgmt_inter_checkpoint": "losses recompute their large tensors in the backward pass anyway",
    "avgmt_pre_checkpoint": "losses recompute their large tensors in the backward pass anyway",
}


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """The groups "distillation", "analysis" and "repeated passes and randomised data"."""
    _add_base(parser.add_argument_group("distillation"))
    group = parser.add_argument_group("analysis")
    group.add_argument("--distill_test_output", action="store_true",
                       help="self-test of methods that have one (theseus): an error if one of its promises is broken")
    group.add_argument("--distil_analysis_inter", action="store_true",
                       help="record how similar all inner tensors of student and teachers are (every --log-interval)")
    group.add_argument("--distil_analysis_frcn", default="0", help="passes to analyse: comma list, counted from 0")
    group = parser.add_argument_group("repeated passes and randomised data")
    group.add_argument("--forward_repeat_num", type=int, default=0,
                       help="further passes over the same batch in training; the losses are added")
    group.add_argument("--ignore_first_backward_gard", action="store_true",
                       help="leave the first pass out of the loss (methods may use its gradient)")
    group.add_argument("--distill_random_data", default="", choices=("", "replace", "dual"),
                       help="random token ids in training: instead of the batch, or a second half beside it")
    group.add_argument("--distill_random_data_n", default="0",
                       help="passes that get random data: comma list, counted from 0")
    group.add_argument("--distill_random_data_method", default="shuffle", choices=("shuffle", "sample"),
                       help="permute all token ids of the batch, or draw them uniformly from the vocabulary")


def _add_base(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--student_truncate_tn", type=int, default=None,
                       help="start from the first layers of this teacher, counted from 0; overrides "
                            "--load-pretrained; negative = off")
    for stage, name in (("ft", "fine-tuning"), ("pt", "pretraining")):
        group.add_argument(f"--distill_{stage}_soft", action="store_true",
                           help=f"{name}: learn the teacher's predictions")
        group.add_argument(f"--distill_{stage}_hard", action="store_true", help=f"{name}: learn the labels")
    group.add_argument("--distill_ft_soft_kl", action="store_true",
                       help="fine-tuning: KL times tau^2 instead of cross entropy")
    group.add_argument("--distill_ft_soft_mse", action="store_true", help="fine-tuning: squared error of logits")
    group.add_argument("--distill_pt_soft_ce", action="store_true", help="pretraining: cross entropy instead of KL")
    group.add_argument("--distill_pt_soft_mse", action="store_true", help="pretraining: squared error of logits")
    group.add_argument("--distill_soft_rate", type=fraction, default=1.0,
                       help="weight of the teacher's predictions; 0 removes the term")
    group.add_argument("--distill_hard_rate", type=fraction, default=1.0,
                       help="weight of the labels; 0 removes the term")
    group.add_argument("--distill_temperature", type=float, default=1.0, help="softens both softmaxes")
    group.add_argument("--distill_wo_loss_mask", action="store_true",
                       help="token-level logits: learn the teacher's predictions at all positions")
    group.add_argument("--distill_only_mask_pad", action="store_true",
                       help="token-level logits: leave out padding only (label 0), not part A")
    group.add_argument("--distill_mask_wo_constant", action="store_true",
                       help="masked positions add no constant to cross-entropy and cosine terms (same gradient)")
    group.add_argument("--distill_logits_parallel", action="store_true",
                       help="also match the vocabulary logits at all positions, in any task")
    group.add_argument("--distill_logit_mask_pad", action="store_true", help="leave padding out of that term")
    group.add_argument("--distill_logit_mse", action="store_true", help="squared error in that term")
    group.add_argument("--distill_logit_mask_map", action="store_true",
                       help="vocabulary logits: compare only the tokens that a compact vocabulary keeps")
    group.add_argument("--enable_parallel_entropy", action="store_true", help="accepted: logits are never gathered")
    group.add_argument("--student_use_empty_glm", action="store_true",
                       help="no student network: a stand-in with constant logits, for teachers that learn "
                            "(--mt_has_grad)")


def check_distill_flags(args: Any) -> None:
    """Raise ValueError for passes that cannot be; warn about flags without effect."""
    for dest, reason in WITHOUT_EFFECT.items():
        if getattr(args, dest, False):
            logger.warning("--%s has no effect: %s", dest, reason)
    _check_passes(args)


def pass_numbers(text: str, flag: str) -> frozenset[int]:
    """A comma list of passes, counted from 0. ValueError names the flag."""
    try:
        return frozenset(int(entry) for entry in text.split(",") if entry.strip())
    except ValueError:
        raise ValueError(f"--{flag}={text} must be a comma list of passes, counted from 0, for instance 0,1") from None


def _check_passes(args: Any) -> None:
    """Repeated passes, randomised data and analysis."""
    if args.forward_repeat_num < 0:
        raise ValueError(f"--forward_repeat_num={args.forward_repeat_num} must be 0 or more")
    if args.ignore_first_backward_gard and args.forward_repeat_num < 1:
        raise ValueError("--ignore_first_backward_gard leaves no loss: it drops the only pass; add "
                         "--forward_repeat_num=1")
    if args.ignore_first_backward_gard and args.gradient_accumulation_steps != 1:
        raise ValueError(f"--ignore_first_backward_gard needs --gradient-accumulation-steps=1, not "
                         f"{args.gradient_accumulation_steps}")
    pass_numbers(args.distill_random_data_n, "distill_random_data_n")
    pass_numbers(args.distil_analysis_frcn, "distil_analysis_frcn")
    if args.distil_analysis_inter and "1" in args.mt_disable_operation.split(":"):
        raise ValueError(f"--distil_analysis_inter needs the tensors of every teacher, but --mt_disable_operation="
                         f"{args.mt_disable_operation} switches one off")
    for dest in ("forward_repeat_num", "distill_random_data", "distil_analysis_inter"):
        if not args.student_model and getattr(args, dest):
            logger.warning("--%s has no effect without --student_model", dest)
