"""TinyBERT (Jiao et al. 2020, arXiv:1909.10351, eq. 7-9): layer-to-layer squared error of attention and hidden states.

    L = sum_{k=1..S} mse(att_s(k), att_t(seg k)) + sum_{k=0..S} mse(W hid_s(k) + b, hid_t(seg k))

Attention is compared before the softmax; masked entries are -65504 on both sides, cancel, and count in the mean. One
linear map (W, b) serves all layers, also for equal widths. Departures from the paper: hidden states are read through
the LayerNorm that follows them, all layers are learnt in one stage, and there is no data augmentation.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill.layer_maps import Path, attention_scores, hidden_state, random_layer_map, uniform_layer_map
from distill.losses import mse
from distill.student import GLMStudent, Pair, TeacherSpec, register_method
from model.parallel.layers import ColumnParallelLinear
from model.taps import Hook, TapRequest

logger = logging.getLogger(__name__)
_PARTIAL = ("tinybert_inter_final", "tinybert_only_emb_final", "tinybert_only_emb")


@register_method("tinybert")
class TinyBERT(GLMStudent):
    """Flags ``--tinybert_*``. Parameters: ``fit_dense`` (h_t, h_s), or ``fit_dense_<n>`` for each teacher."""

    has_projections = True
    switches = "remove --tinybert_wo_inter"

    def __init__(self, language_model: nn.Module, args: Any, **kwargs: Any) -> None:
        super().__init__(language_model, args, **kwargs)
        self.fits_each_teacher = bool(args.tinybert_fit_compatible_mt and args.mt_hidden_size)
        widths = [spec.hidden_size for spec in self.teachers]
        if not self.fits_each_teacher and len(set(widths)) > 1:
            raise ValueError(f"TinyBERT has one projection for teachers of unequal hidden sizes {widths} "
                             "(--mt_hidden_size); add --tinybert_fit_compatible_mt")
        if self.fits_each_teacher:
            for spec in self.teachers:
                self.add_module(f"fit_dense_{spec.index}", self._fit_layer(spec.hidden_size))
        else:
            self.fit_dense = self._fit_layer(self.args.teacher_hidden_size)

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: TinyBERT")
        for name, text in (
                ("wo_inter", "no intermediate loss (last stage)"),
                ("inter_final", "only the final hidden state"),
                ("only_emb_final", "only the embeddings and the final hidden state"),
                ("only_emb", "only the embeddings"),
                ("wo_att", "no attention loss (then the numbers of heads may differ)"),
                ("wo_final", "without the final hidden state"),
                ("wo_emb", "without the embeddings"),
                ("fit_parallel", "cut the projection over the model-parallel ranks"),
                ("fit_compatible_mt", "one projection for each teacher of --mt_hidden_size"),
                ("random_layers", "random teacher layers instead of evenly spaced ones"),
                ("random_show", "log every draw")):
            group.add_argument(f"--tinybert_{name}", action="store_true", help=text)
        group.add_argument("--tinybert_custom_final", type=int, default=1,
                           help="which layer from the end counts as final, with inter_final or only_emb_final")
        group.add_argument("--tinybert_random_e", type=int, default=1,
                           help="redraw every so many epochs of fine-tuning; 0 = by iterations")
        group.add_argument("--tinybert_random_i", type=int, default=3000,
                           help="redraw every so many iterations, in pretraining or with random_e = 0")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        partial = [name for name in _PARTIAL if getattr(args, name)]
        if len(partial) > 1:
            raise ValueError(f"--{' and --'.join(partial)} exclude each other: keep one")
        if partial and (args.tinybert_wo_final or args.tinybert_wo_emb):
            raise ValueError(f"--{partial[0]} says already what is compared; remove --tinybert_wo_final and "
                             "--tinybert_wo_emb")
        if args.tinybert_custom_final < 1:
            raise ValueError(f"--tinybert_custom_final={args.tinybert_custom_final} must be at least 1, the last layer")
        if args.tinybert_custom_final > 1 and not (args.tinybert_inter_final or args.tinybert_only_emb_final):
            raise ValueError("--tinybert_custom_final needs --tinybert_inter_final or --tinybert_only_emb_final")
        if args.tinybert_random_layers and args.tinybert_random_e <= 0 and args.tinybert_random_i <= 0:
            raise ValueError("--tinybert_random_layers needs --tinybert_random_e or --tinybert_random_i above 0")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        if self.args.tinybert_wo_inter:
            return
        self.layer_map(teacher.index)
        last = min(self.config.num_layers, teacher.num_layers)
        if self.args.tinybert_custom_final > last:
            raise ValueError(f"--tinybert_custom_final={self.args.tinybert_custom_final} counts back over more than "
                             f"the {last} layers there are")
        heads = self.config.num_attention_heads
        if any(pair.kind == "attention_scores" for pair in self.pairs(teacher.index)) and (
                heads != teacher.num_attention_heads):
            raise ValueError(
                f"TinyBERT attention loss needs equal numbers of heads: student {heads} (--num-attention-heads) vs "
                f"teacher {teacher.num_attention_heads} (--teacher_num_attention_heads); set --num-attention-heads or "
                "--tinybert_wo_att")

    def layer_map(self, t_no: int) -> tuple[int, ...]:
        """``seg(0..S)`` towards teacher ``t_no``: evenly spaced, or drawn (a pure function of epoch or iteration)."""
        student, teacher, args = self.config.num_layers, self.teachers[t_no].num_layers, self.args
        if not args.tinybert_random_layers:
            return uniform_layer_map(student, teacher)
        if args.finetune and args.tinybert_random_e > 0:
            period: tuple[str, int] = ("epoch", self.run.epoch // args.tinybert_random_e)
        else:  # a pretraining corpus has no epochs of fixed length
            period = ("iteration", self.run.iteration // max(1, args.tinybert_random_i))
        inner = self.draw("tinybert_random_layers",
                          lambda generator: random_layer_map(student, teacher, generator)[1:-1], t_no, *period)
        if args.tinybert_random_show and self.run.micro_step == 0:
            logger.info("tinybert: layers of teacher %d in %s %d: %s", t_no, *period, list(inner))
        return (0, *(int(layer) for layer in inner), teacher)

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        args, depth, t_depth = self.args, self.config.num_layers, self.teachers[t_no].num_layers
        if args.tinybert_wo_inter:
            return ()
        back = args.tinybert_custom_final - 1
        final = _hidden(depth - back, depth, t_depth - back, t_depth)
        embeddings = _hidden(0, depth, 0, t_depth)
        if args.tinybert_inter_final:
            return (final,)
        if args.tinybert_only_emb_final:
            return embeddings, final
        if args.tinybert_only_emb:
            return (embeddings,)
        seg = self.layer_map(t_no)
        attention = [] if args.tinybert_wo_att else [
            Pair("attention_scores", attention_scores(k), attention_scores(seg[k]), "heads")
            for k in range(1, depth + 1)]
        states = range(int(args.tinybert_wo_emb), depth + int(not args.tinybert_wo_final))
        return *attention, *(_hidden(k, depth, seg[k], t_depth) for k in states)

    def projected_widths(self) -> dict[Path, int]:
        if self.fits_each_teacher:
            return {}
        return {pair.student: self.teachers[0].hidden_size for t_no in range(len(self.teachers))
                for pair in self._pairs_of(t_no) if pair.kind == "hidden_states"}

    def pair_loss(self, pair: Pair, student: torch.Tensor, teacher: torch.Tensor, *, keep_batch: bool,
                  t_no: int) -> torch.Tensor:
        if self.fits_each_teacher and pair.kind == "hidden_states":
            student = self.apply_layer(getattr(self, f"fit_dense_{t_no}"), student)
        return mse(student, teacher, keep_batch=keep_batch, partition=pair.partition)

    def forward(self, *inputs: torch.Tensor, hook: Hook | None = None, **kwargs: Any,
                ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The GLM's forward pass; tapped hidden states are projected to the teacher's width."""
        output, inter_vars = super().forward(*inputs, hook=hook, **kwargs)
        if not hook:
            return output, inter_vars
        names = TapRequest.from_hook(hook, self.config.num_layers).names
        own = {".".join(map(str, place)) for place in self.projected_widths()}
        return output, tuple(self.apply_layer(self.fit_dense, value) if name in own else value
                             for name, value in zip(names, inter_vars, strict=True))

    def _fit_layer(self, width: int) -> nn.Module:
        if self.args.tinybert_fit_parallel:
            return ColumnParallelLinear(self.config.hidden_size, width, gather_output=True)
        return nn.Linear(self.config.hidden_size, width)


def _hidden(k: int, depth: int, t_k: int, t_depth: int) -> Pair:
    return Pair("hidden_states", hidden_state(k, depth), hidden_state(t_k, t_depth))
