"""What every method has to do, as checks for its test file; flags are those of ``tests.helpers.tiny_distill``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from distill.layer_maps import Path
from distill.student import Pair
from distill.training.forward_step import StepContext, StepOutput
from distill.training.run_state import RunState
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_distill import batch_for, choice_batch, step, step_result, student_of, tiny_context

Flags = tuple[str, ...]
#: (student layers, teacher layers) -> numbers of the teacher's states that meet states 0..S of the student, evenly.
LAYER_MAPS = {(6, 12): (0, 2, 4, 6, 8, 10, 12), (5, 12): (0, 3, 6, 9, 11, 12), (6, 10): (0, 2, 4, 6, 8, 9, 10),
              (4, 4): (0, 1, 2, 3, 4), (1, 3): (0, 3)}


def matched_layers(sizes: tuple[int, int], *flags: str) -> dict[str, list[tuple[int, int]]]:
    """Kind of pair -> (student's, teacher's number of the state or attention) at (student, teacher) layers."""
    return layers_of(student_of(*flags, f"--num-layers={sizes[0]}", f"--teacher_num_layers={sizes[1]}").pairs(0), sizes)


def layers_of(pairs: Sequence[Pair], sizes: tuple[int, int]) -> dict[str, list[tuple[int, int]]]:
    """As :func:`matched_layers`, of given pairs."""
    found: dict[str, list[tuple[int, int]]] = {}
    for pair in pairs:
        found.setdefault(pair.kind, []).append((_number(pair.student, sizes[0]), _number(pair.teacher, sizes[1])))
    return found


def _number(path: Path, depth: int) -> int:
    if path == ("transformer", "output"):
        return depth
    assert path[:2] == ("transformer", "layers")
    return int(path[2]) + int(path[3] == "attention_scores")


def assert_learns(*flags: str, except_for: Sequence[str] = ()) -> StepOutput:
    """Every parameter gets a gradient (but those whose name begins so), and no parameter of a teacher."""
    context = tiny_context(*flags)
    output = step(context)
    without = {name for name, p in context.student.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in without if not name.startswith(tuple(except_for))} == set()
    assert all(p.grad is None for teacher in context.teachers for p in teacher.parameters())
    return output


def assert_reductions_agree(*flags: str, run: RunState | None = None) -> None:
    """The losses per sample are a vector over the rows whose mean is the scalar loss."""
    context = tiny_context(*flags, run=run)
    student, compared = context.student, []
    inter_loss, pre_loss = student.intermediate_loss, student.prediction_loss

    def compare(scalar: Any, vector: Any, name: str) -> None:
        if isinstance(vector, torch.Tensor):
            assert vector.dim() == 1 and len(vector) > 1
            torch.testing.assert_close(vector.mean(), scalar, rtol=1e-10, atol=1e-12)
            compared.append(name)

    def intermediate(*args: Any, **kwargs: Any) -> Any:
        scalar, vector = (inter_loss(*args, **{**kwargs, "keep_batch": keep_batch}) for keep_batch in (False, True))
        compare(scalar, vector, "inter")
        return vector if kwargs.get("keep_batch") else scalar

    def prediction(s_logits: torch.Tensor, t_logits: Any, loss: torch.Tensor, **kwargs: Any) -> Any:
        scalar = pre_loss(s_logits, t_logits, loss.mean(), **{**kwargs, "keep_batch": False})
        vector = pre_loss(s_logits, t_logits, loss.expand(len(s_logits)), **{**kwargs, "keep_batch": True})
        compare(scalar, vector, "pre")
        return vector if kwargs.get("keep_batch") else scalar

    student.intermediate_loss, student.prediction_loss = intermediate, prediction
    step(context)
    assert compared


def assert_split_changes_nothing(*flags: str) -> None:
    """One batch of a choice task, or the mean over its halves: the same loss and gradients."""
    batch = choice_batch(4)
    whole, parts = tiny_context(*flags), tiny_context(*flags)
    assert whole.student.batch_coupled == ""
    loss = step(whole, batch).loss
    halves = [step(parts, {name: value[rows] for name, value in batch.items()}).loss
              for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, loss)
    for first, second in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        if first.grad is not None:
            torch.testing.assert_close(second.grad / 2, first.grad, rtol=1e-8, atol=1e-11)


def assert_finite(*flags: str) -> None:
    """Finite loss and gradients in bfloat16, and with a sample that is all padding but one token."""
    for dtype, spoil in ((torch.bfloat16, False), (torch.float32, True), (torch.bfloat16, True)):
        context = tiny_context(*flags, dtype=dtype)
        batch = batch_for(context)
        output = step(context, with_empty_sample(batch) if spoil else batch)
        assert output.loss.isfinite() and output.loss.dtype == torch.float32
        gradients = [p.grad for p in context.model.parameters() if p.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def with_empty_sample(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with only one token left in its first sample."""
    batch = {name: value.clone() for name, value in batch.items()}
    for name in ("text", "tokens", "position", "position_ids", "labels", "logit_mask", "loss_mask"):
        if name in batch:
            batch[name][0] = 0
    batch["text" if "text" in batch else "tokens"][0, ..., 0] = 9
    batch["mask" if "mask" in batch else "attention_mask"][0] = 1
    return batch


