"""RL-KD (Yuan et al. 2021, arXiv:2012.06048, similar): an agent picks, for each sample, the teachers to learn from.

    sigma_b = sigmoid( A [e_b, losses_b] + a + D [logits_b] + d )     in (0, 1)^n
    a_bi ~ Bernoulli(sigma_bi)
    L_stu   = mean_{b,i} a_bi (pre_i[b] + inter_i[b])
    L_agent = - R sum_{b,i} pi(a_prev | state_prev)                   pi = sigma^a (1 - sigma)^(1 - a)
    total   = alpha (L_stu + L_agent) + (1 - alpha) hard

e_b is the final state of the first token under a further teacher m, which serves for nothing else; losses_b and
logits_b are those of the n teachers. The action of one step is rewarded by the student's loss in the next, R = - hard
(reward 1), or also minus the loss of teachers (reward 2). Departures from the paper: agent and student learn in every
step, and the policy term is pi itself (the published numbers); ``--rl_kd_policy_term=log_pi`` is REINFORCE.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from distill.flag_types import width
from distill.multi_teacher.base import MultiTeacherModel, OutputShape, Step, add_label, register_combiner
from distill.student import GLMStudent, Loss
from model.parallel.groups import parallel_state
from model.parallel.layers import RowParallelLinear
from model.parallel.sharding import ShardSpec
from model.taps import Hook, tapped

logger = logging.getLogger(__name__)

#: Smallest probability that log pi is taken of.
SMALLEST_PI = 1e-6


@register_combiner("rl_kd")
class RLKD(MultiTeacherModel):
    """Flags ``--rl_kd_*``. Parameters: ``agent_semantic_mt_loss`` (n, width of e + n) and ``agent_mt_soft`` (n, n C), C
    classes, choices or words. Over a cut vocabulary each teacher's block of C columns is cut by itself.

    The state and action of the last step are carried over on each rank, and saved for a resume.
    """

    member_name = "RL_KD"

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        if not args.rl_kd_only_avg and not args.mt_has_loss:
            raise ValueError("--multi_teacher_model=rl_kd chooses by the teachers' own label losses: add --mt_has_loss "
                             "(or --rl_kd_only_avg, the first stage)")
        if not args.rl_kd_only_avg and args.rl_kd_semantic_model is None and args.rl_kd_semantic_model_dim is None:
            raise ValueError("--multi_teacher_model=rl_kd needs the width of its sentence encoder: give "
                             "--rl_kd_semantic_model (a teacher, counted from 0) or --rl_kd_semantic_model_dim")
        if args.rl_kd_reward_teacher != "last" and args.rl_kd_reward != 2:
            logger.warning("--rl_kd_reward_teacher=%s has no effect without --rl_kd_reward=2",
                           args.rl_kd_reward_teacher)
        if not args.rl_kd_wo_hard:
            self.warn_of_two_labels("rl_kd (unless --rl_kd_wo_hard)")
        self.outputs = OutputShape()
        self._previous: dict[str, torch.Tensor] = {}

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("multi-teacher: RL-KD")
        for name, text in (
                ("only_avg", "first stage: the mean over the teachers, no agent at work"),
                ("wo_hard", "do not add the label loss"),
                ("wo_loss_mask", "the agent sees the teachers' logits of all positions"),
                ("only_mask_pad", "the agent sees the teachers' logits of all positions but padding (label 0)")):
            group.add_argument(f"--rl_kd_{name}", action="store_true", help=text)
        group.add_argument("--rl_kd_alpha", type=float, default=0.5, help="weight of distillation; the rest: the label")
        group.add_argument("--rl_kd_semantic_model", type=int, default=None,
                           help="the teacher that only encodes the sentence for the agent, counted from 0")
        group.add_argument("--rl_kd_semantic_model_dim", type=width, default=None,
                           help="width of that teacher, where it is not given (first stage)")
        group.add_argument("--rl_kd_reward", type=int, default=1, choices=(1, 2),
                           help="1: minus the student's loss; 2: also minus the loss of teachers")
        group.add_argument("--rl_kd_reward_teacher", default="last", choices=("last", "selected"),
                           help="reward 2: label loss of the last teacher, or distillation loss of the selected ones")
        group.add_argument("--rl_kd_policy_term", default="pi", choices=("pi", "log_pi"),
                           help="what the reward multiplies: the action's probability, or its logarithm (REINFORCE)")

    @property
    def batch_coupled(self) -> str:
        return "" if self.args.rl_kd_only_avg else "the agent is rewarded for a whole micro-batch, one step later"

    def kept_apart(self, student: GLMStudent) -> frozenset[int]:
        m, total = self.args.rl_kd_semantic_model, len(student.teachers)
        if m is None:
            return frozenset()
        if not 0 <= m < total:
            raise ValueError(f"--rl_kd_semantic_model={m}: there are {total} teachers, counted from 0")
        return frozenset({m})

    def build(self, student: GLMStudent, outputs: OutputShape) -> None:
        m, n = self.args.rl_kd_semantic_model, len(student.teachers) - len(self.unused)
        if n < 1:
            raise ValueError(f"--rl_kd_semantic_model={m} leaves no teacher to learn from: give one more (--mt_*)")
        self.outputs = outputs
        encoder = self.args.rl_kd_semantic_model_dim if m is None else student.teachers[m].hidden_size
        if encoder is None:
            logger.warning("rl_kd: no semantic dimension, no agent is built; give --rl_kd_semantic_model_dim if a "
                           "second stage starts from this run")
            return
        if self.args.block_lm_ratio and outputs.num_classes is not None:
            raise ValueError("rl_kd: the agent reads scores of choices, and the steps of --block-lm-ratio have token "
                             "logits; leave --block-lm-ratio out")
        self.semantic_width = encoder * outputs.num_choices
        self.agent_semantic_mt_loss = nn.Linear(self.semantic_width + n, n)
        if outputs.num_classes is None:
            self.agent_mt_soft: nn.Module = RowParallelLinear(
                n * student.config.vocab_size, n, spec=ShardSpec(dim=1, blocks=n))
        else:
            self.agent_mt_soft = nn.Linear(n * outputs.num_classes, n)

    def hooks_process(self, t_hooks: list[Hook]) -> list[Hook]:
        m = self.args.rl_kd_semantic_model
        if m is None:
            return t_hooks
        return [{"transformer": {"output": None}} if t_no == m else hook for t_no, hook in enumerate(t_hooks)]

    def own_terms(self, student: GLMStudent) -> list[str]:
        rate = 0.0 if self.args.rl_kd_wo_hard else 1.0 - self.args.rl_kd_alpha
        return [f"label x {rate:g} beside the teachers"] if rate else []

    def memory(self) -> dict[str, Any]:
        return dict(self._previous)

    def restore_memory(self, state: dict[str, Any]) -> None:
        device = next(self.parameters()).device
        self._previous = {name: tensor.to(device) for name, tensor in state.items()}

    def combine(self, step: Step) -> Loss:
        loss = self._average(step) if self.args.rl_kd_only_avg else self._act(step)
        if self.args.rl_kd_wo_hard:
            return loss
        return add_label(step, self.args.rl_kd_alpha * loss, 1.0 - self.args.rl_kd_alpha)

    def _average(self, step: Step) -> Loss:
        numbers, total = self.numbers(step), 0.0
        for t_no in numbers:
            term = step.prediction(t_no) + step.intermediate(t_no)
            step.record_teacher(t_no, term)
            total = total + term
        return total / len(numbers)

    def _act(self, step: Step) -> Loss:
        """L_stu + L_agent; then the new state and action are remembered."""
        numbers = self.numbers(step)
        state = self._state(step, numbers)
        action = self._draw_action(step, self._sigma(step.student, state))
        predictions, terms = [], []
        for t_no in numbers:
            prediction = step.prediction(t_no, keep_batch=True)
            term = torch.as_tensor(prediction + step.intermediate(t_no, keep_batch=True), device=action.device)
            step.record_teacher(t_no, term)
            predictions.append(torch.as_tensor(prediction, device=action.device).expand(step.num_samples))
            terms.append(term.expand(step.num_samples))
        loss = (action * torch.stack(terms, dim=1)).mean()
        if self._previous:
            agent_loss = self._agent_loss(step, numbers, action, torch.stack(predictions, dim=1))
            step.student.add_summary("multi_teacher_model/rl_loss", agent_loss)
            loss = loss + agent_loss
        self._previous = {**state, "action": action}
        return loss

    def _agent_loss(self, step: Step, numbers: Sequence[int], action: torch.Tensor,
                    predictions: torch.Tensor) -> torch.Tensor:
        sigma = self._sigma(step.student, self._previous)
        pi = torch.where(self._previous["action"] > 0, sigma, 1.0 - sigma)
        if self.args.rl_kd_policy_term == "log_pi":
            pi = pi.clamp(min=SMALLEST_PI).log()
        return -self._reward(step, numbers, action, predictions) * pi.sum()

    @torch.no_grad()
    def _reward(self, step: Step, numbers: Sequence[int], action: torch.Tensor,
                predictions: torch.Tensor) -> torch.Tensor:
        """A scalar, the mean over the data-parallel ranks."""
        reward = -step.s_out["loss"].detach()
        if self.args.rl_kd_reward == 2 and self.args.rl_kd_reward_teacher == "last":
            reward = reward - torch.as_tensor(step.t_out[numbers[-1]]["loss"], device=reward.device)
        elif self.args.rl_kd_reward == 2:
            reward = reward - (action * predictions).sum() / action.sum().clamp(min=1.0)
        parallel = parallel_state()
        if parallel.data_size > 1:
            reward = reward.clone()
            dist.all_reduce(reward, group=parallel.data_group)
            reward = reward / parallel.data_size
        return reward

    def _draw_action(self, step: Step, sigma: torch.Tensor) -> torch.Tensor:
        """[b, n] of 0 and 1. Samples differ between data-parallel ranks, so the draws do as well."""
        run, (rows, columns) = step.student.run, sigma.shape
        uniform = step.student.draw(
            "rl_kd_uniform", lambda generator: [[generator.random() for _ in range(columns)] for _ in range(rows)],
            run.iteration, run.micro_step, run.repeat, parallel_state().data_rank)
        return (torch.tensor(uniform, dtype=sigma.dtype, device=sigma.device) < sigma).to(sigma.dtype)

    def _sigma(self, student: GLMStudent, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.sigmoid(student.apply_layer(self.agent_semantic_mt_loss, state["semantic"])
                             + student.apply_layer(self.agent_mt_soft, state["logits"]))

    @torch.no_grad()
    def _state(self, step: Step, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """``semantic`` [b, width of e + n] and ``logits`` [b, n C (/p)], in at least fp32."""
        mask = step.position_mask(wo_loss_mask=self.args.rl_kd_wo_loss_mask,
                                  only_mask_pad=self.args.rl_kd_only_mask_pad)
        logits = [self._seen_logits(step.teacher_logits(t_no, "rl_kd"), mask) for t_no in numbers]
        losses = torch.stack([step.t_out[t_no]["loss_batch"] for t_no in numbers], dim=1).to(logits[0].dtype)
        encoding = self._encoding(step, losses)
        return {"semantic": torch.cat([encoding, losses], dim=1), "logits": torch.cat(logits, dim=1)}

    def _encoding(self, step: Step, like: torch.Tensor) -> torch.Tensor:
        """e_b [b, width of e]; zeros without an encoder."""
        m = self.args.rl_kd_semantic_model
        if m is None:
            return like.new_zeros(len(like), self.semantic_width)
        step.teacher_logits(m, "rl_kd")
        first = tapped(step.t_vars[m], step.t_hooks[m], "transformer", "output")[:, 0]
        return self._fit(first.reshape(len(like), -1).to(like.dtype), self.semantic_width)

    def _seen_logits(self, logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.dim() == 2:
            return self._fit(logits, self.outputs.num_classes)
        return (logits if mask is None else logits * mask.unsqueeze(-1).to(logits.dtype)).mean(dim=1)

    def _fit(self, x: torch.Tensor, columns: int | None) -> torch.Tensor:
        """Padded with zeros or cut to so many columns, where the number of choices varies."""
        if columns is None or x.shape[1] == columns:
            return x
        if not self.outputs.varies:
            raise ValueError(f"rl_kd: the agent was built for {columns} columns and gets {x.shape[1]}: every sample "
                             "must have the same number of choices; add --fix_variable_num_choices")
        return F.pad(x, (0, columns - x.shape[1]))
