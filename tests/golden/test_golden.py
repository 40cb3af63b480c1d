"""Golden cases of the original release: a few lie in the repository, all of them beside it where that folder exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.replay import Options, compare, excuse, main, read_case, run_cases
from tests.helpers.shared import shared_path

COMMITTED = Path(__file__).parent / "cases"
#: Options to replay with. Half precision checks what rounding may do; fp64 checks the formulas.
VARIANTS = {
    "fp32": Options(),
    "fp64, checkpointing": Options("float64", checkpoint_activations=True),
    "bf16": Options("bfloat16"),
    "fp32, 2 ranks": Options(model_parallel_size=2),
    "fp64, 2 ranks, checkpointing": Options("float64", checkpoint_activations=True, model_parallel_size=2),
}



def case_folders() -> list[Path]:
    """Committed cases, and those beside the repository that are not committed."""
    folders = {path.parent.name: path.parent for path in sorted(COMMITTED.glob("*/case.json"))}
    shared = shared_path("golden")
    if shared is not None:
        for path in sorted(shared.glob("*/case.json")):
            folders.setdefault(path.parent.name, path.parent)
    return list(folders.values())


@pytest.mark.distributed
@pytest.mark.parametrize("variant", VARIANTS)
def test_cases(variant: str) -> None:
    options = VARIANTS[variant]
    folders = case_folders()
    problems, matched = [], []
    for folder, computed in zip(folders, run_cases(folders, options), strict=True):
        if computed.not_built:
            problems.append(f"{folder.name}: not built: {computed.not_built}")
            continue
        verdict = compare(computed, folder, options)
        if verdict.failures and not excuse(folder, options):
            problems.append(f"{folder.name}: {'; '.join(verdict.failures[:3])}")
        matched.append(folder.name)
    assert not problems, "\n".join(problems)
    assert len(matched) >= 10


def test_committed_cases_are_small_and_of_every_kind() -> None:
    names = [path.parent.name for path in COMMITTED.glob("*/case.json")]
    for beginning in ("glm_", "kd_ft_", "kd_pt_", "kd_ftlm_", "logitsdistil_", "tinybert_", "utility_"):
        assert any(name.startswith(beginning) for name in names), beginning
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*")) < 8e6


def test_a_deviation_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A case with another temperature than its expectation fails, by name, and with exit code 1."""
    source, target = COMMITTED / "kd_pt_kl_hard", tmp_path / "kd_pt_kl_hard"
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    text = (target / "case.json").read_text()
    temperature = next(flag for flag in read_case(source)["flags"] if flag.startswith("--distill_temperature"))
    (target / "case.json").write_text(text.replace(temperature, "--distill_temperature=1.37"))
    assert main([str(target)]) == 1
    assert "pre_loss/pt_soft_t0" in capsys.readouterr().out


def test_results_are_written_and_unbuilt_features_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, unknown = COMMITTED / "kd_pt_kl_hard", tmp_path / "kd_new"
    unknown.mkdir()
    for file in source.iterdir():
        (unknown / file.name).write_bytes(file.read_bytes())
    text = (unknown / "case.json").read_text()
    (unknown / "case.json").write_text(text.replace("--block-lm", "--not-a-flag"))
    assert main([str(source), str(unknown), "--out", str(tmp_path / "out")]) == 3
    assert "kd_new: not built yet: --not-a-flag" in capsys.readouterr().out
    assert (tmp_path / "out/kd_pt_kl_hard.npz").exists() and (tmp_path / "out/kd_pt_kl_hard.json").exists()
    assert not (tmp_path / "out/kd_new.npz").exists()


def test_expectations_are_not_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = COMMITTED / "tinybert_pt_layers_2to5", tmp_path / "unseen"
    target.mkdir()
    for file in source.iterdir():
        if not file.name.startswith("expect"):
            (target / file.name).write_bytes(file.read_bytes())
    assert main([str(target), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/unseen.npz").exists()
