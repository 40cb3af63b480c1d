from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.replay_data import Report, compare, main, replay_file
from tests.helpers.shared import require_shared

DATA_FILES = ("tokenization", "blocklm", "span_sampling", "block_dataset", "splits_and_samplers", "stats")


@pytest.mark.parametrize("name", DATA_FILES)
def test_data_files(name: str, tmp_path: Path) -> None:
    file = require_shared("golden_data", f"{name}.json")
    report = replay_file(file, tmp_path)
    assert not report.differences
    assert json.loads((tmp_path / file.name).read_text()).keys() == json.loads(file.read_text()).keys()


def test_a_changed_value_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GLMKD_SHARED", str(require_shared()))
    case = json.loads(require_shared("golden_data", "span_sampling.json").read_text())
    case["placement"][3]["spans"][0][1] += 1
    (tmp_path / "other_name.json").write_text(json.dumps(case))
    assert main([str(tmp_path / "other_name.json")]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main([str(tmp_path / "other_name.json"), str(require_shared("golden_data", "span_sampling.json"))]) == 1


@pytest.mark.parametrize(("computed", "expected", "agree"), [
    ({"a": 1}, {"a": 1}, True), ({"a": 1}, {"a": 2}, False), ({"a": 1}, {"a": 1, "b": 2}, False),
    ({"a": 1, "b": 2}, {"a": 1}, False), ([1, 2], [1, 2, 3], False), ((1, 2), [1, 2], True),
    (1.0 + 1e-8, 1.0, True), (1.00001, 1.0, False), ({"tolerance": 0.01, "x": [1.005]}, {"tolerance": 0.01, "x": [1.0]},
                                                    True),
    (True, 1, False), (None, 0, False), (float("nan"), 1.0, False), ({"answers": [2, 1]}, {"answers": [1, 2]}, True),
    ({"ids": [2, 1]}, {"ids": [1, 2]}, False)])
def test_comparison(computed: object, expected: object, agree: bool) -> None:
    assert (not compare(computed, expected, Report()).differences) == agree
