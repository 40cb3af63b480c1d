"""``--compile``."""

from __future__ import annotations

import shutil

import pytest
import torch

from distill.training import compile as compiling
from distill.training.compile import compile_layers
from model.parallel import random
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import TEACHER, step, tiny_context

CPU = torch.device("cpu")
TINYBERT = ("--student_model=tinybert", *TEACHER, "--teacher_hidden_size=16", "--teacher_num_layers=2")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, compiling.CPU_COMPILERS)), reason="needs a C++ compiler")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_same_numbers_and_names(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--num-layers=1", f"--attention-dropout={dropout}")
    plain, compiled = tiny_context(*flags, dtype=torch.float32), tiny_context(*flags, dtype=torch.float32)
    assert compile_layers(compiled, CPU) == 1
    monkeypatch.setattr(random, "_tracked", None)  # attention draws from a state of its own
    losses = []
    for context in (plain, compiled):
        random.seed_everything(1)
        losses.append(step(context).loss)
    expected, loss = losses
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    for ours, theirs in zip(compiled.model.parameters(), plain.model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_tapped_layers_are_left_alone() -> None:
    context = tiny_context(*TINYBERT)
    tapped = context.student.student_taps()["transformer"]["layers"]
    count = compile_layers(context, CPU)
    layers = [*context.student.origin_model.transformer.layers, *context.teachers[0].transformer.layers]
    assert count == sum(layer._compiled_call_impl is not None for layer in layers) < len(layers)
    for number, layer in enumerate(context.student.origin_model.transformer.layers):
        assert (layer._compiled_call_impl is None) == (number in tapped)


def test_no_compiler_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "CPU_COMPILERS", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"C\+\+ compiler.*no-such-compiler.*apt install g\+\+"):
        compile_layers(tiny_context(), CPU)


def _refused() -> str:
    with pytest.raises(ValueError, match="--model-parallel-size 1") as error:
        compile_layers(tiny_context(), CPU)
    return str(error.value)


@pytest.mark.distributed
def test_several_model_parallel_ranks_are_refused() -> None:
    run_distributed(_refused, 2, model_parallel_size=2)
