"""The fused output layer and loss against forming the logits."""

from __future__ import annotations

import pytest
import torch

from model.parallel import fused_vocab_loss as fused
from model.parallel.fused_vocab_loss import SoftTarget, fused_vocab_loss
from model.parallel.groups import parallel_state
from model.parallel.vocab_log_prob import hard_label_rows, soft_label_rows, squared_error_rows
from tests.helpers.distributed import run_distributed

ROWS, VOCAB, WIDTH, TEACHER_WIDTH, TAU = 11, 24, 8, 6, 3.0
KINDS = ("", "kl", "ce", "mse")


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {"hidden": draw(ROWS, WIDTH), "table": draw(VOCAB, WIDTH), "teacher": draw(ROWS, TEACHER_WIDTH),
            "teacher_table": draw(VOCAB, TEACHER_WIDTH), "labels": torch.arange(ROWS) * 5 % VOCAB,
            # some rows have no label, some no teacher, the last neither
            "label_weight": torch.tensor([0, 1, 1, 0, 2, 1, 0.5, 1, 1, 1, 0.0]) / 9,
            "soft_weight": torch.tensor([1, 1, 0, 1, 2, 1, 0.5, 1, 0, 1, 0.0]) / 7}


def plain(x: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    logits = x["hidden"] @ x["table"].t()
    loss = (hard_label_rows(logits, x["labels"]) * x["label_weight"]).sum()
    if not kind:
        return loss
    teacher = x["teacher"] @ x["teacher_table"].t()
    rows = (squared_error_rows(logits, teacher) if kind == "mse"
            else soft_label_rows(logits, teacher, kind=kind, temperature=TAU))
    return loss + (rows * x["soft_weight"]).sum()


def ours(x: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    soft = SoftTarget(x["teacher"], x["teacher_table"], x["soft_weight"], kind, TAU) if kind else None
    return fused_vocab_loss(x["hidden"], x["table"], x["labels"], x["label_weight"], soft=soft).loss


def value_and_gradients(function: object, kind: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    x = tensors(dtype)
    state = parallel_state()
    part = slice(state.model_rank * VOCAB // state.model_size, (state.model_rank + 1) * VOCAB // state.model_size)
    for name in ("table", "teacher_table"):
        x[name] = x[name][part].clone()
    leaves = [x["hidden"].requires_grad_(), x["table"].requires_grad_()]
    loss = function(x, kind)
    (3.0 * loss).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    """Equal to 1e-6 of the largest value."""
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6 * max(1.0, float(right.abs().max())))


@pytest.mark.parametrize("block", [1, 600, 1 << 20], ids=["row by row", "a few rows", "at once"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_forming_the_logits(kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CPU_BLOCK_BYTES", block)
    for left, right in zip(value_and_gradients(ours, kind), value_and_gradients(plain, kind), strict=True):
        close(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_as_good_as_forming_the_logits(kind: str) -> None:
    exact = value_and_gradients(plain, kind, torch.float64)
    for left, right in zip(value_and_gradients(ours, kind, torch.bfloat16), exact, strict=True):
        torch.testing.assert_close(left.double(), right, rtol=0.05, atol=0.05 * float(right.abs().max()))


def rank_results(kind: str) -> list[torch.Tensor]:
    return value_and_gradients(ours, kind)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_agree_with_one(kind: str) -> None:
    loss, hidden, table = value_and_gradients(plain, kind)
    results = run_distributed(rank_results, 2, kind, model_parallel_size=2)
    close(torch.cat([result[2] for result in results]), table)
    for result in results:
        close(result[0], loss)
        close(result[1], hidden)


def test_a_second_backward_pass_is_the_same() -> None:
    x = tensors()
    leaves = [x["hidden"].requires_grad_(), x["table"].requires_grad_()]
    loss = ours(x, "kl")
    first = torch.autograd.grad(2.0 * loss, leaves, retain_graph=True)
    second = torch.autograd.grad(2.0 * loss, leaves)
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_rows_and_no_gradient_where_none_is_wanted() -> None:
    x = tensors()
    soft = SoftTarget(x["teacher"], x["teacher_table"], x["soft_weight"], "kl", TAU)
    result = fused_vocab_loss(x["hidden"], x["table"], x["labels"], x["label_weight"], soft=soft)
    expected = hard_label_rows(x["hidden"] @ x["table"].t(), x["labels"]) * (x["label_weight"] != 0)
    torch.testing.assert_close(result.label_rows, expected)
    assert not result.loss.requires_grad and float(result.soft_rows[2]) == 0.0


def test_no_row_at_all() -> None:
    x = tensors()
    x["label_weight"] = torch.zeros(ROWS)
    x["hidden"].requires_grad_()
    loss = ours(x, "")
    loss.backward()
    assert float(loss.detach()) == 0.0 and not x["hidden"].grad.any()


def test_wrong_inputs_are_named() -> None:
    x = tensors()
    with pytest.raises(ValueError, match="24 and 23 rows"):
        fused_vocab_loss(x["hidden"], x["table"], x["labels"], x["label_weight"],
                         soft=SoftTarget(x["teacher"], x["teacher_table"][:23], x["soft_weight"]))
    with pytest.raises(ValueError, match="'kl', 'ce', 'mse'"):
        SoftTarget(x["teacher"], x["teacher_table"], x["soft_weight"], "js")
    with pytest.raises(ValueError, match="no gradient for the teacher"):
        SoftTarget(x["teacher"].requires_grad_(), x["teacher_table"], x["soft_weight"])
