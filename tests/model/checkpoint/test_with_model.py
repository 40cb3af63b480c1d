"""Checkpoints of the real model: the table by path agrees with its parameters, and logits survive resharding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint.load import load_backbone
from model.checkpoint.reshard import change_mp, default_spec
from model.checkpoint.save import module_payload, save_checkpoint
from model.glm import GLMModel
from model.heads import MultiTokenCloze, SequenceClassification
from model.parallel import groups
from model.parallel.sharding import shard_specs
from tests.helpers.distributed import run_distributed
from tests.helpers.tiny_model import tiny_config, tiny_lm_batch


def loaded_logits(path: str) -> torch.Tensor:
    """Whole logits [b, s, v] of the model that this group of ranks loads from ``path``."""
    torch.manual_seed(99)
    model = GLMModel(tiny_config(), parallel_output=False).eval()
    report = load_backbone(model, path, mp_rank=groups.get_model_parallel_rank(),
                           mp_size=groups.get_model_parallel_world_size())
    assert report.missing == report.unexpected == report.resized == []
    batch = tiny_lm_batch()
    with torch.no_grad():
        return model(batch["tokens"], batch["position_ids"], batch["attention_mask"])[0]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_checkpoint(tmp_path / "run", "10", module_payload(GLMModel(tiny_config())), mp_rank=0, mp_size=1,
                    is_first_rank=True, agree=lambda problem: problem)
    return tmp_path / "run"


def test_table_agrees_with_the_parameters() -> None:
    model = SequenceClassification(GLMModel(tiny_config(), output_predict=False), 32, 3)
    specs = shard_specs(model)
    assert {spec.is_sharded for spec in specs.values()} == {True, False}
    assert specs == {name: default_spec(name, parameter.dim()) for name, parameter in model.named_parameters()}


def test_a_cloze_head_is_saved_under_the_names_of_the_backbone() -> None:
    head = MultiTokenCloze(GLMModel(tiny_config()))
    payload = module_payload(head)
    assert set(payload["module"]) == set(head.model.state_dict())
    assert payload["shard_specs"]["word_embeddings.weight"] == [0, 1]
    assert payload["shard_specs"]["transformer.layers.0.attention.query_key_value.bias"] == [0, 3]


@pytest.mark.distributed
def test_logits_survive_every_change_of_size(saved: Path) -> None:
    """Read at 1 and, resharded while loading or by change_mp, at 2."""
    reference = loaded_logits(str(saved))
    two = change_mp(saved, 2)
    assert torch.equal(loaded_logits(change_mp(two, 1)), reference)
    for path in (str(saved), two, change_mp(two, 4)):
        for logits in run_distributed(loaded_logits, 2, path, model_parallel_size=2):
            torch.testing.assert_close(logits, reference, rtol=1e-5, atol=1e-5)
