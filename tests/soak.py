"""Kills runs at drawn moments, resumes them, and compares with the run that nothing happened to, bit for bit.

    python -m tests.soak --seed 1 --runs 50 --seconds 900
    python -m tests.soak --seed 1 --only 17 --keep      one draw again, its folder kept

A draw is a configuration (stage, method, combiner, ranks, model-parallel size, engine, precision, checkpointing,
accumulation, data workers) and one or two faults; they follow from the seed and the number of the draw (but whichever
rank comes first builds the token cache, so a fault counted in its bytes may miss). The run is tiny and takes one or two
seconds. Prints a table and a summary; the exit code is 1 if anything was different, hung, left processes behind or
could not be read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from distill.distill_model import METHODS
from distill.training.setup import STOPPED
from model.checkpoint.files import safe_load
from model.checkpoint.naming import TRAINING_TRACKER, read_tracker
from tests.distill.training.small_runs import deepspeed_flags, finetune_flags, pretrain_flags, write_world
from tests.helpers.distributed import free_port
from tests.helpers.faults import Fault, Nursery, RankEnd

TEACHER = ("--teacher_random_para", "--teacher_load_pretrained=none", "--teacher_num_layers=3",
           "--teacher_hidden_size=32", "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=64")
#: What a method needs beside the common flags; {} stands for "pt" or "ft".
OPTIONS = {
    "rail_kd": ("--rail_kd_u=8",), "mgskd": ("--mgskd_multi_heads=4",),
    "minilmv2": ("--minilmv2_relation_heads=8", "--minilmv2_teacher_layer=-1"),
    "mixbaseline": ("--mixbaseline_inter_bl=TinyBERT,MiniLMv2", "--minilmv2_relation_heads=8",
                    "--minilmv2_teacher_layer=-1"),
    "annealing_kd": ("--distill_{}_soft_mse",), "continuation_kd": ("--distill_{}_soft_mse", "--distill_{}_hard"),
    "diito": ("--forward_repeat_num=1", "--diito_alpha_mlm=0"),
    "sid": ("--sid_lim_e=none", "--sid_accumulate_t=100"), "theseus": ("--mt_disable_operation=1",)}
#: Methods whose teacher gives no logits: they learn from the labels.
HARD = {"theseus"}
COMBINERS = {
    "avg": ("--avgmt_sum_loss",), "mt_bert": ("--mt_has_loss",), "uncertainty": ("--uncertainty_inter_entropy",),
    "rl_kd": ("--mt_has_loss", "--rl_kd_semantic_model=0")}
#: Fields of records that depend on the clock or the machine.
CLOCK = ("second", "ms_", "elapsed", "memory", "time", "throughput", "gib")
KINDS = ("kill", "kill", "kill", "kill", "terminate", "raise", "full", "worker")
COLUMNS = ("draw", "stage", "method", "ranks", "engine", "dtype", "ckpt", "acc", "workers", "faults", "result", "s")
WIDTHS = (4, 8, 20, 7, 7, 5, 4, 3, 7, 44, 34, 5)


class Refused(Exception):
    """The configuration does not exist: the command says so."""


class Different(Exception):
    """What must not happen, in words."""


@dataclass(frozen=True)
class Setting:
    """A configuration."""

    stage: str
    method: str | None
    combiner: str | None
    ranks: int
    model_parallel: int
    engine: str
    bf16: bool
    checkpointing: bool
    accumulation: int
    workers: int
    every_step: bool

    def flags(self, folder: Path) -> list[str]:
        """The command line, with the world and the results below ``folder``."""
        batch_size = 4 if self.ranks // self.model_parallel == 1 else 2
        common: dict[str, Any] = {"batch-size": batch_size, "num-workers": self.workers,
                                  "model-parallel-size": self.model_parallel}
        world = folder / "world"
        if self.stage == "pretrain":
            flags = pretrain_flags(world, **{
                **common, "train-iters": 8, "save-interval": 1 if self.every_step else 3, "eval-interval": 2})
        else:
            flags = finetune_flags(world, **{
                **common, "save-epoch": 1, "save_interval_time": 1e-9 if self.every_step else 0})
        if self.engine == "plain":
            flags += [f"--gradient-accumulation-steps={self.accumulation}", *(["--bf16"] if self.bf16 else [])]
        else:
            flags += deepspeed_flags(folder, int(self.engine[-1]), batch_size=batch_size,
                                     accumulation=self.accumulation, bf16=self.bf16)
        if self.checkpointing:
            flags.append("--checkpoint-activations")
        if self.method:
            kind = "pt" if self.stage == "pretrain" else "ft"
            loss = "hard" if self.method in HARD else "soft"
            flags += [*TEACHER, f"--student_model={self.method}", f"--distill_{kind}_{loss}",
                      *(option.format(kind) for option in OPTIONS.get(self.method, ())),
                      *(["--teacher_bf16"] if self.bf16 else [])]
        if self.combiner:
            flags += ["--mt_num_layers=3:3:3", f"--multi_teacher_model={self.combiner}", *COMBINERS[self.combiner]]
        return [*flags, f"--save={folder / 'save'}"]

    def cells(self) -> list[str]:
        return [self.stage, (self.method or "none") + (f"+{self.combiner}" if self.combiner else ""),
                f"{self.ranks} (mp{self.model_parallel})", self.engine, "bf16" if self.bf16 else "fp32",
                "yes" if self.checkpointing else "no", str(self.accumulation), str(self.workers)]


def draw_setting(random: Random) -> Setting:
    """One configuration; single ranks and pairs come equally often."""
    method = random.choice([None, *sorted(METHODS)])
    ranks = random.choice((1, 2))
    engine = random.choice(("plain", "plain", "zero-0", "zero-1", "zero-2"))
    return Setting(
        stage=random.choice(("pretrain", "finetune")), method=method,
        combiner=random.choice(sorted(COMBINERS)) if method and random.random() < 0.25 else None,
        ranks=ranks, model_parallel=random.choice((1, 2)) if ranks == 2 else 1, engine=engine,
        bf16=engine != "zero-0" and random.random() < 0.4, checkpointing=random.random() < 0.4,
        accumulation=random.choice((1, 2)), workers=random.choice((0, 0, 1, 2)), every_step=random.random() < 0.5)


def draw_fault(random: Random, setting: Setting, ends: Sequence[RankEnd], kinds: Sequence[str],
               share: float = 1.0) -> Fault:
    """A moment somewhere in the first part of the run that ``ends`` describes (``share`` of it)."""
    def until(count: int) -> int:
        return random.randint(1, max(1, int(count * share)))

    what = random.choice([kind for kind in kinds if kind != "worker" or setting.workers])
    rank = random.randrange(setting.ranks)
    if what == "worker":
        rank = 0  # the others of a model-parallel group load no data
    end = ends[rank]
    at = "step" if what == "worker" else "bytes" if what == "full" else random.choice(("step", "change", "bytes"))
    if not end.written:
        at, what = "step", "kill" if what == "full" else what
    if at == "step":
        delay = random.choice((0.0, random.uniform(0.001, 0.06)))
        return Fault(what, at, until(end.steps), rank, delay if what in ("kill", "terminate") else 0.0)
    return Fault(what, at, until(end.changes if at == "change" else end.written), rank)


class Soak:
    """The runs of one seed."""

    def __init__(self, nursery: Nursery, folder: Path, seed: int, kinds: Sequence[str] = KINDS) -> None:
        self.nursery, self.folder, self.seed, self.kinds = nursery, folder, seed, kinds
        self.faults: Counter[str] = Counter()
        self._world = write_world(_made(folder / "world"))

    def run(self, number: int, note: Callable[[Setting, list[Fault]], None]) -> str:
        """One draw; returns how it went, for the table: "equal …", or "missed" where the fault did not come about.

        Raises:
            Refused: the configuration does not exist. Different: something went wrong.
        """
        random = Random(f"{self.seed}/{number}")
        setting, faults = draw_setting(random), []
        note(setting, faults)
        whole, broken = (self._prepare(number, name) for name in ("whole", "broken"))
        ends = self._command(setting, whole)
        if any(end.code == 2 for end in ends):
            raise Refused(" | ".join(line for end in ends for line in end.output.splitlines() if "error:" in line))
        expect_success(ends)
        found = []
        for _ in range(random.choice((1, 1, 2))):
            # A resumed run is shorter.
            faults.append(draw_fault(random, setting, ends, self.kinds, 0.4 if faults else 1.0))
            note(setting, faults)
            codes = [end.code for end in self._command(setting, broken, faults[-1], load=len(faults) > 1)]
            if not any(codes):  # whichever rank is first builds the cache
                faults.pop()
                break
            self.faults[faults[-1].what] += 1
            found.append("/".join(map(str, codes)))
            check_codes(faults[-1], codes)
            check_readable(broken)
        resumed_at = run_folder(broken) and read_tracker(run_folder(broken), TRAINING_TRACKER)
        expect_success(self._command(setting, broken, load=True))
        compare(whole, broken)
        if not found:
            return "missed"
        return f"equal from {resumed_at or 'the start'} ({', '.join(found)})"

    def _prepare(self, number: int, name: str) -> Path:
        folder = _made(self.folder / f"{number}-{name}")
        shutil.copytree(self._world, folder / "world")
        return folder

    def _command(self, setting: Setting, folder: Path, fault: Fault | None = None, load: bool = False) -> list[RankEnd]:
        flags, run = setting.flags(folder), run_folder(folder)
        if load and run is not None:
            flags.append(f"--load={run}")
        try:
            ends = self.nursery.run(setting.stage, flags, folder, ranks=setting.ranks, port=free_port(), fault=fault)
        except TimeoutError as error:
            raise Different(f"hung: {error}") from error
        if any(end.left_behind for end in ends):
            raise Different("processes were left behind")
        return ends


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def run_folder(folder: Path) -> Path | None:
    """The folder that the run made below ``--save``; None if it was killed before. The last one, if it began twice."""
    save = folder / "save"
    return max(save.iterdir(), default=None) if save.is_dir() else None


def expect_success(ends: Sequence[RankEnd]) -> None:
    for rank, end in enumerate(ends):
        if end.code:
            raise Different(f"rank {rank} ended with {end.code}: {end.output[-3000:]}")


def check_codes(fault: Fault, codes: Sequence[int]) -> None:
    """Whether each rank ended as it should: nobody goes on, and a stop that was asked for is no failure."""
    if fault.what == "terminate" and fault.at == "step" and any(code != STOPPED for code in codes):
        raise Different(f"SIGTERM gave the exit codes {codes}")
    # At one of the last files of a rank, the others may have nothing left to do with it.
    ended = [rank for rank, code in enumerate(codes) if code == 0 and (fault.at == "step" or rank == fault.rank)]
    if fault.what == "kill" and -9 not in codes or ended:
        raise Different(f"exit codes {codes} after {fault}")


def check_readable(folder: Path) -> None:
    """Every file under the name of a checkpoint is whole."""
    for file in sorted(folder.glob("save/*/*/*.pt")):
        if file.parent.suffix != ".new":
            safe_load(file)


def compare(whole: Path, broken: Path) -> None:
    """Records, results, and the last training state: weights, optimizer, random states.

    Raises:
        Different: with the first difference.
    """
    left, right = (_made_by(folder) for folder in (whole, broken))
    for kind, found in left["records"].items():
        if found != right["records"].get(kind):
            raise Different(f"record {kind}: {found} / {right['records'].get(kind)}")
    if left["records"].keys() != right["records"].keys():
        raise Different(f"records {sorted(right['records'].keys() ^ left['records'].keys())}")
    for name in ("results", "tag", "files"):
        if left[name] != right[name]:
            raise Different(f"{name}: {left[name]} / {right[name]}")
    for name in left["files"]:
        one, other = (safe_load(folder["folder"] / name) for folder in (left, right))
        for path, values in differences(one, other):
            raise Different(f"{name}, {path}: {values}")


def _made_by(folder: Path) -> dict[str, Any]:
    run = run_folder(folder)
    if run is None:
        raise Different(f"{folder} has no run")
    tag = read_tracker(run, TRAINING_TRACKER)
    state = run / str(tag)
    results = {file.name: json.loads(file.read_text()) for file in sorted(run.rglob("*results.json"))}
    return {"records": records(run), "results": results, "tag": tag, "folder": state,
            "files": sorted(path.name for path in state.iterdir()) if tag else []}


def records(run: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What was measured, by kind and iteration; of what was done twice the last."""
    (path,) = run.rglob("metrics.jsonl")
    found = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["kind"] in ("start", "end"):
            continue
        key = (record["kind"], record.get("iteration"), record.get("epoch") if record["kind"] == "metrics" else None)
        found[key] = {name: value for name, value in record.items() if not any(part in name for part in CLOCK)}
    return found


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where two nested values of a checkpoint differ in any bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one, other):
            yield path, f"tensors {list(one.shape)} differ"
    elif type(one) is not type(other):
        yield path, f"{type(one).__name__} / {type(other).__name__}"
    elif isinstance(one, dict):
        for name in sorted(one.keys() | other.keys(), key=str):
            if name not in one or name not in other:
                yield f"{path}/{name}", "only one has it"
            else:
                yield from differences(one[name], other[name], f"{path}/{name}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield path, f"{len(one)} / {len(other)} values"
        for index, pair in enumerate(zip(one, other)):
            yield from differences(*pair, f"{path}/{index}")
    elif one != other:
        yield path, f"{one!r} / {other!r}"


def _fault_text(faults: Sequence[Fault]) -> str:
    parts = []
    for fault in faults:
        delay = f"+{fault.delay * 1000:.0f}ms" if fault.delay else ""
        rank = "" if fault.rank is None else f" r{fault.rank}"
        parts.append(f"{fault.what} {fault.at} {fault.count}{delay}{rank}")
    return ", ".join(parts)


def _row(cells: Sequence[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS)).rstrip()


def soak(seed: int, runs: int, seconds: float, *, numbers: Sequence[int] = (), kinds: Sequence[str] = KINDS,
         keep: bool = False) -> int:
    """Do up to ``runs`` draws in about ``seconds``; returns how many went wrong. Refused and missed ones count as none.
    """
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="glmkd-soak-"))
    counts: Counter[str] = Counter()
    _say(_row(COLUMNS))
    with Nursery() as nursery:
        all_runs = Soak(nursery, folder / "runs", seed, kinds)
        for number in numbers or range(10 * runs):
            if counts["equal"] + counts["different"] >= runs or time.monotonic() - began > seconds:
                break
            started, drawn = time.monotonic(), []
            verdict = _verdict(all_runs, number, drawn)
            counts[verdict.split(" ")[0].rstrip(":")] += 1
            (setting, faults), spent = drawn[-1], time.monotonic() - started
            _say(_row([str(number), *setting.cells(), _fault_text(faults), verdict[:4000], f"{spent:.1f}"]))
            if not keep:
                for path in (folder / "runs").glob(f"{number}-*"):
                    shutil.rmtree(path)
    happened = ", ".join(f"{count} {what}" for what, count in sorted(all_runs.faults.items()))
    _say(f"soak: seed {seed}, {counts['equal']} bit-equal resumptions, {counts['different']} different; faults: "
         f"{happened}; {counts['refused']} draws refused by the command, {counts['missed']} missed; "
         f"{time.monotonic() - began:.0f} s")
    if keep:
        _say(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return counts["different"]


def _verdict(runs: Soak, number: int, drawn: list[tuple[Setting, list[Fault]]]) -> str:
    try:
        return runs.run(number, lambda setting, faults: drawn.append((setting, faults)))
    except Refused as refused:
        return f"refused: {str(refused)[:160]}"
    except (Different, OSError, ValueError) as error:
        return f"different: {error}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50, help="draws that are carried out")
    parser.add_argument("--seconds", type=float, default=900.0, help="no further draw begins after so long")
    parser.add_argument("--only", type=int, nargs="*", default=[], help="these draws instead of all from 0 on")
    parser.add_argument("--kills", action="store_true", help="no faults but kill -9")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    args = parser.parse_args(argv)
    return int(soak(args.seed, args.runs, args.seconds, numbers=args.only, kinds=("kill",) if args.kills else KINDS,
                    keep=args.keep) > 0)


if __name__ == "__main__":
    sys.exit(main())
