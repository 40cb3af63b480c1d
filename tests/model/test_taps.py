from __future__ import annotations

import pytest

from model.taps import TapRequest, has_tap, layer_hook, merge_hooks, tapped


def test_request_is_sorted_without_repetition_and_fills_the_leaves():
    hook = merge_hooks(layer_hook({1: ("value_layer", "tf_output"), 0: "tf_output"}),
                       layer_hook({1: "tf_output"}), {"logits_parallel": None})
    request = TapRequest.from_hook(hook, num_layers=2)
    assert request.names == ("logits_parallel", "transformer.layers.0.tf_output", "transformer.layers.1.tf_output",
                             "transformer.layers.1.value_layer")
    request.fill(hook)
    values = ["l", "t0", "t1", "v1"]
    assert tapped(values, hook, "logits_parallel") == "l"
    assert tapped(values, hook, "transformer", "layers", 1, "value_layer") == "v1"
    assert TapRequest.from_hook(hook, 2) == request, "the values of the leaves must not matter"


def test_merge_leaves_its_inputs_alone():
    first, second = layer_hook({0: "tf_output"}), layer_hook({0: "value_layer"})
    merge_hooks(first, second)
    assert first == layer_hook({0: "tf_output"})
    assert second == layer_hook({0: "value_layer"})


def test_has_tap():
    hook = layer_hook({0: "tf_output"})
    assert has_tap(hook, "transformer", "layers", 0, "tf_output")
    assert not has_tap(hook, "transformer", "layers", 0)
    assert not has_tap(hook, "transformer", "output")
    assert not has_tap(None, "transformer")


@pytest.mark.parametrize(("hook", "message"), [
    ({"logits": None}, "logits_parallel"),
    ({"transformer": {"outputs": None}}, "transformer.outputs"),
    (layer_hook({2: "tf_output"}), "layers 0 to 1"),
    (layer_hook({0: "attention"}), "attention_scores"),
])
def test_unknown_names_are_refused_with_the_known_ones(hook, message):
    with pytest.raises(ValueError, match=message):
        TapRequest.from_hook(hook, num_layers=2)
