"""Write a checkpoint for other programs: ``python -m model.checkpoint.export RUN DIR --format hf|safetensors``.

``hf``: config.json and weights as the THUDM/glm-* models have them. A shared layer and a compact vocabulary are written
out in full; what the format cannot express is refused with the reason. ``safetensors``: any form, under our own names,
with sizes.json, whose entries are the fields of ModelConfig. Distillation layers are left out of both.

``--load-pretrained`` and ``--teacher_load_pretrained`` read either.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.files import atomic_save, atomic_write_text, remove_folder, rename_folder
from model.checkpoint.huggingface import (
    BACKBONE_PREFIX,
    CONFIG_FIELDS,
    CONFIG_FILE,
    HEAD_NAMES,
    SIZES_FILE,
    read_sizes,
    their_name,
    write_safetensors,
)
from model.checkpoint.load import STUDENT_PREFIXES, read_module_state
from model.checkpoint.naming import CheckpointLocation, resolve_checkpoint
from model.checkpoint.nonparameters import GELU_DIFFERENCE, MAP_ENTRY, stored_map

logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]

_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
_PLAIN_LAYER = re.compile(
    r"(input_layernorm|post_attention_layernorm|attention\.query_key_value|attention\.dense|mlp\.dense_h_to_4h"
    r"|mlp\.dense_4h_to_h)\.(weight|bias)")
_OUTSIDE = re.compile(
    r"word_embeddings\.weight|transformer\.(block_)?position_embeddings\.weight|transformer\.final_layernorm\.(weight|bias)"
    rf"|({'|'.join(HEAD_NAMES.values())})\.(weight|bias)")
#: Form of the model -> why the other format has no place for it.
_REFUSED = {
    "inverted_bottleneck_mode": "the inverted bottleneck has other layers",
    "ib_word_emb": "the three-token embedding has an input map of its own",
    "compress_word_emb": "with a factorised embedding the tied output works on the narrow table, which no one table of "
                         "full width can stand for",
    "unmap_vocab_output": "the logits are over the rows of the compact vocabulary, not over all tokens",
}


@dataclass(frozen=True)
class Exported:
    """A whole model.

    Attributes:
        state: our name -> whole tensor, without distillation layers.
        vocab_map: the three tensors of a compact vocabulary; empty without one.
        sizes: fields of ModelConfig.
        pool_token: of a classification head.
    """

    state: State
    vocab_map: dict[str, torch.Tensor]
    sizes: dict[str, Any]
    pool_token: str = "cls"


def export(run: str | Path, output: str | Path, *, format: str = "hf", weights: str = "bin",
           num_attention_heads: int | None = None, num_layers: int | None = None,
           trust_pickle: bool = False) -> Path:
    """Write the checkpoint ``run``, of any model-parallel size, to the folder ``output``, which appears in one step.

    Args:
        format: ``hf`` or ``safetensors``.
        weights: file of ``hf``: ``bin`` (pytorch_model.bin) or ``safetensors`` (model.safetensors).
        num_attention_heads, num_layers: what the tensors do not tell; default: the run's ``tensorboard/config.json``.
            The number of layers is needed for a shared layer only.

    Raises:
        FileNotFoundError: no checkpoint at ``run``.
        ValueError: ``output`` exists, sizes that are not known, a form that the format cannot express.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} exists; nothing was written: choose another folder, or remove it")
    model = read_model(run, num_attention_heads=num_attention_heads, num_layers=num_layers, trust_pickle=trust_pickle)
    partial = output.with_name(f"{output.name}.partial")
    remove_folder(partial)
    partial.mkdir(parents=True)
    if format == "hf":
        tensors, config = to_huggingface(model)
        if weights == "bin":
            atomic_save(tensors, partial / "pytorch_model.bin")
        else:
            write_safetensors(tensors, partial / "model.safetensors")
        _write_json(config, partial / CONFIG_FILE)
    else:
        maps = {f"{MAP_ENTRY}.{name}": tensor for name, tensor in model.vocab_map.items()}
        write_safetensors({**model.state, **maps}, partial / "model.safetensors")
        _write_json(model.sizes, partial / SIZES_FILE)
    rename_folder(partial, output)
    logger.info("%s -> %s", run, output)
    return output


