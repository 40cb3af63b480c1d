"""Small state dicts with the names and cuts of real checkpoints; every number is different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.checkpoint.naming import LATEST_TRACKER, shard_path
from model.checkpoint.reshard import reshard
from model.parallel.sharding import COLUMNS, QKV_ROWS, REPLICATED, ROWS, ShardSpec

WIDTH, VOCABULARY, POSITIONS = 8, 16, 12


def glm_tensors(layers: int = 2, positions: int = POSITIONS) -> dict[str, tuple[list[int], ShardSpec]]:
    """Whole shape and cut of every parameter of a small GLM with its published names, written out by hand."""
    h, rows = WIDTH, positions + 1
    table: dict[str, tuple[list[int], ShardSpec]] = {
        "word_embeddings.weight": ([VOCABULARY, h], ROWS),
        "transformer.position_embeddings.weight": ([rows, h], REPLICATED),
        "transformer.block_position_embeddings.weight": ([rows, h], REPLICATED)}
    for index in range(layers):
        layer = f"transformer.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            table |= {f"{layer}{norm}.weight": ([h], REPLICATED), f"{layer}{norm}.bias": ([h], REPLICATED)}
        table |= {
            f"{layer}attention.query_key_value.weight": ([3 * h, h], QKV_ROWS),
            f"{layer}attention.query_key_value.bias": ([3 * h], QKV_ROWS),
            f"{layer}attention.dense.weight": ([h, h], COLUMNS),
            f"{layer}attention.dense.bias": ([h], REPLICATED),
            f"{layer}mlp.dense_h_to_4h.weight": ([4 * h, h], ROWS),
            f"{layer}mlp.dense_h_to_4h.bias": ([4 * h], ROWS),
            f"{layer}mlp.dense_4h_to_h.weight": ([h, 4 * h], COLUMNS),
            f"{layer}mlp.dense_4h_to_h.bias": ([h], REPLICATED)}
    table |= {"transformer.final_layernorm.weight": ([h], REPLICATED),
              "transformer.final_layernorm.bias": ([h], REPLICATED)}
    return table


#: What compressed models and distillation methods add.
EXTENSION_TENSORS: dict[str, tuple[list[int], ShardSpec]] = {
    "compress_emb_mlp.weight": ([8, 4], ROWS), "compress_emb_mlp.bias": ([8], ROWS),
    "decompress_emb_mlp.weight": ([4, 8], ROWS), "decompress_emb_mlp.bias": ([4], ROWS),
    "ib_emb_mlp.weight": ([8, 12], ROWS), "ib_emb_mlp.bias": ([8], ROWS),
    "transformer.layers.0.ib_linear_in.weight": ([4, 8], ROWS), "transformer.layers.0.ib_linear_in.bias": ([4], ROWS),
    "transformer.layers.0.ib_linear_out.weight": ([8, 4], ROWS),
    "transformer.layers.0.ib_linear_out.bias": ([8], ROWS),
    "transformer.layers.0.ib_linear_out_layernorm.weight": ([4], REPLICATED),
    "transformer.layers.0.ib_mlp_layernorm.1.bias": ([4], REPLICATED),
    "transformer.layers.0.ib_mlp.1.dense_h_to_4h.weight": ([16, 4], ROWS),
    "transformer.layers.0.ib_mlp.1.dense_4h_to_h.weight": ([4, 16], COLUMNS),
    "transformer.layers.0.ib_mlp.1.dense_4h_to_h.bias": ([4], REPLICATED),
    "transformer.layers.0.attention.relative.weight": ([8, 8], ROWS),
    "transformer.r_w_bias": ([4, 2], ROWS),
    "prompt_spell.spell_embeddings.weight": ([3, 8], REPLICATED),
    "prompt_spell.lstm_head.weight_ih_l0_reverse": ([32, 8], REPLICATED),
    "pool_layer.weight": ([8, 8], REPLICATED), "multichoice_head.bias": ([2], REPLICATED),
    "student.fit_dense.weight": ([12, 8], REPLICATED), "student.fit_dense_1.bias": ([12], REPLICATED),
    "student.TinyBERT.fit_dense.weight": ([12, 8], REPLICATED),
    "student.s_fit_dense.weight": ([4, 8], ROWS), "student.t_fit_dense_0.bias": ([4], ROWS),
    "student.s_fit_dense.3.weight": ([4, 8], ROWS), "student.t_fit_dense_1.2.weight": ([4, 8], ROWS),
    "student.t_layernorm.weight": ([8], REPLICATED),
    "student.multi_teacher_model.fit_dense_0.weight": ([12, 8], ROWS),
    "student.multi_teacher_model.t_layernorm_1.bias": ([8], REPLICATED),
    "student.multi_teacher_model.agent_semantic_mt_loss.weight": ([2, 8], REPLICATED),
    "student.teacher_model_0.transformer.layers.3.attention.query_key_value.weight": ([24, 8], QKV_ROWS),
    "student.teacher_model_0.word_embeddings.weight": ([16, 8], ROWS),
}


def whole_state(table: dict[str, tuple[list[int], ShardSpec]] | None = None, seed: int = 0,
                dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random tensors for a table of shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype)
            for name, (shape, _) in (table or glm_tensors()).items()}


def specs_of(table: dict[str, tuple[list[int], ShardSpec]] | None = None) -> dict[str, ShardSpec]:
    return {name: spec for name, (_, spec) in (table or glm_tensors()).items()}


def write_checkpoint(directory: Path, state: dict[str, torch.Tensor], *, size: int = 1, tag: str = "100",
                     prefix: str = "", specs: dict[str, ShardSpec] | None = None, tracker: bool = True,
                     **entries: Any) -> Path:
    """A checkpoint as the published programs write it: plain torch.save, no stored cuts, no trailing newline."""
    parts = reshard([state], specs or specs_of(), size)
    for rank, part in enumerate(parts):
        path = shard_path(directory, tag, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"module": {prefix + name: tensor.clone() for name, tensor in part.items()}, "iteration": 100,
                    "mp_world_size": size, **entries}, path)
    if tracker:
        (directory / LATEST_TRACKER).write_text(tag)
    return directory


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal names, dtypes and bits."""
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name
