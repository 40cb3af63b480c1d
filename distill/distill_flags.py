"""The flags shared by all methods, and the ones that are refused or without effect."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from distill.flag_types import fraction

logger = logging.getLogger(__name__)

_LATER = "is not part of this version"
_MAP = f"vocabulary compression {_LATER}: leave the flag out"
_REPEAT = f"a second pass over a batch {_LATER}: leave the flag out"
_LIVE = f"training teachers along with the student {_LATER}: leave the flag out"

#: Flags that are understood but refused if set: dest -> why, and the way out.
REFUSED: dict[str, str] = {
    "forward_repeat_num": _REPEAT,
    "ignore_first_backward_gard": _REPEAT,
    "distill_random_data": f"randomised data {_LATER}: leave the flag out",
    "distil_analysis_inter": f"the analysis of inner tensors {_LATER}: leave the flag out",
    "distill_test_output": "no method of this version has a self-test of its own: leave the flag out",
    "distill_logit_mask_map": _MAP,
    "logitsdistil_teacher_input_ids_map": _MAP,
    "teacher_map_vocab_size": _MAP,
    "mt_map_vocab_size": _MAP,
    "mt_has_grad": _LIVE,
    "mt_load_from_s": _LIVE,
    "student_use_empty_glm": _LIVE,
    "mt_model_load": f"a combiner with parameters of its own {_LATER}: leave the flag out",
}
#: Flags that are accepted and have nothing to do: dest -> why.
WITHOUT_EFFECT: dict[str, str] = {
    "enable_parallel_entropy": "losses never gather the logits, with or without it",
    "avgmt_inter_checkpoint": "losses recompute their large tensors in the backward pass anyway",
    "avgmt_pre_checkpoint": "losses recompute their large tensors in the backward pass anyway",
    "distil_analysis_frcn": "there is no analysis in this version",
    "distill_random_data_n": "there is no randomised data in this version",
    "distill_random_data_method": "there is no randomised data in this version",
}
#: Defaults other than None, False, 0 and "" of the flags above.
_DEFAULTS: dict[str, Any] = {"distil_analysis_frcn": "0", "distill_random_data_n": "0",
                             "distill_random_data_method": "shuffle"}


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """The groups "distillation", "analysis" and "repeated passes and randomised data"."""
    _add_base(parser.add_argument_group("distillation"))
    group = parser.add_argument_group("analysis (refused in this version)")
    group.add_argument("--distill_test_output", action="store_true", help="self-test of methods that have one")
    group.add_argument("--distil_analysis_inter", action="store_true", help="log the similarity of inner tensors")
    group.add_argument("--distil_analysis_frcn", default="0", help="passes to analyse")
    group = parser.add_argument_group("repeated passes and randomised data (refused in this version)")
    group.add_argument("--forward_repeat_num", type=int, default=0, help="further passes over the same batch")
    group.add_argument("--ignore_first_backward_gard", action="store_true", help="drop the gradient of the first pass")
    group.add_argument("--distill_random_data", default="", choices=("", "replace", "dual"), help="random token ids")
    group.add_argument("--distill_random_data_n", default="0", help="passes that get random data")
    group.add_argument("--distill_random_data_method", default="shuffle", choices=("shuffle", "sample"),
                       help="how token ids are drawn")


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
    group.add_argument("--distill_logit_mask_map", action="store_true", help="refused: needs a vocabulary map")
    group.add_argument("--enable_parallel_entropy", action="store_true", help="accepted: logits are never gathered")
    group.add_argument("--student_use_empty_glm", action="store_true", help="refused in this version")


def check_refused(args: Any) -> None:
    """Raise ValueError for the first refused flag that is set; warn about flags without effect."""
    for dest, reason in REFUSED.items():
        if _is_set(args, dest):
            raise ValueError(f"--{dest}={getattr(args, dest)}: {reason}")
    for dest, reason in WITHOUT_EFFECT.items():
        if _is_set(args, dest):
            logger.warning("--%s has no effect: %s", dest, reason)


def _is_set(args: Any, dest: str) -> bool:
    value = getattr(args, dest, None)
    if dest.startswith("mt_") and isinstance(value, str):  # a list of zeros asks for nothing
        return any(entry.strip("0.") for entry in value.split(":"))
    return bool(value) and value != _DEFAULTS.get(dest)
