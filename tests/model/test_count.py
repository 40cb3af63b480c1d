"""Numbers of parameters: the published tables, and models that were built (on the meta device, without memory)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.count import count_parameters
from model.glm import GLMModel
from tests.helpers.shared import require_shared

BERT, GPT2, CHINESE = 30592, 50304, 50048
IBGLM = dict(inverted_bottleneck_mode=True, ib_hidden_size=1024, ib_ffn_num=1, ib_word_emb=128)
MOBILEBERT = dict(inverted_bottleneck_mode=True, ib_hidden_size=128, ib_ffn_num=4, ib_word_emb=128)
#: name: (layers, width, heads, positions), vocabulary, options, parameters of a layer, of the embedding block, in all
PUBLISHED: dict[str, tuple[tuple[int, int, int, int], int, dict[str, Any], int, int, int]] = {
    "base": ((12, 768, 12, 512), BERT, {}, 7_087_872, 23_494_656, 109_338_624),
    "large": ((24, 1024, 16, 512), BERT, {}, 12_596_224, 31_326_208, 334_688_256),
    "large Chinese": ((24, 1024, 16, 1024), CHINESE, {}, 12_596_224, 51_249_152, 355_659_776),
    "410M": ((30, 1024, 16, 512), BERT, {}, 12_596_224, 31_326_208, 410_265_600),
    "515M": ((30, 1152, 18, 512), BERT, {}, 15_940_224, 35_241_984, 514_632_960),
    "2B": ((36, 2048, 32, 1024), GPT2, {}, 50_358_272, 103_022_592, 1_920_122_880),
    "10B": ((48, 4096, 64, 1024), GPT2, {}, 201_379_840, 206_045_184, 9_880_682_496),
    "10B Chinese": ((48, 4096, 64, 1024), CHINESE, {}, 201_379_840, 204_996_608, 9_879_633_920),
    "tiny6": ((6, 768, 12, 512), BERT, {}, 7_087_872, 23_494_656, 66_811_392),
    "tiny6, 16 heads": ((6, 768, 16, 512), BERT, {}, 7_087_872, 23_494_656, 66_811_392),
    "tiny6, width 384": ((6, 384, 12, 512), BERT, {}, 1_774_464, 11_747_328, 22_788_864),
    "tiny4": ((4, 768, 12, 512), BERT, {}, 7_087_872, 23_494_656, 52_635_648),
    "18-layer assistant": ((18, 896, 14, 512), BERT, {}, 9_645_440, 27_410_432, 201_949_440),
    "IB-GLM, 24 layers": ((24, 512, 4, 512), BERT, IBGLM, 12_074_496, 15_860_224, 306_174_464),
    "IB-GLM, 12 layers": ((12, 512, 4, 512), BERT, IBGLM, 12_074_496, 15_860_224, 161_280_512),
    "IB-GLM, 6 layers": ((6, 512, 4, 512), BERT, IBGLM, 12_074_496, 15_860_224, 88_833_536),
    "MobileBERT, 24 layers": ((24, 512, 4, 512), BERT, MOBILEBERT, 874_368, 15_860_224, 37_371_392),
    "MobileBERT, 12 layers": ((12, 512, 4, 512), BERT, MOBILEBERT, 874_368, 15_860_224, 26_878_976),
    "MobileBERT, 6 layers": ((6, 512, 4, 512), BERT, MOBILEBERT, 874_368, 15_860_224, 21_632_768),
    "ALBERT-style tiny6": ((6, 768, 12, 512), BERT, dict(compress_word_emb=128, cross_layer_parameter_sharing=True),
                           7_087_872, 4_113_280, 11_990_656),
    "tiny6, embeddings 384": ((6, 768, 12, 512), BERT, dict(compress_word_emb=384), 7_087_872, 12_338_304, 55_655_040),
    "tiny6, vocabulary 0.5": ((6, 768, 12, 512), BERT, dict(map_vocab_size=15360), 7_087_872, 11_796_480, 55_113_216),
    "tiny6, vocabulary 0.5, embeddings 384": (
        (6, 768, 12, 512), BERT, dict(map_vocab_size=15360, compress_word_emb=384), 7_087_872, 6_489_216, 49_805_952),
}


def config_of(name: str, **changes: Any) -> ModelConfig:
    sizes, vocab_size, options = PUBLISHED[name][:3]
    return replace(ModelConfig(*sizes, vocab_size, **options), **changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    layer, embeddings, total = PUBLISHED[name][3:]
    count = count_parameters(config_of(name))
    assert (count.layer, count.embeddings, count.total) == (layer, embeddings, total)


def test_every_published_row_is_here() -> None:
    text = (require_shared("spec") / "configs.md").read_text(encoding="utf-8")
    section = text[text.index("## 2."):text.index("## 3.")]
    rows = {tuple(int(number.replace(",", "")) for number in (cells[3], *cells[4:7])): cells[1].strip()
            for cells in (line.split("|") for line in section.splitlines() if line.startswith("| "))
            if cells[3].strip().isdigit()}
    ours = {(config_of(name).num_word_rows, layer, embeddings, total)
            for name, (_, _, _, layer, embeddings, total) in PUBLISHED.items()}
    assert set(rows) == ours and len(ours) == len(PUBLISHED) - 1  # two rows differ in their heads only


@pytest.mark.parametrize("name", ["tiny4", "2B", "IB-GLM, 6 layers", "MobileBERT, 6 layers", "ALBERT-style tiny6",
                                  "tiny6, vocabulary 0.5, embeddings 384"])
@pytest.mark.parametrize("block_position_encoding", [True, False])
def test_a_built_model_has_as_many(name: str, block_position_encoding: bool) -> None:
    config = config_of(name, num_layers=2, block_position_encoding=block_position_encoding)
    with torch.device("meta"):
        model = GLMModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(config).total
