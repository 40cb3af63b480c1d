"""The published SuperGLUE (Wang et al. 2019, arXiv:1905.00537): archives, files, and how many examples they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.examples import nearest
from tasks.files import read_lines

BASE_URL = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2"


@dataclass(frozen=True)
class Official:
    """One task.

    Attributes:
        folder: of its files, and name of its archive.
        sizes: file -> number of examples as published: lines; of MultiRC answers, of ReCoRD queries.
    """

    folder: str
    sizes: dict[str, int]

    @property
    def url(self) -> str:
        """Where the archive is."""
        return f"{BASE_URL}/{self.folder}.zip"

    @property
    def submitted(self) -> str:
        """Name of the task's file in a submission."""
        return f"{self.folder}.jsonl"

    @property
    def test_file(self) -> str:
        """The file of the examples that a submission answers."""
        return "test.jsonl" if "test.jsonl" in self.sizes else next(iter(self.sizes))


def _splits(folder: str, train: int, val: int, test: int) -> Official:
    return Official(folder, {"train.jsonl": train, "val.jsonl": val, "test.jsonl": test})


#: Task name -> what is published of it.
OFFICIAL = {
    "boolq": _splits("BoolQ", 9427, 3270, 3245),
    "cb": _splits("CB", 250, 56, 250),
    "copa": _splits("COPA", 400, 100, 500),
    "multirc": _splits("MultiRC", 27243, 4848, 9693),
    "record": _splits("ReCoRD", 100730, 10000, 10000),
    "rte": _splits("RTE", 2490, 277, 3000),
    "wic": _splits("WiC", 5428, 638, 1400),
    "wsc": _splits("WSC", 554, 104, 146),
    "ax-b": Official("AX-b", {"AX-b.jsonl": 1104}),
    "ax-g": Official("AX-g", {"AX-g.jsonl": 356}),
}


def official(name: str) -> Official:
    """The task of a name (any case); ValueError with the nearest known name otherwise."""
    if name.lower() not in OFFICIAL:
        raise ValueError(f"{name!r} is no task of SuperGLUE{nearest(name, OFFICIAL)}; "
                         f"known: {', '.join(one.folder for one in OFFICIAL.values())}")
    return OFFICIAL[name.lower()]


def count_examples(name: str, path: Path) -> int:
    """Examples in a file of the official layout, counted as in :class:`Official`; ValueError for malformed lines."""
    lines = read_lines(path)
    if name == "multirc":
        return sum(len(question.get("answers", list)) for line in lines
                   for question in line.child("passage").children("questions"))
    if name == "record":
        return sum(len(line.get("qas", list)) for line in lines)
    return len(lines)


def wrong_sizes(name: str, folder: Path) -> list[str]:
    """What is missing or has another size than published, one message a file; empty: the folder is complete."""
    problems = []
    for file, size in OFFICIAL[name].sizes.items():
        path = folder / file
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif (found := count_examples(name, path)) != size:
            problems.append(f"{path} has {found} examples, published are {size}")
    return problems
