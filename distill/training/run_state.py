"""What changes while a run goes on. Only the loop writes it; methods read ``self.run``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RunState:
    """Position inside a run.

    Attributes:
        iteration: 0-based; optimizer steps in pretraining, micro-steps in fine-tuning (the unit of ``train_iters``).
        train_iters: length of the run in the same unit.
        epoch: 0-based epoch of fine-tuning; in pretraining counted from the samples consumed.
        micro_step: index of the micro-batch inside an optimizer step.
        accumulation_steps: micro-batches per optimizer step.
        repeat: index of the pass over the same batch (``--forward_repeat_num``).
        is_training: False during evaluation; methods neither advance schedules nor draw then.
        seed: ``--seed``, the root of every private generator.
    """

    iteration: int = 0
    train_iters: int = 1
    epoch: int = 0
    micro_step: int = 0
    accumulation_steps: int = 1
    repeat: int = 0
    is_training: bool = True
    seed: int = 1234
