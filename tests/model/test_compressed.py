"""Bottleneck, factorised, shared and compact-vocabulary forms of the model."""

from __future__ import annotations

import pytest
import torch

from model.config import ModelConfig
from model.embeddings import three_token_vectors
from model.glm import GLMModel
from model.taps import LAYER_TAPS, layer_hook
from model.vocab_map import VocabMap
from tests.helpers.tiny_model import tiny_config, tiny_glm, tiny_lm_batch


def forward(model: GLMModel, **kwargs):
    batch = tiny_lm_batch()
    return model(batch["tokens"], batch["position_ids"], batch["attention_mask"], **kwargs)


def example_map(vocab_size: int = 64, num_rows: int = 32) -> dict[str, torch.Tensor]:
    """Even ids are kept, in falling order; an odd id is served by the even one below it."""
    kept = torch.arange(vocab_size) % 2 == 0
    own = torch.arange(vocab_size)[kept].flip(0)
    to_row = torch.empty(vocab_size, dtype=torch.long)
    to_row[own] = torch.arange(num_rows)
    to_row[own + 1] = torch.arange(num_rows)
    return {"origin_id_to_target_pos": to_row, "origin_id_mask_map": kept, "target_pos_to_origin_id": own.repeat(2)}


@pytest.mark.parametrize(("overrides", "expected"), [
    # layers / width / heads / positions / vocabulary as in the published table of parameter counts
    (dict(num_layers=24, hidden_size=512, num_attention_heads=4, inverted_bottleneck_mode=True, ib_hidden_size=1024,
          ib_ffn_num=1, ib_word_emb=128), 306_174_464),
    (dict(num_layers=6, hidden_size=512, num_attention_heads=4, inverted_bottleneck_mode=True, ib_hidden_size=128,
          ib_ffn_num=4, ib_word_emb=128), 21_632_768),
    (dict(num_layers=6, compress_word_emb=128, cross_layer_parameter_sharing=True), 11_990_656),
    (dict(num_layers=6, compress_word_emb=384), 55_655_040),
    (dict(num_layers=6, map_vocab_size=15360), 55_113_216),
    (dict(num_layers=6, map_vocab_size=15360, compress_word_emb=384), 49_805_952),
])
def test_parameter_counts_are_the_published_ones(overrides, expected):
    sizes = dict(num_layers=12, hidden_size=768, num_attention_heads=12, max_position_embeddings=512, vocab_size=30592)
    with torch.device("meta"):
        model = GLMModel(ModelConfig(**{**sizes, **overrides}))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_three_token_vectors():
    vectors = torch.arange(1.0, 6.0).view(1, 5, 1)  # token t has the vector [t + 1]
    joined = three_token_vectors(vectors, torch.tensor([3]))[0].tolist()
    # third: the next one for t = 0, 1 (before the last token of part A), then the one two before
    assert joined == [[2, 1, 0], [3, 2, 1], [1, 3, 2], [2, 4, 3], [3, 5, 4]]


def test_the_three_token_embedding_looks_at_nothing_ahead_of_part_b():
    model = tiny_glm(ib_word_emb=8).eval()
    batch = tiny_lm_batch()
    changed = batch["tokens"].clone()
    changed[:, -1] = 9
    first, _ = model(batch["tokens"], batch["position_ids"], batch["attention_mask"])
    second, _ = model(changed, batch["position_ids"], batch["attention_mask"])
    assert torch.equal(first[:, :-1], second[:, :-1])


def test_a_shared_layer_is_one_layer_many_times():
    shared = tiny_glm(num_layers=3, cross_layer_parameter_sharing=True)
    copies = tiny_glm(num_layers=3)
    state = shared.state_dict()
    copies.load_state_dict({
        name: state[name.replace("layers.1.", "layers.0.").replace("layers.2.", "layers.0.")]
        for name in copies.state_dict()})
    torch.testing.assert_close(forward(shared)[0], forward(copies)[0])
    _, taps = forward(shared, hook=layer_hook({0: "tf_output", 2: "tf_output"}))
    assert not torch.equal(*taps)


