"""Combination (Tan et al. 2023, arXiv:2306.06629): several methods at once, as the baselines of the GKD paper.

    L = sum_{c in inter} inter_c  +  sum_{c in list of the phase} pre_c  +  [fine-tuning: the shared prediction terms]

The members are methods by their names, in any case; each keeps its flags, layers (``student.<Class>.…`` in a
checkpoint) and checks, and all share one backbone. The label is learnt by the last member of the phase's list alone; in
fine-tuning without such a list, by the shared terms. ``--distill_logits_parallel`` counts once. TinyBERT's temperature
is ``--mixbaseline_tinybert_t``.

Every member whose intermediate loss is added sees the tapped tensors as the ``forward`` of all of them leaves them. So
behind TinyBERT's projection the others compare projected hidden states, which lets DistilBERT's cosine work with
unequal widths.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distill.student import GLMStudent, Loss, TeacherSpec, find_method, register_method
from model.taps import Hook, merge_hooks

logger = logging.getLogger(__name__)
#: Members with a temperature of their own: method name -> flag.
_TEMPERATURES = {"tinybert": "mixbaseline_tinybert_t"}


@register_method("mixbaseline")
class MixBaseline(GLMStudent):
    """Flags ``--mixbaseline_*``. A member's terms appear as one, ``inter_loss/<Class>`` and ``pre_loss/<Class>``."""

    switches = "--mixbaseline_inter_bl or --mixbaseline_pre_bl_{pt,ft}_soft"

    def __init__(self, language_model: nn.Module, args: Any, show_pre: bool = True, show_inter: bool = True,
                 summary_loss: bool = True, **kwargs: Any) -> None:
        prediction = _prediction_classes(args)
        # The shared terms learn the label only if no member does.
        shared = _ArgsView(args, {_hard(args): False}) if prediction else args
        super().__init__(language_model, shared, show_pre, show_inter, summary_loss, **kwargs)
        self.members: dict[str, GLMStudent] = {}
        for cls, view in _member_args(args).items():
            member = cls(language_model, view, show_pre=False, show_inter=False, summary_loss=False, **kwargs)
            member.injected_draws = self.injected_draws
            self.members[cls.__name__] = member
            self.add_module(cls.__name__, member)
        own = [] if args.mixbaseline_wo_inter else _classes(args, "mixbaseline_inter_bl")
        self.inter_names = [cls.__name__ for cls in own]
        self.prediction_names = [cls.__name__ for cls in prediction]
        self._backbone_names = frozenset(language_model.state_dict())
        self._lend_backbone(language_model)
        self.register_load_state_dict_pre_hook(_drop_copies)

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("method: combination (mixbaseline)")
        group.add_argument("--mixbaseline_inter_bl", default="", help="methods whose intermediate losses are added, "
                           "comma-separated, for example TinyBERT,MiniLMv2")
        group.add_argument("--mixbaseline_pre_bl_pt_soft", default="",
                           help="pretraining: methods whose prediction losses are added; the last learns the label")
        group.add_argument("--mixbaseline_pre_bl_ft_soft", default="",
                           help="fine-tuning: methods whose prediction losses are added; the last learns the label")
        group.add_argument("--mixbaseline_wo_inter", action="store_true", help="no intermediate losses")
        group.add_argument("--mixbaseline_tinybert_t", type=float, default=1.0,
                           help="temperature of TinyBERT inside the combination")
        group.add_argument("--mixbaseline_inter_checkpoint", action="store_true",
                           help="compute intermediate losses again in the backward pass (less memory)")

    @classmethod
    def check_flags(cls, args: Any) -> None:
        for member, view in _member_args(args).items():
            member.check_flags(view)

    def check_sizes(self, teacher: TeacherSpec) -> None:
        """Each member's requirements, on the widths that the others' projections leave it."""
        for name in self.inter_names:
            member = self.members[name]
            projected = {place: width for other in self.inter_names if other != name
                         for place, width in self.members[other].projected_widths().items()}
            member.seen_widths = projected
            with member.facing(teacher.index):
                member.check_sizes(teacher)

    def check_terms(self, others: Sequence[str] = ()) -> None:
        super().check_terms(others)
        hard = [term for term in self.prediction_terms() if term.startswith("hard label")]
        if len(hard) > 1:
            logger.warning("mixbaseline: the label counts %d times (%s)", len(hard), "; ".join(hard))
        for name in self.inter_names if self.show_inter else ():
            if self.members[name].projected_widths() and len(self.inter_names) > 1:
                logger.info("mixbaseline: hidden states are projected by %s before any member compares them", name)

    @property
    def batch_coupled(self) -> str:
        return "; ".join(f"{type(member).__name__}: {member.batch_coupled}" for member in self._active()
                         if member.batch_coupled)

    @property
    def has_projections(self) -> bool:
        return any(self.members[name].has_projections for name in self.inter_names)

    @property
    def injected_draws(self) -> dict[str, Any]:
        """As in every method; the members share it."""
        return self._injected_draws

    @injected_draws.setter
    def injected_draws(self, draws: dict[str, Any]) -> None:
        self._injected_draws = draws
        for member in getattr(self, "members", {}).values():
            member.injected_draws = draws

    def intermediate_terms(self) -> list[str]:
        names = [name for name in self.inter_names if self.members[name].intermediate_terms()]
        return [*names, *(["logits_parallel"] if self.args.distill_logits_parallel else [])]

    def prediction_terms(self) -> list[str]:
        shared = super().prediction_terms() if self.args.finetune else []
        return [*shared, *(f"{term} ({name})" for name in self.prediction_names
                           for term in self.members[name].prediction_terms())]

    def get_teacher_hook(self, t_no: int = 0, **kwargs: Any) -> Hook:
        return merge_hooks(*(self.members[name].teacher_taps(t_no) for name in self.inter_names))

    def get_student_hook(self, **kwargs: Any) -> Hook:
        return merge_hooks(*(self.members[name].student_taps() for name in self.inter_names))

    def get_teacher_hook_op(self, t_no: int = 0, **kwargs: Any) -> dict[str, Any]:
        operations: dict[str, Any] = {}
        for name in self.inter_names:
            with self.members[name].facing(t_no):
                _add_operations(operations, self.members[name].get_teacher_hook_op(t_no=t_no, **kwargs), name)
        return operations

    def get_student_hook_op(self, teacher_models: Sequence[nn.Module] | None = None, **kwargs: Any) -> dict[str, Any]:
        operations: dict[str, Any] = {}
        for name in self.inter_names:
            own = self.members[name].get_student_hook_op(teacher_models=teacher_models, **kwargs)
            _add_operations(operations, own, name)
        return operations

    def forward(self, *inputs: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return (self._front or self.origin_model)(*inputs, **kwargs)

    def observe(self, *args: Any, **kwargs: Any) -> None:
        for name in self.inter_names:
            self.members[name].observe(*args, **kwargs)

    def after_pass(self, loss: Loss) -> None:
        for member in self._active():
            member.after_pass(loss)

    def inter_loss(self, s_inter_vars: Sequence[torch.Tensor], t_inter_vars: Sequence[torch.Tensor], s_hook: Hook,
                   t_hook: Hook, keep_batch: bool = False, t_no: int = 0, **kwargs: Any) -> Loss:
        total: Loss = 0.0
        for name in self.inter_names:
            member = self.members[name]

            def loss(member: GLMStudent = member) -> Loss:
                return member.intermediate_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, keep_batch=keep_batch,
                                                t_no=t_no, **kwargs)

            own = checkpoint(loss, use_reentrant=False) if self.args.mixbaseline_inter_checkpoint else loss()
            self.add_summary(f"inter_loss/{name}", own)
            total = total + own
        return total

    def pre_loss(self, s_logits: torch.Tensor, t_logits: torch.Tensor | float, loss: Loss, return_dict: bool = False,
                 **kwargs: Any) -> Loss | dict[str, Loss]:
        total: dict[str, Loss] = {"loss": 0.0}
        if self.args.finetune:
            _add(total, super().pre_loss(s_logits, t_logits, loss, return_dict=True, **kwargs))
            self.add_summary("pre_loss/KD", total["loss"])
        for name in self.prediction_names:
            own = self.members[name].prediction_loss(s_logits, t_logits, loss, return_dict=True, **kwargs)
            own = own if isinstance(own, dict) else {"loss": own}
            self.add_summary(f"pre_loss/{name}", own["loss"])
            _add(total, own)
        return total if return_dict else total["loss"]

    def _active(self) -> list[GLMStudent]:
        """The members with a loss in this phase."""
        return [self.members[name] for name in dict.fromkeys([*self.inter_names, *self.prediction_names])]

    def _lend_backbone(self, backbone: nn.Module) -> None:
        """Give every member the backbone without registering it once more.

        A member with a ``forward`` of its own gets what the members before it return; ``_front`` is the last of them.
        """
        front: GLMStudent | None = None
        for name, member in self.members.items():
            del member.origin_model
            # Past nn.Module's attribute setting, which would register a child.
            object.__setattr__(member, "origin_model", _Backbone(backbone, front or backbone))
            if name in self.inter_names and type(member).forward is not GLMStudent.forward:
                front = member
        object.__setattr__(self, "_front", front)


