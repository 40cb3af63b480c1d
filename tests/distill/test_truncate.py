"""A student cut out of a teacher, in whole-tensor coordinates, Q, K and V one by one."""

from __future__ import annotations

import pytest
import torch

from distill.truncate import backbone, copy_front, truncate_teacher
from model.parallel.sharding import shard_spec_of
from tests.golden.replay import whole_gradient
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TWO_TEACHERS, tiny_args, tiny_context
from tests.helpers.tiny_model import tiny_glm

KD = (*TWO_TEACHERS, "--student_model=kd", "--distill_pt_soft", "--distill_ft_soft")
QKV = "transformer.layers.0.attention.query_key_value.weight"


def cut_student() -> dict[str, torch.Tensor]:
    """All whole tensors of a narrow, shallow student after the cut; the same on every rank."""
    student, teacher = tiny_glm(seed=1, hidden_size=16), tiny_glm(seed=2, num_layers=3, hidden_size=32)
    copied = copy_front(student, teacher)
    assert len(copied) == len(list(student.parameters()))
    result = {}
    for name, parameter in student.named_parameters():
        parameter.grad = parameter.detach().clone()
        result[name] = whole_gradient(parameter)
    return result


def test_unequal_widths_take_the_front_of_each_axis_and_of_each_block() -> None:
    teacher = dict(tiny_glm(seed=2, num_layers=3, hidden_size=32).named_parameters())
    student = cut_student()
    assert torch.equal(student["word_embeddings.weight"], teacher["word_embeddings.weight"][:, :16])
    assert torch.equal(student["transformer.layers.1.mlp.dense_h_to_4h.weight"],
                       teacher["transformer.layers.1.mlp.dense_h_to_4h.weight"][:64, :16])
    for block, (own, source) in enumerate(zip(student[QKV].chunk(3), teacher[QKV].chunk(3), strict=True)):
        assert torch.equal(own, source[:16, :16]), f"block {block}"


def test_a_wider_student_keeps_the_rest() -> None:
    student, before = (dict(tiny_glm(seed=1, hidden_size=32).named_parameters()) for _ in range(2))
    model = tiny_glm(seed=1, hidden_size=32)
    copy_front(model, tiny_glm(seed=2, hidden_size=16))
    student = dict(model.named_parameters())
    for own, old in zip(student[QKV].chunk(3), before[QKV].chunk(3), strict=True):
        assert torch.equal(own[16:], old[16:]) and torch.equal(own[:, 16:], old[:, 16:])
        assert not torch.equal(own[:16, :16], old[:16, :16])


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 4])
def test_the_model_parallel_size_changes_nothing(size: int) -> None:
    whole = cut_student()
    for result in run_distributed(cut_student, size, model_parallel_size=size):
        assert result.keys() == whole.keys()
        for name, tensor in result.items():
            assert torch.equal(tensor, whole[name]), name


def test_heads_and_wrappers_are_looked_through() -> None:
    context = tiny_context(*KD, *COPA)
    assert backbone(context.model) is context.student.origin_model
    truncate_teacher(context.model, context.teachers, tiny_args(*KD, "--student_truncate_tn=1"))
    source = dict(backbone(context.teachers[1]).named_parameters())
    own = context.student.origin_model.word_embeddings.weight
    assert torch.equal(own, source["word_embeddings.weight"][:, :16])
    assert shard_spec_of(own).is_sharded


@pytest.mark.parametrize("flags", [(), ("--student_truncate_tn=-1",)])
def test_off(flags: tuple[str, ...]) -> None:
    assert not truncate_teacher(tiny_glm(), [tiny_glm()], tiny_args(*flags))


def test_a_teacher_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"--student_truncate_tn=2: there are 2 teachers, counted from 0"):
        truncate_teacher(tiny_glm(), [tiny_glm(), tiny_glm()], tiny_args("--student_truncate_tn=2"))


def test_loaded_weights_are_overwritten_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    truncate_teacher(tiny_glm(), [tiny_glm(seed=1)], tiny_args("--student_truncate_tn=0", "--load-pretrained=x"))
    assert "overwrites the weights of --load-pretrained" in caplog.text
