"""MiniLM (Wang et al. 2020, arXiv:2002.10957): attention distributions and value relations of the last layer.

    L = mean_{b,n,s} KL(a_t || a_s)  +  mean_{b,n,s} KL(softmax R_t || softmax R_s),   R = V V^T / sqrt(d)

with the attention distributions ``a`` of each head and the head size ``d`` of each model. The widths may differ, the
numbers of heads may not. Departures from the paper: none in the loss; padding is not left out. A teacher assistant is
a teacher of its own (``--student_model=minilm`` twice). ``--minilm_double_softmax`` reproduces published numbers in
which the probabilities went through a second softmax, which makes both sides nearly uniform.

Legend: ``b`` rows of the batch, ``n`` heads, ``s`` sequence, ``d`` head size.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from distill.losses import kl_divergence
from distill.losses.relations import relation_loss
from distill.student import GLMStudent, Pair, TeacherSpec, register_method


@register_method("minilm")
class MiniLM(GLMStudent):
    """Attention and value relations of the last layers; adds no parameters."""

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: MiniLM")
        group.add_argument("--minilm_double_softmax", action="store_true",
                           help="attention probabilities go through a second softmax (to reproduce published numbers)")

    def check_sizes(self, teacher: TeacherSpec) -> None:
        heads = self.config.num_attention_heads
        if heads != teacher.num_attention_heads:
            raise ValueError(
                f"MiniLM needs equal numbers of heads: student {heads} (--num-attention-heads) vs teacher "
                f"{teacher.num_attention_heads} (--teacher_num_attention_heads); set --num-attention-heads, or use "
                "--student_model=minilmv2, which cuts both in relation heads")

    def pairs(self, t_no: int = 0) -> Sequence[Pair]:
        last, t_last = self.config.num_layers - 1, self.teachers[t_no].num_layers - 1
        attention = "attention_probs" if self.args.minilm_double_softmax else "attention_scores"
        return tuple(Pair(kind, ("transformer", "layers", last, name), ("transformer", "layers", t_last, name), "heads",
                          numbered=False)
                     for kind, name in (("attention", attention), ("value_relation", "value_layer")))

    def pair_loss(self, pair: Pair, student: torch.Tensor, teacher: torch.Tensor, *, keep_batch: bool,
                  t_no: int) -> torch.Tensor:
        if pair.kind == "attention":
            # Scores of -65504 have probability 0 on both sides and contribute nothing.
            return kl_divergence(student, teacher, keep_batch=keep_batch, partition="heads")
        return relation_loss(student, teacher, keep_batch=keep_batch, partition="heads")
