"""From samples to a batch: choices are padded to one number, then everything is stacked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tasks.encoding import Sample


def collate(samples: Sequence[Sample], fixed_num_choices: int | None = None) -> dict[str, torch.Tensor]:
    """Stacks samples.

    Multi-choice samples (``text`` [c, s], with ``--fast-decode`` ``dec_text`` [c, d]) are padded to the largest number
    of choices by repeating choice 0, and ``loss_mask`` [b, c] marks the real ones; with ``--segment-length`` the same
    holds for rows. With ``fixed_num_choices`` (``--fix_variable_num_choices``) the number is always that: surplus
    choices are cut; if the label's choice was among them it replaces choice 0, and the label is 0.
    """
    first = samples[0]
    if "dec_text" in first:
        padded = {name for name in first if name.startswith("dec_")}
    else:
        padded = set(first) - {"label"} if first["text"].dim() == 2 else set()
    if not padded:
        return {name: torch.stack([sample[name] for sample in samples]) for name in first}
    counts = [len(sample["dec_text" if "dec_text" in first else "text"]) for sample in samples]
    width = fixed_num_choices or max(counts)
    chosen = [_choices(int(sample["label"]), count, width) for sample, count in zip(samples, counts)]
    batch = {name: torch.stack([sample[name][index] if name in padded else sample[name]
                                for sample, index in zip(samples, chosen)]) for name in first}
    if fixed_num_choices is not None:
        batch["label"] = torch.tensor([0 if width <= sample["label"] < count else int(sample["label"])
                                       for sample, count in zip(samples, counts)])
    batch["loss_mask"] = torch.tensor([[int(c < count) for c in range(width)] for count in counts])
    return batch


def _choices(label: int, count: int, width: int) -> torch.Tensor:
    """Which choice of a sample stands in each of ``width`` places."""
    index = [c if c < count else 0 for c in range(width)]
    if width <= label < count:
        index = [label if c == 0 else c for c in index]
    return torch.tensor(index)