class _Backbone:
    """The shared GLM as a member sees it: calling it runs ``front``; everything else is the GLM's."""

    def __init__(self, model: nn.Module, front: nn.Module) -> None:
        self._model, self._front = model, front

    def __call__(self, *inputs: torch.Tensor, **kwargs: Any) -> Any:
        return self._front(*inputs, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_model", "_front"):
            raise AttributeError(name)
        return getattr(self._model, name)


class _ArgsView:
    """``args`` with some values replaced; read-only, and the namespace behind it is not touched."""

    def __init__(self, args: Any, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_args", args)
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._values[name] if name in self._values else getattr(self._args, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"args are read-only: cannot set {name}")


def _hard(args: Any) -> str:
    return "distill_ft_hard" if args.finetune else "distill_pt_hard"


def _classes(args: Any, flag: str) -> list[type[GLMStudent]]:
    """The methods that a list names, without repetitions; empty names are dropped."""
    classes = []
    for name in filter(None, map(str.strip, getattr(args, flag).split(","))):
        try:
            classes.append(find_method(name))
        except ValueError as error:
            raise ValueError(f"--{flag}: {error}") from None
        if issubclass(classes[-1], MixBaseline):
            raise ValueError(f"--{flag}: a combination cannot contain {name}; name its members instead")
    return list(dict.fromkeys(classes))


def _prediction_classes(args: Any) -> list[type[GLMStudent]]:
    return _classes(args, "mixbaseline_pre_bl_ft_soft" if args.finetune else "mixbaseline_pre_bl_pt_soft")


def _member_args(args: Any) -> dict[type[GLMStudent], _ArgsView]:
    """Every member and ``args`` as it sees them: its temperature, and the label only for the last of the phase."""
    prediction = _prediction_classes(args)
    views = {}
    for cls in dict.fromkeys([*_classes(args, "mixbaseline_inter_bl"), *prediction]):
        values: dict[str, Any] = {"distill_logits_parallel": False}
        if cls not in prediction[-1:]:
            values[_hard(args)] = False
        if cls.method_name in _TEMPERATURES:
            values["distill_temperature"] = getattr(args, _TEMPERATURES[cls.method_name])
        views[cls] = _ArgsView(args, values)
    return views


def _add(total: dict[str, Loss], parts: Mapping[str, Loss]) -> None:
    for name, value in parts.items():
        total[name] = total[name] + value if name in total else value


def _add_operations(operations: dict[Any, Any], own: Mapping[Any, Any], member: str) -> None:
    """Merge a member's operations. Raises ValueError where two members replace the same tensor."""
    for key, value in own.items():
        if isinstance(value, Mapping):
            _add_operations(operations.setdefault(key, {}), value, member)
        elif operations.setdefault(key, value) is not value:
            raise ValueError(f"mixbaseline: {member} and another member both replace {key!r} inside the model; list "
                             "one of them")


def _drop_copies(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Published checkpoints repeat the backbone under each member; ignore the copies."""
    for member in module.members:
        for name in module._backbone_names:
            state.pop(f"{prefix}{member}.{name}", None)
