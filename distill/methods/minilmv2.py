"""MiniLMv2 (Wang et al. 2021, arXiv:2012.15828): self-attention relations of the last layer and one teacher layer.

For X in {Q, K, V}, all heads side by side, cut in R relation heads of width d = h / R:

    R_X = X X^T / sqrt(d),      L = sum_X mean_{b,R,s} KL(softmax R_X^t || softmax R_X^s)

Neither the numbers of attention heads nor the widths have to be equal. Departure from the paper: padding is not left
out. The paper takes an upper middle layer of large teachers (``--minilmv2_teacher_layer``).

Legend: ``b`` rows of the batch, ``s`` sequence, ``h`` width, ``p`` model-parallel ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from distill.losses.relations import relation_loss
from distill.student import GLMStudent, Pair, TeacherSpec, register_method
from model.parallel.groups import parallel_state


@register_method("minilmv2")
class MiniLMv2(GLMStudent):
    """Flags ``--minilmv2_*``; adds no parameters. With model parallelism each rank owns R/p relation heads."""

    switches = "remove --minilmv2_wo_inter"

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: MiniLMv2")
        group.add_argument("--minilmv2_relation_heads", type=int, default=48,
                           help="relation heads; divides both widths (paper: 48 for base, 64 for large)")
        group.add_argument("--minilmv2_relation_heads_mt", default=None,
                           help="relation heads for each teacher, comma-separated; overrides the single value")
        group.add_argument("--minilmv2_teacher_layer", type=int, default=12,
                           help="teacher layer, counted from 1; negative: from the end")
        group.add_argument("--minilmv2_wo_inter", action="store_true", help="no intermediate loss")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        text = args.minilmv2_relation_heads_mt
        counts = text.split(",") if text else [str(args.minilmv2_relation_heads)]
        if not all(count.strip().isdigit() and int(count) > 0 for count in counts):
            flag = "--minilmv2_relation_heads_mt" if text else "--minilmv2_relation_heads"
            raise ValueError(f"{flag}={','.join(counts)} must be positive numbers, one for each teacher")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        if self.args.minilmv2_wo_inter:
            return
        heads = self.relation_heads(teacher.index)
        t_width = teacher.ib_hidden_size if teacher.inverted_bottleneck_mode else teacher.hidden_size
        for width, whose, flag in ((self.config.attention_size, "student", "--hidden-size"),
                                   (t_width, "teacher", "--teacher_hidden_size")):
            if width % heads:
                raise ValueError(f"MiniLMv2: {heads} relation heads (--minilmv2_relation_heads) do not divide the "
                                 f"{whose}'s width {width} ({flag}); choose a common divisor of both widths")
        size = parallel_state().model_size
        if heads % size:
            raise ValueError(f"MiniLMv2: {heads} relation heads (--minilmv2_relation_heads) are not a multiple of "
                             f"--model-parallel-size={size}; change one of them")
        self.teacher_layer(teacher.index)

    def relation_heads(self, t_no: int) -> int:
        """R towards teacher ``t_no``. ValueError for a list of another length than the number of teachers."""
        text = self.args.minilmv2_relation_heads_mt
        if not text:
            return self.args.minilmv2_relation_heads
        counts = [int(count) for count in text.split(",")]
        if len(counts) != len(self.teachers):
            raise ValueError(f"--minilmv2_relation_heads_mt={text} has {len(counts)} entries for "
                             f"{len(self.teachers)} teachers; give one for each")
        return counts[t_no]

    def teacher_layer(self, t_no: int) -> int:
        """Index of the teacher's layer, from 0. ValueError if there is no such layer."""
        number, depth = self.args.minilmv2_teacher_layer, self.teachers[t_no].num_layers
        if not 1 <= abs(number) <= depth:
            raise ValueError(f"--minilmv2_teacher_layer={number} is not a layer of teacher {t_no}, which has {depth} "
                             f"(--teacher_num_layers); give 1 to {depth}, or -1 to -{depth} from the end")
        return number - 1 if number > 0 else depth + number

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        if self.args.minilmv2_wo_inter:
            return ()
        layer, t_layer = self.config.num_layers - 1, self.teacher_layer(t_no)
        return tuple(Pair(f"relation_{name[0]}", ("transformer", "layers", layer, f"mixed_{name}_layer"),
                          ("transformer", "layers", t_layer, f"mixed_{name}_layer"), "heads", numbered=False)
                     for name in ("query", "key", "value"))

    def pair_loss(self, pair: Pair, student: torch.Tensor, teacher: torch.Tensor, *, keep_batch: bool,
                  t_no: int) -> torch.Tensor:
        own = self.relation_heads(t_no) // parallel_state().model_size
        # [b, s, h/p] -> [b, R/p, s, d]
        heads = (x.unflatten(-1, (own, -1)).transpose(1, 2) for x in (student, teacher))
        return relation_loss(*heads, keep_batch=keep_batch, partition="heads")
