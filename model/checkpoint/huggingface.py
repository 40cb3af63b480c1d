"""One whole model in a folder, as Hugging Face lays it out: read as if it were a checkpoint of any model-parallel size.

    config.json          sizes, as the THUDM/glm-* models have it; or sizes.json with the fields of ModelConfig
    pytorch_model.bin    or model.safetensors, or either in shards with an index

The base names of that family are our unsharded names; task classes put ``glm.`` in front. Nothing of the folder is run:
config.json is read as plain JSON and the tensors in the safe mode. (transformers is not asked: there ``glm`` is the
type of another, newer model.)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.files import TRUST_FLAG, safe_load
from model.checkpoint.naming import listing, merged_weights
from model.checkpoint.nonparameters import MAP_ENTRY, NONPARAMETERS

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
#: Beside tensors under our own names: fields of ModelConfig.
SIZES_FILE = "sizes.json"

#: config.json -> ModelConfig.
CONFIG_FIELDS = {
    "num_layers": "num_layers", "hidden_size": "hidden_size", "num_attention_heads": "num_attention_heads",
    "max_sequence_length": "max_position_embeddings", "vocab_size": "vocab_size"}
#: Forms that the format does not have.
PLAIN_FORM = {"inverted_bottleneck_mode": False, "ib_word_emb": 0, "compress_word_emb": 0,
              "cross_layer_parameter_sharing": False, "map_vocab_size": 0}
#: The classification head: their name -> ours.
HEAD_NAMES = {"dense": "pool_layer", "out_proj": "multichoice_head"}
BACKBONE_PREFIX = "glm."

_COMPARED = (*CONFIG_FIELDS.values(), "block_position_encoding", *PLAIN_FORM)
_BOTTLENECK = ("ib_hidden_size", "ib_ffn_num")
_FLAGS = {
    "num_layers": "--num-layers", "hidden_size": "--hidden-size", "num_attention_heads": "--num-attention-heads",
    "max_position_embeddings": "--max-position-embeddings", "block_position_encoding": "--block-lm",
    "vocab_size": "--tokenizer-type, --tokenizer-model-type, --task-mask, --make-vocab-size-divisible-by (which give)"}


def read_sizes(folder: Path) -> dict[str, Any]:
    """What the folder says of its model, under the names of ModelConfig, with ``pool_token``.

    Raises:
        FileNotFoundError: neither config.json nor sizes.json.
        ValueError: no JSON object, or of another model family.
    """
    path = next((path for path in (folder / CONFIG_FILE, folder / SIZES_FILE) if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has weights but no {CONFIG_FILE} that gives their sizes (it holds "
                                f"{listing(folder)}); copy the whole folder")
    content = read_json_object(path)
    if path.name == SIZES_FILE:
        if missing := [name for name in _COMPARED if name not in content]:
            raise ValueError(f"{path} has no {', '.join(missing)}: not an export of this program")
        return content
    missing = [name for name in CONFIG_FIELDS if not isinstance(content.get(name), int)]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: not a GLM of this family (another, newer one shares its "
                         f"model_type {content.get('model_type')!r})")
    if content.get("relative_encoding"):
        raise ValueError(f"{path}: relative_encoding (Transformer-XL positions) is not available here")
    return {**{ours: content[theirs] for theirs, ours in CONFIG_FIELDS.items()}, **PLAIN_FORM,
            "block_position_encoding": bool(content.get("block_position_encoding", True)),
            # The published code of the family has no choice: it computes the erf form. Our exports say theirs.
            "gelu": content.get("gelu", "erf"), "pool_token": content.get("pool_token", "cls")}


def check_sizes(folder: Path, config: Any) -> None:
    """Compare the folder's sizes with the model's ``config`` (a ModelConfig), before any tensor is read.

    Fewer positions than the model has are no error: its tables are filled from the front.

    Raises:
        ValueError: every difference with its flag and both values.
    """
    sizes, lines = read_sizes(folder), []
    inner = _BOTTLENECK if sizes["inverted_bottleneck_mode"] and config.inverted_bottleneck_mode else ()
    for name in (*_COMPARED, *inner):
        stored, wanted = sizes[name], getattr(config, name)
        if stored == wanted or (name == "max_position_embeddings" and stored < wanted):
            continue
        lines.append(f"{name}: the folder has {stored}, {_FLAGS.get(name, f'--{name}')} {wanted}")
        if name == "map_vocab_size" and not stored:
            lines[-1] += " (to start a compact student from it: --student_truncate_tn, --student_build_map_vocab)"
    if lines:
        raise ValueError(f"{folder} does not fit the model:\n  " + "\n  ".join(lines)
                         + "\nA teacher's sizes are given by the flags that begin with --teacher_")


def read_merged(folder: Path) -> dict[str, Any]:
    """The folder as the content of a checkpoint's only file: ``module`` (whole tensors under our names),
    ``gelu`` and ``important_nonparameters``.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_sizes`; files that are missing, damaged or not safe to read.
    """
    sizes, tensors = read_sizes(folder), read_tensors(folder)
    lead = f"{MAP_ENTRY}."
    vocab_map = {name[len(lead):]: tensors.pop(name) for name in list(tensors) if name.startswith(lead)}
    module: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if (own := our_name(name)) in module:
            raise ValueError(f"{folder} holds {own} twice, the second time as {name}")
        module[own] = tensor
    return {"module": module, "gelu": sizes.get("gelu"),
            NONPARAMETERS: {MAP_ENTRY: vocab_map} if vocab_map else {}}


def tell_other_pooling(folder: Path, pool_token: str | None) -> None:
    """Warn if the folder's classification head was trained at another position than the model's takes."""
    stored = read_sizes(folder).get("pool_token")
    if None not in (stored, pool_token) and stored != pool_token:
        logger.warning("%s: its classification head was trained with --pool-token=%s, this run has %s", folder, stored,
                       pool_token)


def our_name(name: str) -> str:
    """``glm.transformer.…`` -> ``transformer.…``; ``dense.…`` -> ``pool_layer.…``."""
    name = name.removeprefix(BACKBONE_PREFIX)
    first, _, rest = name.partition(".")
    return f"{HEAD_NAMES[first]}.{rest}" if first in HEAD_NAMES else name


def their_name(name: str, prefix: str = "") -> str:
    """The inverse of :func:`our_name`; ``prefix`` goes in front of the backbone's names."""
    first, _, rest = name.partition(".")
    theirs = next((theirs for theirs, ours in HEAD_NAMES.items() if ours == first), None)
    return prefix + name if theirs is None else f"{theirs}.{rest}"


def write_safetensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """One safetensors file; every tensor is stored by itself, also where two share memory."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, under the names that they have there.

    Raises:
        FileNotFoundError, ValueError: files that are missing, damaged or not safe to read.
    """
    weights = merged_weights(folder)
    if weights is None:
        raise FileNotFoundError(f"{folder} has no weights (it holds {listing(folder)}); copy the whole folder")
    if weights.suffix != ".json":
        return _read_file(weights)
    tensors: dict[str, torch.Tensor] = {}
    weight_map = read_json_object(weights).get("weight_map")
    if not isinstance(weight_map, dict) or any(Path(file).name != file for file in weight_map.values()):
        raise ValueError(f"{weights} has no 'weight_map' of files beside it")
    for file in sorted(set(weight_map.values())):
        tensors |= _read_file(folder / file)
    if absent := sorted(set(weight_map) - set(tensors)):
        raise ValueError(f"{weights} names {len(absent)} tensors that its files do not hold ({_some(absent)}); copy "
                         "the whole folder again")
    return tensors


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the whole folder")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        tensors = safe_load(path)
    except ValueError as error:
        # Objects that the safe mode refuses: no flag opens it for files of strangers.
        if TRUST_FLAG in str(error):
            raise ValueError(f"{path} holds more than tensors, and reading that could run code; take the "
                             "model.safetensors of this model") from error
        raise
    wrong = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)] if isinstance(
        tensors, dict) else [type(tensors).__name__]
    if wrong:
        raise ValueError(f"{path} is no dict of tensors ({_some(wrong)})")
    return tensors


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} ({path.stat().st_size} bytes) is damaged or cut short: {error}; copy it "
                         "again") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. ValueError naming the file if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object but a {type(content).__name__}")
    return content


def _some(names: Iterable[Any]) -> str:
    names = list(map(str, names))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
