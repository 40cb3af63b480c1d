"""What stands on top of the backbone in fine-tuning.

Axes: b samples, c choices, k labels, s sequence, v padded vocabulary. Multi-choice inputs [b, c, s] are flattened to
[b c, s] inside, so tapped tensors have b c rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from model.fast_decode import pack_answers, pack_mask
from model.taps import Hook

HeadOutput = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


def multi_token_scores(logits: torch.Tensor, target_ids: torch.Tensor, logit_mask: torch.Tensor,
                       length_penalty: float = 0.0) -> torch.Tensor:
    """Log-probability of each answer.

    Args:
        logits: [n, s, v], whole vocabulary.
        target_ids, logit_mask: [n, s]; the mask marks the tokens of the answer.
        length_penalty: above 0, the sum is divided by (number of answer tokens) ^ length_penalty.

    Returns:
        [n], fp32 or better.
    """
    is_answer = logit_mask.bool()
    return answer_scores(logits[is_answer], target_ids, is_answer, length_penalty)


def answer_scores(logits: torch.Tensor, target_ids: torch.Tensor, is_answer: torch.Tensor,
                  length_penalty: float = 0.0) -> torch.Tensor:
    """As :func:`multi_token_scores`, from the logits [m, v] of the m answer tokens alone, row by row."""
    logp = _at_least_float32(logits).log_softmax(dim=-1)
    token_scores = logp.gather(-1, target_ids[is_answer].unsqueeze(-1)).squeeze(-1)
    rows = is_answer.nonzero(as_tuple=True)[0]
    scores = token_scores.new_zeros(len(is_answer)).index_add(0, rows, token_scores)
    if length_penalty > 0.0:
        scores = scores / is_answer.sum(-1).to(scores.dtype) ** length_penalty
    return scores


def single_token_scores(logits: torch.Tensor, sep: torch.Tensor, target_ids: torch.Tensor,
                        take_log_softmax: bool = False) -> torch.Tensor:
    """Scores of single-word labels.

    Args:
        logits: [b, s, v], whole vocabulary; the row at ``sep`` [b] (the start-of-piece token) decides.
        target_ids: [b, k], the verbalizer ids.
        take_log_softmax: log-probabilities over v instead of raw logits (``--adapet``).

    Returns:
        [b, k], fp32 or better.
    """
    return label_scores(logits[_one_position(sep, logits.shape[1])], target_ids, take_log_softmax)


def label_scores(logits: torch.Tensor, target_ids: torch.Tensor, take_log_softmax: bool = False) -> torch.Tensor:
    """As :func:`single_token_scores`, from the logits [b, v] of the deciding position alone."""
    logits = _at_least_float32(logits)
    return (logits.log_softmax(dim=-1) if take_log_softmax else logits).gather(-1, target_ids)


def _from_backbone_names(head: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """For a head inside another module: give the entries their place under ``model``."""
    for name in [name for name in state if name.startswith(prefix) and not name.startswith(f"{prefix}model.")]:
        state[f"{prefix}model.{name[len(prefix):]}"] = state.pop(name)


def _one_position(sep: torch.Tensor, length: int) -> torch.Tensor:
    """bool [b, s], True at position ``sep`` [b]."""
    return torch.arange(length, device=sep.device)[None, :] == sep[:, None]


def _options(hook: Hook | None, hook_op: Mapping[str, Any] | None, prompt_pos: torch.Tensor | None) -> dict[str, Any]:
    """Keyword arguments of the backbone; a place for the prompt only where there is one."""
    options: dict[str, Any] = {"hook": hook, "hook_op": hook_op}
    return options if prompt_pos is None else {**options, "prompt_pos": prompt_pos}


class _ClozeHead(nn.Module):
    """A head without parameters; its checkpoint names are those of the backbone, without a prefix.

    Targets are token ids; an unmapped compact vocabulary has other columns for them, which ``model`` knows.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_load_state_dict_pre_hook(_from_backbone_names)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(state_dict, *args, **kwargs)


class MultiTokenCloze(_ClozeHead):
    """Each choice is scored by the log-probability of its tokens in the blank."""

    def __init__(self, model: nn.Module, length_penalty: float = 0.0) -> None:
        super().__init__(model)
        self.length_penalty = length_penalty

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor,
                target_ids: torch.Tensor | None = None, logit_mask: torch.Tensor | None = None, *,
                hook: Hook | None = None, hook_op: Mapping[str, Any] | None = None,
                prompt_pos: torch.Tensor | None = None) -> HeadOutput:
        """ids [b, c, s] (or [n, s]), sep [b, c], targets and their mask [b, c, s] -> scores [b, c] (or [n])."""
        leading = input_ids.shape[:-1]
        inputs = input_ids.flatten(0, -2), position_ids.flatten(0, len(leading) - 1), attention_mask.flatten()
        options = _options(hook, hook_op, None if prompt_pos is None else prompt_pos.flatten(0, -2))
        if target_ids is None or logit_mask is None:
            return self.model(*inputs, **options)
        target_ids = self.model.map_input_to_ids(target_ids)
        is_answer = logit_mask.flatten(0, -2).bool()
        logits, inter_vars = self.model(*inputs, **options, output_positions=is_answer)
        scores = answer_scores(logits, target_ids.flatten(0, -2), is_answer, self.length_penalty)
        return scores.view(leading), inter_vars


