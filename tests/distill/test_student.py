"""The student: prediction losses, names in a checkpoint, draws, summaries, registry, errors."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import torch

from distill.distill_model import find_method
from distill.student import METHODS, GLMStudent, check_distill_flags, register_method
from distill.training.run_state import RunState
from model.heads import SequenceClassification
from model.taps import has_tap
from tests.helpers.tiny_distill import CB, COPA, TEACHER, TWO_TEACHERS, step, student_of, tiny_args, tiny_context
from tests.helpers.tiny_model import tiny_glm

KD = (*TEACHER, "--student_model=kd")


def rows(values: torch.Tensor, tau: float) -> list[list[float]]:
    return (values.double() / tau).softmax(-1).flatten(0, -2).tolist()


def soft_oracle(kind: str, s: torch.Tensor, t: torch.Tensor, tau: float, mask: list[float], weight: float) -> float:
    """A soft-label loss in plain loops: masked positions count in the mean; cross entropy adds log(size) for them."""
    total, size = 0.0, s.shape[-1]
    for index, m in enumerate(mask):
        if kind == "mse":
            pairs = zip(s.flatten(0, -2)[index].tolist(), t.flatten(0, -2)[index].tolist(), strict=True)
            total += m * sum((a - weight * b) ** 2 for a, b in pairs) / size
            continue
        p, q = rows(s, tau)[index], rows(t, tau)[index]
        entropy = 0.0 if kind == "ce" else sum(b * math.log(b) for b in q)
        value = entropy - sum(b * math.log(a) for a, b in zip(p, q, strict=True))
        total += m * value * (tau ** 2 if kind == "kl" else 1) + ((1 - m) * math.log(size) if kind == "ce" else 0)
    return total / len(mask)


SOFT_FLAGS = {("ft", "ce"): (), ("ft", "kl"): ("--distill_ft_soft_kl",), ("ft", "mse"): ("--distill_ft_soft_mse",),
              ("pt", "kl"): (), ("pt", "ce"): ("--distill_pt_soft_ce",), ("pt", "mse"): ("--distill_pt_soft_mse",)}


@pytest.mark.parametrize(("stage", "kind"), SOFT_FLAGS)
@pytest.mark.parametrize("masking", ["loss mask", "none", "padding"])
def test_pre_loss_loops(stage: str, kind: str, masking: str) -> None:
    mask_flags = {"none": ("--distill_wo_loss_mask",), "padding": ("--distill_only_mask_pad",)}.get(masking, ())
    flags = (*KD, f"--distill_{stage}_soft", f"--distill_{stage}_hard", *SOFT_FLAGS[stage, kind], *mask_flags,
             "--distill_temperature=4", "--distill_soft_rate=0.5", "--distill_hard_rate=1/4")
    student = student_of(*flags, *(("--finetune",) if stage == "ft" else ()))
    s, t = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    labels, loss_mask = torch.tensor([[4, 0, 0], [1, 2, 0]]), torch.tensor([[1.0, 0, 1], [1, 1, 0]])
    mask = {"loss mask": loss_mask, "none": torch.ones(2, 3), "padding": (labels > 0).float()}[masking]
    expected = 0.5 * soft_oracle(kind, s, t, 4.0, mask.flatten().tolist(), 0.7) + 0.25 * 3.0
    given = dict(loss_mask=loss_mask, labels=labels, mse_t_w=0.7)
    parts = student.pre_loss(s, t, 3.0, return_dict=True, **given)
    assert float(parts["loss"]) == pytest.approx(expected, rel=1e-12)
    assert float(parts["hard"]) == 0.75 and set(parts) == {"soft", "hard", "loss"}
    per_sample = student.pre_loss(s, t, torch.full((2,), 3.0), keep_batch=True, **given)
    assert per_sample.shape == (2,) and per_sample.mean().item() == pytest.approx(expected, rel=1e-6)


def test_mse_wins_over_the_other_kinds() -> None:
    student = student_of(*KD, "--finetune", "--distill_ft_soft", "--distill_ft_soft_kl", "--distill_ft_soft_mse")
    assert student.soft_kind() == "mse"


def test_masked_constants_can_be_left_out() -> None:
    s, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    values = [student_of(*KD, "--distill_pt_soft", "--distill_pt_soft_ce", *extra).pre_loss(s, t, 0.0, loss_mask=mask)
              for extra in ((), ("--distill_mask_wo_constant",))]
    assert float(values[0] - values[1]) == pytest.approx(math.log(5) * 3 / 6, rel=1e-5)


@pytest.mark.parametrize("flags", [("--distill_pt_soft", "--distill_soft_rate=0", "--distill_pt_hard"),
                                   ("--distill_pt_hard",)])
def test_a_rate_of_zero_removes_the_term(flags: tuple[str, ...]) -> None:
    parts = student_of(*KD, *flags).pre_loss(torch.zeros(1, 1, 4), torch.ones(1, 1, 4), 2.0, return_dict=True)
    assert parts == {"hard": 2.0, "loss": 2.0}


def test_hard_rate_of_one_over_the_teachers() -> None:
    student = student_of(*TWO_TEACHERS, "--student_model=kd", "--distill_pt_hard", "--distill_hard_rate=1/teacher_num")
    assert student.rate("hard") == 0.5


# ---- shared terms -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [(), ("--distill_logit_mask_pad",), ("--distill_logit_mse",)])
def test_logits_parallel_is_wrapped_around_every_method(flags: tuple[str, ...]) -> None:
    alone = step(tiny_context(*KD, *COPA, "--distill_logits_parallel", "--distill_temperature=3", *flags))
    base = step(tiny_context(*TEACHER, "--student_model=tinybert", *COPA))
    both = step(tiny_context(*TEACHER, "--student_model=tinybert", *COPA, "--distill_logits_parallel",
                             "--distill_temperature=3", *flags))
    expected = alone.parts["inter_loss/logits_parallel_t0"]
    torch.testing.assert_close(both.parts["inter_loss/logits_parallel_t0"], expected)
    torch.testing.assert_close(both.loss.detach(), base.loss.detach() + expected)


def test_logits_parallel_survives_wo_inter() -> None:
    flags = (*TEACHER, "--student_model=tinybert", "--tinybert_wo_inter", "--distill_logits_parallel")
    output = step(tiny_context(*flags))
    assert "inter_loss/logits_parallel_t0" in output.parts
    assert not any("hidden_states" in name for name in output.parts)


# ---- hooks ------------------------------------------------------------------------------------------------------

def test_hooks_are_merged_from_lists() -> None:
    student = student_of(*KD, "--distill_logits_parallel", "--distill_logit_mask_pad")
    own = [{"words_embeddings": None}, {"transformer": {"output": None}}]
    merged = student.get_teacher_hook(hook_before_analysis=own)
    assert has_tap(merged, "words_embeddings") and has_tap(merged, "transformer", "output")
    assert has_tap(merged, "logits_parallel") and not has_tap(merged, "position_ids")
    assert has_tap(student.student_taps(), "position_ids")


def test_args_show_the_teacher_in_question_and_are_read_only() -> None:
    student = student_of(*TWO_TEACHERS, "--student_model=kd", "--distill_pt_soft")
    assert student.args.teacher_num_layers == 3
    with student.facing(1):
        assert student.args.teacher_num_layers == 4
        with pytest.raises(AttributeError, match="read-only"):
            student.args.teacher_num_layers = 9
    assert student.args.teacher_num_layers == 3 and student._args.teacher_num_layers == 3


def test_the_view_comes_back_after_an_error() -> None:
    student = student_of(*TWO_TEACHERS, "--student_model=kd", "--distill_pt_soft")
    with pytest.raises(RuntimeError), student.facing(1):
        raise RuntimeError
    assert student.args.teacher_num_layers == 3


# ---- names in a checkpoint --------------------------------------------------------------------------------------

TINYBERT = (*TEACHER, "--student_model=tinybert")


def test_checkpoint_names() -> None:
    student = student_of(*TINYBERT)
    names = set(student.state_dict())
    glm = set(student.origin_model.state_dict())
    assert glm < names
    assert names - glm == {"student.fit_dense.weight", "student.fit_dense.bias"}
    assert {name for name, _ in student.named_parameters()} == names
    assert {name for name, _ in student.named_parameters(prefix="a")} == {f"a.{name}" for name in names}
    assert {id(p) for p in student.parameters()} == {id(p) for _, p in student.named_parameters()}


def test_a_student_loads_its_own_state_and_a_glm_loads_it_too() -> None:
    first, second = student_of(*TINYBERT), student_of(*TINYBERT, seed=3)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    result = second.load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys
    for name, value in second.state_dict().items():
        assert torch.equal(value, state[name]), name
    plain = tiny_context().model
    loaded = plain.load_state_dict(state, strict=False)
    assert not loaded.missing_keys
    assert set(loaded.unexpected_keys) == {"student.fit_dense.weight", "student.fit_dense.bias"}


def test_a_plain_glm_checkpoint_fits_a_student() -> None:
    student = student_of(*TINYBERT)
    state = tiny_context(seed=8).model.state_dict()
    result = student.load_state_dict(state, strict=False)
    assert len(result.missing_keys) == 2 and all("fit_dense" in name for name in result.missing_keys)
    assert not result.unexpected_keys
    assert torch.equal(student.word_embedding_weight, state["word_embeddings.weight"])


def test_release_forms_of_names_are_read() -> None:
    """`origin_model.X` is X; the backbone copies of a combined method are left out."""
    student = student_of(*TINYBERT)
    state = student.state_dict()
    old = {name if name.startswith("student.") else f"origin_model.{name}": value for name, value in state.items()}
    old["student.TinyBERT.origin_model.word_embeddings.weight"] = torch.zeros(1)
    result = student.load_state_dict(old)
    assert not result.missing_keys and not result.unexpected_keys


@pytest.mark.parametrize("task", [COPA, CB], ids=["multi token", "single token"])
def test_names_inside_a_cloze_head(task: tuple[str, ...]) -> None:
    context = tiny_context(*TINYBERT, *task)
    assert set(context.model.state_dict()) == set(context.student.state_dict())
    context.model.load_state_dict(context.model.state_dict())


def test_names_inside_a_classification_head() -> None:
    head = SequenceClassification(student_of(*TINYBERT), 16, 3)
    names = set(head.state_dict())
    assert {"model.word_embeddings.weight", "model.student.fit_dense.weight", "pool_layer.weight"} < names
    assert not any("origin_model" in name for name in names)
    result = head.load_state_dict(head.state_dict())
    assert not result.missing_keys and not result.unexpected_keys


# ---- draws ------------------------------------------------------------------------------------------------------

def test_draws_depend_on_seed_method_name_and_position_only() -> None:
    def values(student: GLMStudent, name: str = "a") -> list[float]:
        return student.draw(name, lambda generator: [generator.random() for _ in range(3)])

    first, again = (student_of(*KD, "--distill_pt_soft", run=RunState(seed=1, iteration=5)) for _ in range(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert values(first) == values(again) == values(first)
    assert torch.equal(torch.get_rng_state(), before)
    assert values(first) != values(first, "b")
    again.run.micro_step = 1
    assert values(first) != values(again)
    other = student_of(*KD, "--distill_pt_soft", run=RunState(seed=2, iteration=5))
    assert values(first) != values(other)
    assert values(first) != values(student_of(*TINYBERT, run=RunState(seed=1, iteration=5)))


def test_draws_can_be_injected() -> None:
    student = student_of(*KD, "--distill_pt_soft")
    student.injected_draws = {"a": [1, 2], "b": lambda epoch: epoch * 10}
    assert student.draw("a", lambda generator: [0]) == [1, 2]
    assert student.draw("b", lambda generator: 0, 7) == 70


# ---- summaries --------------------------------------------------------------------------------------------------

class Recorder:
    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.rows.append((tag, value, step))


def test_summaries_are_written_when_due() -> None:
    student = student_of(*KD, "--distill_pt_soft", run=RunState(iteration=9, accumulation_steps=2))
    assert not student.add_summary("x", 1.0)
    student.writer = Recorder()
    student._args.log_interval = 5
    assert not student.add_summary("x", 1.0)  # the first of two micro-steps
    student.run.micro_step = 1
    with student.facing(0):
        assert student.add_summary("x", torch.tensor([1.0, 3.0]))
    student.run.iteration = 10
    assert not student.add_summary("x", 1.0)
    student.run.iteration, student.summary_loss = 9, False
    assert not student.add_summary("x", 1.0)
    assert student.writer.rows == [("x_t0", 2.0, 10)]


# ---- the registry -----------------------------------------------------------------------------------------------

def test_methods_are_found_by_name_and_class_name_in_any_case() -> None:
    assert find_method("tinybert") is find_method("TinyBERT") is METHODS["tinybert"]
    assert find_method("GLMD") is METHODS["logitsdistil"]
    with pytest.raises(ValueError, match="--student_model=tinybrt is not a method; did you mean tinybert"):
        find_method("tinybrt")


def test_a_name_is_given_once() -> None:
    class Second(GLMStudent):
        """Another one."""

    with pytest.raises(ValueError, match=r"--student_model=kd is taken by distill.methods.kd.KD"):
        register_method("kd")(Second)
    assert METHODS["kd"].__name__ == "KD" and Second not in METHODS.values()


def test_flags_of_methods_do_not_collide() -> None:
    parser = argparse.ArgumentParser()
    for cls in METHODS.values():
        cls.add_flags(parser)
    assert len(parser._option_string_actions) > 10


# ---- errors -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("flags", "expected"), [
    (KD, ("kd: no loss term", "--distill_pt_soft", "--distill_pt_hard", "--distill_logits_parallel")),
    ((*KD, *COPA), ("--distill_ft_soft", "--distill_ft_hard")),
    ((*KD, "--distill_pt_soft", "--distill_soft_rate=0"), ("no loss term",)),
    ((*TINYBERT, "--tinybert_wo_inter"), ("tinybert: no loss term", "remove --tinybert_wo_inter")),
    ((*TEACHER, "--student_model=logitsdistil", "--logitsdistil_wo_inter"), ("remove --logitsdistil_wo_inter",)),
])
def test_a_method_that_does_nothing_lists_what_would(flags: tuple[str, ...], expected: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:
        tiny_context(*flags)
    assert all(text in str(error.value) for text in expected)


def test_a_disabled_teacher_cannot_give_soft_labels() -> None:
    context = tiny_context(*KD, "--distill_pt_soft", "--mt_disable_operation=1")
    with pytest.raises(ValueError, match="--mt_disable_operation"):
        step(context)


def test_flags_without_effect_are_told(caplog: pytest.LogCaptureFixture) -> None:
    check_distill_flags(tiny_args(*KD, "--enable_parallel_entropy", "--avgmt_inter_checkpoint"))
    assert "--enable_parallel_entropy has no effect" in caplog.text
    assert "--avgmt_inter_checkpoint has no effect" in caplog.text


def test_a_kind_without_its_switch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tiny_context(*KD, "--distill_pt_hard", "--distill_pt_soft_mse")
    assert "--distill_pt_soft_mse has no effect without --distill_pt_soft" in caplog.text


def test_keep_batch_is_checked() -> None:
    class Scalar(GLMStudent):
        def inter_loss(self, s_inter_vars: Any, t_inter_vars: Any, s_hook: Any, t_hook: Any, **kwargs: Any) -> Any:
            return torch.zeros(())

    student = Scalar(tiny_glm(), tiny_args(*KD, "--distill_pt_hard"))
    with pytest.raises(ValueError, match=r"Scalar.inter_loss has to return one value per sample"):
        student.intermediate_loss([torch.zeros(1)], [torch.zeros(1)], {}, {}, keep_batch=True)
