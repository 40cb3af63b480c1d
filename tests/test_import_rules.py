"""The rules of the rooms, read from syntax trees: who may import whom, and what nobody does.

docs/architecture.md says why the rooms are cut this way; the tables below are the rules themselves.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INTERNAL = ("model", "data_utils", "tasks", "distill", "tests", "change_mp")
ENTRY_SCRIPTS = ("distill/pretrain.py", "distill/finetune.py", "distill/auto_tune.py", "distill/vocab_sort.py")
#: Files that talk to the person who typed the command.
MAY_PRINT = (*ENTRY_SCRIPTS, "change_mp.py")
#: The rooms that may touch the packages that not every machine has.
BACKEND = ("model/parallel/backend.py", "distill/training/setup.py")
BACKEND_ONLY = ("deepspeed", "apex", "amp_C", "fused_layer_norm_cuda")
#: Optional or slow to import: these may be imported inside a function.
LAZY = (*BACKEND_ONLY, "transformers", "matplotlib", "optuna", "safetensors", "sentencepiece", "tensorboard",
        "torch.utils.tensorboard", "text_unidecode", "fasttext")


@dataclass(frozen=True)
class Room:
    """What a file or folder may import.

    Attributes:
        path: a file, or a folder with a slash at the end; the longest match counts.
        internal: modules (with all below them) of this repository.
        external: packages beside the standard library; None for any.
    """

    path: str
    internal: tuple[str, ...]
    external: tuple[str, ...] | None = None


EVERYTHING = ("model", "data_utils", "tasks", "distill")
#: Small files that know nothing of models or runs.
DISTILL_LEAVES = ("distill.checkpoint_names", "distill.flag_types", "distill.distill_flags", "distill.layer_maps",
                  "distill.retired_flags", "distill.schedules")
ANALYSIS = ("distill.losses", "distill.layer_maps", "model.taps", "model.parallel")
DISTILL_CORE = ("model", "data_utils.vocab_file", "distill.losses", "distill.student", "distill.teachers",
                "distill.analysis", "distill.vocab_init", "distill.truncate", "distill.registry",
                "distill.training.run_state", *DISTILL_LEAVES)
METHOD = ("distill.student", "distill.losses", "distill.layer_maps", "distill.schedules", "distill.flag_types",
          "model.taps", "model.parallel")
FACADE = (*METHOD, "distill.methods", "distill.multi_teacher", "model.config")
DATA_PACKAGES = ("torch", "numpy", "tokenizers", "sentencepiece", "tqdm", "filelock", "transformers", "fasttext")

ROOMS = (
    Room("model/parallel/", ("model.parallel",), ("torch", "numpy", *BACKEND_ONLY)),
    Room("model/checkpoint/", ("model.checkpoint", "model.parallel.sharding"), ("torch", "numpy", "safetensors")),
    Room("model/", ("model",)),
    Room("data_utils/", ("data_utils",), DATA_PACKAGES),
    Room("data_utils/loaders.py", ("data_utils", "model.parallel.groups"), DATA_PACKAGES),
    Room("tasks/", ("tasks", "data_utils")),
    Room("distill/losses/", ("distill.losses", "model.parallel"), ("torch",)),
    *(Room(f"{name.replace('.', '/')}.py", DISTILL_LEAVES) for name in DISTILL_LEAVES),
    *(Room(f"distill/{name}.py", DISTILL_CORE)
      for name in ("student", "registry", "teachers", "vocab_init", "truncate")),
    Room("distill/analysis.py", ANALYSIS),
    Room("distill/methods/", METHOD),
    Room("distill/methods/__init__.py", (*METHOD, "distill.methods")),
    Room("distill/multi_teacher/", (*METHOD, "distill.multi_teacher")),
    Room("distill/distill_model.py", FACADE),
    Room("distill/multi_teacher_model.py", FACADE),
    Room("distill/training/", EVERYTHING),
    # No torch: commands are composed and printed at once, and the runs are processes of their own.
    Room("distill/json_files.py", (), ()),
    Room("distill/sweep/", ("distill.sweep", "distill.json_files", "distill.report", "model.config", "model.count"),
         ("filelock", "optuna", "psutil", "rich")),
    Room("distill/auto_tune.py", ("distill.sweep",), ()),
    Room("distill/", EVERYTHING),
    Room("distill/vocab_sort.py", ("data_utils", "tasks.registry", "distill.vocab_init", "model.checkpoint.files")),
    Room("change_mp.py", ("model.checkpoint",), ()),
)


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def room_of(path: str) -> Room | None:
    matches = [room for room in ROOMS if path == room.path or (room.path.endswith("/") and path.startswith(room.path))]
    return max(matches, key=lambda room: len(room.path), default=None)


def imported_names(node: ast.Import | ast.ImportFrom, path: str) -> list[str]:
    """Full dotted names; ``from a import b`` is ``a.b``. Relative imports are resolved from the file's place."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = path.removesuffix(".py").split("/")[:-node.level]
        base = ".".join([*package, base] if base else package)
    return [f"{base}.{alias.name}" for alias in node.names]


