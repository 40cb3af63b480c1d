"""Several passes over a batch, a first pass that does not count, and randomised data."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from distill.student import METHODS, Loss, register_method
from distill.training.engine import PlainEngine, build_engine
from distill.training.forward_step import StepContext, forward_step, hard_loss
from distill.training.random_data import random_ids, randomised
from distill.training.run_state import RunState
from distill.training.setup import running
from model.config import ModelConfig
from model.glm import GLMModel
from model.heads import MultiTokenCloze, SingleTokenCloze
from tests.distill.training.test_engine import deepspeed_arguments
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import (
    CB,
    COPA,
    TEACHER,
    batch_for,
    choice_batch,
    single_token_batch,
    step,
    tiny_args,
    tiny_context,
)
from tests.helpers.tiny_model import tiny_config, tiny_lm_batch

SOFT = (*TEACHER, "--student_model=kd", "--distill_pt_soft", "--distill_temperature=2")
BOTH = (*SOFT, "--distill_pt_hard")


def gradients(context: StepContext) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in context.model.named_parameters() if p.grad is not None}


# ---- repeated passes --------------------------------------------------------------------------------------------

def test_passes_are_added_and_named() -> None:
    once, thrice = tiny_context(*BOTH), tiny_context(*BOTH, "--forward_repeat_num=2")
    one, three = step(once), step(thrice)
    torch.testing.assert_close(three.loss, 3 * one.loss)
    for name, gradient in gradients(once).items():
        torch.testing.assert_close(gradients(thrice)[name], 3 * gradient)
    assert three.hard_loss.item() == one.hard_loss.item() and three.logits.shape == one.logits.shape
    assert len(three.passes) == 3 and thrice.run.repeat == 0
    tags = [tag for tag, _ in three.recorded if "soft" in tag or "hard_loss" in tag]
    assert tags == ["Train/hard_loss", "pre_loss/pt_soft_t0", "Train/hard_loss", "pre_loss/pt_soft_t0_repeat1",
                    "Train/hard_loss", "pre_loss/pt_soft_t0_repeat2"]


def test_evaluation_passes_once() -> None:
    context = tiny_context(*BOTH, "--forward_repeat_num=2")
    context.run.is_training = False
    output = forward_step(context, tiny_lm_batch())
    assert output.passes == [] and torch.equal(output.loss, output.hard_loss)


def test_the_pass_number_is_taken_back_after_an_error() -> None:
    context = tiny_context(*BOTH, "--forward_repeat_num=1")
    context.student.after_pass = lambda loss: 1 / 0 if context.run.repeat else None
    with pytest.raises(ZeroDivisionError):
        step(context)
    assert context.run.repeat == 0


def _listening(calls: list[Any]) -> type:
    """A kd whose second pass weighs double, and which says what it is told."""

    class Listening(METHODS["kd"]):
        def observe(self, s_inter_vars: Any, s_hook: Any, t_inter_vars: Any, t_hooks: Any, **labels: Any) -> None:
            calls.append((self.run.repeat, len(t_inter_vars), set(labels)))

        def after_pass(self, loss: Loss) -> None:
            calls.append((self.run.repeat, loss.item()))

        def pre_loss(self, *args: Any, **kwargs: Any) -> Loss:
            return (1 + self.run.repeat) * super().pre_loss(*args, **kwargs)

    return Listening


@pytest.mark.parametrize("drops", [False, True])
def test_a_first_pass_that_does_not_count(drops: bool) -> None:
    calls: list[Any] = []
    register_method("listening")(_listening(calls))
    try:
        flags = (*BOTH, "--student_model=listening", "--forward_repeat_num=1")
        context = tiny_context(*flags, *(("--ignore_first_backward_gard",) if drops else ()))
        output, once = step(context), step(tiny_context(*BOTH))
    finally:
        del METHODS["listening"]
    factor = 2 if drops else 3
    torch.testing.assert_close(output.loss, factor * once.loss)
    assert calls == [(0, 1, {"loss_mask", "labels", "logit_mask"}), (0, once.loss.item()),
                     (1, 1, {"loss_mask", "labels", "logit_mask"}), (1, pytest.approx(2 * once.loss.item()))]
    reference = tiny_context(*BOTH)
    step(reference)
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(gradients(context)[name], factor * gradient)


@pytest.mark.parametrize(("flags", "message"), [
    (("--forward_repeat_num=-1",), "--forward_repeat_num=-1 must be 0 or more"),
    (("--ignore_first_backward_gard",), "drops the only pass; add --forward_repeat_num=1"),
    (("--ignore_first_backward_gard", "--forward_repeat_num=1", "--gradient-accumulation-steps=2"),
     "--ignore_first_backward_gard needs --gradient-accumulation-steps=1, not 2"),
    (("--distill_random_data_n=a",), "--distill_random_data_n=a must be a comma list"),
    (("--distil_analysis_frcn=0;1",), "--distil_analysis_frcn=0;1 must be a comma list"),
    (("--distil_analysis_inter", "--mt_disable_operation=1"), "switches one off"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_context(*BOTH, *flags)


# ---- randomised data --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", [(), COPA, CB], ids=["text", "copa", "cb"])
@pytest.mark.parametrize("kind", ["replace", "dual"])
def test_only_token_ids_are_random(task: tuple[str, ...], kind: str) -> None:
    soft = ("--student_model=kd", "--distill_ft_soft" if task else "--distill_pt_soft")
    context = tiny_context(*TEACHER, *task, *soft, f"--distill_random_data={kind}")
    batch = batch_for(context)
    before = {key: value.clone() for key, value in batch.items()}
    changed = randomised(batch, context.student, 50)
    ids = "text" if task else "tokens"
    rows = len(batch[ids])
    for key, value in before.items():
        assert torch.equal(batch[key], value), key
        if kind == "dual":
            assert torch.equal(changed[key][:rows], value) and len(changed[key]) == 2 * rows
        if key != ids:
            assert torch.equal(changed[key][-rows:], value), key
    assert not torch.equal(changed[ids][-rows:], before[ids])
    assert torch.equal(changed[ids][-rows:].flatten().sort().values, before[ids].flatten().sort().values)
    assert step(context).loss.isfinite()


def test_drawn_ids_are_tokens() -> None:
    ids = random_ids(torch.zeros(40, 50, dtype=torch.int64), "sample", 23, random.Random(1))
    assert sorted(set(ids.flatten().tolist())) == list(range(23))


def test_the_context_knows_the_tokens() -> None:
    context = tiny_context(*SOFT, "--distill_random_data=replace", "--distill_random_data_method=sample")
    context.num_tokens = 9
    seen: list[torch.Tensor] = []
    context.teachers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(context)
    assert seen[0].max() < 9 and seen[0].unique().numel() == 9


def test_random_data_in_the_passes_named() -> None:
    """A real pass and a random one: each is what it is alone."""
    real = step(tiny_context(*SOFT))
    both = step(tiny_context(*SOFT, "--forward_repeat_num=1", "--distill_random_data=replace",
                             "--distill_random_data_n=1"))
    assert both.passes[0].loss.item() == real.loss.item()
    assert both.passes[1].loss.item() != real.loss.item()
    torch.testing.assert_close(both.loss, both.passes[0].loss + both.passes[1].loss)


def test_draws_change_with_the_step_and_come_back_after_a_resume() -> None:
    def tokens(**where: int) -> torch.Tensor:
        context = tiny_context(*SOFT, "--distill_random_data=replace", run=RunState(seed=1, **where))
        return randomised(tiny_lm_batch(), context.student, 64)["tokens"]

    assert torch.equal(tokens(iteration=3), tokens(iteration=3))
    assert not torch.equal(tokens(iteration=3), tokens(iteration=4))
    assert not torch.equal(tokens(iteration=3), tokens(iteration=3, micro_step=1))


def test_the_token_count_of_a_doubled_batch() -> None:
    """The loop counts the tokens of the batch that it has; the label loss stays a mean."""
    flags = (*BOTH, "--distill_random_data=dual")
    batch = tiny_lm_batch()
    own = forward_step(tiny_context(*flags), batch)
    given = forward_step(tiny_context(*flags), batch, token_denominator=batch["loss_mask"].sum())
    torch.testing.assert_close(own.hard_loss, given.hard_loss)


def drawn_tokens() -> torch.Tensor:
    context = tiny_context(*SOFT, "--distill_random_data=replace", "--distill_random_data_method=sample")
    return randomised(tiny_lm_batch(), context.student, 64)["tokens"]


@pytest.mark.distributed
def test_ranks_of_a_model_draw_alike_and_data_parallel_ones_do_not() -> None:
    ranks = run_distributed(drawn_tokens, 4, model_parallel_size=2)
    assert torch.equal(ranks[0], ranks[1]) and torch.equal(ranks[2], ranks[3])
    assert not torch.equal(ranks[0], ranks[2])


def test_a_pass_that_never_runs_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tiny_context(*SOFT, "--distill_random_data=replace", "--distill_random_data_n=1")
    assert "--distill_random_data_n=1 names a pass that --forward_repeat_num=0 never runs" in caplog.text
    caplog.clear()
    tiny_context(*SOFT, "--distill_random_data=replace", "--distill_random_data_n=0,1", "--forward_repeat_num=1")
    assert "never runs" not in caplog.text


# ---- gradients inside a step ------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", [None, 0, 1, 2], ids=["plain", "ZeRO 0", "ZeRO 1", "ZeRO 2"])
def test_a_gradient_taken_inside_a_step_leaves_the_engine_alone(stage: int | None) -> None:
    """lrc_bert asks for a gradient between its passes; parameters and optimizer see the second pass only."""
    flags = (*TEACHER, "--student_model=lrc_bert", "--lrc_bert_gard_perturb", "--ignore_first_backward_gard",
             "--forward_repeat_num=1")
    context, reference = (tiny_context(*flags, dtype=torch.float32) for _ in range(2))
    args = deepspeed_arguments(stage or 0)
    args.deepspeed = stage is not None
    with running(args) if args.deepspeed else nullcontext():
        found: list[float] = []
        engines = (reference, PlainEngine(reference.model, args)), (context, build_engine(context.model, args))
        for one, engine in engines:
            for _ in range(3):
                loss = engine.compute(lambda one=one: forward_step(one, tiny_lm_batch()).loss)
                assert all(p.grad is None or not p.grad.any() for p in one.model.parameters())
                engine.backward(loss, weight=1.0, is_last=True)
                found += [loss.item(), engine.step(0.01).grad_norm]
    assert found[6:] == pytest.approx(found[:6], rel=1e-5) and found[1] > 0


# ---- labels under an unmapped compact vocabulary ----------------------------------------------------------------

def compact_glm(parallel_output: bool) -> GLMModel:
    """32 rows for 64 ids; a dropped id has the row of a kept one."""
    torch.manual_seed(0)
    model = GLMModel(tiny_config(map_vocab_size=32, unmap_vocab_output=True), parallel_output=parallel_output)
    kept = torch.randperm(64)[:32]
    to_row = torch.randint(32, (64,))
    to_row[kept] = torch.arange(32)
    dropped = torch.tensor([i for i in range(64) if i not in set(kept.tolist())])
    mask = torch.zeros(64, dtype=torch.bool)
    mask[kept] = True
    model.vocab_map.set({"origin_id_to_target_pos": to_row, "origin_id_mask_map": mask,
                         "target_pos_to_origin_id": torch.cat([kept, kept[to_row[dropped]]])})
    return model


def _lm_context(model: nn.Module) -> StepContext:
    return StepContext(model, tiny_args(), RunState())


def test_labels_meet_the_columns_of_a_compact_vocabulary() -> None:
    model, batch = compact_glm(parallel_output=True), tiny_lm_batch()
    logits, _ = model(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    assert logits.shape[-1] == 32
    columns = model.vocab_map.origin_id_to_target_pos[batch["labels"]]
    losses = -logits.log_softmax(-1).gather(-1, columns.unsqueeze(-1)).squeeze(-1) * batch["loss_mask"]
    loss, _ = hard_loss(_lm_context(model), logits, batch)
    torch.testing.assert_close(loss, losses.sum() / batch["loss_mask"].sum())


def test_labels_of_a_teacher_are_ids() -> None:
    """The student's columns are no columns of a teacher with the whole vocabulary."""
    student, batch = compact_glm(parallel_output=True), tiny_lm_batch()
    teacher = GLMModel(ModelConfig(**{**vars(tiny_config())}))
    logits, _ = teacher(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    loss, _ = hard_loss(_lm_context(student), logits, batch, model=teacher)
    expected, _ = hard_loss(_lm_context(teacher), logits, batch)
    assert loss.item() == expected.item()


@pytest.mark.parametrize("head", ["multi_token", "single_token"])
def test_answers_meet_the_columns_of_a_compact_vocabulary(head: str) -> None:
    model = compact_glm(parallel_output=False)
    cloze, batch = ((MultiTokenCloze(model), choice_batch()) if head == "multi_token"
                    else (SingleTokenCloze(model), single_token_batch()))
    inputs = [batch[name] for name in ("text", "position", "mask")]
    scores, _ = cloze(*inputs, batch["target"], batch["logit_mask"])
    rows = model.vocab_map.origin_id_to_target_pos
    model.map_input_to_ids = lambda ids: ids
    by_hand, _ = cloze(*inputs, rows[batch["target"]], batch["logit_mask"])
    torch.testing.assert_close(scores, by_hand)
