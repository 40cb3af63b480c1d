"""``--compile``: torch.compile for the transformer layers that nothing taps.

A tapped layer hands out tensors from its middle and may take replacements there, so it stays as it is.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from distill.training.forward_step import StepContext
from model.checkpoint.nonparameters import backbone_of
from model.parallel.groups import parallel_state
from model.taps import Hook, TapRequest

logger = logging.getLogger(__name__)
CPU_COMPILERS = ("c++", "g++", "clang++")


def compile_layers(context: StepContext, device: torch.device) -> int:
    """Compile the untapped layers of student and teachers in place; returns how many.

    Raises:
        ValueError: no C++ compiler for a CPU; several model-parallel ranks.
    """
    _check(context, device)
    count = 0
    for model, hook in _models(context):
        glm = backbone_of(model)
        if glm is None:
            continue
        layers, num_layers = glm.transformer.layers, glm.config.num_layers
        request = TapRequest.from_hook(hook, num_layers)
        tapped = {number % len(layers) for number in range(num_layers) if request.layer_names(number)}
        for number, layer in enumerate(layers):
            if number not in tapped:
                compile_layer(layer)
                count += 1
    logger.info("--compile: %d layers are compiled in the first steps; tapped ones are not", count)
    return count


def compile_layer(layer: nn.Module) -> None:
    """In place, with the random numbers that the layer draws without it."""
    layer.compile(options={"fallback_random": True})


def _check(context: StepContext, device: torch.device) -> None:
    if device.type == "cpu" and not any(shutil.which(name) for name in CPU_COMPILERS):
        raise ValueError(f"--compile needs a C++ compiler on a CPU, and none of {', '.join(CPU_COMPILERS)} is on the "
                         "PATH: install one (apt install g++), or leave --compile out")
    if parallel_state().model_size > 1:
        raise ValueError("--compile works with --model-parallel-size 1: the collectives inside a layer cannot be "
                         "compiled; leave --compile out")


def _models(context: StepContext) -> Iterator[tuple[nn.Module, Hook]]:
    student: Any = context.student
    yield context.model, {} if student is None else student.student_taps()
    for number, teacher in enumerate(context.teachers):
        yield teacher, {} if student is None else student.teacher_taps(number)
