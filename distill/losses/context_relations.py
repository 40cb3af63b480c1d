"""Relations between the words of a layer and between the layers of a word (CKD, arXiv:2109.08359, section 3).

Every function returns the sum over the real tokens of each sample, [b], without any normaliser.

Legend: ``b`` samples, ``s`` sequence, ``k`` layers, ``h`` hidden (student and teacher may differ), ``w`` window.
Masks are 1 for real tokens, [b, s].
"""

from __future__ import annotations

import torch

from distill.losses.angles import angles, cosines, recomputed_by_sample
from model.parallel.row_chunks import compute_dtype

_NEVER = -1e30
"""A logit that no softmax in float32 sees."""


def word_pairs(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL between the distributions of a token over the other real tokens, softmax of cosines: [b, s, h] x 2 -> [b]."""
    student, teacher = _raised(student, teacher)

    def divergence(s: torch.Tensor, t: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        valid = is_real.unsqueeze(-2) & _off_diagonal(s)
        return (_kl_among(cosines(s), cosines(t), valid) * is_real).sum(dim=-1)

    return recomputed_by_sample(divergence, student, teacher, mask > 0, elements=student.shape[1] ** 2)


def word_angles(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, *, window: int) -> torch.Tensor:
    """Squared differences of the angles at a token between its ``w`` neighbours: [b, s, h] x 2 -> [b].

    The window is centred; places beyond the ends are the first or last position. Only the centre is masked.
    """
    student, teacher = _raised(student, teacher)
    place, half = torch.arange(student.shape[1], device=student.device), window // 2
    near = place.unsqueeze(-1) + torch.arange(-half, half + 1, device=student.device)
    near = near.clamp(0, len(place) - 1)  # [s, w]

    def squares(s: torch.Tensor, t: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        difference = angles(s, s[:, near]) - angles(t, t[:, near])  # [b, s, w, w]
        return (difference.square().sum(dim=(-1, -2)) * is_real).sum(dim=-1)

    widest = max(student.shape[-1], teacher.shape[-1], window)
    return recomputed_by_sample(squares, student, teacher, mask > 0, elements=near.numel() * widest)


def layer_pairs(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As :func:`word_pairs` over the other layers of one token: [b, s, k, h] x 2 -> [b]."""
    student, teacher = _raised(student, teacher)

    def divergence(s: torch.Tensor, t: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        return (_kl_among(cosines(s), cosines(t), _off_diagonal(s)).sum(dim=-1) * is_real).sum(dim=-1)

    return recomputed_by_sample(divergence, student, teacher, mask > 0, elements=student[0].numel())


def layer_angles(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared differences of the angles in all triples of layers of one token: [b, s, k, h] x 2 -> [b]."""
    student, teacher = _raised(student, teacher)

    def squares(s: torch.Tensor, t: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        difference = angles(s, s.unsqueeze(-3)) - angles(t, t.unsqueeze(-3))  # [b, s, k, k, k]
        return (difference.square().sum(dim=(-1, -2, -3)) * is_real).sum(dim=-1)

    layers = student.shape[2]
    elements = layers * max(student[0].numel(), teacher[0].numel(), student.shape[1] * layers ** 2)
    return recomputed_by_sample(squares, student, teacher, mask > 0, elements=elements)


def _raised(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = compute_dtype(student, teacher)
    return student.to(dtype), teacher.to(dtype)


def _off_diagonal(x: torch.Tensor) -> torch.Tensor:
    """[n, n], False on the diagonal, for [..., n, h]."""
    return ~torch.eye(x.shape[-2], dtype=torch.bool, device=x.device)


def _kl_among(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """``KL(teacher || student)`` of softmaxes over the valid entries: [..., n] -> [...]; 0 for rows without any."""
    log_p, log_q = (torch.log_softmax(x.masked_fill(~valid, _NEVER), dim=-1) for x in (student, teacher))
    return torch.where(valid, log_q.exp() * (log_q - log_p), 0.0).sum(dim=-1)
