"""Compact vocabularies, factorised and shared forms and bottlenecks together with methods and combiners: the numbers
depend neither on the model-parallel size nor on checkpointing, and what cannot be is said."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from distill.training.evaluate import _predicted
from distill.vocab_init import check_vocab_flags, resolve_map_size
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import CB, COPA, TEACHER, step, step_result, tiny_args, tiny_context
from tests.helpers.tiny_model import tiny_config, tiny_lm_batch

COMPACT = ("--map_vocab_size=32", "--distill_logit_mask_map")
ROWS = (*COMPACT, "--unmap_vocab_output")
ALBERT = ("--compress_word_emb=8", "--cross_layer_parameter_sharing")
BOTTLENECK = ("--inverted_bottleneck_mode", "--ib_hidden_size=8", "--ib_ffn_num=2", "--ib_word_emb=8")
TWO = (*TEACHER, "--mt_num_layers=3:4", "--mt_hidden_size=24:32")
#: Student's form, teachers' forms, method, combiner.
COMBINATIONS = {
    "GLMD+al": (*TEACHER, *ROWS, "--compress_word_emb=8", "--student_model=logitsdistil", "--distill_temperature=15",
                "--logitsdistil_mask_pad"),
    "GLMD+al, choices": (*TEACHER, *ROWS, "--compress_word_emb=8", *COPA, "--student_model=logitsdistil",
                         "--distill_ft_soft", "--logitsdistil_mask_pad"),
    "ALBERT, two teachers, MT-BERT": (*TWO, *COMPACT, *ALBERT, "--mt_compress_word_emb=0:8", "--student_model=pkd",
                                      "--distill_pt_soft", "--multi_teacher_model=mt_bert", "--mt_has_loss"),
    "compact teacher, RL-KD": (*TWO, *ROWS, "--mt_map_vocab_size=32:0", "--student_model=kd", "--distill_pt_soft",
                               "--distill_logits_parallel", "--multi_teacher_model=rl_kd", "--mt_has_loss",
                               "--rl_kd_semantic_model=0"),
    "bottleneck, Uncertainty": (*TWO, *COMPACT, *BOTTLENECK, *CB, "--student_model=minilmv2", "--distill_ft_soft",
                                "--minilmv2_relation_heads=8", "--minilmv2_teacher_layer=-1",
                                "--multi_teacher_model=uncertainty", "--uncertainty_inter_entropy"),
    "shared bottleneck teachers, MixMT": (
        *TWO, *ROWS, "--teacher_inverted_bottleneck_mode", "--mt_ib_hidden_size=16:8", "--mt_ib_ffn_num=1:3",
        "--teacher_cross_layer_parameter_sharing", "--student_model=logitsdistil", "--logitsdistil_mse",
        "--logitsdistil_teacher_input_ids_map", "--multi_teacher_model=mixmt",
        "--mixmt_model=AvgTeacher,Uncertainty"),
    "erdistill": (*TEACHER, *COMPACT, "--compress_word_emb=8", "--student_model=erdistill"),
}


@pytest.mark.distributed
@pytest.mark.parametrize("name", COMBINATIONS)
def test_two_ranks_and_recomputing_give_the_same_numbers(name: str) -> None:
    flags = COMBINATIONS[name]
    expected, wanted = step_result(*flags)
    for loss, gradients in [step_result(*flags, checkpoint_activations=True),
                            *run_distributed(step_result, 2, *flags, model_parallel_size=2)]:
        assert loss == pytest.approx(expected, rel=1e-10)
        for gradient_of, gradient in wanted.items():
            torch.testing.assert_close(gradients[gradient_of], gradient, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("flags", "changes"), [(ROWS, False), (COMPACT, False), (COMPACT[:1], True)])
def test_only_kept_tokens_are_compared(flags: tuple[str, ...], changes: bool) -> None:
    """The teacher's logits of dropped tokens (odd ids) make no difference; without --distill_logit_mask_map they do."""
    batch, losses = tiny_lm_batch(), []
    batch["tokens"] = batch["tokens"] // 2 * 2  # the teacher reads kept tokens alone
    for factor in (1.0, 2.0):
        context = tiny_context(*TEACHER, *flags, "--student_model=logitsdistil")
        kept = context.student.origin_model.vocab_map.origin_id_mask_map
        context.teachers[0].word_embedding_weight.data[~kept] *= factor
        losses.append(step(context, batch).loss.item())
    assert (losses[0] != losses[1]) is changes


def test_rows_as_output_need_the_kept_tokens_for_logits_distillation() -> None:
    message = "--unmap_vocab_output needs --distill_logit_mask_map for logits distillation"
    for flags in (("--student_model=logitsdistil",), ("--student_model=kd", "--distill_logits_parallel")):
        with pytest.raises(ValueError, match=message):
            step(tiny_context(*TEACHER, ROWS[0], ROWS[2], *flags))
    # Soft labels find the teacher's entries by themselves.
    assert step(tiny_context(*TEACHER, ROWS[0], ROWS[2], "--student_model=kd", "--distill_pt_soft")).loss.isfinite()


@pytest.mark.parametrize(("flags", "message"), [
    (("--student_map_vocab_method=dot",), "=dot must be one of decoder, cosine, euclidean"),
    (("--student_build_map_vocab",), "--student_build_map_vocab needs --map_vocab_size"),
    (("--unmap_vocab_output",), "--unmap_vocab_output needs --map_vocab_size")])
def test_flags_that_exclude_each_other(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_vocab_flags(tiny_args(*flags))


def test_flags_without_effect_are_told(caplog: pytest.LogCaptureFixture) -> None:
    check_vocab_flags(tiny_args("--distill_logit_mask_map"))
    assert "--distill_logit_mask_map has no effect without --map_vocab_size" in caplog.text


def test_sizes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert resolve_map_size(1.0, 300, 384, 128) == 128 and "means 1 token(s), not a share" in caplog.text
    assert resolve_map_size(0.9, 300, 384, 128) == 0 and "384 rows, no fewer than the vocabulary's 384" in caplog.text
    with pytest.raises(ValueError, match="map_vocab_size=-1 .* must be 0"):
        resolve_map_size(-1.0, 300, 384, 128)
    with pytest.raises(ValueError, match="34 kept tokens do not divide into --model-parallel-size 4 equal parts"):
        tiny_config(map_vocab_size=34).check(4)
    with pytest.raises(ValueError, match="--teacher_compress_word_emb -8 must be a width, or 0"):
        tiny_config(compress_word_emb=-8).check(prefix="teacher_")


@pytest.mark.parametrize("flags", [COMPACT[:1], ROWS])
def test_predictions_are_kept_tokens_in_either_kind_of_output(flags: tuple[str, ...]) -> None:
    """A kept token is right where the model writes it, though its substitutes have the same logit; they never are."""
    context = tiny_context(*TEACHER, *flags, "--student_model=kd", "--distill_pt_soft")
    batch, glm = tiny_lm_batch(), context.student.origin_model
    with torch.no_grad():
        logits, _ = context.model(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    written = glm.ids_of_columns(logits.argmax(dim=-1))
    assert bool((written % 2 == 0).all()), "odd ids have no row"
    for labels, right in ((written, 1), (written + 1, 0)):
        found = _predicted(SimpleNamespace(context=context), None, {**batch, "labels": labels})
        assert found.tolist() == [right] * len(labels)
