"""A published BERT (Devlin et al. 2019, arXiv:1810.04805) as a baseline: the encoder of transformers, and a classifier.

Parameters are called ``bert.*`` and ``classifier.*``, as in published checkpoints; none is cut over ranks.

Axes: b samples, c choices, s sequence, k classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoint.huggingface import CONFIG_FILE, read_json_object, read_tensors

logger = logging.getLogger(__name__)

_PREFIX = "bert."
#: Names of layer norms in old files.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
#: Buffers that old files have.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


@dataclass(frozen=True)
class BertOptions:
    """What the command line says of a BERT beside its folder.

    Attributes:
        attention_dropout, hidden_dropout, output_dropout: the last one before the classifier.
        layernorm_epsilon: of every layer norm.
        checkpoint_activations: recompute the layers in the backward pass.
    """

    attention_dropout: float = 0.1
    hidden_dropout: float = 0.1
    output_dropout: float = 0.1
    layernorm_epsilon: float = 1e-5
    checkpoint_activations: bool = False

    @classmethod
    def from_args(cls, args: Any) -> BertOptions:
        return cls(args.attention_dropout, args.hidden_dropout, args.output_dropout, args.layernorm_epsilon,
                   args.checkpoint_activations or args.deepspeed_activation_checkpointing)


class PretrainedBert(nn.Module):
    """Pooled first token -> dropout -> linear layer.

    Args:
        config: a transformers ``BertConfig``.
        num_classes: k outputs a sample; None: one output a choice, reshaped to [b, c].
    """

    def __init__(self, config: Any, num_classes: int | None, options: BertOptions) -> None:
        super().__init__()
        self.bert = _transformers().BertModel(config)
        if options.checkpoint_activations:
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # the latter in older versions
            next(getattr(self.bert, name) for name in names if hasattr(self.bert, name))({"use_reentrant": False})
        self.num_classes = num_classes
        self.dropout = nn.Dropout(options.output_dropout)
        self.classifier = nn.Linear(config.hidden_size, num_classes or 1)
        nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, input_ids: torch.Tensor, padding_mask: torch.Tensor,
                types: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Ids, 1 where they are no padding, and segments, each [b, s] or [b, c, s] -> (scores [b, k] or [b, c] in at
        least fp32, nothing)."""
        leading = input_ids.shape[:-1]
        ids, mask, types = (tensor.flatten(0, -2) for tensor in (input_ids, padding_mask, types))
        pooled = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=types).pooler_output
        scores = self.classifier(self.dropout(pooled))
        if self.num_classes is None:
            scores = scores.view(leading)
        return scores if scores.dtype == torch.float64 else scores.float(), ()

    def freeze(self, tune_prefix_layers: int | None = None) -> None:
        """Train nothing but the classifier and the first ``tune_prefix_layers`` layers."""
        self.bert.requires_grad_(False)
        for layer in list(self.bert.encoder.layer)[:tune_prefix_layers or 0]:
            layer.requires_grad_(True)


def bert_config(folder: Path, options: BertOptions) -> Any:
    """The ``BertConfig`` of a folder, with the options in it.

    Raises:
        FileNotFoundError: no config.json. ValueError: it belongs to another kind of model, or transformers is missing.
    """
    path = folder / CONFIG_FILE
    content = read_json_object(path)
    kind = content.get("model_type", "bert")
    if kind != "bert" or "num_hidden_layers" not in content:
        raise ValueError(f"{path} is not that of a BERT (model_type {kind!r}); --pretrained-bert takes BERT alone, for "
                         "example bert-base-uncased")
    own = {"attention_probs_dropout_prob": options.attention_dropout, "hidden_dropout_prob": options.hidden_dropout,
           "layer_norm_eps": options.layernorm_epsilon, "use_cache": False}
    return _transformers().BertConfig.from_dict({**content, **own})


def load_bert(folder: Path, num_classes: int | None, options: BertOptions) -> PretrainedBert:
    """The BERT of a folder in the Hugging Face layout; a classifier of another size there is left out.

    Raises:
        FileNotFoundError, ValueError: see :func:`bert_config` and :func:`read_tensors`; weights that do not fit.
    """
    model = PretrainedBert(bert_config(folder, options), num_classes, options)
    kept = matching(model.state_dict(), read_tensors(folder), folder)
    model.load_state_dict(kept, strict=False)
    if new := sorted(set(model.state_dict()) - set(kept)):
        logger.info("%s: new layers, at random weights: %s", folder, ", ".join(new))
    return model


def matching(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor],
             folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder under the names of ``targets``; pooler and classifier may be missing.

    Raises:
        ValueError: names or shapes that do not fit.
    """
    state = _own_names(tensors)
    kept = {name: tensor for name, tensor in state.items() if name in targets}
    for name in ("classifier.weight", "classifier.bias"):
        if name in kept and kept[name].shape != targets[name].shape:
            del kept[name]
    wrong = [f"{name} has {list(tensor.shape)} instead of {list(targets[name].shape)}" for name, tensor in kept.items()
             if tensor.shape != targets[name].shape]
    missing = sorted(set(targets) - set(kept))
    wrong += [f"{name} is missing" for name in missing if not name.startswith(("classifier.", "bert.pooler."))]
    if unknown := [name for name in state if name.startswith(_PREFIX) and name not in targets]:
        wrong.append(f"{unknown[0]} is unknown")
    if wrong:
        raise ValueError(f"the weights in {folder} do not fit its {CONFIG_FILE}: {'; '.join(wrong[:3])}"
                         f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; copy the whole folder again")
    return kept


def _own_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The encoder's tensors under ``bert.``, layer norms under their names of today, no buffers."""
    has_prefix = any(name.startswith(_PREFIX) for name in tensors)
    state = {}
    for name, tensor in tensors.items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
        if not has_prefix and not name.startswith("classifier."):
            name = _PREFIX + name
        if name.removeprefix(_PREFIX) not in _BUFFERS:
            state[name] = tensor
    return state


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"--pretrained-bert: the package transformers cannot be imported ({error}); pip install "
                         "'transformers>=5,<6'") from error
    return transformers
