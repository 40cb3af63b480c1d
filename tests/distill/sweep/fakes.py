"""Sweeps of fake runs (see ``fake_run.py``): the launcher is the real one, what it starts is not."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from distill.sweep import runner
from distill.sweep.compose import task_setting
from distill.sweep.flags import SweepArgs, parse
from distill.sweep.plan import with_point
from distill.sweep.types import StageCommand, TaskPlan

FAKE = Path(__file__).with_name("fake_run.py")


def fake_plan(sweep: SweepArgs, *, seed: int | None = None, point: Mapping[str, str],
              only: int) -> list[TaskPlan]:
    """The task has one stage, and one for every ``--again_K__``; forwarded flags tell the fake runs what to do.

    ``--behaviour_<task>`` and ``--behaviour_seed<seed>`` are for one task or seed; ``--score_<value of --lr>`` and
    ``--pause_<value of --lr>`` are for that value. ``--cut=<folder>`` has a checkpoint cut for each task before.
    """
    sweep = with_point(sweep, point)
    flags = dict(sweep.forwarded)
    if flags.get("--lr") in ("impossible", f"impossible_{sweep.tasks[only]}"):
        raise ValueError(f"--lr={flags['--lr']} is no number")
    plans = []
    for task in sweep.tasks[only:only + 1]:
        setting = task_setting(sweep, only)
        own = {"--behaviour": flags.get(f"--behaviour_seed{seed}", flags.get(f"--behaviour_{task}", "ok")),
               **{flag: flags.get(f"{flag}_{flags.get('--lr')}", flags.get(flag)) for flag in ("--score", "--pause")}}
        stages = []
        for stage in range(1 + len({number for number, _ in sweep.stage_flags})):
            name = "-".join([task, f"s{seed}", *point.values(), str(stage)])
            rest = {**flags, **own, "--save": f"{flags['--data-root']}/runs", "--experiment-name": name,
                    "--diary": f"{flags['--data-root']}/diary.jsonl"}
            if stage:
                rest.update(pair for number, pair in sweep.stage_flags if number == stage)
            launcher = (sys.executable, str(FAKE), "--master_port=1", f"--include={setting.include}")
            pairs = tuple((flag, value) for flag, value in rest.items() if value is not None)
            cut = [(f"{flags['--cut']}/{task}", f"{flags['--cut']}/{task}_MP2")] if "--cut" in flags else []
            stages.append(StageCommand(task, stage, (("NCCL_DEBUG", "info"),), launcher, "--script", pairs, None, "",
                                       f"{rest['--save']}/{name}", tuple(cut)))
        plans.append(TaskPlan(task, tuple(stages), setting.gpus, setting.devices))
    return plans


class Sweep:
    """A sweep below a temporary folder."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.root = folder
        self.folder = folder / "study"
        self.words = [f"--data-root={folder}", "--gpus=0", "--retry_wait=0", *words]

    def run(self, *words: str) -> tuple[int, str]:
        """Start it; the exit status and what was printed."""
        return self.call([*self.words, f"--study={self.folder}", *words])

    def resume(self, *words: str) -> tuple[int, str]:
        return self.call([f"--resume={self.folder}", *words])

    @staticmethod
    def call(words: Sequence[str]) -> tuple[int, str]:
        out = io.StringIO()
        code = runner.run_sweep(parse(words), plan=fake_plan, console=Console(file=out, width=200))
        return code, out.getvalue()

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))

    @property
    def trials(self) -> dict[str, list[dict]]:
        """The stages of every trial."""
        found: dict[str, list[dict]] = {}
        for row in self.results["trials"]:
            found.setdefault(row["trial"], []).append(row)
        return found

    @property
    def diary(self) -> list[dict]:
        path = self.root / "diary.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def started(self) -> list[str]:
        """Names of the runs, in the order of their starts."""
        return [line["name"] for line in self.diary if line["what"] == "begin"]

    def intervals(self) -> list[tuple[float, float, str, str]]:
        """(begin, end, name, devices) of every run that has come to its end."""
        begun, found = {}, []
        for line in self.diary:
            if line["what"] == "begin":
                begun[line["pid"]] = line["time"]
            elif line["pid"] in begun:
                found.append((begun.pop(line["pid"]), line["time"], line["name"], line["include"]))
        return found


def plain(text: str) -> str:
    """Without runs of spaces and the lines of tables."""
    return re.sub(r"[\s│┃]+", " ", text)
