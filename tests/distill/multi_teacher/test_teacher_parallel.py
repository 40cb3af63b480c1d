"""``--teacher-model-parallel-size``: teachers cut over more or fewer ranks than the student give the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from distill.teacher_parallel import cut_axis
from distill.truncate import copy_front
from model.parallel.groups import parallel_state, use_parallel_state
from model.taps import LAYER_TAPS
from tests.distill.training.small_runs import NO_DROPOUT, finetune_flags, losses, run, run_on_ranks, write_world
from tests.golden.replay import whole_gradient
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, choice_batch, step, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

TWO = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=24:32")
#: Whole and cut logits, attention scores (cut by heads), hidden states, teachers' own losses.
RECIPES = {
    "tokens": (*TWO, "--student_model=tinybert", "--tinybert_fit_compatible_mt", "--distill_pt_soft", "--mt_has_loss",
               "--multi_teacher_model=mt_bert", "--mt_bert_wo_convert_layer"),
    "choices": (*TWO, "--student_model=minilm", *COPA, "--distill_ft_soft", "--distill_logits_parallel"),
    "agent": (*TWO, "--student_model=kd", "--distill_pt_soft", "--mt_has_loss", "--multi_teacher_model=rl_kd",
              "--rl_kd_semantic_model=0")}


def own_result(recipe: str, size: int, *more: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and whole gradients of a step on this data-parallel rank's own batch (of another length on each)."""
    rank = parallel_state().data_rank
    context = tiny_context(*RECIPES[recipe], *([f"--teacher-model-parallel-size={size}"] if size else []), *more)
    batch = (tiny_lm_batch(3 + rank, 14 + 2 * rank, seed=rank) if context.stage == "lm"
             else choice_batch(3, 2, 12 + 2 * rank))
    output = step(context, batch)
    named = context.model.state_dict(keep_vars=True)
    return output.loss.item(), {name: whole_gradient(value) for name, value in named.items()
                                if isinstance(value, torch.nn.Parameter) and value.grad is not None}


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("student", "teacher"), [(2, 1), (1, 2)])
def test_equal_numbers(recipe: str, student: int, teacher: int) -> None:
    """Student at 2 and teachers at 1, and the reverse, against equal sizes."""
    equal = run_distributed(own_result, 2, recipe, 0, model_parallel_size=student)
    other = run_distributed(own_result, 2, recipe, teacher, model_parallel_size=student)
    if student == 1:
        assert equal[0][0] != equal[1][0], "each rank has a batch of its own"
    for (loss, gradients), (expected, wanted) in zip(other, equal, strict=True):
        assert loss == pytest.approx(expected, rel=1e-10)
        assert gradients.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-10)


def shards(size: int) -> list[int]:
    """Rows of the teachers' word tables on this rank."""
    context = tiny_context(*RECIPES["tokens"], f"--teacher-model-parallel-size={size}")
    return [teacher.word_embedding_weight.shape[0] for teacher in context.teachers]


def truncated(size: int) -> torch.Tensor:
    """The whole word table of a student that starts from the front of a teacher cut in another way."""
    context = tiny_context(*RECIPES["tokens"], f"--teacher-model-parallel-size={size}")
    context.teachers[0].parallel_state = context.teacher_parallel.state if context.teacher_parallel else None
    copy_front(context.student.origin_model, context.teachers[0])
    weight = context.student.origin_model.word_embeddings.weight
    weight.grad = weight.detach().clone()
    return whole_gradient(weight)


@pytest.mark.distributed
def test_the_teachers_are_cut_as_asked_and_can_be_truncated() -> None:
    assert run_distributed(shards, 2, 2, model_parallel_size=1) == [[32, 32]] * 2
    assert run_distributed(shards, 2, 1, model_parallel_size=2) == [[64, 64]] * 2
    whole = truncated(1)
    for student, teacher in ((2, 1), (1, 2)):
        for found in run_distributed(truncated, 2, teacher, model_parallel_size=student):
            torch.testing.assert_close(found, whole)


def errors(*flags: str) -> str:
    with pytest.raises(ValueError) as caught:
        tiny_context(*flags)
    dist.barrier()
    return str(caught.value)


@pytest.mark.distributed
def test_errors() -> None:
    flags = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=16:16", "--teacher-model-parallel-size=2")
    for method, message in ((("--student_model=theseus", "--distill_pt_hard"), "theseus runs layers of the teachers"),
                            (("--student_model=kd", "--distill_pt_soft", "--mt_has_grad"), "is for frozen teachers")):
        assert all(message in said for said in run_distributed(errors, 2, *flags, *method, model_parallel_size=1))
    with pytest.raises(ValueError, match="--teacher-model-parallel-size=2 needs 2 processes, there is 1"):
        tiny_context(*flags, "--student_model=kd", "--distill_pt_soft")


def test_equal_sizes_change_nothing() -> None:
    context = tiny_context(*RECIPES["tokens"], "--teacher-model-parallel-size=1")
    assert context.teacher_parallel is None


def test_the_groups_come_back_after_an_error() -> None:
    before = parallel_state()
    with pytest.raises(KeyError), use_parallel_state(before):
        raise KeyError
    assert parallel_state() is before


@pytest.mark.parametrize("name", LAYER_TAPS)
def test_cut_axes(name: str) -> None:
    by_heads = {"query_layer", "key_layer", "value_layer", "attention_scores", "attention_probs"}
    by_width = {"mixed_query_layer", "mixed_key_layer", "mixed_value_layer", "context_layer"}
    assert cut_axis(f"transformer.layers.0.{name}") == (1 if name in by_heads else -1 if name in by_width else None)


@pytest.mark.distributed
def test_a_run_with_loaded_and_truncated_teachers(tmp_path: Path) -> None:
    """Checkpoints of one file are cut in two while loading, for teachers only; each rank trains on its own batches."""
    world = write_world(tmp_path)
    teacher, common = tmp_path / "teacher", {"epochs": 1, "batch-size": 4, "lr": 1e-4}
    assert run("finetune", [*finetune_flags(world, **common), *NO_DROPOUT, f"--save={teacher}"]) == 0
    flags = [*finetune_flags(world, **common), *NO_DROPOUT, "--student_model=tinybert", "--tinybert_fit_compatible_mt",
             "--distill_ft_soft", f"--mt_load_pretrained={teacher / 'copa'}", "--mt_num_layers=2:2",
             "--mt_hidden_size=32:32", "--mt_num_attention_heads=4", "--mt_max_position_embeddings=64",
             "--student_truncate_tn=1"]
    run_on_ranks([("finetune", [*flags, f"--save={tmp_path / 'equal'}"]),
                  ("finetune", [*flags, f"--save={tmp_path / 'cut'}", "--teacher-model-parallel-size=2"])], 2)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "equal"), rel=1e-5)