class MultiTokenClozeFast(_ClozeHead):
    """As :class:`MultiTokenCloze`, with one row a sample: the text is encoded once for all choices. Tapped tensors have
    b rows, the text before its answers (:mod:`model.fast_decode`)."""

    def __init__(self, model: nn.Module, length_penalty: float = 0.0) -> None:
        super().__init__(model)
        self.length_penalty = length_penalty

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor,
                target_ids: torch.Tensor | None = None, logit_mask: torch.Tensor | None = None, *,
                dec_text: torch.Tensor | None = None, dec_position: torch.Tensor | None = None,
                hook: Hook | None = None, hook_op: Mapping[str, Any] | None = None,
                prompt_pos: torch.Tensor | None = None) -> HeadOutput:
        """text [b, s], sep [b], answers ``dec_text``, their targets and mask [b, c, d], ``dec_position`` [b, c, 2, d]
        -> scores [b, c]; the logits of the text where there are no answers."""
        options = _options(hook, hook_op, prompt_pos)
        if dec_text is None or dec_position is None or target_ids is None or logit_mask is None:
            return self.model(input_ids, position_ids, attention_mask, **options)
        inputs = pack_answers(input_ids, position_ids, attention_mask, dec_text, dec_position)
        target_ids, is_answer = self.model.map_input_to_ids(target_ids), logit_mask.bool()
        logits, inter_vars = self.model(*inputs, **options, output_positions=pack_mask(input_ids, is_answer))
        scores = answer_scores(logits, target_ids.flatten(0, 1), is_answer.flatten(0, 1), self.length_penalty)
        return scores.view(dec_text.shape[:2]), inter_vars


class SingleTokenCloze(_ClozeHead):
    """Each label is scored by the logit of its one word in the blank."""

    def __init__(self, model: nn.Module, take_log_softmax: bool = False) -> None:
        super().__init__(model)
        self.take_log_softmax = take_log_softmax

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor,
                target_ids: torch.Tensor | None = None, logit_mask: torch.Tensor | None = None, *,
                hook: Hook | None = None, hook_op: Mapping[str, Any] | None = None,
                prompt_pos: torch.Tensor | None = None) -> HeadOutput:
        """ids [b, s], sep [b], verbalizer ids [b, k] -> scores [b, k]. ``logit_mask`` is not used."""
        inputs, options = (input_ids, position_ids, attention_mask), _options(hook, hook_op, prompt_pos)
        if target_ids is None:
            return self.model(*inputs, **options)
        position = _one_position(attention_mask, input_ids.shape[1])
        logits, inter_vars = self.model(*inputs, **options, output_positions=position)
        target_ids = self.model.map_input_to_ids(target_ids)
        return label_scores(logits, target_ids, self.take_log_softmax), inter_vars


class SequenceClassification(nn.Module):
    """Pooled hidden state -> tanh layer -> dropout -> linear layer.

    Args:
        model: a backbone that returns hidden states (``output_predict=False``).
        num_classes: k outputs per sample; None: one output per choice, reshaped to [b, c].
        pool_token: ``cls`` position 0, ``pad`` the last token of part A, ``start`` the position after it.
    """

    def __init__(self, model: nn.Module, hidden_size: int, num_classes: int | None, output_dropout: float = 0.1,
                 pool_token: str = "cls") -> None:
        super().__init__()
        if pool_token not in ("start", "pad", "cls"):
            raise ValueError(f"--pool-token must be start, pad or cls (got {pool_token!r})")
        self.model = model
        self.num_classes = num_classes
        self.pool_token = pool_token
        self.pool_layer = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(output_dropout)
        self.multichoice_head = nn.Linear(hidden_size, num_classes or 1)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: torch.Tensor,
                target_ids: torch.Tensor | None = None, logit_mask: torch.Tensor | None = None, *,
                hook: Hook | None = None, hook_op: Mapping[str, Any] | None = None) -> HeadOutput:
        """ids [b, s] or [b, c, s], sep [b] or [b, c] -> scores [b, k] or [b, c]. Targets are not used."""
        leading = input_ids.shape[:-1]
        sep = attention_mask.flatten()
        hidden, inter_vars = self.model(
            input_ids.flatten(0, -2), position_ids.flatten(0, len(leading) - 1), sep, hook=hook, hook_op=hook_op)
        scores = self.classify(hidden, sep)
        if self.num_classes is None:
            scores = scores.view(leading)
        return _at_least_float32(scores), inter_vars

    def classify(self, hidden: torch.Tensor, sep: torch.Tensor) -> torch.Tensor:
        """hidden [n, s, h], sep [n] -> [n, k]."""
        offset = {"cls": torch.zeros_like(sep), "pad": sep - 1, "start": sep}[self.pool_token]
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), offset]
        return self.multichoice_head(self.dropout(torch.tanh(self.pool_layer(pooled))))


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