def walk(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, each with whether it runs only inside a function."""
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, inside = pending.pop()
        yield node, inside
        deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending.extend((child, deeper) for child in ast.iter_child_nodes(node))


def import_breaches(node: ast.Import | ast.ImportFrom, inside: bool, path: str) -> Iterator[str]:
    room = room_of(path)
    if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
        yield "star import"
    for name in imported_names(node, path):
        top = name.split(".")[0]
        if inside and not within(name, LAZY) and not path.startswith("tests/"):
            yield f"import of {name} inside a function (only optional packages: {', '.join(LAZY)})"
        if path.startswith("tests/") or top in sys.stdlib_module_names:
            continue
        if top in BACKEND_ONLY and path not in BACKEND:
            yield f"{top} outside {' and '.join(BACKEND)}"
        elif top in ("tests", "conftest"):
            yield f"import of {name} outside the tests"
        elif within(name, tuple(script.removesuffix(".py").replace("/", ".") for script in ENTRY_SCRIPTS)):
            yield f"import of the entry script {name}"
        elif room is not None and top in INTERNAL and not within(name, room.internal):
            yield f"{room.path} may not import {name} (only {', '.join(room.internal)})"
        elif room is not None and top not in INTERNAL and room.external is not None and top not in room.external:
            yield f"{room.path} may not import the package {top} (only {', '.join(room.external)})"


def is_attribute(node: ast.AST, owner: str, name: str) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.value, ast.Name)
            and node.value.id == owner)


def breaches(source: str, path: str) -> list[str]:
    """Every breach of the rules in one file, as ``path:line: what``."""
    found = []
    for node, inside in walk(ast.parse(source, filename=path)):
        messages: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            messages += import_breaches(node, inside, path)
        if is_attribute(node, "sys", "path") and path not in ENTRY_SCRIPTS and path != "tests/helpers/distributed.py":
            messages.append("sys.path is touched outside the entry scripts")
        if is_attribute(node, "torch", "cuda") and not inside and not path.startswith("tests/"):
            messages.append("torch.cuda at module level")
        if (isinstance(node, ast.Name) and node.id == "print" and path not in MAY_PRINT
                and not path.endswith("__main__.py") and not path.startswith("tests/")):
            messages.append("print outside the entry scripts")
        found += [f"{path}:{getattr(node, 'lineno', 0)}: {message}" for message in messages]
    return found


def python_files() -> list[str]:
    """The checked files, relative to the root. scripts/ and benchmarks/ hold command lines and are not rooms."""
    folders = ("model", "data_utils", "tasks", "distill", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in [*files, ROOT / "change_mp.py"])


def test_the_repository_keeps_the_rules() -> None:
    found = [line for path in python_files() for line in breaches((ROOT / path).read_text(encoding="utf-8"), path)]
    assert not found, "\n" + "\n".join(found)


def test_every_file_of_a_room_is_checked() -> None:
    files = python_files()
    assert "model/parallel/groups.py" in files and "change_mp.py" in files and "distill/__init__.py" in files
    assert all(room_of(path) for path in files if not path.startswith("tests/"))


@pytest.mark.parametrize(("path", "source", "message"), [
    ("model/glm.py", "from torch import *", "star import"),
    ("model/glm.py", "import sys\nsys.path.insert(0, '.')", "sys.path"),
    ("model/glm.py", "import deepspeed", "deepspeed outside"),
    ("model/glm.py", "def f():\n    from apex.optimizers import FusedAdam", "apex outside"),
    ("model/glm.py", "import torch\nif torch.cuda.is_available():\n    pass", "torch.cuda at module level"),
    ("model/glm.py", "def f():\n    import json", "inside a function"),
    ("model/glm.py", "print('x')", "print outside"),
    ("model/glm.py", "from data_utils.loaders import x", "may not import data_utils.loaders.x"),
    ("model/glm.py", "import tests.conftest", "outside the tests"),
    ("model/parallel/layers.py", "import tqdm", "may not import the package tqdm"),
    ("model/parallel/layers.py", "from model.config import ModelConfig", "may not import model.config"),
    ("model/parallel/layers.py", "from ..config import ModelConfig", "may not import model.config"),
    ("model/checkpoint/load.py", "from model.parallel import groups", "may not import model.parallel.groups"),
    ("data_utils/world/text.py", "import tasks", "may not import tasks"),
    ("data_utils/samplers.py", "from model.parallel import groups", "may not import model.parallel.groups"),
    ("tasks/registry.py", "import model.glm", "may not import model.glm"),
    ("distill/losses/masking.py", "from distill.student import GLMStudent", "may not import distill.student"),
    ("distill/student.py", "from distill.methods import tinybert", "may not import distill.methods"),
    ("distill/methods/tinybert.py", "from distill.methods.kd import KD", "may not import distill.methods.kd"),
    ("distill/methods/tinybert.py", "from distill.training import loop", "may not import distill.training"),
    ("distill/training/loop.py", "from distill import pretrain", "entry script distill.pretrain"),
    ("distill/sweep/grid.py", "import torch", "may not import the package torch"),
])
def test_the_checker_sees_a_breach(path: str, source: str, message: str) -> None:
    found = breaches(source, path)
    assert len(found) == 1 and message in found[0]


@pytest.mark.parametrize(("path", "source"), [
    ("model/parallel/backend.py", "def f():\n    import deepspeed"),
    ("data_utils/loaders.py", "from model.parallel import groups"),
    ("model/checkpoint/reshard.py", "from model.parallel.sharding import ShardSpec"),
    ("model/glm.py", "import torch\ndef f():\n    return torch.cuda.is_available()"),
    ("data_utils/tokenizers/gpt2_bpe.py", "def f():\n    import transformers"),
    ("distill/methods/__init__.py", "from distill.methods import tinybert"),
    ("distill/methods/tinybert.py", "from model.taps import layer_hook"),
    ("distill/pretrain.py", "import sys\nsys.path[0] = '.'\nprint('x')"),
])
def test_the_checker_lets_the_allowed_pass(path: str, source: str) -> None:
    assert breaches(source, path) == []