def assert_term_is_off(*flags: str) -> None:
    """No intermediate term: nothing is tapped, and the loss is the prediction loss exactly."""
    context = tiny_context(*flags)
    output = step(context)
    assert context.student.student_taps() == {} and context.student.teacher_taps(0) == {}
    assert not [name for name in output.parts if name.startswith("inter_loss")]
    expected = sum(value for name, value in output.parts.items() if name.startswith("pre_loss"))
    torch.testing.assert_close(output.loss.detach(), expected, rtol=0, atol=0)


def assert_refused(message: str, *flags: str) -> None:
    """Building the student raises ValueError with this message (a regular expression)."""
    with pytest.raises(ValueError, match=message):
        student_of(*flags)


def rank_steps(flag_sets: Sequence[Flags], checkpoint_activations: bool) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Loss and whole gradients of one step for each set of flags, on this rank."""
    return [step_result(*flags, checkpoint_activations=checkpoint_activations) for flags in flag_sets]


def assert_ranks_agree(flag_sets: Sequence[Flags], sizes: Sequence[int] = (2, 4)) -> None:
    """Model-parallel ranks, with recomputed activations, get the loss and gradients of one process with stored ones."""
    expected = rank_steps(flag_sets, False)
    for size in sizes:
        for results in run_distributed(rank_steps, size, flag_sets, True, model_parallel_size=size):
            for (loss, gradients), (other, other_gradients) in zip(expected, results, strict=True):
                assert other == pytest.approx(loss, rel=1e-10)
                assert gradients.keys() <= other_gradients.keys()
                for name, gradient in other_gradients.items():
                    torch.testing.assert_close(gradient, gradients.get(name, torch.zeros_like(gradient)), rtol=1e-7,
                                               atol=1e-9)


def watched_step(context: StepContext, batch: dict[str, torch.Tensor],
                 ) -> tuple[StepOutput, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A step, and what the method tapped in the student and in its (only) teacher, by dotted name."""
    seen: list[dict[str, torch.Tensor]] = []
    inter_loss = context.student.inter_loss

    def watched(s_vars: Any, t_vars: Any, s_hook: Any, t_hook: Any, **kwargs: Any) -> Any:
        seen.extend({name: values[index].detach() for name, index in _leaves(hook)}
                    for values, hook in ((s_vars, s_hook), (t_vars, t_hook)))
        return inter_loss(s_vars, t_vars, s_hook, t_hook, **kwargs)

    context.student.inter_loss = watched
    return step(context, batch), seen[0], seen[1]


def state_name(k: int, depth: int) -> str:
    """Dotted name of hidden state k."""
    return "transformer.output" if k == depth else f"transformer.layers.{k}.layernorm_output"


def _leaves(hook: dict[Any, Any], prefix: str = "") -> list[tuple[str, int]]:
    return [leaf for key, value in hook.items() for leaf in (
        _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)])]
