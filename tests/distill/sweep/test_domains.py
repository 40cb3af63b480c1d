"""Values to search, as they are written on the command line."""

from __future__ import annotations

import pytest

from distill.sweep.domains import Domain, parse_domain


@pytest.mark.parametrize(("text", "domain"), [
    ("grid:1e-5,2e-5", Domain("grid", ("1e-5", "2e-5"))), ("choice: a, b ", Domain("choice", ("a", "b"))),
    ("float:1e-6..5e-5:log", Domain("float", low=1e-6, high=5e-5, log=True)),
    ("float:-1..0.5", Domain("float", low=-1.0, high=0.5)), ("int:1..64:log", Domain("int", low=1, high=64, log=True)),
    ("15", None), ("16;32", None), ("host:0,1", None), ("a/b:c/d", None), ("", None)])
def test_a_text_is_a_domain_or_an_ordinary_value(text: str, domain: Domain | None) -> None:
    assert parse_domain("--x", text) == domain


@pytest.mark.parametrize(("text", "message"), [
    ("grid:1,,2", "a value is empty"), ("grid:", "a value is empty"), ("grid:1,2,1", "twice"),
    ("grid:1;2,3", "one value a task"), ("float:1..2..3", "no range"), ("float:1", "no range"),
    ("int:1.5..2", "no range"), ("float:1..2:lin", "no range"), ("float:nan..1", "no range"),
    ("float:1..inf", "no range"), ("float:2..1", "not below"), ("int:3..3", "not below"),
    ("float:0..1:log", "starts above 0")])
def test_a_broken_domain_is_named_with_its_flag(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_domain("--lr", text)
    assert str(error.value).startswith(f"--lr={text}")


def test_values_are_written_as_commands_take_them() -> None:
    assert Domain("float", low=0, high=1).text(2.34190000001e-05) == "2.3419e-05"
    assert Domain("int", low=1, high=9).text(4) == "4"
    assert Domain("grid", ("1e-5",)).text("1e-5") == "1e-5"
