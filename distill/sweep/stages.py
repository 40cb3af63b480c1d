"""Stages of a task: which flags each has, and how they replace or take away those of the first one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from distill.sweep.types import FlagPair

TEACHERS = "--task_t_load"
FIRST_EVAL = "--custom_first_eval"


def stages_of(stage_flags: Iterable[tuple[int, FlagPair]]) -> list[tuple[int, list[FlagPair]]]:
    """The numbers K for which a flag ``--again_K__`` was given, in rising order, each with its flags."""
    found: dict[int, list[FlagPair]] = {}
    for number, pair in stage_flags:
        found.setdefault(number, []).append(pair)
    return sorted(found.items())


def teachers_of(flags: Iterable[FlagPair], default: str) -> str:
    """The teacher entry of a stage: ``--again_K__task_t_load``, or the one of the first stage.

    Raises:
        ValueError: it has no value.
    """
    for name, value in flags:
        if name == TEACHERS:
            if not value:
                raise ValueError("--again_K__task_t_load needs the name of an entry")
            default = value
    return default


def merge(forwarded: Iterable[FlagPair], stage: Iterable[FlagPair], chosen: Collection[str] = ()) -> list[FlagPair]:
    """Flags of a further stage, to stand behind its teacher flags.

    A stage flag that repeats a forwarded one, value included, takes it away; any other replaces the forwarded flag of
    its name or is added.

    Args:
        chosen: names whose value in ``forwarded`` or ``stage`` was searched or is the seed of the trial. Such values
            meet by chance: nobody has asked to leave the flag out.
    """
    forwarded = list(dict(forwarded).items())
    own = [pair for pair in dict(stage).items() if pair[0] != TEACHERS]
    repeated = {name for name, value in own if (name, value) in forwarded and name not in chosen}
    return [*(pair for pair in (*forwarded, *own) if pair[0] not in repeated), (FIRST_EVAL, None)]


def joined(*groups: Iterable[FlagPair]) -> list[FlagPair]:
    """All flags in order; a later one of the same name replaces the value of the earlier and keeps its place."""
    flags: dict[str, str | None] = {}
    for group in groups:
        flags.update(group)
    return list(flags.items())
