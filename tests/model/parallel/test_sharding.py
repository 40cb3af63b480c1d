from __future__ import annotations

import pytest
import torch

from model.parallel.sharding import COLUMNS, QKV_ROWS, REPLICATED, ROWS, ShardSpec, shard_specs
from tests.helpers.tiny_model import tiny_glm


@pytest.mark.parametrize("spec", [REPLICATED, ROWS, COLUMNS, QKV_ROWS, ShardSpec(1, blocks=2)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_merge_undoes_split(spec, size):
    full = torch.arange(24.0 * 16).view(24, 16)
    shards = spec.split(full, size)
    assert len(shards) == size
    assert torch.equal(spec.merge(shards), full)
    assert all(torch.equal(spec.shard(full, rank, size), shards[rank]) for rank in range(size))


def test_a_fused_projection_is_cut_third_by_third():
    first, second = QKV_ROWS.split(torch.arange(12.0).unsqueeze(1), 2)
    assert first.flatten().tolist() == [0, 1, 4, 5, 8, 9]
    assert second.flatten().tolist() == [2, 3, 6, 7, 10, 11]


def test_lengths_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="axis 0 of length 12 in 3 x 8"):
        QKV_ROWS.split(torch.zeros(12, 2), 8)


def test_every_parameter_of_a_glm_declares_its_cut():
    model = tiny_glm()
    specs = shard_specs(model)
    layer = "transformer.layers.1"
    assert specs["word_embeddings.weight"] == ROWS
    assert specs[f"{layer}.attention.query_key_value.weight"] == QKV_ROWS
    assert specs[f"{layer}.attention.query_key_value.bias"] == QKV_ROWS
    assert specs[f"{layer}.attention.dense.weight"] == COLUMNS
    assert specs[f"{layer}.attention.dense.bias"] == REPLICATED
    assert specs[f"{layer}.mlp.dense_h_to_4h.bias"] == ROWS
    assert specs["transformer.position_embeddings.weight"] == REPLICATED
    for parameter in model.parameters():
        assert parameter.model_parallel == parameter.shard_spec.is_sharded
