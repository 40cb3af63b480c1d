"""docs/methods.md and the tables of README.md are what the code says; what is found out by trying is right."""

from __future__ import annotations

import types

import pytest

import distill.distill_model
from distill.distill_model import METHODS
from distill.multi_teacher_model import COMBINERS
from scripts import describe_methods as page
from scripts.describe_methods import PAGE, README

REWRITE = "rewrite it: python -m scripts.describe_methods"


def test_the_page_of_methods_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page.methods_page(), REWRITE


def test_the_tables_of_the_readme_are_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert page.with_tables(text) == text, REWRITE


def test_every_method_and_combiner_is_described_once() -> None:
    methods = [name for description in page.describe_methods() for name in description.names]
    combiners = [name for description in page.describe_combiners() for name in description.names]
    own = [name for name, cls in METHODS.items() if cls.__module__.startswith("distill.methods.")]
    assert sorted(methods) == sorted(own) and len(methods) == 21
    assert sorted(combiners) == sorted(COMBINERS)
    table = distill.distill_model.__doc__.replace(",", " ").split()
    assert [name for name in methods if name not in table] == []


def test_requirements_are_found_by_trying() -> None:
    found = {description.names[0]: description for description in page.describe_methods()}
    assert found["kd"].sizes == found["annealing_kd"].sizes == ""
    assert found["minilm"].sizes == "equal heads" and found["alp_kd"].sizes == "equal widths"
    assert found["tinybert"].sizes == "equal heads, S ≤ T" and found["universal_kd"].sizes == "S ≥ 2"
    assert found["mgskd"].sizes == "S ≤ T, parts divide the widths"
    assert found["lrc_bert"].coupled_cell == "yes" and found["tinybert"].coupled_cell == ""
    assert found["logitsdistil"].coupled_cell == "with `--logitsdistil_top_n`"


def test_the_docstring_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("described")
    monkeypatch.setitem(page.sys.modules, "described", module)
    cls = type("X", (), {"__module__": "described"})
    module.__doc__ = ("X-KD (A et al. 2020, arXiv:2001.00001; B 2021): one thing\nand another.\n\n    L = a * b < c\n\n"
                      "See :func:`there`, ``--x`` and a * b.\n")
    assert page._docstring(cls) == (
        "X-KD", "[A et al. 2020](https://arxiv.org/abs/2001.00001); B 2021", "One thing and another",
        "    L = a * b < c\n\nSee `there`, `--x` and a \\* b.")
    module.__doc__ = "Just a title.\n"
    with pytest.raises(ValueError, match="described: the docstring has to begin"):
        page._docstring(cls)


def test_a_readme_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="needs one place <!-- methods-table -->"):
        page.with_tables("# Title\n")
