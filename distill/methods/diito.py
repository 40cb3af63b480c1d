"""DIITO (Wu et al. 2022, arXiv:2112.02505): besides ordinary distillation, swap aligned activations between two inputs
in both models and match the outputs of these counterfactual runs.

    L = [a_mlm hard + a_ce soft + a_cos cos]_pass 0 + [a_causal_ce soft + a_causal_cos cos]_pass 1

Pass 0 runs the batch as it is and keeps the activations at the aligned levels, with their gradient. In pass 1, at each
aligned level of both models, sample b's activations at its chosen positions become those of sample b + 1 (the last
takes from the first) at the partner's chosen positions of pass 0, in order. ``cos`` is the mean over all positions of
``m (1 - cos(o_s, o_t)) + (1 - m)`` with the final hidden states o and the padding mask m.

Levels are hidden states (see :mod:`distill.layer_maps`). A swapped input LayerNorm is seen by the attention of its
block only; the residual stream keeps the sample's own values.

Legend: ``b`` rows of the batch (samples x choices), ``s`` sequence, ``h`` width.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from distill.layer_maps import Path, hidden_state, uniform_layer_map
from distill.losses import cosine_distance, position_pad_mask
from distill.student import GLMStudent, Loss, TeacherSpec, register_method
from model.parallel.groups import parallel_state
from model.taps import Hook, has_tap, layer_hook, merge_hooks, tapped

OUTPUT: Hook = {"transformer": {"output": None}}
#: Weights, and the switch that each of them needs.
_SWITCHED = (("mlm", "hard"), ("ce", "soft"), ("causal_ce", "soft"))


@register_method("diito")
class DIITO(GLMStudent):
    """Flags ``--diito_*``. No parameters; between the two passes of a step it keeps activations and positions."""

    batch_coupled = "activations are swapped between neighbouring samples"

    def __init__(self, language_model: torch.nn.Module, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        #: Activations by level, of the student (None) and of each teacher; already moved by one sample.
        self._kept: dict[int | None, dict[int, torch.Tensor]] = {}
        self._positions: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: DIITO")
        group.add_argument("--diito_alignment", default="full", choices=("full", "middle", "late"),
                           help="aligned levels: one random student level and its teacher levels, the middle one, or "
                                "the last two")
        group.add_argument("--diito_interchange_prop", type=float, default=0.3,
                           help="share of positions that are swapped")
        group.add_argument("--diito_interchange_way", default="consecutive",
                           choices=("consecutive", "masked", "random"),
                           help="which positions: a window, the predicted ones, or random ones")
        group.add_argument("--diito_interchange_max_token", type=int, default=-1,
                           help="at most so many positions of a sample; -1 = no bound")
        for name, text in (("mlm", "labels, pass 0"), ("ce", "soft labels, pass 0"),
                           ("causal_ce", "soft labels, pass 1"), ("cos", "cosine of final states, pass 0"),
                           ("causal_cos", "cosine of final states, pass 1")):
            group.add_argument(f"--diito_alpha_{name}", type=float, default=1.0, help=f"weight: {text}")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        if args.forward_repeat_num != 1 or args.ignore_first_backward_gard:
            raise ValueError(f"diito needs --forward_repeat_num=1 (not {args.forward_repeat_num}), one pass for each "
                             "of its two runs, without --ignore_first_backward_gard")
        if args.distill_random_data:
            raise ValueError("diito and --distill_random_data exclude each other: both passes need the same batch")
        if not 0.0 < args.diito_interchange_prop <= 1.0:
            raise ValueError(f"--diito_interchange_prop={args.diito_interchange_prop} must be a share above 0, at "
                             "most 1")
        stage = "ft" if args.finetune else "pt"
        for alpha, kind in _SWITCHED:
            if getattr(args, f"diito_alpha_{alpha}") > 0 and not getattr(args, f"distill_{stage}_{kind}"):
                raise ValueError(f"--diito_alpha_{alpha}={getattr(args, f'diito_alpha_{alpha}')} has no effect without "
                                 f"--distill_{stage}_{kind}: add it, or set the weight to 0")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        if self.args.diito_alignment == "full":
            uniform_layer_map(self.config.num_layers, teacher.num_layers)
        if (self.args.diito_alpha_cos > 0 or self.args.diito_alpha_causal_cos > 0) and (
                self.config.hidden_size != teacher.hidden_size):
            raise ValueError(
                f"DIITO's cosine terms need equal hidden sizes: student {self.config.hidden_size} (--hidden-size) vs "
                f"teacher {teacher.hidden_size} (--teacher_hidden_size); or set --diito_alpha_cos=0 "
                "--diito_alpha_causal_cos=0")

    # ---- terms ------------------------------------------------------------------------------------------------------

    def rate(self, name: str) -> float:
        """The weights of this pass take the place of ``--distill_soft_rate`` and ``--distill_hard_rate``."""
        args, is_first = self.args, self.run.repeat == 0
        if name == "hard":
            return args.diito_alpha_mlm if is_first else 0.0
        return args.diito_alpha_ce if is_first else args.diito_alpha_causal_ce

    @property
    def cosine_rate(self) -> float:
        """Weight of the cosine term in this pass."""
        return self.args.diito_alpha_cos if self.run.repeat == 0 else self.args.diito_alpha_causal_cos

    def intermediate_terms(self) -> list[str]:
        args = self.args
        return [*(["cosine"] if args.diito_alpha_cos > 0 else []),
                *(["interchanged cosine"] if args.diito_alpha_causal_cos > 0 else []),
                *(["interchanged soft labels"] if args.diito_alpha_causal_ce > 0 else []),
                *(["logits_parallel"] if args.distill_logits_parallel else [])]

    def pre_loss(self, *args: Any, **kwargs: Any) -> Loss | dict[str, Loss]:
        with self._suffix("_causal1" if self.run.repeat else ""):
            return super().pre_loss(*args, **kwargs)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, **kwargs: Any) -> Loss:
        if self.cosine_rate <= 0:
            return 0.0
        student, teacher = (tapped(variables, hook, "transformer", "output")
                            for variables, hook in ((s_inter_vars, s_hook), (t_inter_vars, t_hook)))
        mask = position_pad_mask(tapped(s_inter_vars, s_hook, "position_ids"))
        loss = self.cosine_rate * cosine_distance(
            student, teacher, mask=mask, keep_batch=keep_batch, wo_constant=self.args.distill_mask_wo_constant)
        self.add_summary(f"inter_loss/diito_alpha_cos_{self.run.repeat}", loss)
        return loss

    @contextmanager
    def _suffix(self, suffix: str) -> Any:
        self.summary_suffix = suffix
        try:
            yield
        finally:
            self.summary_suffix = ""

    # ---- what is tapped and swapped ---------------------------------------------------------------------------------

    def levels(self, t_no: int | None) -> list[int]:
        """The aligned levels (hidden states) of teacher ``t_no``, or of the student (None)."""
        depth = self.config.num_layers
        own = depth if t_no is None else self.teachers[t_no].num_layers
        if self.args.diito_alignment == "middle":
            return [own // 2 + 1]
        if self.args.diito_alignment == "late":
            return [own - 1, own]
        k = self._aligned_level()
        if t_no is None:
            return [k]
        seg = uniform_layer_map(depth, own)
        return list(range(seg[k - 1] + 1, seg[k] + 1))

    def _aligned_level(self) -> int:
        """``full``: the student level 1 .. S of this iteration."""
        return self.draw("diito_alignment_layer", lambda generator: generator.randint(1, self.config.num_layers),
                         self.run.iteration)

    def get_teacher_hook(self, t_no: int = 0, **kwargs: Any) -> Hook:
        return self._hook(t_no)

    def get_student_hook(self, **kwargs: Any) -> Hook:
        needs_positions = self.run.repeat == 0 or self.cosine_rate > 0
        return merge_hooks(self._hook(None), {"position_ids": None} if needs_positions else {})

    def _hook(self, t_no: int | None) -> Hook:
        kept = [_level_hook(level, self._depth(t_no)) for level in self.levels(t_no)] if self.run.repeat == 0 else []
        return merge_hooks(*kept, OUTPUT if self.cosine_rate > 0 else {})

    def _depth(self, t_no: int | None) -> int:
        return self.config.num_layers if t_no is None else self.teachers[t_no].num_layers

    def get_teacher_hook_op(self, t_no: int = 0, **kwargs: Any) -> dict[str, Any]:
        return self._swaps(t_no) if self.run.repeat else {}

    def get_student_hook_op(self, teacher_models: Any = None, **kwargs: Any) -> dict[str, Any]:
        if self.run.repeat:
            return self._swaps(None)
        if self.args.diito_alignment == "full":
            self.add_summary("other/s_alignment_layer", self._aligned_level())
        return {}

    def _swaps(self, t_no: int | None) -> dict[str, Any]:
        own, partner = self._positions
        depth, layers, body = self._depth(t_no), {}, {}
        for level, source in self._kept.get(t_no, {}).items():
            if level == depth:
                body["output"] = _swap("output", source, own, partner)
            else:
                layers[level] = {"layernorm_output": _swap("layernorm_output", source, own, partner)}
        return {"transformer": {**body, "layers": layers}}

    # ---- between the passes -----------------------------------------------------------------------------------------

    def observe(self, s_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                t_inter_vars: Sequence[Sequence[torch.Tensor]], t_hooks: Sequence[Hook], *,
                loss_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None,
                logit_mask: torch.Tensor | None = None) -> None:
        if self.run.repeat:
            self._kept, self._positions = {}, None
            return
        sides = {None: (s_inter_vars, s_hook), **dict(enumerate(zip(t_inter_vars, t_hooks, strict=True)))}
        self._kept = {}
        for t_no, (variables, hook) in sides.items():
            paths = {level: hidden_state(level, self._depth(t_no)) for level in self.levels(t_no)}
            if any(not has_tap(hook, *path) for path in paths.values()):
                continue  # a teacher that the combiner keeps for itself
            if not variables:
                raise ValueError(f"diito swaps activations of teacher {t_no}, but --mt_disable_operation switches it "
                                 "off")
            self._kept[t_no] = {level: tapped(variables, hook, *path).roll(-1, dims=0) for level, path in paths.items()}
        real = position_pad_mask(tapped(s_inter_vars, s_hook, "position_ids"))
        if len(real) < 2:
            raise ValueError("diito swaps activations between samples and needs at least 2 in a micro-batch, it got 1: "
                             "raise --batch-size")
        self._positions = self._draw_positions(real, loss_mask if loss_mask is not None else logit_mask)

    def _draw_positions(self, real: torch.Tensor, predicted: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Two masks [b, s] with equally many positions row by row: of each sample, and of its partner."""
        rows = [row.nonzero().flatten().tolist() for row in real.cpu()]
        partners = [*rows[1:], rows[0]]
        own, counts = self._places(rows, partners, predicted)
        window, length = self.args.diito_interchange_way == "consecutive", real.shape[1]
        key = self.run.iteration, self.run.micro_step, parallel_state().data_rank

        def mask(name: str, places: list[list[int]]) -> torch.Tensor:
            drawn = self.draw(name, lambda generator: [
                chosen_positions(row, count, window, generator, length)
                for row, count in zip(places, counts, strict=True)], *key)
            return torch.tensor(drawn, dtype=torch.bool, device=real.device)

        return mask("diito_interchange_mask", own), mask("diito_dual_interchange_mask", partners)

    def _places(self, rows: list[list[int]], partners: list[list[int]],
                predicted: torch.Tensor | None) -> tuple[list[list[int]], list[int]]:
        """Where each sample's positions are drawn from, and how many; ``rows`` and ``partners`` are the real tokens.

        ``masked`` takes the predicted positions, the first ones where the partner is shorter.
        """
        args, bound = self.args, self.args.diito_interchange_max_token
        own = rows
        counts = [int(min(len(row), len(other)) * args.diito_interchange_prop)
                  for row, other in zip(rows, partners, strict=True)]
        if args.diito_interchange_way == "masked":
            if predicted is None:
                raise ValueError("--diito_interchange_way=masked needs predicted positions, which this task does not "
                                 "have")
            own = [row.nonzero().flatten().tolist() for row in predicted.reshape(len(rows), -1).cpu()]
            counts = [min(len(row), len(other)) for row, other in zip(own, partners, strict=True)]
        if bound >= 0:
            counts = [min(count, bound) for count in counts]
        if args.diito_interchange_way == "masked":
            own = [row[:count] for row, count in zip(own, counts, strict=True)]
        return own, counts


