"""Replay golden files of data and tasks: ``python -m tests.golden.replay_data FILE.json… [--out DIR]``.

For every file the same outputs are computed from its inputs by this code and compared with the recorded ones: one line
a file (ok or FAIL, largest deviation of a float). ``--out DIR`` also writes what was computed to ``DIR/<file>.json``,
in the shape of the file. A folder stands for all ``.json`` files in it. Exit code: 0 no deviation, 1 a file deviates,
3 nothing that was named is built yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.registry import task_names
from tests.golden.data_cases import DATA_CASES, Case, Skipped, data_kind_of
from tests.golden.task_cases import TASK_CASES, NotBuiltYet, kind_of
from tests.helpers.shared import REPOSITORY

DEFAULT_TOLERANCE = 1e-6
# Absolute share of the tolerance, so that a zero has some: |a - b| <= tolerance * (|b| + this).
_ABSOLUTE_SHARE = 1e-2
# Sets, recorded as lists in no order.
_UNORDERED = ("answers",)
# Kinds of files that have a key for every task of the release.
_KEYED_BY_TASK = ("metrics", "verbalizers")


@dataclass
class Report:
    """What a comparison found."""

    keyed_by_task: bool = False
    largest: float = 0.0
    differences: list[str] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)


def compare(computed: Any, expected: Any, report: Report, *, tolerance: float = DEFAULT_TOLERANCE,
            path: str = "") -> Report:
    """Compare recursively: integers and strings exactly, floats within the nearest ``tolerance`` of the file."""
    if isinstance(computed, Skipped):
        report.skipped.add(computed.reason)
    elif isinstance(expected, dict) and isinstance(computed, dict):
        tolerance = expected.get("tolerance", tolerance)
        for key in sorted(set(expected) | set(computed)):
            if key not in computed and report.keyed_by_task and key not in task_names() and path:
                report.skipped.add(f"task {key} is not built yet")
                continue
            if key not in computed or key not in expected:
                report.differences.append(f"{path}.{key} is {'missing' if key not in computed else 'not expected'}")
                continue
            unordered = key in _UNORDERED and isinstance(expected[key], list) and isinstance(computed[key], list)
            values = (_sorted(computed[key]), _sorted(expected[key])) if unordered else (computed[key], expected[key])
            compare(*values, report, tolerance=tolerance, path=f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(computed, list | tuple):
        if len(expected) != len(computed):
            report.differences.append(f"{path} has {len(computed)} elements, expected {len(expected)}")
        for index, (one, other) in enumerate(zip(computed, expected)):
            compare(one, other, report, tolerance=tolerance, path=f"{path}[{index}]")
    elif isinstance(expected, float) and isinstance(computed, int | float) and not isinstance(computed, bool):
        _compare_floats(float(computed), expected, report, tolerance, path)
    elif computed != expected or isinstance(computed, bool) != isinstance(expected, bool):
        report.differences.append(f"{path} is {_short(computed)}, expected {_short(expected)}")
    return report


def _compare_floats(computed: float, expected: float, report: Report, tolerance: float, path: str) -> None:
    if computed == expected:
        return
    deviation = abs(computed - expected) / (abs(expected) + _ABSOLUTE_SHARE)
    report.largest = max(report.largest, deviation)
    if not deviation <= tolerance:
        report.differences.append(f"{path} is {computed}, expected {expected} (tolerance {tolerance:g})")


def compare_stats(computed: Case, expected: Case) -> Report:
    """Statistics within the tolerances that the file states in words."""
    report = Report()

    def check(path: str, value: float, target: float, tolerance: float) -> None:
        report.largest = max(report.largest, abs(value - target))
        if not abs(value - target) <= tolerance:
            report.differences.append(f"{path} is {value:.4f}, expected {target:.4f} +- {tolerance}")

    analytic = {key: value for key, value in computed["expected_span_length_distribution"].items() if key != "comment"}
    for average, shares in analytic.items():
        for index, share in enumerate(shares):
            target = expected["expected_span_length_distribution"][average][index]
            check(f"distribution {average}[{index + 1}]", share, target, 1e-5)
    for name, run in computed["runs"].items():
        if isinstance(run, Skipped):
            report.skipped.add(run.reason)
            continue
        config, recorded = run["config"], expected["runs"][name]
        bert = config["bert_prob"] + (1 - config["bert_prob"]) * config["single_span_prob"]
        sentence = config["gap_sentence_prob"] * (1 - config["single_span_prob"])
        for mode, share in (("bert", bert), ("sentence", sentence), ("gpt", 1 - bert - sentence)):
            check(f"{name} share of {mode}", run["mode_fraction_of_batches"].get(mode, 0.0), share, 0.05)
        for mode, ratio in recorded["mean_masked_ratio"].items():
            # Where every document is a sample of its own, the ratio depends on the lengths of the documents.
            if run["dataset_options"].get("sample_across_doc", True):
                check(f"{name} masked ratio of {mode}", run["mean_masked_ratio"].get(mode, 0.0), ratio,
                      0.01 if mode == "bert" else 0.03)
        shares = analytic.get(str(config["average_block_length"]))
        counts = run["span_length_histogram_bert"]
        # A single-span batch draws by the same weights; short documents cut the long spans off.
        for length, share in enumerate(shares or (), start=1):
            check(f"{name} spans of length {length}", counts.get(str(length), 0) / max(sum(counts.values()), 1), share,
                  0.015)
        if run["relative_rank_of_first_predicted_span_mean"] is not None and config["shuffle_blocks"]:
            check(f"{name} rank of the first span", run["relative_rank_of_first_predicted_span_mean"], 0.5, 0.04)
        if run["decoder_masked_fraction_bert"] is not None:
            check(f"{name} dBLOCK share", run["decoder_masked_fraction_bert"], config["block_mask_prob"], 0.02)
        check(f"{name} dropped rows", run["dropped_rows_fraction"], 0.0, 0.02)
    return report


def replay_file(file: Path, out: Path | None = None) -> Report:
    """Recompute and compare one golden file. Raises NotBuiltYet where its kind has no code yet."""
    expected = json.loads(file.read_text(encoding="utf-8"))
    kind = data_kind_of(expected)
    recompute = DATA_CASES[kind] if kind else TASK_CASES.get(kind_of(file.name, expected) or "")
    if recompute is None:
        raise NotBuiltYet(f"{file.stem} files")
    # The code gets a copy of its own, so that nothing it does can change what it is compared with.
    computed = recompute(json.loads(file.read_text(encoding="utf-8")), shared_folder(file))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / file.name).write_text(json.dumps(computed, default=_to_json), encoding="utf-8")
    if kind == "stats":
        return compare_stats(computed, expected)
    return compare(computed, expected, Report(keyed_by_task=file.stem in _KEYED_BY_TASK))


def shared_folder(file: Path) -> Path:
    """The folder with ``data/vocab``: ``$GLMKD_SHARED``, or above the golden file, or beside the repository."""
    if "GLMKD_SHARED" in os.environ:
        return Path(os.environ["GLMKD_SHARED"])
    candidates = [*file.resolve().parents, REPOSITORY.parent / "shared"]
    return next((folder for folder in candidates if (folder / "data" / "vocab").is_dir()), candidates[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay the files; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=Path, default=None, help="folder to which the computed files are written")
    args = parser.parse_args(arguments)
    files = list(_expand(args.files))
    failures = not_built = 0
    for file in files:
        try:
            report = replay_file(file, args.out)
        except NotBuiltYet as error:
            not_built += 1
            print(f"{file.name}: not built yet ({error})")
            continue
        failures += bool(report.differences)
        notes = "".join(f"; skipped: {reason}" for reason in sorted(report.skipped))
        status = "FAIL" if report.differences else "ok"
        print(f"{file.name}: {status}, largest deviation {report.largest:.2g}{notes}")
        for difference in report.differences[:5]:
            print(f"    {difference}")
        if len(report.differences) > 5:
            print(f"    … {len(report.differences)} differences in all")
    if failures:
        return 1
    # Asked for nothing but what is not built: that is no success.
    return 3 if not_built == len(files) else 0


def _expand(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.glob("*.json")) if path.is_dir() else [path]


def _to_json(value: object) -> object:
    if isinstance(value, Skipped):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _sorted(values: Sequence[Any]) -> list[Any]:
    return sorted(values, key=lambda value: json.dumps(value, sort_keys=True, default=str))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


if __name__ == "__main__":
    sys.exit(main())
