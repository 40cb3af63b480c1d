"""The methods by name: what ``--student_model`` can be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.student import GLMStudent

METHODS: dict[str, type[GLMStudent]] = {}
"""Value of ``--student_model`` -> class. A class written at module level is offered under its name in snake case;
:func:`register_method` chooses another name. Names with a leading underscore are not offered."""
_refused_classes: dict[str, type[GLMStudent]] = {}


def offer(cls: type[GLMStudent]) -> None:
    """Enter a class under its own name, unless it is private or written inside a function."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
    if cls.__name__.startswith("_") or "<locals>" in cls.__qualname__:
        return
    if name in METHODS:
        _refused_classes[name] = cls  # an error where the name is used, unless the class gets a name of its own
    else:
        METHODS[name], cls.method_name = cls, name


def register_method(name: str) -> Callable[[type[GLMStudent]], type[GLMStudent]]:
    """Class decorator: offer a method as ``--student_model=<name>``. A second class under one name is an error."""

    def register(cls: type[GLMStudent]) -> type[GLMStudent]:
        if METHODS.get(name, cls) is not cls:
            raise ValueError(_taken(name, cls))
        for table in (METHODS, _refused_classes):
            for key in [key for key, value in table.items() if value is cls]:
                del table[key]
        METHODS[name], cls.method_name = cls, name
        return cls

    return register


def _taken(name: str, cls: type[GLMStudent]) -> str:
    first = METHODS[name]
    return (f"--student_model={name} is taken by {first.__module__}.{first.__qualname__}; give "
            f"{cls.__module__}.{cls.__qualname__} another name with @register_method")


def find_method(name: str) -> type[GLMStudent]:
    """A method by its name or its class name, in any case. ValueError with the nearest name if there is none."""
    if name in _refused_classes:
        raise ValueError(_taken(name, _refused_classes[name]))
    known = {cls.__name__.lower(): cls for cls in METHODS.values()} | {key.lower(): cls for key, cls in METHODS.items()}
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), METHODS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"--student_model={name} is not a method{hint} (known: {', '.join(sorted(METHODS))})")
