"""Files that are either whole or absent, and that are read without running code.

Writing: a temporary name beside the target, fsync, rename, fsync of the folder. A killed process leaves at most a
temporary file, whose name no reader looks for; a full disk leaves nothing and is named.
Reading: torch's safe mode first. A file that holds arbitrary Python objects can run code when it is unpickled; it is
read only if the caller asks for it.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

#: The flag that the error about a pickled file names.
TRUST_FLAG = "--trust-checkpoint"

_READ_ERRORS = (RuntimeError, EOFError, OSError, KeyError, ValueError, IndexError, pickle.UnpicklingError)
_REFUSED = re.compile(r"(?:Unsupported global: GLOBAL|nsupported class)\s+([\w.]+)")


def _numpy_globals() -> list[Any]:
    """What a stored NumPy random state needs. Neither can run code: they build arrays from bytes.

    Old files name the modules as NumPy 1 did.
    """
    allowed: list[Any] = [numpy.ndarray, numpy.dtype]
    allowed += [type(numpy.dtype(name)) for name in ("uint32", "int64", "float64")]
    for name in ("_reconstruct", "scalar"):
        function = getattr(numpy._core.multiarray, name)
        allowed += [(function, f"numpy.core.multiarray.{name}"), (function, f"numpy._core.multiarray.{name}")]
    return allowed


def _write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        if (cause := _disk_error(error)) is not None:
            raise OSError(cause.errno, f"cannot write: {cause.strerror}", str(path)) from error
        raise
    sync_folder(path.parent)


def _disk_error(error: BaseException | None) -> OSError | None:
    """What the system said. torch tells of a full disk by an error of its own, with the system's as context."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__context__
    return None


def atomic_save(obj: Any, path: str | Path) -> None:
    """``torch.save`` under a temporary name, then rename; folders are made. The old file stays until then."""
    _write_atomically(Path(path), lambda file: torch.save(obj, file))


def atomic_write_text(text: str, path: str | Path) -> None:
    """Write a small text file (a tracker) in the same way."""
    _write_atomically(Path(path), lambda file: file.write(text.encode("utf-8")))


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(source: Path, target: Path) -> None:
    """Rename a folder (the target must not exist) and make it durable."""
    os.rename(source, target)
    sync_folder(target.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder with its content, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


_device: ContextVar[str] = ContextVar("device of loaded tensors", default="cpu")


@contextmanager
def headers_only() -> Iterator[None]:
    """Inside, :func:`safe_load` gives tensors without content (device ``meta``): names, shapes and types are compared
    in a moment, however large the file is. A file that was cut short is still found out."""
    token = _device.set("meta")
    try:
        yield
    finally:
        _device.reset(token)


def safe_load(path: str | Path, trust_pickle: bool = False, *, safe_classes: Iterable[Any] = ()) -> Any:
    """Read a file that ``torch.save`` wrote; tensors arrive on the CPU.

    Args:
        trust_pickle: allow arbitrary objects, after the safe mode has refused. They can run code.
        safe_classes: further classes that the safe mode may build (as for ``torch.serialization.safe_globals``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds objects that the safe mode refuses and ``trust_pickle`` is off.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path}")
    try:
        with torch.serialization.safe_globals([*_numpy_globals(), *safe_classes]):
            return torch.load(path, map_location=_device.get(), weights_only=True)
    except pickle.UnpicklingError as error:
        if not trust_pickle and (refused := _refused_object(error)):
            raise ValueError(
                f"{path} holds objects of {refused} beside tensors and plain values. Reading them can run code that "
                f"the file carries; if you trust where it came from, add {TRUST_FLAG}") from error
        if not trust_pickle:
            raise _damaged(path, error) from error
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error
    try:
        return torch.load(path, map_location=_device.get(), weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path} holds an object of a class that is not installed here ({error}); install it, or ask "
                         "the writer of the file for one without") from error
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error


def _refused_object(error: Exception) -> str | None:
    """The class that the safe mode would not build; None if it stumbled over something else, as in a damaged file."""
    match = _REFUSED.search(str(error))
    return match[1] if match else None


def _damaged(path: Path, error: Exception) -> ValueError:
    # torch's advice about weights_only would be wrong here: its own first line is enough of the reason.
    reason = (str(error).splitlines() or [""])[0].split(". ")[0][:200] or type(error).__name__
    return ValueError(f"{path} ({path.stat().st_size} bytes) is damaged, cut short or no checkpoint: {reason}; copy it "
                      "again, or use another checkpoint of the run")
