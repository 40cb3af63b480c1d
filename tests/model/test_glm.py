from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from model.attention import MASKED_SCORE, prefix_mask
from model.config import ModelConfig
from model.glm import GLMModel
from model.parallel.random import seed_everything, set_tracker_state
from model.taps import LAYER_TAPS, TapRequest, layer_hook, merge_hooks
from tests.helpers.tiny_model import tiny_config, tiny_glm, tiny_lm_batch


def forward(model: GLMModel, batch: dict[str, torch.Tensor], **kwargs):
    return model(batch["tokens"], batch["position_ids"], batch["attention_mask"], **kwargs)


def all_taps(num_layers: int = 2):
    return merge_hooks(layer_hook(dict.fromkeys(range(num_layers), LAYER_TAPS)),
                       {"words_embeddings": None, "position_ids": None, "logits_parallel": None,
                        "transformer": {"embeddings": None, "output": None}})


def plain_glm(state: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], num_layers: int, num_heads: int):
    """The specification in plain tensor algebra: one sample, one head at a time."""
    def norm(x, name):
        return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    rows = []
    for tokens, positions, sep in zip(batch["tokens"], batch["position_ids"], batch["attention_mask"], strict=True):
        x = (state["word_embeddings.weight"][tokens] + state["transformer.position_embeddings.weight"][positions[0]]
             + state["transformer.block_position_embeddings.weight"][positions[1]])
        length, width = x.shape
        head = width // num_heads
        visible = torch.tensor([[j <= i or j < sep for j in range(length)] for i in range(length)])
        for layer in range(num_layers):
            path = f"transformer.layers.{layer}"
            fused = linear(norm(x, f"{path}.input_layernorm"), f"{path}.attention.query_key_value")
            query, key, value = fused[:, :width], fused[:, width:2 * width], fused[:, 2 * width:]
            context = []
            for h in range(num_heads):
                part = slice(h * head, (h + 1) * head)
                scores = query[:, part] @ key[:, part].T / math.sqrt(head)
                context.append(scores.masked_fill(~visible, MASKED_SCORE).softmax(-1) @ value[:, part])
            x = x + linear(torch.cat(context, -1), f"{path}.attention.dense")
            inner = gelu(linear(norm(x, f"{path}.post_attention_layernorm"), f"{path}.mlp.dense_h_to_4h"),
                         approximate="tanh")
            x = x + linear(inner, f"{path}.mlp.dense_4h_to_h")
        rows.append(norm(x, "transformer.final_layernorm") @ state["word_embeddings.weight"].T)
    return torch.stack(rows)


def test_logits_are_those_of_the_specification():
    model, batch = tiny_glm().double(), tiny_lm_batch()
    expected = plain_glm(model.state_dict(), batch, num_layers=2, num_heads=4)
    logits, taps = forward(model, batch)
    assert taps == ()
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_tapping_every_tensor_changes_nothing():
    model, batch = tiny_glm().double(), tiny_lm_batch()
    plain, _ = forward(model, batch)
    tapped_logits, taps = forward(model, batch, hook=all_taps())
    # The explicit attention sums in another order than the fused one.
    torch.testing.assert_close(tapped_logits, plain, rtol=1e-10, atol=1e-10)
    names = TapRequest.from_hook(all_taps(), 2).names
    assert len(taps) == len(names) == 2 * len(LAYER_TAPS) + 5
    values = dict(zip(names, taps, strict=True))
    assert values["transformer.layers.0.attention_scores"].shape == (3, 4, 16, 16)
    assert values["transformer.layers.1.query_layer"].shape == (3, 4, 16, 8)
    assert values["transformer.layers.1.mixed_key_layer"].shape == (3, 16, 32)
    torch.testing.assert_close(values["logits_parallel"], tapped_logits)


