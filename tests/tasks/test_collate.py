from __future__ import annotations

import torch

from tasks.collate import collate
from tasks.encoding import Sample


def sample(choices: int, label: int, first: int) -> Sample:
    """Choice c has the tokens first + c."""
    text = torch.arange(first, first + choices).unsqueeze(1).expand(choices, 4).contiguous()
    return {"text": text, "position": text.unsqueeze(1).expand(choices, 2, 4), "mask": text[:, 0],
            "label": torch.tensor(label)}


def choices_of(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    assert torch.equal(batch["text"][..., 0], batch["mask"])
    assert torch.equal(batch["position"][:, :, 0, 0], batch["mask"])
    return batch["mask"].tolist()


def test_choices_are_padded_by_the_first_one() -> None:
    batch = collate([sample(2, 1, 10), sample(4, 3, 20), sample(1, 1, 30)])
    assert choices_of(batch) == [[10, 11, 10, 10], [20, 21, 22, 23], [30, 30, 30, 30]]
    assert batch["loss_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch["label"].tolist() == [1, 3, 1]  # also a label without meaning (ReCoRD's evaluation form) stays


def test_fixed_number_of_choices_keeps_the_right_one() -> None:
    batch = collate([sample(2, 1, 10), sample(5, 4, 20), sample(5, 2, 30)], fixed_num_choices=3)
    assert choices_of(batch) == [[10, 11, 10], [24, 21, 22], [30, 31, 32]]
    assert batch["label"].tolist() == [1, 0, 2]
    assert batch["loss_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_single_row_samples_are_stacked() -> None:
    one = {"text": torch.arange(4), "mask": torch.tensor(3), "label": torch.tensor(1)}
    batch = collate([one, one])
    assert batch["text"].shape == (2, 4) and "loss_mask" not in batch
