"""What a checkpoint says of a model beside its parameters: the vocabulary map, and which GELU it computes.

A model is recognised by what it has (word table, ``config``, ``vocab_map``): this room does not know its class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

#: The key of a file's entry, and inside it that of the vocabulary map, as published.
NONPARAMETERS = "important_nonparameters"
MAP_ENTRY = "glm.map_vocab_paras"
#: Largest difference between the two forms of GELU, for one activation.
GELU_DIFFERENCE = 5e-4


def backbone_of(model: nn.Module) -> nn.Module | None:
    """The GLM inside a task's head and a student; None if there is none."""
    return next((module for module in model.modules()
                 if hasattr(module, "word_embeddings") and hasattr(module, "config")), None)


def collect_nonparameters(model: nn.Module) -> dict[str, Any]:
    """The entries of a file for this model: ``important_nonparameters`` and ``gelu``; the same on all ranks."""
    backbone = backbone_of(model)
    vocab_map = getattr(backbone, "vocab_map", None)
    tensors = vocab_map.tensors() if vocab_map is not None else {}
    entries: dict[str, Any] = {NONPARAMETERS: {MAP_ENTRY: tensors} if tensors else {}}
    if backbone is not None:
        entries["gelu"] = backbone.config.gelu
    return entries


def stored_map(extras: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The vocabulary map among the entries of a file; empty if there is none."""
    return (extras.get(NONPARAMETERS) or {}).get(MAP_ENTRY) or {}


def restore_nonparameters(model: nn.Module, extras: Mapping[str, Any], state: Mapping[str, torch.Tensor], *,
                          where: str) -> None:
    """Put the stored vocabulary map into the model, and tell a GELU of another form.

    Args:
        extras, state: as :func:`model.checkpoint.load.read_module_state` returns them.
        where: the checkpoint, for messages.

    Raises:
        ValueError: only one of file and model has a compact vocabulary, or the map does not fit the model.
    """
    backbone = backbone_of(model)
    if backbone is None:
        return
    stored, vocab_map = stored_map(extras), getattr(backbone, "vocab_map", None)
    if stored and vocab_map is None:
        count = int(stored["origin_id_mask_map"].sum())
        raise ValueError(f"{where}: this checkpoint has a compact vocabulary of {count}; pass --map_vocab_size={count} "
                         f"(for a teacher --teacher_map_vocab_size={count})")
    if stored:
        try:
            vocab_map.set(stored, backbone.word_embeddings.weight.device)
        except KeyError as error:
            raise ValueError(f"{where}: the stored vocabulary map lacks {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    elif vocab_map is not None:
        _check_table_without_map(backbone, state.get("word_embeddings.weight"), where)
    gelu = extras.get("gelu") or "tanh"
    if gelu != backbone.config.gelu:
        logger.warning(
            "%s was trained with the %s form of GELU, this model computes the %s form: activations differ by up to "
            "%.0e each. Pass --gelu %s (for a teacher --teacher_gelu %s)", where, gelu, backbone.config.gelu,
            GELU_DIFFERENCE, gelu, gelu)


def _check_table_without_map(backbone: nn.Module, table: torch.Tensor | None, where: str) -> None:
    rows, count = len(backbone.word_embeddings.weight), backbone.config.map_vocab_size
    if table is not None and len(table) > rows:
        raise ValueError(
            f"{where} has the full vocabulary of {len(table) * (count // rows)} rows, the model a compact one of "
            f"{count} (--map_vocab_size): make a compact student of it with --student_truncate_tn and "
            "--student_build_map_vocab, or remove --map_vocab_size")
    if table is not None and not backbone.vocab_map.is_built:
        raise ValueError(f"{where} has a word table of {len(table) * (count // rows)} rows for --map_vocab_size="
                         f"{count}, but no vocabulary map: nobody can tell which row serves which token; use a "
                         f"checkpoint that has {MAP_ENTRY} under {NONPARAMETERS}")
