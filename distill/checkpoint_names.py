"""Names of a student's entries in a checkpoint.

The GLM's own entries have no prefix and everything else has the prefix ``student.``, so a student's checkpoint is a GLM
checkpoint with more keys, and a plain GLM checkpoint fits any student.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_BACKBONE, _OWN = "origin_model.", "student."


def checkpoint_name(name: str) -> str:
    """The name in a checkpoint of a parameter of a student."""
    return name[len(_BACKBONE):] if name.startswith(_BACKBONE) else _OWN + name


def _owns_backbone(module: nn.Module) -> bool:
    """A member of a mixture borrows the backbone; then the mixture alone maps names."""
    return any(name == "origin_model" for name, _ in module.named_children())


def to_checkpoint_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook that :meth:`torch.nn.Module.state_dict` calls at its end."""
    if not _owns_backbone(module):
        return
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + checkpoint_name(name[len(prefix):])] = state.pop(name)


def from_checkpoint_names(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """A hook that :meth:`torch.nn.Module.load_state_dict` calls first; fills in ``optional_state``."""
    for name in [name for name in state if name.startswith(prefix) and _owns_backbone(module)]:
        value, name = state.pop(name), name[len(prefix):]
        if name.startswith(_OWN):
            # A release's combined method repeats the backbone once per member.
            if f".{_BACKBONE}" not in name:
                state[prefix + name[len(_OWN):]] = value
        else:
            state[prefix + _BACKBONE + name.removeprefix(_BACKBONE)] = value
    for name in module.optional_state:
        state.setdefault(prefix + name, module.get_buffer(name).clone())