def chosen_positions(places: list[int], count: int, window: bool, generator: random.Random, length: int) -> list[bool]:
    """``count`` of ``places``, a window of them or any, as a mask of ``length`` positions."""
    if window:
        start = generator.randint(0, len(places) - count)
        chosen = set(places[start:start + count])
    else:
        chosen = set(generator.sample(places, count))
    return [position in chosen for position in range(length)]


def interchange(x: torch.Tensor, source: torch.Tensor, own: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    """``x`` with the rows at ``own`` replaced by those of ``source`` at ``partner``, sample by sample in order.

    Args:
        x, source: [b, s, h]; both keep their gradients.
        own, partner: bool [b, s] with equally many places in each row.
    """
    index = torch.zeros(own.shape, dtype=torch.int64, device=x.device)
    index[own] = partner.nonzero()[:, 1]
    moved = source.to(x.dtype).gather(1, index.unsqueeze(-1).expand_as(x))
    return torch.where(own.unsqueeze(-1), moved, x)


def _swap(name: str, source: torch.Tensor, own: torch.Tensor, partner: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda **tensors: interchange(tensors[name], source, own, partner)


def _level_hook(level: int, depth: int) -> Hook:
    path: Path = hidden_state(level, depth)
    return OUTPUT if level == depth else layer_hook({path[2]: path[3]})
