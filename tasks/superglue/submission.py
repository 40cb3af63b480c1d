"""``python -m tasks.superglue.submission RUN ... --out submission.zip``: the zip that super.gluebenchmark.com takes.

Every RUN is a prediction file ``<task>-<split>.jsonl`` or a folder somewhere above some. The files become
``BoolQ.jsonl``, ``CB.jsonl``, ... as they are: a run writes them in the format of the submission already
(:func:`tasks.evaluation.prediction_lines`). What is checked: all tasks are there, once; every example of the official
test file has one prediction; labels are labels of the task.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tasks.examples import Line, Split
from tasks.files import read_lines
from tasks.registry import get_task
from tasks.spec import TaskOptions
from tasks.superglue.official import OFFICIAL

_ANY_SPLIT = Split("test", "dev")
#: A fixed time in the archive: the same predictions give the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


def find_predictions(runs: Sequence[Path], split: str) -> dict[str, Path]:
    """Task name -> its prediction file of a split; ValueError where a task has two, or a path has none."""
    found: dict[str, Path] = {}
    for run in runs:
        names = {f"{name}-{split}.jsonl": name for name in OFFICIAL}
        files = [run] if run.is_file() else sorted(file for file in run.rglob(f"*-{split}.jsonl"))
        files = [file for file in files if file.name in names]
        if not files:
            raise ValueError(f"{run} has no prediction file <task>-{split}.jsonl; fine-tuning writes one with "
                             f"--valid-data {split} or --test-data {split}; other splits: --split NAME")
        for file in files:
            name = names[file.name]
            if name in found and found[name].resolve() != file.resolve():
                raise ValueError(f"two prediction files of {name}: {found[name]} and {file}; name the one to submit")
            found[name] = file
    return found


def check_predictions(name: str, path: Path, num_examples: int | None) -> None:
    """ValueError naming file and line where a prediction is malformed, doubled, or where some are missing."""
    seen: Counter[object] = Counter()
    for line, idx in _answers(name, path):
        seen[idx] += 1
        if seen[idx] > 1:
            raise line.error(f"a second prediction for {idx}; every example needs exactly one")
    if num_examples is not None and len(seen) != num_examples:
        raise ValueError(f"{path} has {len(seen)} predictions, the official test file of {OFFICIAL[name].folder} has "
                         f"{num_examples} examples; predict on the whole file, or give --partial")


def _answers(name: str, path: Path) -> Iterator[tuple[Line, object]]:
    """What is answered, with the line where it stands; labels are checked on the way."""
    spec = get_task(name, TaskOptions())
    for line in read_lines(path):
        idx = line.get("idx", int)
        if name != "multirc":
            label = line.get("label")
            if name == "record" and not isinstance(label, str):
                raise line.error(f"label must be the text of an entity, got {label!r:.80}")
            if name != "record" and (label not in spec.labels or isinstance(label, bool)):
                raise line.error(f"label {label!r:.80} is none of {', '.join(map(repr, spec.labels))}")
            yield line, idx
            continue
        for question in line.child("passage").children("questions"):
            for answer in question.children("answers"):
                answer.label(spec.labels, _ANY_SPLIT)
                yield answer, (idx, question.get("idx"), answer.get("idx"))


def write_submission(files: dict[str, Path], out: Path, *, is_partial: bool = False) -> None:
    """Checks the files and writes the archive, whole or not at all.

    Raises ValueError: a task is missing (unless ``is_partial``), or a file is not as it must be.
    """
    missing = [OFFICIAL[name].folder for name in OFFICIAL if name not in files]
    if missing and not is_partial:
        raise ValueError(f"no predictions of {', '.join(missing)}; SuperGLUE scores all ten files at once (AX-b and "
                         "AX-g come from the model of RTE: --task=ax-b --epochs=0). --partial writes what there is")
    for name, path in files.items():
        official = OFFICIAL[name]
        check_predictions(name, path, None if is_partial else official.sizes[official.test_file])
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                member = zipfile.ZipInfo(OFFICIAL[name].submitted, _TIME)
                archive.writestr(member, files[name].read_bytes(), zipfile.ZIP_DEFLATED)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: Iterable[str] | None = None) -> int:
    """Writes the archive; exit code 2 where something is missing or wrong."""
    parser = argparse.ArgumentParser(prog="python -m tasks.superglue.submission", allow_abbrev=False,
                                     description="Zip prediction files into a SuperGLUE submission.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders or prediction files")
    parser.add_argument("--out", type=Path, default=Path("submission.zip"), help="archive to write (%(default)s)")
    parser.add_argument("--split", default="test", help="split whose predictions are taken (%(default)s)")
    parser.add_argument("--partial", action="store_true", help="take the tasks and examples that there are")
    args = parser.parse_args(None if argv is None else list(argv))
    try:
        files = find_predictions(args.runs, args.split)
        write_submission(files, args.out, is_partial=args.partial)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for name, path in sorted(files.items()):
        sys.stdout.write(f"{OFFICIAL[name].submitted}: {path}\n")
    sys.stdout.write(f"{args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
