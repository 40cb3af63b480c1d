"""The combination of methods: sums of its members' losses, one backbone, names, projections seen by others, labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.arguments import parse_args
from distill.losses import cosine_distance, kl_divergence, soft_cross_entropy
from distill.student import METHODS, GLMStudent
from distill.training.run_state import RunState
from tests.distill.methods import contract
from tests.distill.test_extension import EXAMPLE, forget
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import COPA, TEACHER, TWO_TEACHERS, step, step_result, student_of, tiny_context
from tests.helpers.tiny_model import tiny_lm_batch

MIX = (*TEACHER, "--student_model=mixbaseline", "--minilmv2_relation_heads=8", "--minilmv2_teacher_layer=2",
       "--distill_temperature=2", "--distilbert_alpha_ce=5", "--distilbert_alpha_mlm=2")
FOUR = "--mixbaseline_inter_bl=TinyBERT,MiniLMv2,MiniLM,DistilBERT"
TEXT = (*MIX, FOUR, "--mixbaseline_pre_bl_pt_soft=DistilBERT")
STAGE_1 = (*MIX, *COPA, FOUR, "--mixbaseline_pre_bl_ft_soft=DistilBERT")
STAGE_2 = (*MIX, *COPA, "--mixbaseline_wo_inter", "--tinybert_wo_inter", "--distill_ft_soft", "--distill_ft_hard",
           "--distill_temperature=10", "--mixbaseline_tinybert_t=1", "--mixbaseline_pre_bl_ft_soft=TinyBERT")
LABEL = ("--mixbaseline_pre_bl_pt_soft=KD", "--distill_pt_hard")


def sum_of(parts: dict[str, torch.Tensor], beginning: str) -> torch.Tensor:
    return sum(value for name, value in parts.items() if name.startswith(beginning))


# ---- sums of members --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("members", [
    ("tinybert", "minilmv2"), ("minilmv2", "minilm", "erdistill"), ("erdistill", "alp_kd", "pkd"),
    ("minilm", "pkd", "minilmv2", "alp_kd")], ids="+".join)
def test_the_intermediate_loss_is_the_sum_of_what_each_member_has_alone(members: tuple[str, ...]) -> None:
    flags = (*MIX, "--teacher_hidden_size=16", "--pkd_beta=7", "--erdistill_inter_mse")
    together = step(tiny_context(*flags, f"--mixbaseline_inter_bl={','.join(members)}"))
    total = 0.0
    for name in members:
        alone = tiny_context(*flags, f"--student_model={name}")
        expected = step(alone).loss.detach()
        own = together.parts[f"inter_loss/{type(alone.student).__name__}_t0"]
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=0)
        total = total + expected
    torch.testing.assert_close(together.loss.detach(), total, rtol=1e-10, atol=0)
    assert sum_of(together.parts, "inter_loss/") == pytest.approx(total.item())


#: What a method needs beside the flags of the test below.
NEEDS = {"annealing_kd": ("--distill_ft_soft_mse",), "continuation_kd": ("--distill_ft_soft_mse",),
         "ckd": ("--ckd_window_size=3",), "mgskd": ("--mgskd_multi_heads=4",), "rail_kd": ("--rail_kd_u=8",),
         "diito": ("--forward_repeat_num=1",), "theseus": ("--mt_disable_operation=1", "--distill_soft_rate=0")}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"mixbaseline"}))
def test_every_method_can_be_a_member(name: str) -> None:
    """Its part of the loss, in all passes, is the whole loss that it has alone."""
    flags = (*MIX, *COPA, "--teacher_hidden_size=16", "--teacher_num_layers=4", "--distill_ft_soft",
             "--distill_ft_hard", "--mixbaseline_tinybert_t=2", *NEEDS.get(name, ()))
    alone = step(tiny_context(*flags, f"--student_model={name}", run=RunState(train_iters=100)))
    mixed = step(tiny_context(*flags, f"--mixbaseline_inter_bl={name},", f"--mixbaseline_pre_bl_ft_soft={name}",
                              run=RunState(train_iters=100)))
    tags = {f"{kind}/{METHODS[name].__name__}_t0{suffix}" for kind in ("inter_loss", "pre_loss")
            for suffix in ("", "_repeat1")}
    own = sum(value for tag, value in mixed.recorded if tag in tags)
    if name == "kd":  # has the name that the shared terms have in the summaries
        own = own - mixed.parts["pre_loss/ft_soft_t0"]
    torch.testing.assert_close(own, alone.loss.detach(), rtol=1e-9, atol=1e-12)


def test_a_list_may_repeat_names_leave_gaps_and_ignore_case() -> None:
    exact = step(tiny_context(*MIX, "--mixbaseline_inter_bl=TinyBERT,MiniLMv2"))
    loose = step(tiny_context(*MIX, "--mixbaseline_inter_bl= tinybert,,MINILMv2,TinyBERT,"))
    assert loose.loss == exact.loss and loose.parts.keys() == exact.parts.keys()


def test_the_first_list_of_a_phase_is_not_read_in_the_other() -> None:
    student = student_of(*STAGE_1, "--mixbaseline_pre_bl_pt_soft=kd,erdistill")
    assert list(student.members) == ["TinyBERT", "MiniLMv2", "MiniLM", "DistilBERT"]
    assert student.prediction_names == ["DistilBERT"]


def test_shared_terms_count_once() -> None:
    plain, shared = (step(tiny_context(*TEXT, *flags)) for flags in ((), ("--distill_logits_parallel",)))
    torch.testing.assert_close(shared.loss - plain.loss, shared.parts["inter_loss/logits_parallel_t0"])


def test_recomputed_losses_are_the_same() -> None:
    results = [step_result(*TEXT, *flags) for flags in ((), ("--mixbaseline_inter_checkpoint",))]
    assert results[0][0] == results[1][0]
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient)


# ---- predictions ------------------------------------------------------------------------------------------------

def test_pretraining_has_only_the_listed_predictions() -> None:
    output = step(tiny_context(*TEXT, "--distill_pt_soft", "--distill_pt_hard"))
    alone = step(tiny_context(*MIX, "--teacher_hidden_size=24", "--student_model=distilbert",
                              "--distilbert_alpha_cos=0")).parts
    expected = sum_of(alone, "pre_loss/distilbert")
    torch.testing.assert_close(output.parts["pre_loss/DistilBERT_t0"], expected)
    torch.testing.assert_close(sum_of(output.parts, "pre_loss/"), expected)


def test_the_label_is_learnt_by_the_last_of_the_list() -> None:
    flags = (*MIX, *COPA, "--distill_ft_soft", "--distill_ft_hard", "--distill_soft_rate=0.5")
    output = step(tiny_context(*flags, "--mixbaseline_pre_bl_ft_soft=MiniLM,TinyBERT"))
    student, teacher = output.logits, output.teacher_outputs[0]["logits"]
    soft = [0.5 * soft_cross_entropy(student, teacher, temperature=tau) for tau in (2, 1)]
    expected = {"pre_loss/KD_t0": soft[0], "pre_loss/ft_soft_t0": soft[0], "pre_loss/MiniLM_t0": soft[0],
                "pre_loss/TinyBERT_t0": soft[1] + output.hard_loss}
    assert {name for name in output.parts if name.startswith("pre_loss/")} == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.parts[name], value.detach())
    torch.testing.assert_close(output.loss, 2 * soft[0] + soft[1] + output.hard_loss)


def test_without_a_list_the_shared_terms_learn_the_label() -> None:
    output = step(tiny_context(*MIX, *COPA, "--mixbaseline_inter_bl=MiniLM", "--distill_ft_hard"))
    torch.testing.assert_close(output.parts["pre_loss/KD_t0"], output.hard_loss.detach())


def test_last_published_stage() -> None:
    """An empty list of intermediate losses; KD at tau = 10 and TinyBERT at tau = 1; the label once."""
    output = step(tiny_context(*STAGE_2, "--distill_ft_soft_kl"))
    student, teacher = output.logits, output.teacher_outputs[0]["logits"]
    soft = 100 * kl_divergence(student, teacher, temperature=10) + kl_divergence(student, teacher)
    torch.testing.assert_close(output.loss, soft + output.hard_loss)
    assert not [name for name in output.parts if name.startswith("inter_loss")]


def test_parts_by_name() -> None:
    student = student_of(*STAGE_2, "--mixbaseline_pre_bl_ft_soft=TinyBERT,KD")
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    parts = student.prediction_loss(*logits, torch.tensor(2.0), return_dict=True)
    assert parts["hard"].item() == 2.0
    torch.testing.assert_close(parts["soft"] + parts["hard"], parts["loss"])
    torch.testing.assert_close(student.prediction_loss(*logits, torch.tensor(2.0)), parts["loss"])


def test_terms_are_told(caplog: pytest.LogCaptureFixture) -> None:
    student = student_of(*STAGE_2)
    assert student.prediction_terms() == ["soft ce x 1, temperature 10", "soft ce x 1, temperature 1 (TinyBERT)",
                                          "hard label x 1 (TinyBERT)"]
    assert "the label counts" not in caplog.text
    tiny_context(*STAGE_2, "--mixbaseline_pre_bl_ft_soft=DistilBERT,TinyBERT")
    assert "mixbaseline: the label counts 2 times" in caplog.text


# ---- one backbone -----------------------------------------------------------------------------------------------

def test_the_backbone_is_there_once() -> None:
    context = tiny_context(*TEXT, "--teacher_hidden_size=16", "--distilbert_fix_layernorm")
    student = context.student
    own = {name: tuple(p.shape) for name, p in student.named_parameters() if name.startswith("student.")}
    assert own == {"student.TinyBERT.fit_dense.weight": (16, 16), "student.TinyBERT.fit_dense.bias": (16,),
                   "student.DistilBERT.layernorm.weight": (16,), "student.DistilBERT.layernorm.bias": (16,),
                   "student.DistilBERT.t_layernorm.weight": (16,), "student.DistilBERT.t_layernorm.bias": (16,)}
    backbone = student.origin_model
    assert {name for name, _ in student.named_parameters()} - own.keys() == {
        name for name, _ in backbone.named_parameters()}
    assert sum(1 for module in student.modules() if module is backbone) == 1
    assert student.state_dict().keys() == dict(student.named_parameters()).keys()
    assert all(member.config is backbone.config for member in student.members.values())


def test_checkpoints_go_round_and_published_copies_are_ignored() -> None:
    source, target = (tiny_context(*TEXT, seed=seed) for seed in (0, 1))
    state = source.model.state_dict()
    glm = {name: value for name, value in state.items() if not name.startswith("student.")}
    for member in ("TinyBERT", "MiniLM"):
        state.update({f"student.{member}.{name}": value + 1 for name, value in glm.items()})
        state.update({f"student.{member}.origin_model.{name}": value + 1 for name, value in glm.items()})
    target.model.load_state_dict(state)
    for name, parameter in source.student.named_parameters():
        torch.testing.assert_close(dict(target.student.named_parameters())[name], parameter, rtol=0, atol=0)


def test_a_moved_student_moves_its_members() -> None:
    context = tiny_context(*TEXT, dtype=torch.bfloat16)
    member = context.student.members["TinyBERT"]
    assert member.training and member.fit_dense.weight.dtype == torch.bfloat16
    context.model.eval()
    assert not member.training and not member.fit_dense.training


# ---- what members see -------------------------------------------------------------------------------------------

def test_distilbert_sees_what_tinybert_projects(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="distill"):
        context = tiny_context(*TEXT)  # widths 16 and 24
    assert "projected by TinyBERT before any member compares them" in caplog.text
    batch = tiny_lm_batch()
    output, student, teacher = contract.watched_step(context, batch)
    assert student["transformer.output"].shape[-1] == 24
    expected = cosine_distance(student["transformer.output"], teacher["transformer.output"], mask=batch["loss_mask"])
    torch.testing.assert_close(output.parts["inter_loss/DistilBERT_t0"], expected)
    glm = context.student.origin_model
    raw = glm(batch["tokens"], batch["position_ids"], batch["attention_mask"],
              hook={"transformer": {"output": None}})[1][0]
    projected = context.student.members["TinyBERT"].fit_dense(raw)
    torch.testing.assert_close(student["transformer.output"], projected.detach())


@pytest.mark.parametrize(("flags", "message"), [
    (("--mixbaseline_inter_bl=DistilBERT",), r"DistilBERT needs equal hidden sizes: student 16 .* teacher 24"),
    ((FOUR, "--tinybert_wo_final"), "DistilBERT needs equal hidden sizes"),
    ((FOUR, "--distilbert_fix_layernorm"), "DistilBERT needs equal hidden sizes"),
    (("--mixbaseline_inter_bl=MiniLM,PKD",), "PKD needs equal hidden sizes"),
    (("--mixbaseline_inter_bl=TinyBERT,ERDistill",), "word tables of width 16 .*--erdistill_wo_global"),
    ((FOUR, "--teacher_num_attention_heads=8"), "TinyBERT attention loss needs equal numbers of heads"),
    (("--mixbaseline_inter_bl=MiniLMv2", "--minilmv2_relation_heads=5"), "5 relation heads"),
    (("--mixbaseline_inter_bl=TinyBERT", "--tinybert_only_emb", "--tinybert_inter_final"), "exclude each other"),
    (("--mixbaseline_inter_bl=TinyBURT",), "--mixbaseline_inter_bl: .*did you mean tinybert"),
    (("--mixbaseline_pre_bl_pt_soft=kd,MixBaseline",), "--mixbaseline_pre_bl_pt_soft: a combination cannot contain"),
    ((), "no loss term is switched on.*--mixbaseline_inter_bl"),
    ((FOUR, "--mixbaseline_wo_inter"), "no loss term is switched on"),
])
def test_errors(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_context(*MIX, *flags)


def test_pkd_with_unequal_widths_behind_tinybert() -> None:
    assert step(tiny_context(*MIX, "--mixbaseline_inter_bl=PKD,TinyBERT")).loss.isfinite()


def test_a_member_with_predictions_only_needs_no_sizes() -> None:
    student = student_of(*MIX, *COPA, "--mixbaseline_pre_bl_ft_soft=PKD", "--distill_ft_soft")
    assert student.student_taps() == {} and student.intermediate_terms() == []


def test_draws_are_the_members_and_can_be_injected() -> None:
    flags = (*MIX, "--teacher_num_layers=12", "--num-layers=3", "--tinybert_random_layers")
    mixed, alone = (student_of(*flags, *extra) for extra in (
        ("--mixbaseline_inter_bl=TinyBERT",), ("--student_model=tinybert",)))
    assert mixed.members["TinyBERT"].layer_map(0) == alone.layer_map(0)
    mixed.injected_draws = {"tinybert_random_layers": [2, 5]}
    assert mixed.members["TinyBERT"].layer_map(0) == (0, 2, 5, 12)


def test_two_members_cannot_replace_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of(*TEXT)
    operation = {"transformer": {"layers": {1: {"layernorm_output": lambda layernorm_output: layernorm_output}}}}
    first, second = student.members["TinyBERT"], student.members["MiniLM"]
    monkeypatch.setattr(first, "get_student_hook_op", lambda **kwargs: operation)
    assert student.get_student_hook_op()["transformer"]["layers"][1].keys() == {"layernorm_output"}
    other = {"transformer": {"layers": {1: {"layernorm_output": lambda layernorm_output: 0 * layernorm_output}}}}
    monkeypatch.setattr(second, "get_student_hook_op", lambda **kwargs: other)
    with pytest.raises(ValueError, match="MiniLM and another member both replace 'layernorm_output'"):
        student.get_student_hook_op()


def test_coupling_is_that_of_the_active_members() -> None:
    flags = (*MIX, "--mixbaseline_inter_bl=MiniLM,logitsdistil", "--logitsdistil_top_n=4")
    assert student_of(*flags).batch_coupled.startswith("GLMD: the hinge")
    assert student_of(*TEXT).batch_coupled == ""


def test_members_hear_of_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    monkeypatch.setattr(GLMStudent, "after_pass", lambda self, loss: heard.append(type(self).__name__))
    context = tiny_context(*TEXT)
    step(context)
    assert heard == ["TinyBERT", "MiniLMv2", "MiniLM", "DistilBERT"]


# ---- the ten-line example ---------------------------------------------------------------------------------------

@pytest.fixture
def final_outputs(tmp_path: Path) -> Iterator[None]:
    """The published ten-line method as a user module; forgotten again afterwards."""
    file = tmp_path / "mixed_module.py"
    file.write_text(EXAMPLE)
    parse_args([f"--user-module={file}", "--student_model=final_outputs"])
    yield
    forget()


def test_a_method_of_ten_lines_can_be_a_member(final_outputs: None) -> None:
    flags = (*MIX, "--teacher_hidden_size=16")
    mixed = step(tiny_context(*flags, "--mixbaseline_inter_bl=final_outputs,MiniLM"))
    alone = step(tiny_context(*flags, "--student_model=final_outputs"))
    torch.testing.assert_close(mixed.parts["inter_loss/FinalOutputs_t0"], alone.loss.detach())
    torch.testing.assert_close(mixed.loss.detach(), sum_of(mixed.parts, "inter_loss/"))
    behind = step(tiny_context(*MIX, "--mixbaseline_inter_bl=FinalOutputs,TinyBERT", *LABEL))  # widths 16 and 24
    assert behind.parts["inter_loss/FinalOutputs_t0"] > 0


def test_it_keeps_the_contract_there(final_outputs: None) -> None:
    flags = (*TWO_TEACHERS, "--mt_hidden_size=16:16", *MIX[len(TEACHER):], *COPA,
             "--mixbaseline_inter_bl=final_outputs,minilm", "--mixbaseline_pre_bl_ft_soft=final_outputs",
             "--distill_ft_hard")
    contract.assert_learns(*flags)
    contract.assert_reductions_agree(*flags)
    contract.assert_split_changes_nothing(*flags)


def rank_step(file: str, *flags: str) -> tuple[float, dict[str, torch.Tensor]]:
    parse_args([f"--user-module={file}"])
    try:
        return step_result(*flags)
    finally:
        forget()


@pytest.mark.distributed
def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    file = tmp_path / "mixed_on_ranks.py"
    file.write_text(EXAMPLE)
    flags = (*MIX, "--mixbaseline_inter_bl=final_outputs,minilm,tinybert", *LABEL)
    loss, gradients = rank_step(str(file), *flags)
    for other, other_gradients in run_distributed(rank_step, 2, str(file), *flags, model_parallel_size=2):
        assert other == pytest.approx(loss, rel=1e-11)
        for name, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-8, atol=1e-10)


# ---- the contract -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags", [TEXT, STAGE_1], ids=["text", "stage 1"])
def test_contract(flags: tuple[str, ...]) -> None:
    contract.assert_learns(*flags)
    contract.assert_reductions_agree(*flags)


def test_numbers_stay_finite() -> None:
    contract.assert_finite(*TEXT)
    contract.assert_finite(*STAGE_1)


def test_splits_of_a_batch() -> None:
    contract.assert_split_changes_nothing(*STAGE_1)


@pytest.mark.distributed
def test_ranks_and_checkpointing_change_nothing() -> None:
    contract.assert_ranks_agree([TEXT, (*STAGE_1, "--distill_logits_parallel"), (*TEXT, *TWO_TEACHERS)])