def read_model(run: str | Path, *, num_attention_heads: int | None = None, num_layers: int | None = None,
               trust_pickle: bool = False) -> Exported:
    """The model of a checkpoint in one piece, with its sizes. Raises as :func:`export`."""
    location = resolve_checkpoint(run)
    state, extras = read_module_state(location, mp_rank=0, mp_size=1, trust_pickle=trust_pickle)
    own = {name: tensor for name, tensor in state.items() if not name.startswith(STUDENT_PREFIXES)}
    if len(own) < len(state):
        logger.info("%d tensors of distillation layers (student.*) are left out", len(state) - len(own))
    _check_whole(own, run)
    known, vocab_map = _known_sizes(location, len(own["transformer.final_layernorm.weight"])), stored_map(extras)
    given = {"num_attention_heads": num_attention_heads, "num_layers": num_layers}
    sizes = derive_sizes(own, vocab_map, {**known, **{name: value for name, value in given.items() if value}})
    # Files of older programs do not say it: they are all of the tanh form.
    sizes["gelu"] = extras.get("gelu") or "tanh"
    return Exported(own, vocab_map, sizes, known.get("pool_token") or "cls")


def derive_sizes(state: Mapping[str, torch.Tensor], vocab_map: Mapping[str, torch.Tensor],
                 known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ModelConfig from whole tensors; ``known`` gives what they do not tell.

    Raises:
        ValueError: the number of heads, or of passes through a single layer, is not known or does not fit.
    """
    rows, width = state["word_embeddings.weight"].shape
    positions = len(state["transformer.position_embeddings.weight"])
    hidden = len(state["transformer.final_layernorm.weight"])
    has_blocks = "transformer.block_position_embeddings.weight" in state
    layer_names = [match for name in state if (match := _LAYER.fullmatch(name))]
    first = {match[2]: state[match[0]] for match in layer_names if match[1] == "0"}
    modules = len({match[1] for match in layer_names})
    inner = len(first["ib_linear_in.weight"]) if "ib_linear_in.weight" in first else 0
    joined = state.get("ib_emb_mlp.weight")
    heads, layers = known.get("num_attention_heads"), known.get("num_layers", modules if modules > 1 else None)
    if not heads or not layers:
        missing = [flag for flag, value in (("--num-attention-heads", heads), ("--num-layers", layers)) if not value]
        raise ValueError(f"the tensors do not tell {' and '.join(missing)} (one layer may be shared by many), and "
                         "there is no tensorboard/config.json of this model beside the checkpoint: pass them")
    if (inner or hidden) % heads:
        raise ValueError(f"--num-attention-heads={heads} does not divide the width {inner or hidden} of the checkpoint")
    if modules not in (1, layers):
        raise ValueError(f"--num-layers={layers}, but the checkpoint has {modules} layers")
    return {
        "num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "max_position_embeddings": positions - int(has_blocks), "block_position_encoding": has_blocks,
        "vocab_size": len(vocab_map["origin_id_mask_map"]) if vocab_map else rows,
        **{name: known.get(name, 0.1) for name in ("attention_dropout", "hidden_dropout", "output_dropout")},
        "attention_scale": known.get("attention_scale", 1.0), "inverted_bottleneck_mode": bool(inner),
        "ib_hidden_size": inner or 128,
        "ib_ffn_num": 1 + sum(bool(re.fullmatch(r"ib_mlp\.\d+\.dense_4h_to_h\.bias", name)) for name in first),
        "ib_word_emb": 0 if joined is None else joined.shape[1] // 3,
        "compress_word_emb": width if "compress_emb_mlp.weight" in state else 0,
        "cross_layer_parameter_sharing": modules < layers, "map_vocab_size": rows if vocab_map else 0,
        "unmap_vocab_output": bool(vocab_map and known.get("unmap_vocab_output"))}


def to_huggingface(model: Exported) -> tuple[State, dict[str, Any]]:
    """Tensors and config.json of a ``hf`` folder.

    Raises:
        ValueError: the format cannot express the model; the message names each reason.
    """
    sizes, state = model.sizes, model.state
    has_head = "pool_layer.weight" in state
    reasons = [f"--{name}: {why}" for name, why in _REFUSED.items() if sizes[name]]
    if has_head and model.pool_token != "cls":
        reasons.append(f"--pool-token={model.pool_token}: its classification head takes the first position (cls)")
    foreign = [name for name in state if not _is_plain(name)] if not reasons else []
    if foreign:
        reasons.append(f"it has no place for {', '.join(foreign[:5])}")
    if reasons:
        raise ValueError("the Hugging Face format of GLM cannot express this model; --format safetensors can:\n  "
                         + "\n  ".join(reasons))
    if model.vocab_map:
        to_row = model.vocab_map["origin_id_to_target_pos"]
        state = {**state, "word_embeddings.weight": state["word_embeddings.weight"][to_row]}
        logger.info("the compact vocabulary of %d rows is written out as %d", sizes["map_vocab_size"], len(to_row))
    if sizes["cross_layer_parameter_sharing"]:
        state = _write_out_shared_layer(state, sizes["num_layers"])
        logger.info("the shared layer is written out %d times", sizes["num_layers"])
    if sizes["gelu"] != "erf":
        logger.warning("the published Hugging Face code of GLM computes the erf form of GELU, this model was trained "
                       "with %s: there, activations differ by up to %.0e each", sizes["gelu"], GELU_DIFFERENCE)
    prefix = BACKBONE_PREFIX if has_head else ""
    return ({their_name(name, prefix): tensor for name, tensor in state.items()},
            _config_of(model, state["multichoice_head.weight"].shape[0] if has_head else None,
                       state["word_embeddings.weight"].dtype))


def _is_plain(name: str) -> bool:
    match = _LAYER.fullmatch(name)
    return (_PLAIN_LAYER.fullmatch(match[2]) if match else _OUTSIDE.fullmatch(name)) is not None


def _write_out_shared_layer(state: State, num_layers: int) -> State:
    result = {}
    for name, tensor in state.items():
        match = _LAYER.fullmatch(name)
        names = [f"transformer.layers.{index}.{match[2]}" for index in range(num_layers)] if match else [name]
        result |= dict.fromkeys(names, tensor)
    return result


def _config_of(model: Exported, num_labels: int | None, dtype: torch.dtype) -> dict[str, Any]:
    sizes = model.sizes
    name = "GLMModel" if num_labels is None else "GLMForSequenceClassification"
    return {
        "architectures": [name], "model_type": "glm",
        **{theirs: sizes[ours] for theirs, ours in CONFIG_FIELDS.items()},
        "embedding_dropout_prob": sizes["hidden_dropout"], "output_dropout_prob": sizes["hidden_dropout"],
        "attention_dropout_prob": sizes["attention_dropout"], "attention_scale": sizes["attention_scale"],
        "block_position_encoding": sizes["block_position_encoding"], "relative_encoding": False,
        "checkpoint_activations": False, "checkpoint_num_layers": 1, "output_predict": True, "parallel_output": True,
        "pool_token": model.pool_token, "spell_length": None, "spell_func": "lstm", "initializer_range": 0.02,
        **({"num_labels": num_labels} if num_labels is not None else {}),
        "torch_dtype": str(dtype).removeprefix("torch."),
        # No entry of theirs; read_sizes() reads it.
        "gelu": sizes["gelu"]}


def _known_sizes(location: CheckpointLocation, hidden_size: int) -> dict[str, Any]:
    """What stands beside the weights, for a model of this width: in a run's folder the arguments of the run."""
    if location.merged:
        return read_sizes(location.folder)
    path = location.directory / "tensorboard" / CONFIG_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.get("hidden_size", hidden_size) != hidden_size:
        logger.warning("%s is not used: it is for --hidden-size=%s, the checkpoint has %d", path, known["hidden_size"],
                       hidden_size)
        return {}
    return known


def _check_whole(state: Mapping[str, torch.Tensor], run: str | Path) -> None:
    needed = ["word_embeddings.weight", "transformer.position_embeddings.weight", "transformer.final_layernorm.weight",
              "transformer.layers.0.attention.query_key_value.weight"]
    if absent := [name for name in needed if name not in state]:
        raise ValueError(f"{run} lacks {', '.join(absent)}: it is no GLM, or the best checkpoint of a run with frozen "
                         "parameters, which holds only the trained ones; give the folder of another checkpoint")


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    atomic_write_text(json.dumps(content, indent=2) + "\n", path)


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse ``argv``, export, and return the new folder."""
    parser = argparse.ArgumentParser(prog="model.checkpoint.export", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or the folder of one checkpoint")
    parser.add_argument("output", metavar="DIR", help="the new folder")
    parser.add_argument("--format", choices=("hf", "safetensors"), default="hf", help="default: hf")
    parser.add_argument("--weights", choices=("bin", "safetensors"), default="bin",
                        help="file of --format hf: pytorch_model.bin (default) or model.safetensors")
    parser.add_argument("--num-attention-heads", type=int, help="default: from the run's tensorboard/config.json")
    parser.add_argument("--num-layers", type=int, help="passes through a shared layer; default: as above")
    parser.add_argument("--trust-checkpoint", action="store_true",
                        help="also read files that hold arbitrary Python objects (they can run code)")
    args = parser.parse_args(argv)
    return export(args.run, args.output, format=args.format, weights=args.weights, num_layers=args.num_layers,
                  num_attention_heads=args.num_attention_heads, trust_pickle=args.trust_checkpoint)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"model.checkpoint.export: {error}")