def test_taps_of_a_bottleneck_have_its_width():
    model = tiny_glm(inverted_bottleneck_mode=True, ib_hidden_size=16, ib_ffn_num=3)
    _, taps = forward(model, hook=layer_hook({1: LAYER_TAPS}))
    shapes = {name: tuple(tap.shape) for name, tap in zip(sorted(LAYER_TAPS), taps, strict=True)}
    assert shapes["query_layer"] == (3, 4, 16, 4)
    assert shapes["post_attention_layernorm"] == (3, 16, 16)
    assert shapes["layernorm_output"] == shapes["tf_output"] == (3, 16, 32)


def test_a_factorised_embedding_hands_the_head_full_width():
    hidden, _ = forward(tiny_glm(compress_word_emb=8, output_predict=False))
    assert hidden.shape == (3, 16, 32)


def test_a_dropped_token_has_the_logit_of_its_substitute():
    model = tiny_glm(map_vocab_size=32)
    model.vocab_map.set(example_map())
    logits, _ = forward(model)
    assert logits.shape == (3, 16, 64)
    assert torch.equal(logits[..., 0::2], logits[..., 1::2])


def test_unmapped_logits_are_the_rows():
    expanded, rows = tiny_glm(map_vocab_size=32), tiny_glm(map_vocab_size=32, unmap_vocab_output=True)
    for model in (expanded, rows):
        model.vocab_map.set(example_map())
    own = example_map()["target_pos_to_origin_id"][:32]
    torch.testing.assert_close(forward(rows)[0], forward(expanded)[0][..., own])
    assert rows.map_input_to_ids(own).tolist() == list(range(32))
    assert expanded.map_input_to_ids(own) is own


def test_the_map_in_order_of_ids_with_all_rows_kept_changes_nothing():
    plain = tiny_glm()
    half = VocabMap(64, 64)
    half.set({"origin_id_to_target_pos": torch.arange(64), "origin_id_mask_map": torch.ones(64, dtype=torch.bool),
              "target_pos_to_origin_id": torch.arange(64)})
    assert torch.equal(half.expand(plain.word_embedding_weight), plain.word_embedding_weight)


def test_a_row_collects_the_gradients_of_its_ids():
    vocab_map = VocabMap(64, 32)
    vocab_map.set(example_map())
    table = torch.randn(32, 4, requires_grad=True)
    weights = torch.randn(64, 4)
    (vocab_map.expand(table) * weights).sum().backward()
    to_row = example_map()["origin_id_to_target_pos"]
    for row in range(32):
        torch.testing.assert_close(table.grad[row], weights[to_row == row].sum(0))


def test_the_map_is_no_part_of_the_state_dict_and_moves_with_the_model():
    model = tiny_glm(map_vocab_size=32)
    model.vocab_map.set(example_map())
    assert not [name for name in model.state_dict() if "map" in name]
    assert model.bfloat16().vocab_map.origin_id_to_target_pos.dtype == torch.int64
    assert all(torch.equal(tensor, example_map()[name]) for name, tensor in model.vocab_map.tensors().items())


def test_maps_that_cannot_be_are_refused():
    vocab_map = VocabMap(64, 32)
    with pytest.raises(ValueError, match="has no map yet: pass --student_build_map_vocab"):
        vocab_map.rows_of(torch.tensor([1]))
    with pytest.raises(ValueError, match="is for 66 token ids, the model has 64"):
        vocab_map.set(example_map(66, 33))
    with pytest.raises(ValueError, match="pass --map_vocab_size=32"):
        VocabMap(64, 16).set(example_map())
    crossed = example_map()
    crossed["origin_id_to_target_pos"] = crossed["origin_id_to_target_pos"].roll(2)
    with pytest.raises(ValueError, match="contradicts itself"):
        vocab_map.set(crossed)


@pytest.mark.parametrize(("overrides", "message"), [
    (dict(inverted_bottleneck_mode=True, ib_hidden_size=30), "--ib_hidden_size 30 is not divisible by --num-att"),
    (dict(inverted_bottleneck_mode=True, ib_ffn_num=0), "--ib_ffn_num must be at least 1"),
    (dict(ib_word_emb=33), "--ib_word_emb 33 must lie between 0 and --hidden-size 32"),
    (dict(unmap_vocab_output=True), "--unmap_vocab_output needs --map_vocab_size"),
    (dict(map_vocab_size=64), "0 dropped tokens"),
])
def test_sizes_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides).check()
