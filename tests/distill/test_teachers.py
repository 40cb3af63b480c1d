"""Teachers from flags: lists, broadcasting, types, errors, models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.teachers import TeacherView, build_teachers, disabled_teachers, has_teachers, teacher_specs
from model.config import ModelConfig
from model.glm import GLMModel
from tests.helpers.tiny_distill import tiny_args
from tests.helpers.tiny_model import tiny_config

KD = "--student_model=kd"


def test_no_method_or_no_teacher_is_plain_training(caplog: pytest.LogCaptureFixture) -> None:
    assert teacher_specs(tiny_args(KD)) == []
    assert teacher_specs(tiny_args("--teacher_load_pretrained=x")) == []
    assert "--teacher_load_pretrained is ignored" in caplog.text
    assert not has_teachers(tiny_args(KD))


def test_one_teacher_from_the_single_flags() -> None:
    spec, = teacher_specs(tiny_args(KD, "--teacher_load_pretrained=x", "--teacher_num_layers=12", "--teacher_fp16"))
    assert (spec.index, spec.num_layers, spec.hidden_size, spec.load_pretrained, spec.fp16) == (0, 12, 1024, "x", True)


def test_lists_are_broadcast_and_typed() -> None:
    specs = teacher_specs(tiny_args(KD, "--mt_num_layers=24:12", "--mt_hidden_size=64", "--mt_load_pretrained=a:b",
                                    "--teacher_num_attention_heads=8", "--mt_map_vocab_size=0:0.5"))
    assert [spec.num_layers for spec in specs] == [24, 12]
    assert [spec.hidden_size for spec in specs] == [64, 64]
    assert [spec.num_attention_heads for spec in specs] == [8, 8]
    assert [spec.load_pretrained for spec in specs] == ["a", "b"]
    assert [spec.map_vocab_size for spec in specs] == [0.0, 0.5]
    assert [spec.index for spec in specs] == [0, 1]


def test_a_list_of_one_makes_one_teacher() -> None:
    assert len(teacher_specs(tiny_args(KD, "--mt_num_layers=24"))) == 1


def test_unequal_lists_name_the_lists_and_lengths() -> None:
    with pytest.raises(ValueError, match=r"--mt_num_layers has 3, --mt_hidden_size has 2"):
        teacher_specs(tiny_args(KD, "--mt_num_layers=1:2:3", "--mt_hidden_size=4:8"))


def test_entries_of_a_wrong_type_are_named() -> None:
    with pytest.raises(ValueError, match=r"--mt_num_layers=12:deep: every entry must be of type int"):
        teacher_specs(tiny_args(KD, "--mt_num_layers=12:deep"))


@pytest.mark.parametrize(("text", "expected"), [("0", (False, False)), ("1", (True, True)), ("0:1", (False, True))])
def test_disabled_teachers(text: str, expected: tuple[bool, ...]) -> None:
    assert disabled_teachers(tiny_args(f"--mt_disable_operation={text}"), 2) == expected


@pytest.mark.parametrize("text", ["0:1:0", "yes", ""])
def test_disabled_teachers_of_a_wrong_form(text: str) -> None:
    with pytest.raises(ValueError, match="once or once for each of the 2 teachers"):
        disabled_teachers(tiny_args(f"--mt_disable_operation={text}"), 2)


def test_a_view_shows_one_teacher_and_touches_nothing() -> None:
    args = tiny_args(KD, "--mt_num_layers=24:12")
    views = [TeacherView(args, spec) for spec in teacher_specs(args)]
    assert [view.teacher_num_layers for view in views] == [24, 12]
    assert views[1].num_layers == 2 and views[1].student_model == "kd" and args.teacher_num_layers == 24
    with pytest.raises(AttributeError, match="cannot set teacher_num_layers"):
        views[0].teacher_num_layers = 1
    with pytest.raises(AttributeError, match="no_such_flag"):
        views[0].no_such_flag  # noqa: B018


def specs_of(*flags: str) -> list:
    return teacher_specs(tiny_args(KD, "--mt_num_layers=1:3", "--mt_hidden_size=16:24", "--mt_load_pretrained=a:b",
                                   "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=16", *flags))


def build(*flags: str) -> tuple[list[nn.Module], list[str]]:
    loaded: list[str] = []

    def load(model: nn.Module, path: str) -> None:
        loaded.append(path)

    return build_teachers(specs_of(*flags), tiny_config(), build_model=GLMModel, load_weights=load), loaded


def test_models_have_their_own_sizes_and_are_frozen() -> None:
    teachers, loaded = build()
    assert loaded == ["a", "b"]
    assert [len(teacher.transformer.layers) for teacher in teachers] == [1, 3]
    assert [teacher.config.hidden_size for teacher in teachers] == [16, 24]
    for teacher in teachers:
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_positions_are_raised_to_the_students() -> None:
    assert [spec.model_config(tiny_config()).max_position_embeddings for spec in specs_of()] == [32, 32]
    small = tiny_config(max_position_embeddings=8)
    assert specs_of()[0].model_config(small).max_position_embeddings == 16
    assert isinstance(specs_of()[0].model_config(small), ModelConfig)


def test_the_shape_is_the_teachers_own() -> None:
    """A student of another build does not hand its shape on."""
    student = tiny_config(inverted_bottleneck_mode=True, ib_hidden_size=8, compress_word_emb=8, ib_word_emb=4,
                          cross_layer_parameter_sharing=True, map_vocab_size=32, unmap_vocab_output=True)
    config = specs_of()[1].model_config(student)
    assert not config.inverted_bottleneck_mode and not config.cross_layer_parameter_sharing
    assert (config.compress_word_emb, config.ib_word_emb, config.map_vocab_size) == (0, 0, 0)
    assert not config.unmap_vocab_output and config.vocab_size == student.vocab_size


def test_random_teachers_are_not_loaded(caplog: pytest.LogCaptureFixture) -> None:
    assert build("--teacher_random_para")[1] == []
    assert "teacher 1 keeps random weights" in caplog.text


def test_a_teacher_without_weights_is_an_error() -> None:
    specs = teacher_specs(tiny_args(KD, "--mt_num_layers=1:3"))
    with pytest.raises(ValueError, match="teacher 0 has no weights; pass --teacher_load_pretrained"):
        build_teachers(specs, tiny_config(), build_model=GLMModel, load_weights=lambda model, path: None)


def test_place_sees_the_loaded_model() -> None:
    teachers = build_teachers(specs_of(), tiny_config(), build_model=GLMModel, load_weights=lambda model, path: None,
                              place=lambda model, spec: model.to(torch.float64))
    assert teachers[0].word_embedding_weight.dtype == torch.float64