def test_only_a_layer_whose_scores_are_tapped_forms_them(monkeypatch):
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention",
                        lambda *a, **k: calls.append(1) or original(*a, **k))
    model, batch = tiny_glm(num_layers=3), tiny_lm_batch()
    forward(model, batch, hook=layer_hook({0: "value_layer"}))
    assert len(calls) == 3
    forward(model, batch, hook=layer_hook({1: "attention_probs"}))
    assert len(calls) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_scores_are_exactly_the_constant_in_fp32(dtype):
    model, batch = tiny_glm().to(dtype), tiny_lm_batch()
    _, (scores,) = forward(model, batch, hook=layer_hook({0: "attention_scores"}))
    assert scores.dtype == torch.float32
    visible = prefix_mask(batch["attention_mask"], 3, 16).expand_as(scores)
    assert (scores[~visible] == MASKED_SCORE).all()
    assert (scores[visible] > MASKED_SCORE).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_layers_keep_one_mask(dtype):
    model, batch, masks = tiny_glm(num_layers=3).to(dtype), tiny_lm_batch(), []

    def keep(tensor):
        if tensor.shape[-2:] == (16, 16):  # s x s
            masks.append((tensor.data_ptr(), tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(model, batch)
    assert len(masks) >= 3 and len(set(masks)) == 1


def test_prefix_mask():
    mask = prefix_mask(torch.tensor([0, 2]), 2, 3)[:, 0]
    assert mask.tolist() == [[[True, False, False], [True, True, False], [True, True, True]],
                             [[True, True, False], [True, True, False], [True, True, True]]]
    assert prefix_mask(torch.tensor(2), 5, 3).shape == (1, 1, 3, 3)
    with pytest.raises(ValueError, match="2 entries for a batch of 3"):
        prefix_mask(torch.tensor([1, 2]), 3, 4)


def test_attention_scale_keeps_the_numbers():
    batch = tiny_lm_batch()
    plain, _ = forward(tiny_glm().double(), batch)
    scaled, _ = forward(tiny_glm(attention_scale=4.0).double(), batch)
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_recomputation_gives_the_same_gradients_under_dropout_with_taps(chunk):
    """Both random states have to be put back for the recomputation, and tapped tensors must keep their gradient."""
    batch, gradients = tiny_lm_batch(), []
    hook = merge_hooks(layer_hook(dict.fromkeys(range(3), ("attention_scores", "tf_output"))),
                       {"transformer": {"output": None}})
    for recompute in (False, True):
        model = tiny_glm(num_layers=3, attention_dropout=0.3, hidden_dropout=0.3, checkpoint_activations=recompute,
                         checkpoint_num_layers=chunk)
        seed_everything(5)
        logits, taps = forward(model, batch, hook=hook)
        loss = logits.square().mean() + sum(tap.clamp(min=-50.0).square().mean() for tap in taps)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    set_tracker_state(None)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_operations_replace_tensors():
    model, batch = tiny_glm(), tiny_lm_batch()
    reference, _ = forward(model, {**batch, "tokens": batch["tokens"].flip(0)})
    flipped, _ = forward(model, batch, hook_op={"input_ids": lambda input_ids: input_ids.flip(0)})
    assert torch.equal(flipped, reference)
    zero, taps = forward(model, batch, hook={"transformer": {"output": None}},
                         hook_op={"transformer": {"output": lambda output: output * 0}})
    assert zero.abs().max() == 0 and taps[0].abs().max() == 0
    shallow, _ = forward(model, batch, hook_op={"transformer": {"self_layers": lambda self_layers: self_layers[:1]}})
    one_layer = tiny_glm(num_layers=1)
    one_layer.load_state_dict({k: v for k, v in model.state_dict().items() if ".layers.1." not in k})
    torch.testing.assert_close(shallow, forward(one_layer, batch)[0])
    seen = []
    forward(model, batch, hook_op={"transformer": {
        "embeddings": lambda this, hidden_states: seen.append(this) or hidden_states,
        "layers": {1: {"layernorm_output": lambda layernorm_output: seen.append(1) or layernorm_output}}}})
    assert seen == [model.transformer, 1]


def test_hidden_states_instead_of_logits():
    model, batch = tiny_glm(output_predict=False), tiny_lm_batch()
    hidden, (logits,) = forward(model, batch, hook={"logits_parallel": None})
    assert hidden.shape == (3, 16, 32) and logits.shape == (3, 16, 64)


def test_names_and_count_of_the_base_model_are_the_published_ones():
    with torch.device("meta"):
        config = ModelConfig(12, 768, 12, 512, 30592)
        names = dict(GLMModel(config).named_parameters())
    assert sum(p.numel() for p in names.values()) == 109_338_624
    assert names["transformer.position_embeddings.weight"].shape == (513, 768)
    assert names["transformer.layers.11.attention.query_key_value.weight"].shape == (2304, 768)
    assert len(names) == 3 + 12 * 12 + 2


def test_initial_scale():
    torch.manual_seed(0)
    state = GLMModel(tiny_config(num_layers=8, hidden_size=128)).state_dict()
    assert state["word_embeddings.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert state["transformer.layers.3.attention.query_key_value.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("attention.dense", "mlp.dense_4h_to_h"):
        assert state[f"transformer.layers.3.{name}.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize(("overrides", "message"), [
    ({"hidden_size": 30}, "--hidden-size 30 is not divisible by --num-attention-heads 4"),
    ({"num_layers": 0}, "--num-layers must be at least 1"),
    ({"hidden_dropout": 1.0}, "--hidden-dropout"),
])
def test_sizes_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        GLMModel(tiny_config(**overrides))


def test_sizes_against_model_parallelism():
    with pytest.raises(ValueError, match="--teacher_num_attention_heads 4 .* --model-parallel-size 3"):
        tiny_config().check(3, prefix="teacher_")
    with pytest.raises(ValueError, match="vocabulary size 66 .* --model-parallel-size 4"):
        tiny_config(vocab_size=66).check(4)


def test_freezing():
    model = tiny_glm()
    model.freeze_transformer(tune_prefix_layers=1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("transformer.layers.0.") for name in trained)
