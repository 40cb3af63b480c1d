"""Model-parallel sizes 2 and 4 against one process: outputs, taps and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.glm import GLMModel
from model.heads import MultiTokenCloze
from model.parallel.groups import get_model_parallel_rank, get_model_parallel_world_size
from model.parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from model.parallel.mappings import all_gather_last, reduce_from_model_parallel_region
from model.parallel.random import model_parallel_rng, seed_everything, set_tracker_state
from model.parallel.sharding import shard_spec_of
from model.taps import layer_hook, merge_hooks
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_model import tiny_config, tiny_glm, tiny_lm_batch
from tests.model.test_compressed import example_map

pytestmark = pytest.mark.distributed


def gathered(model: torch.nn.Module, attribute: str = "grad") -> dict[str, torch.Tensor]:
    """Whole gradients (or values) of a cut model, the same on every rank."""
    whole = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.grad if attribute == "grad" else parameter.detach()
        spec, size = shard_spec_of(parameter), get_model_parallel_world_size()
        parts = [torch.empty_like(tensor) for _ in range(size)]
        if size == 1:
            parts = [tensor]
        else:
            torch.distributed.all_gather(parts, tensor.contiguous())
        whole[name] = spec.merge(parts)
    return whole


def load_whole(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spec = shard_spec_of(parameter)
            parameter.copy_(spec.shard(state[name], get_model_parallel_rank(), get_model_parallel_world_size()))


def model_case(state: dict[str, torch.Tensor], overrides: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = GLMModel(tiny_config(**overrides)).double()
    load_whole(model, state)
    if model.vocab_map is not None:
        model.vocab_map.set(example_map())
    batch = tiny_lm_batch()
    hook = merge_hooks(layer_hook({0: ("attention_scores", "mixed_value_layer", "tf_output")}),
                       {"transformer": {"output": None}})
    logits, (scores, values, layer_output, output) = model(
        batch["tokens"], batch["position_ids"], batch["attention_mask"], hook=hook)
    columns = model.config.output_size
    rows = torch.arange(3 * 16 * columns, dtype=torch.float64).view(3, 16, columns).cos()
    local = rows.chunk(get_model_parallel_world_size(), -1)[get_model_parallel_rank()]
    # Tensors that are cut are summed over the group; replicated ones enter once.
    partial = (logits * local).sum() + scores.clamp(min=-50).square().sum() + values.pow(3).sum()
    loss = reduce_from_model_parallel_region(partial) + layer_output.pow(3).mean() + output.pow(2).mean()
    loss.backward()
    return {"loss": loss.detach(), "logits": all_gather_last(logits.detach()), **gathered(model)}


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"checkpoint_activations": True},
    "bottleneck": {"inverted_bottleneck_mode": True, "ib_hidden_size": 16, "ib_ffn_num": 2, "ib_word_emb": 8},
    "factorised, shared": {"compress_word_emb": 8, "cross_layer_parameter_sharing": True},
    "compact vocabulary": {"map_vocab_size": 32},
    "compact vocabulary, unmapped": {"map_vocab_size": 32, "unmap_vocab_output": True, "compress_word_emb": 8},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 4])
def test_model_is_independent_of_the_model_parallel_size(size, form):
    state = tiny_glm(**FORMS[form]).double().state_dict()
    expected = model_case(state, FORMS[form])
    for result in run_distributed(model_case, size, state, FORMS[form], model_parallel_size=size):
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def head_case(state: dict[str, torch.Tensor]) -> torch.Tensor:
    model = GLMModel(tiny_config(), parallel_output=False).double()
    load_whole(model, state)
    batch = tiny_lm_batch(batch_size=4)
    pairs = {name: tensor.view(2, 2, *tensor.shape[1:]) for name, tensor in batch.items()}
    scores, _ = MultiTokenCloze(model)(pairs["tokens"], pairs["position_ids"], pairs["attention_mask"],
                                       pairs["labels"], pairs["loss_mask"].long())
    scores.logsumexp(-1).sum().backward()
    return gathered(model)["word_embeddings.weight"]


def test_a_cloze_head_on_gathered_logits():
    state = tiny_glm().double().state_dict()
    expected = head_case(state)
    for result in run_distributed(head_case, 2, state, model_parallel_size=2):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def layers_case() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    embedding, column = VocabParallelEmbedding(16, 8), ColumnParallelLinear(8, 12, gather_output=True)
    row = RowParallelLinear(12, 8, input_is_parallel=False)
    stack = torch.nn.ModuleList([embedding, column, row])
    row(torch.tanh(column(embedding(torch.arange(16))))).pow(2).sum().backward()
    return {**gathered(stack), **{f"{k} value": v for k, v in gathered(stack, "value").items()}}


@pytest.mark.parametrize("size", [2, 4])
def test_layers_start_from_the_same_values_and_have_the_same_gradients(size):
    expected = layers_case()
    for result in run_distributed(layers_case, size, model_parallel_size=size):
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6)


def random_case() -> tuple[float, float, float]:
    seed_everything(11)
    with model_parallel_rng():
        inside = torch.rand(()).item()
    outside = torch.rand(()).item()
    with model_parallel_rng():
        again = torch.rand(()).item()
    set_tracker_state(None)
    return inside, outside, again


def test_the_two_random_states():
    first, second = run_distributed(random_case, 2, model_parallel_size=2)
    assert first[0] != second[0] and first[2] != second[2], "each rank drops other attention weights"
    assert first[1] == second[1], "replicated tensors drop the same elements everywhere"
    assert first[0] != first[2], "the second state moves on"


def wrong_size_case() -> str:
    try:
        GLMModel(tiny_config(num_attention_heads=1))
    except ValueError as error:
        return str(error)
    return ""


def test_sizes_that_do_not_divide_are_named():
    for message in run_distributed(wrong_size_case, 2, model_parallel_size=2):
        assert "--num-attention-heads 1 is not divisible by --model-parallel-size 2" in message
