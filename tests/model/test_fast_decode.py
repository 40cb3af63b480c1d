from __future__ import annotations

import pytest
import torch

from model.fast_decode import answers_mask, pack_mask
from model.heads import MultiTokenCloze, MultiTokenClozeFast
from model.taps import layer_hook
from tests.helpers.tiny_model import tiny_glm

SAMPLES, CHOICES, LENGTH, PLACES = 2, 3, 12, 4


def texts() -> dict[str, torch.Tensor]:
    """Texts of different lengths, and answers of 1 to 3 tokens to each."""
    draw = torch.Generator().manual_seed(0)
    sep = torch.tensor([7, 9])
    index = torch.arange(LENGTH)
    real = index[None] < sep[:, None]
    text = torch.randint(7, 64, (SAMPLES, LENGTH), generator=draw) * real
    position = torch.stack([index.expand(SAMPLES, LENGTH) * real, torch.zeros_like(text)], dim=1)
    is_answer = (torch.arange(PLACES)[None] <= torch.arange(CHOICES)[:, None]).long().expand(SAMPLES, -1, -1)
    dec_text = torch.randint(7, 64, (SAMPLES, CHOICES, PLACES), generator=draw) * is_answer
    target = torch.randint(7, 64, (SAMPLES, CHOICES, PLACES), generator=draw) * is_answer
    dec_position = torch.stack([3 * is_answer, torch.arange(1, PLACES + 1) * is_answer], dim=2)
    return {"text": text, "position": position, "sep": sep, "dec_text": dec_text, "dec_position": dec_position,
            "target": target, "is_answer": is_answer}


def in_rows(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The same as one row a choice: the answer stands directly behind the text."""
    width = LENGTH + PLACES
    ids, target, mask = (torch.zeros(SAMPLES, CHOICES, width, dtype=torch.long) for _ in range(3))
    position = torch.zeros(SAMPLES, CHOICES, 2, width, dtype=torch.long)
    for b, sep in enumerate(batch["sep"].tolist()):
        end = sep + PLACES
        ids[b, :, :sep], position[b, :, :, :sep] = batch["text"][b, :sep], batch["position"][b, :, :sep]
        ids[b, :, sep:end], position[b, :, :, sep:end] = batch["dec_text"][b], batch["dec_position"][b]
        target[b, :, sep:end], mask[b, :, sep:end] = batch["target"][b], batch["is_answer"][b]
    return ids, position, batch["sep"][:, None].expand(-1, CHOICES), target, mask


def fast(head: MultiTokenClozeFast, batch: dict[str, torch.Tensor], **options):
    return head(batch["text"], batch["position"], batch["sep"], batch["target"], batch["is_answer"],
                dec_text=batch["dec_text"], dec_position=batch["dec_position"], **options)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_scores_and_gradients_are_those_of_one_row_a_choice(penalty: float) -> None:
    backbone, batch = tiny_glm(parallel_output=False).double(), texts()
    scores, _ = fast(MultiTokenClozeFast(backbone, penalty), batch)
    expected, _ = MultiTokenCloze(backbone, penalty)(*in_rows(batch))
    torch.testing.assert_close(scores, expected)
    weight = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    gradients = [torch.autograd.grad((weight * value).sum(), list(backbone.parameters()))
                 for value in (scores, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_recomputed_activations_change_nothing() -> None:
    batch, scores = texts(), []
    for recompute in (False, True):
        backbone = tiny_glm(parallel_output=False, checkpoint_activations=recompute).double().train()
        scores.append(fast(MultiTokenClozeFast(backbone), batch)[0])
        scores[-1].sum().backward()
    torch.testing.assert_close(*scores)


def test_an_answer_sees_the_text_and_itself() -> None:
    mask = answers_mask(torch.tensor([2]), 3, 2, 2)[0, 0]
    assert mask.int().tolist() == [[1, 1, 0, 0, 0, 0, 0],
                                   [1, 1, 0, 0, 0, 0, 0],
                                   [1, 1, 1, 0, 0, 0, 0],
                                   [1, 1, 0, 1, 0, 0, 0],
                                   [1, 1, 0, 1, 1, 0, 0],
                                   [1, 1, 0, 0, 0, 1, 0],
                                   [1, 1, 0, 0, 0, 1, 1]]


def test_tapped_tensors_have_one_row_a_sample() -> None:
    batch, head = texts(), MultiTokenClozeFast(tiny_glm(parallel_output=False))
    _, taps = fast(head, batch, hook={**layer_hook({1: "attention_scores"}), "logits_parallel": None})
    length = LENGTH + CHOICES * PLACES
    assert [tuple(tensor.shape) for tensor in taps] == [(2, length, 64), (2, 4, length, length)]
    packed = pack_mask(batch["text"], batch["is_answer"])
    assert packed.shape == (2, length) and packed[:, :LENGTH].sum() == 0
    assert torch.equal(packed[:, LENGTH:], batch["is_answer"].flatten(1))


def test_names_are_those_of_the_backbone() -> None:
    backbone = tiny_glm(parallel_output=False)
    assert set(MultiTokenClozeFast(backbone).state_dict()) == set(backbone.state_dict())
