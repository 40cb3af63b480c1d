"""Schedules of methods: pure functions of the position in the run, so that a resumed run continues them.

``iteration`` and ``total`` are in one unit: optimizer steps in pretraining, micro-steps in fine-tuning.
"""

from __future__ import annotations

import math


def annealing_factor(iteration: int, total: int, max_temperature: float) -> float:
    """``phi``, which rises from about ``1 / T`` to 1 in ``T`` stairs (Annealing-KD, arXiv:2104.07163, section 3).

        x = (1 - iteration / total) T,    phi = 1 - (max(1, ceil x) - 1) / T
    """
    # In double precision and in this order: another order moves the stairs (iteration 70 of 100, T = 10: 0.7, not 0.8).
    x = (1 - iteration / max(1, total)) * max_temperature
    return 1 - (max(1, math.ceil(x)) - 1) / max_temperature


def transfer_stage(iteration: int, total: int, num_layers: int) -> int:
    """Progressive transfer: the number of the layer that is being learnt, from 1; ``num_layers + 1`` when all are.

    The run is cut into ``num_layers + 1`` equal parts: ``1 + #{j in 1..S : iteration > ceil(total j / (S + 1))}``.
    """
    ends = (-(-total * j // (num_layers + 1)) for j in range(1, num_layers + 1))
    return 1 + sum(iteration > end for end in ends)


def redraw_period(*, epoch: int, iteration: int, every_epochs: int, every_iterations: int) -> tuple[str, int]:
    """Name and number of the period in which a random choice stays: by epochs if ``every_epochs`` is above 0."""
    if every_epochs > 0:
        return "epoch", epoch // every_epochs
    return "iteration", iteration // max(1, every_iterations)
