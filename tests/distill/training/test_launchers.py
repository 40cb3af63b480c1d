"""The entry scripts as people start them: one run by each launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distill.training.small_runs import NO_DROPOUT, deepspeed_flags, losses, pretrain_flags, run
from tests.helpers.distributed import free_port

ROOT = Path(__file__).resolve().parents[3]


def launch(command: list[str], folder: Path) -> None:
    """Run in a process group of its own, which is ended whatever happens."""
    environment = {**os.environ, "LOCAL_SIZE": "2", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    binaries = str(Path(sys.executable).parent)
    environment["PATH"] = binaries + os.pathsep + environment["PATH"]
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end within 100 s: {process.communicate()[0]}")
    assert process.returncode == 0, output
    assert "Traceback" not in output and "Warning" not in output, output


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_two_launched_ranks_give_the_losses_of_one(world: Path, tmp_path: Path, launcher: str) -> None:
    flags = [*pretrain_flags(world, **{"train-iters": 4, "eval-interval": 0}), *NO_DROPOUT]
    script, logs = str(ROOT / "distill" / "pretrain.py"), f"--log-dir={tmp_path / 'two'}"
    if launcher == "deepspeed":
        pytest.importorskip("deepspeed")
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus=2",
                   f"--master_port={free_port()}", script, *flags, logs,
                   *deepspeed_flags(tmp_path, 2, batch_size=4)]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
                   script, *flags, logs, "--model-parallel-size=2"]
    launch(command, tmp_path)
    assert run("pretrain", [*flags, f"--log-dir={tmp_path / 'one'}"]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
