"""The pictures of docs/ are what the code draws now, and show what the models do."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

from distill.layer_maps import uniform_layer_map
from distill.student import METHODS
from model.config import ModelConfig
from model.glm import GLMModel
from scripts import draw_pictures as pictures
from scripts.describe_methods import describe_methods
from scripts.documented_commands import ROOT
from scripts.svg import Picture

REWRITE = "rewrite them: python -m scripts.draw_pictures"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_file_is_up_to_date(name: str) -> None:
    text = (pictures.FOLDER / name).read_text(encoding="utf-8")
    assert text == pictures.PICTURES[name]().svg(), REWRITE
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "prefers-color-scheme:dark" in text


def test_there_are_no_other_files() -> None:
    assert {path.name for path in pictures.FOLDER.iterdir()} == set(pictures.PICTURES), REWRITE


def test_places_named_in_the_picture_exist() -> None:
    named = set(re.findall(r"\b(?:distill/[\w/.]+|data_utils|tasks)\b", pictures.batch_picture().svg()))
    assert named >= {"distill/training/loop.py", "distill/methods", "distill/multi_teacher"}
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_the_mask_is_that_of_the_model() -> None:
    """A change of a token changes the outputs of exactly those positions that the picture says see it."""
    row, _ = pictures.example_row()
    size = len(row.tokens)
    cells = re.findall(r'class="(off|solid-student|solid-teacher)" x="[\d.]+" y="[\d.]+" width="25"',
                       pictures.mask_picture().svg())
    assert len(cells) == size ** 2
    drawn = torch.tensor([cell != "off" for cell in cells]).view(size, size)
    torch.manual_seed(0)
    model = GLMModel(ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=2, max_position_embeddings=32,
                                 vocab_size=128, attention_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0)).eval()
    tokens, positions = torch.tensor(row.tokens)[None], torch.tensor(row.position_ids)[None]
    with torch.no_grad():
        before = model(tokens, positions, torch.tensor([row.sep]))[0][0]
        for place in range(size):
            changed = tokens.clone()
            changed[0, place] = 100
            after = model(changed, positions, torch.tensor([row.sep]))[0][0]
            assert torch.equal((after - before).abs().amax(-1) > 0, drawn[:, place]), place


def test_the_maps_are_those_of_the_code() -> None:
    text = pictures.maps_picture().svg()
    for student, teacher in pictures.MAPS:
        assert f"{teacher} → {student}: seg = {', '.join(map(str, uniform_layer_map(student, teacher)))}<" in text
    assert text.count('class="edge-loss"') == sum(student + 1 for student, _ in pictures.MAPS)


def test_what_a_method_looks_at_is_what_it_taps() -> None:
    described = {one.names[0]: one.commands[0] for one in describe_methods()}

    def looks(name: str) -> tuple[pictures.Looks, pictures.Looks]:
        return pictures.looks(METHODS[name], described[name].args, described[name].stage)

    assert looks("kd") == ({}, {})
    assert looks("minilm") == ({"attention": {6}, "parts": {6}}, {"attention": {12}, "parts": {12}})
    student, teacher = looks("tinybert")
    assert student == {"attention": set(range(1, 7)), "state": set(range(7))}
    assert teacher == {"attention": {2, 4, 6, 8, 10, 12}, "state": {0, 2, 4, 6, 8, 10, 12}}
    text = pictures.looks_picture().svg()
    assert [name for name in described if f">{name}</text>" not in text] == []


def test_text_is_escaped() -> None:
    picture = Picture(10, 10, "a < b")
    picture.text(1, 1, "x & y < z")
    root = ElementTree.fromstring(picture.svg())
    assert root[0].text == "a < b" and root[-1].text == "x & y < z"
