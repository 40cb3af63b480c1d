"""What a dry run watches: every loss term, the gradient norm, and whether they are what a training run needs.

A :class:`Rehearsal` is handed to a stage, which asks it for its limits and tells it what it records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.student import GLMStudent
from distill.training.session import Session

#: Prediction terms that are recorded only where a flag switches them on.
_SWITCHED = re.compile(r"(pt|ft)_(soft|hard)")
_NUM_WIDTH = 14


@dataclass
class Rehearsal:
    """A short run of a stage.

    Attributes:
        max_steps: optimizer steps.
        max_documents: read of each corpus.
        max_windows: of each file of a language-model task that are scored.
        steps: what each step recorded. evaluations: what the evaluation gave.
        declared, described: inner terms that the method says it has, by the kinds that it records, or in words.
        trains: whether there is anything to train.
    """

    max_steps: int
    max_documents: int = 1000
    max_windows: int = 32
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, float] = field(default_factory=dict)
    declared: list[str] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    trains: bool = False

    def begin(self, session: Session) -> None:
        """Note what is going to be trained, and which terms the method says it has."""
        self.trains = session.engine is not None
        student = session.context.student
        if student is not None:
            # Kinds of pairs are recorded under their names; a method that names its terms itself uses words.
            names_kinds = type(student).intermediate_terms is GLMStudent.intermediate_terms
            terms = [term for term in student.intermediate_terms() if term != type(student).__name__]
            self.declared = terms if names_kinds else []
            self.described = [] if names_kinds else terms

    def observe(self, kind: str, values: Mapping[str, Any]) -> None:
        """A record of the run, as it goes to ``metrics.jsonl``."""
        if kind == "train":
            self.steps.append(dict(values))
        elif kind in ("validation", "metrics"):
            self.evaluations.update({f"{kind}: {name}": float(value) for name, value in values.items()
                                     if name not in ("iteration", "epoch")})

    def terms(self) -> dict[str, list[float]]:
        """The values of the loss and of every recorded term, step by step."""
        tags = dict.fromkeys(tag for step in self.steps for tag in step if "/" in tag)
        return {tag: [step[tag] for step in self.steps if tag in step] for tag in ("loss", *sorted(tags))
                if any(tag in step for step in self.steps)}

    def problems(self) -> list[str]:
        """Why this run would not train, in sentences; empty if it would."""
        return list(self._training_problems()) + [
            f"{name} is {value}" for name, value in self.evaluations.items() if not math.isfinite(value)]

    def _training_problems(self) -> Iterator[str]:
        if not self.trains:
            return
        if not self.steps:
            yield "no step was taken"
            return
        if broken := dict.fromkeys(name for step in self.steps for name in step.get("not_finite", ())):
            yield f"not finite: {', '.join(broken)}"
        for tag, values in self.terms().items():
            if not all(map(math.isfinite, values)):
                yield f"{tag} is not finite ({', '.join(f'{value:g}' for value in values)})"
            elif not any(values) and self._is_active(tag):
                yield f"{tag} is 0 in every step"
        for kind in self.declared:
            if not any(tag.startswith(f"inter_loss/{kind}") for tag in self.terms()):
                yield f"the method has a term {kind}, but no step computed it"
        if self.described and not any(tag.startswith("inter_loss/") for tag in self.terms()):
            yield f"the method has the terms {', '.join(self.described)}, but no step computed one of them"
        norms = [step["grad_norm"] for step in self.steps]
        scaled = any("loss_scale" in step for step in self.steps)  # the first steps may look for the scale
        if not all(map(math.isfinite, norms)) and not scaled:
            yield f"the gradient norm is not finite ({', '.join(f'{norm:g}' for norm in norms)})"
        elif not any(norms):
            yield "the gradient is 0 in every step"

    def _is_active(self, tag: str) -> bool:
        """Whether a term has to be other than 0. A mixture records what its members give, also 0 for nothing."""
        kind, _, name = tag.partition("/")
        if kind == "inter_loss":
            active = [*self.declared, *self.described]
            return not active or name.startswith(tuple(active))
        if kind == "pre_loss":
            # All of them are 0, or one that the flags switch on by itself.
            zeros = [values for other, values in self.terms().items() if other.startswith("pre_loss/")]
            return bool(_SWITCHED.match(name)) or not any(any(values) for values in zeros)
        return tag == "loss"

    def table(self) -> str:
        """The terms with their first and last values, the gradient norm, and what the evaluation gave."""
        rows = [(tag, values[0], values[-1]) for tag, values in self.terms().items()]
        if self.steps:
            rows.append(("gradient norm", self.steps[0]["grad_norm"], self.steps[-1]["grad_norm"]))
        rows += [(name, None, value) for name, value in self.evaluations.items()]
        width = max([len("term"), *(len(name) for name, _, _ in rows)])
        lines = [f"  {'term':<{width}} {'first':>{_NUM_WIDTH}} {'last':>{_NUM_WIDTH}}"]
        for name, first, last in rows:
            lines.append(f"  {name:<{width}} {_number(first)} {_number(last)}")
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return " " * _NUM_WIDTH if value is None else f"{value:{_NUM_WIDTH}.6g}"
