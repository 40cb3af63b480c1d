"""Losses over the scores of choices or labels. Axes: b samples, c choices."""

from __future__ import annotations

import torch

#: Score of a choice that only pads its row.
PADDING_SCORE = -10000.0

LOSS_KINDS = ("cross_entropy", "hinge", "generative", "mix", "adapet")


def mask_choices(scores: torch.Tensor, choice_mask: torch.Tensor | None) -> torch.Tensor:
    """Scores [b, c] in at least fp32, with -10000 where ``choice_mask`` [b, c] is 0."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if choice_mask is None:
        return scores
    mask = choice_mask.to(scores.dtype)
    return scores * mask + PADDING_SCORE * (1.0 - mask)


def sum_segments(scores: torch.Tensor, segment_id: torch.Tensor,
                 row_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of choices whose answers were scored in pieces (``--segment-length``).

    Args:
        scores: [b, r] of the pieces, any float type; summed in at least fp32.
        segment_id: [b, r], the choice of each piece.
        row_mask: [b, r], 0 for rows that only pad the batch. Without it such rows would count as pieces of choice 0.

    Returns:
        Scores [b, c] for c = largest number of choices in the batch, and the mask [b, c] of the choices that exist: one
        without pieces has the sum 0, which is more than any log-probability, and must not compete.
    """
    values = scores if scores.dtype == torch.float64 else scores.float()
    mask = torch.ones_like(values) if row_mask is None else row_mask.to(values.dtype)
    num_choices = int(segment_id.max()) + 1
    empty = values.new_zeros(len(values), num_choices)
    return (empty.scatter_add(1, segment_id, values * mask),
            (empty.scatter_add(1, segment_id, mask) > 0).to(segment_id.dtype))


def choice_loss(scores: torch.Tensor, labels: torch.Tensor, *, kind: str = "cross_entropy",
                choice_mask: torch.Tensor | None = None, segment_id: torch.Tensor | None = None,
                per_sample: bool = False) -> torch.Tensor:
    """The loss of ``--loss-func`` (or of ``--adapet``), as the mean over the batch.

    Args:
        scores: [b, c] of any float type; the loss is computed in at least fp32.
        labels: [b], index of the right choice.
        kind: with s the masked scores and y the label: ``cross_entropy``; ``hinge`` sum_c max(0, 1 + s_c - s_y) - 1;
            ``generative`` -s_y; ``mix`` generative + cross_entropy; ``adapet`` sum_c s_c w_c with w = -1 at the label
            and +1 elsewhere, padded choices left out (scores are log-probabilities there).
        choice_mask: [b, c], 1 for real choices.
        segment_id: [b, c] where the scores are those of pieces of answers: they are summed first.
        per_sample: return [b] instead of the mean.
    """
    if kind not in LOSS_KINDS:
        raise ValueError(f"loss {kind!r} is unknown; known: {', '.join(LOSS_KINDS)}")
    if segment_id is not None:
        scores, choice_mask = sum_segments(scores, segment_id, choice_mask)
    at_label = labels.unsqueeze(-1)
    if kind == "adapet":
        values = mask_choices(scores, None)
        signs = torch.ones_like(values).scatter(-1, at_label, -1.0)
        losses = (values * signs * (1.0 if choice_mask is None else choice_mask.to(values.dtype))).sum(-1)
    else:
        values = mask_choices(scores, choice_mask)
        right = values.gather(-1, at_label)
        if kind == "hinge":  # the label's own term is 1
            losses = (1.0 + values - right).clamp_min(0.0).sum(-1) - 1.0
        else:
            losses = torch.zeros_like(right.squeeze(-1))
            if kind in ("generative", "mix"):
                losses = losses - right.squeeze(-1)
            if kind in ("cross_entropy", "mix"):
                losses = losses + torch.nn.functional.cross_entropy(values, labels, reduction="none")
    return losses if per_sample else losses.mean()
