"""The benchmark still runs, and compares two forms of the same computation."""

from __future__ import annotations

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks.losses import LOSSES
from benchmarks.steps import StepSizes, _Step

SMALL = ["--rows=8", "--vocabulary=128", "--width=64", "--step-layers=2,1", "--step-length=16", "--step-batch=2",
         "--repeats=2", "--step-repeats=1"]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same(name: str) -> None:
    naive, _, ours = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(1, 6, 64, generator=generator) for _ in range(2))
    other = torch.randint(0, 64, (1, 6), generator=generator) if "label" in name else teacher
    gradients, values = [], []
    for loss in (naive, ours):
        leaf = student.clone().requires_grad_()
        values.append(loss(leaf, other))
        values[-1].backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_steps_are_the_same() -> None:
    step = _Step(StepSizes(2, 1, 64, 1, 16, 2, 128), torch.float32)
    torch.testing.assert_close(step._naive(), step._ours())
    torch.testing.assert_close(step._naive(), step._fused())


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        benchmarks.main(["--only=losses,fused,attention,step", *SMALL])
    finally:
        torch.set_num_threads(threads)
    rows = [line for line in capsys.readouterr().out.splitlines() if "x (" in line]
    assert len(rows) == 4 + 4 + 2 + 5
    assert not any(" nan" in row or " inf" in row for row in rows)


def test_an_unknown_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["--only=losses,speed"])
    assert "speed is no part (known: losses," in capsys.readouterr().err
