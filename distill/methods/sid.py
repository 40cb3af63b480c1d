"""SID (Aguilar et al. 2020, arXiv:1910.03723): distil block after block from the bottom, stacking the losses, then the
task.

    q <= S:  inter = sum_{k=1..q} [ KL(att_t(seg k) || att_s(k)) + mean_b (1 - cos(hid_s(k)[CLS], hid_t(seg k)[CLS])) ]
    q > S:   only the prediction loss

The attention term compares softmaxes of the scores, mean over rows, heads and positions. The stage is
``q = max(q_e, q_t)``: ``q_e`` follows the position in the run (``--sid_lim_e``), ``q_t`` is a saved counter that
advances when the cosine terms get below a threshold (``--sid_accumulate_t``).

Legend: ``b`` rows of the batch (samples x choices).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distill.layer_maps import attention_scores, hidden_state, uniform_layer_map
from distill.losses import cosine_distance, kl_divergence
from distill.schedules import transfer_stage
from distill.student import GLMStudent, Loss, Pair, TeacherSpec, register_method
from model.parallel.groups import parallel_state


@register_method("sid")
class SID(GLMStudent):
    """Flags ``--sid_*``. State: ``sid_stage``, the stage that the threshold has reached."""

    optional_state = ("sid_stage",)

    def __init__(self, language_model: nn.Module, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        self.register_buffer("sid_stage", torch.ones((), dtype=torch.int64))
        self._cosines: list[torch.Tensor] = []

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: SID")
        group.add_argument("--sid_accumulate_t", type=float, default=0.0,
                           help="the next layer begins once the sum of the cosine terms is below this; 0 = never")
        group.add_argument("--sid_lim_e", default="avg",
                           help="the next layer begins at the latest: avg = after an equal share of the run, a number "
                                "= after so many epochs, any other word = never")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        stage = "ft" if args.finetune else "pt"
        if not (getattr(args, f"distill_{stage}_soft") or getattr(args, f"distill_{stage}_hard")
                or args.distill_logits_parallel):
            raise ValueError(f"sid has no loss in its last stage, when all layers are done: add --distill_{stage}_soft "
                             f"or --distill_{stage}_hard")
        if args.sid_lim_e.isdigit() and int(args.sid_lim_e) < 1:
            raise ValueError(f"--sid_lim_e={args.sid_lim_e} must be at least 1 epoch per layer")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        uniform_layer_map(self.config.num_layers, teacher.num_layers)
        for what, own, other, flags in (
                ("hidden sizes", self.config.hidden_size, teacher.hidden_size,
                 ("--hidden-size", "--teacher_hidden_size")),
                ("numbers of heads", self.config.num_attention_heads, teacher.num_attention_heads,
                 ("--num-attention-heads", "--teacher_num_attention_heads"))):
            if own != other and not (what == "hidden sizes" and self.widths_are_fitted):
                raise ValueError(f"SID needs equal {what}: student {own} ({flags[0]}) vs teacher {other} ({flags[1]})")

    @property
    def stage(self) -> int:
        """The layer that is being learnt, 1 .. S, or S + 1 when all are done."""
        run, depth, limit = self.run, self.config.num_layers, self.args.sid_lim_e
        by_position = 1
        if limit == "avg":
            by_position = transfer_stage(run.iteration, run.train_iters, depth)
        elif limit.isdigit():
            by_position = min(depth, run.epoch // int(limit)) + 1
        return max(by_position, int(self.sid_stage))

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        depth, t_depth, stage = self.config.num_layers, self.teachers[t_no].num_layers, self.stage
        if stage > depth:
            return ()
        seg = uniform_layer_map(depth, t_depth)
        return (*(Pair("attention_scores", attention_scores(k), attention_scores(seg[k]), "heads")
                  for k in range(1, stage + 1)),
                *(Pair("hidden_states", hidden_state(k, depth), hidden_state(seg[k], t_depth))
                  for k in range(1, stage + 1)))

    def pair_loss(self, pair: Pair, student: torch.Tensor, teacher: torch.Tensor, *, keep_batch: bool,
                  t_no: int) -> torch.Tensor:
        if pair.kind == "attention_scores":
            return kl_divergence(student, teacher, keep_batch=keep_batch, partition=pair.partition)
        cosine = cosine_distance(student[:, 0], teacher[:, 0], keep_batch=keep_batch)
        self._cosines.append(cosine.detach().mean())
        return cosine

    def pre_loss(self, *args: Any, return_dict: bool = False, **kwargs: Any) -> Loss | dict[str, Loss]:
        if self.stage > self.config.num_layers:
            return super().pre_loss(*args, return_dict=return_dict, **kwargs)
        return {"loss": 0.0} if return_dict else 0.0

    def after_pass(self, loss: Loss) -> None:
        """Let the threshold advance the stage, once per iteration: after the first pass over its last micro-batch.

        It looks at the cosine terms of that micro-batch, averaged over teachers and data-parallel ranks, so all ranks
        agree.
        """
        cosines, self._cosines = self._cosines, []
        run, stage = self.run, self.stage
        is_last = self.args.finetune or run.micro_step == run.accumulation_steps - 1
        if not (cosines and is_last and run.repeat == 0) or self.args.sid_accumulate_t <= 0:
            return
        total = torch.stack(cosines).sum() * stage / len(cosines)
        state = parallel_state()
        if state.data_size > 1:
            dist.all_reduce(total, group=state.data_group)
            total = total / state.data_size
        if total < self.args.sid_accumulate_t:
            self.sid_stage.fill_(stage + 1)
