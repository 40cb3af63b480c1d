"""Which teacher layer goes with which student layer, and by which tensor it is seen.

GLM normalises before each sub-layer, so "hidden state k" of a model of depth ``d`` is always read through the LayerNorm
that follows it: the input LayerNorm of layer k (counted from 0) for ``k < d``, the final LayerNorm for ``k = d``.
State 0 stands for the embeddings. (The BERT papers use the residual stream itself; kept as the release has it.)
"Attention k" is the attention inside the k-th block, k = 1..d.
"""

from __future__ import annotations

import random

Path = tuple[str | int, ...]
"""The place of a tensor in a hook."""


def uniform_layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """``(seg(0), ..., seg(S))``: the number of teacher blocks after which each student block is matched.

    The teacher is cut into S consecutive blocks, each as long as ceil(T / S) allows while at least one layer is left
    for every later block; long blocks come first. Raises ValueError for a student deeper than its teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(
            f"uniform layer map needs student layers <= teacher layers: student {student_layers} (--num-layers), "
            f"teacher {teacher_layers} (--teacher_num_layers)")
    longest = -(-teacher_layers // student_layers)
    ends = [0]
    for blocks_left in range(student_layers - 1, -1, -1):
        ends.append(ends[-1] + min(longest, teacher_layers - ends[-1] - blocks_left))
    return tuple(ends)


def random_layer_map(student_layers: int, teacher_layers: int, generator: random.Random) -> tuple[int, ...]:
    """As :func:`uniform_layer_map`, but S - 1 inner states drawn without replacement from 1..T-1, ascending."""
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(
            f"random layers need student layers <= teacher layers: student {student_layers} (--num-layers), teacher "
            f"{teacher_layers} (--teacher_num_layers)")
    return (0, *sorted(generator.sample(range(1, teacher_layers), student_layers - 1)), teacher_layers)


def hidden_state(k: int, depth: int) -> Path:
    """Where hidden state k = 0..depth of a model is tapped, [b, s, h]."""
    if not 0 <= k <= depth:
        raise ValueError(f"a model of {depth} layers has hidden states 0 to {depth}, not {k}")
    return ("transformer", "output") if k == depth else ("transformer", "layers", k, "layernorm_output")


def attention_scores(k: int) -> Path:
    """Where the attention scores of block k = 1..depth are tapped, [b, n/p, s, s]."""
    return ("transformer", "layers", k - 1, "attention_scores")
