"""The published example: a class of ten lines is a method, without calling ``super()`` in its hook methods."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import distill.distill_model
from distill.arguments import build_parser, parse_args
from distill.student import METHODS
from tests.helpers.distributed import run_distributed
from tests.helpers.shared import REPOSITORY
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, step_result, tiny_context

EXAMPLE = '''
from distill.distill_model import *  # noqa: F403

class FinalOutputs(GLMStudent):
    def __init__(self, language_model, args, **kwargs):
        super().__init__(language_model, args, **kwargs)
    def get_teacher_hook(self, **kwargs):
        return {"transformer": {"output": None}}
    def get_student_hook(self, **kwargs):
        return {"transformer": {"output": None}}
    def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch=False, **kwargs):
        student, teacher = (tapped(v, h, "transformer", "output") for v, h in
                            ((s_inter_vars, s_hook), (t_inter_vars, t_hook)))
        return mse(student, teacher, keep_batch=keep_batch)
'''
EQUAL = ("--teacher_hidden_size=16",)


@pytest.fixture
def final_outputs(tmp_path: Path) -> Iterator[str]:
    """The example as a user module; forgotten again afterwards."""
    file = tmp_path / "final_outputs_module.py"
    file.write_text(EXAMPLE)
    parse_args([f"--user-module={file}", "--student_model=final_outputs"])
    yield "--student_model=final_outputs"
    forget()


def forget() -> None:
    """Take the example out of the registry, and its module out of the process."""
    sys.modules.pop(METHODS.pop("final_outputs").__module__)


def test_it_is_offered_under_its_class_name(final_outputs: str) -> None:
    assert METHODS["final_outputs"].__name__ == "FinalOutputs"
    assert "final_outputs" in build_parser().format_help()


def test_it_trains(final_outputs: str) -> None:
    context = tiny_context(*TEACHER, *EQUAL, final_outputs)
    optimizer = torch.optim.Adam(context.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(step(context).loss.item())
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_it_works_with_two_teachers_and_the_shared_terms(final_outputs: str) -> None:
    flags = (*TWO_TEACHERS, "--mt_hidden_size=16:16", final_outputs)
    single = step(tiny_context(*flags))
    both = step(tiny_context(*flags, "--distill_logits_parallel"))
    logits = [both.parts[f"inter_loss/logits_parallel_t{i}"] for i in (0, 1)]
    torch.testing.assert_close(both.loss.detach(), single.loss.detach() + (logits[0] + logits[1]) / 2)
    assert logits[0] != logits[1]


def test_a_class_that_does_call_super_is_not_given_the_shared_terms_twice() -> None:
    base = METHODS["tinybert"]  # its inter_loss is the inherited one, which adds the shared terms itself
    assert base.inter_loss is distill.distill_model.GLMStudent.inter_loss
    flags = (*TEACHER, "--student_model=tinybert", "--tinybert_only_emb", "--distill_logits_parallel")
    output = step(tiny_context(*flags))
    expected = output.parts["inter_loss/hidden_states.0_t0"] + output.parts["inter_loss/logits_parallel_t0"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_keep_batch_agrees_with_the_scalar(final_outputs: str) -> None:
    student = tiny_context(*TEACHER, *EQUAL, *COPA, final_outputs).student
    s, t = torch.randn(6, 4, 16), torch.randn(6, 4, 16)
    hook = {"transformer": {"output": 0}}
    vector = student.intermediate_loss([s], [t], hook, hook, keep_batch=True)
    assert vector.shape == (6,)
    torch.testing.assert_close(vector.mean(), student.intermediate_loss([s], [t], hook, hook))


def rank_step(file: str, *flags: str) -> tuple[float, dict[str, torch.Tensor]]:
    parse_args([f"--user-module={file}"])
    try:
        return step_result(*flags)
    finally:
        forget()


@pytest.mark.distributed
def test_two_model_parallel_ranks_agree_with_one(tmp_path: Path) -> None:
    file = tmp_path / "for_two_ranks.py"
    file.write_text(EXAMPLE)
    flags = (*TEACHER, *EQUAL, "--student_model=final_outputs", "--distill_logits_parallel")
    loss, gradients = rank_step(str(file), *flags)
    for other, other_gradients in run_distributed(rank_step, 2, str(file), *flags, model_parallel_size=2):
        assert other == pytest.approx(loss, rel=1e-12)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient)


def test_a_class_typed_into_distill_model_is_offered(tmp_path: Path) -> None:
    """The file of the repository plus the class, in a process of its own."""
    source = Path(distill.distill_model.__file__).read_text() + EXAMPLE.replace(
        "from distill.distill_model import *  # noqa: F403", "")
    program = (f"import sys, types; sys.path.insert(0, {str(REPOSITORY)!r})\n"
               "module = types.ModuleType('distill.distill_model'); sys.modules[module.__name__] = module\n"
               f"exec(compile({source!r}, 'distill_model.py', 'exec'), module.__dict__)\n"
               "from distill.student import find_method\n"
               "print(find_method('final_outputs').__module__, find_method('FinalOutputs').method_name)")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.stdout.split() == ["distill.distill_model", "final_outputs"], result.stderr


def test_the_docstring_example_works() -> None:
    """What the documentation shows is run as it stands."""
    text = distill.distill_model.__doc__
    block = text[text.index("    class MiddleLayer"):text.index("It is ``--student_model=middle_layer``")]
    namespace = {**vars(distill.distill_model), "__name__": "docstring_example"}
    exec("\n".join(line[4:] for line in block.splitlines()), namespace)
    try:
        output = step(tiny_context(*TEACHER, *EQUAL, "--student_model=middle_layer"))
        assert output.loss.item() > 0
    finally:
        METHODS.pop("middle_layer", None)
