"""``--teacher_offload``: the same numbers, and never more than one teacher's weights on the device."""

from __future__ import annotations

import pytest
import torch

from distill.teacher_offload import TeacherOffload
from distill.training.forward_step import StepContext
from tests.helpers.tiny_distill import COPA, TEACHER, step, tiny_context

THREE = (*TEACHER, "--mt_num_layers=3:4:2", "--mt_hidden_size=24:32:16")
#: One of each kind: prediction only, inner tensors, a weight per teacher, an agent.
RECIPES = {
    "avg": ("--student_model=tinybert", "--tinybert_fit_compatible_mt", "--distill_ft_soft"),
    "mt_bert": ("--student_model=pkd", "--multi_teacher_model=mt_bert", "--mt_has_loss"),
    "rl_kd": ("--student_model=kd", "--distill_ft_soft", "--multi_teacher_model=rl_kd", "--mt_has_loss",
              "--rl_kd_semantic_model=1")}


class Device:
    """Stands for a device: knows every tensor that was copied to it and is still alive there."""

    def __init__(self) -> None:
        self.copies: list[torch.Tensor] = []

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        self.copies.append(copy)
        return copy

    def in_use(self, context: StepContext) -> list[int]:
        """Teachers with weights here."""
        places = {copy.data_ptr() for copy in self.copies}
        return [t_no for t_no, teacher in enumerate(context.teachers)
                if any(parameter.data_ptr() in places for parameter in teacher.parameters())]


def size(teacher: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in (*teacher.parameters(), *teacher.buffers()))


def offloaded(*flags: str) -> tuple[StepContext, TeacherOffload, Device, list[list[int]]]:
    """A step's context on a fake device, and what lies there while each teacher runs."""
    context, device, seen = tiny_context(*flags, "--teacher_offload"), Device(), []
    context.visit = TeacherOffload(context.teachers, torch.device("cpu"), fetch=device.fetch)
    for teacher in context.teachers:
        teacher.register_forward_pre_hook(lambda *given: seen.append(device.in_use(context)))
    return context, context.visit, device, seen


@pytest.mark.parametrize("recipe", RECIPES)
def test_equal_numbers_and_one_teacher_at_a_time(recipe: str) -> None:
    flags = (*THREE, *COPA, *RECIPES[recipe])
    resident = tiny_context(*flags)
    context, offload, device, seen = offloaded(*flags)
    for iteration in (0, 1):
        resident.run.iteration = context.run.iteration = iteration
        assert step(context).loss == step(resident).loss
    for name, parameter in resident.model.named_parameters():
        assert torch.equal(dict(context.model.named_parameters())[name].grad, parameter.grad), name
    assert seen == [[0], [1], [2]] * 2
    assert device.in_use(context) == [] and offload.resident == {}
    sizes = [size(teacher) for teacher in context.teachers]
    assert offload.peak_bytes == max(sizes) < sum(sizes)


def test_a_disabled_teacher_never_visits() -> None:
    _, _, _, seen = context = offloaded(*THREE, "--student_model=tinybert", "--tinybert_fit_compatible_mt",
                                        "--mt_disable_operation=0:1:0")
    step(context[0])
    assert seen == [[0], [2]]


def test_a_failure_leaves_the_device_empty() -> None:
    context, offload, device, _ = offloaded(*THREE, "--student_model=kd", "--distill_pt_soft")

    def broken(*given: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    context.teachers[1].forward = broken
    with pytest.raises(ZeroDivisionError):
        step(context)
    assert device.in_use(context) == [] and offload.resident == {}


def test_two_visitors_are_refused() -> None:
    _, offload, _, _ = offloaded(*THREE, "--student_model=kd", "--distill_pt_soft")
    with offload(0), pytest.raises(RuntimeError, match="teacher 2 cannot visit the device while teacher 0 does"):
        with offload(2):
            pass


@pytest.mark.parametrize(("flags", "message"), [
    (("--student_model=theseus", "--mt_hidden_size=16:16:16", "--distill_pt_hard"), "theseus runs layers"),
    (("--student_model=erdistill",), "word tables .*--erdistill_wo_global")])
def test_methods_that_need_the_weights_themselves(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"--teacher_offload: .*{message}"):
        tiny_context(*THREE, *flags, "--teacher_offload")
    if "--student_model=erdistill" in flags:
        tiny_context(*THREE, *flags, "--teacher_offload", "--erdistill_wo_global")
