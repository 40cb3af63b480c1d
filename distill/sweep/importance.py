"""How much the searched values matter for the score.

Of listed values, the share of the variance of the scores that goes with a flag (an analysis of variance, which is exact
for a full grid); the rest is combinations of flags, and chance where there are several seeds. Of ranges, Optuna's
estimate: functional ANOVA where scikit-learn is installed, else PED-ANOVA.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from distill.sweep.search import Space, load_optuna
from distill.sweep.types import Point

#: With fewer finished configurations nothing is said.
LEAST_LISTED, LEAST_DRAWN = 4, 10
COMBINATIONS, CHANCE = "combinations of them", "seed"

Sample = tuple[Point, float]


@dataclass(frozen=True)
class Importance:
    """Shares by flag, the largest first; empty, with a ``note`` that says why, where there is nothing to say."""

    shares: tuple[tuple[str, float], ...] = ()
    note: str = ""


def importance(space: Space, samples: Sequence[Sample]) -> Importance:
    """How much each flag matters.

    Args:
        samples: finished runs: configuration and gain; several of a configuration are its seeds.
    """
    searched = {flag: domain for flag, domain in space.items() if domain.is_range or len(domain.values) > 1}
    samples = [(point, gain) for point, gain in samples if math.isfinite(gain)]
    finished = len({point for point, _ in samples})
    is_drawn = any(domain.is_range for domain in searched.values())
    least = LEAST_DRAWN if is_drawn else LEAST_LISTED
    if not searched:
        return Importance(note="nothing was searched")
    if finished < least:
        return Importance(note=f"{finished} finished configuration(s) are too few to tell ({least} are needed)")
    if len({gain for _, gain in samples}) == 1:
        return Importance(note="all runs have the same score")
    return _estimated(searched, samples) if is_drawn else _variance_shares(list(searched), samples)


def _variance_shares(flags: Sequence[str], samples: Sequence[Sample]) -> Importance:
    total = _between(samples, lambda point: point, within=True)
    shares = {flag: _between(samples, lambda point, flag=flag: point[flag]) / total for flag in flags}
    configurations = _between(samples, lambda point: point) / total
    counts = defaultdict(int)
    for point, _ in samples:
        counts[point] += 1
    is_full = (len(counts) == math.prod(len({point[flag] for point in counts}) for flag in flags)
               and len(set(counts.values())) == 1)
    if is_full and len(flags) > 1:
        shares[COMBINATIONS] = max(0.0, configurations - sum(shares.values()))
    if len(samples) > len(counts):
        shares[CHANCE] = 1 - configurations
    ranked = tuple(sorted(shares.items(), key=lambda item: -item[1]))
    kind = "share of the variance of the scores"
    return Importance(ranked, kind if is_full else f"{kind}; some runs are missing, so the shares overlap")


def _between(samples: Sequence[Sample], group: Callable[[Point], Hashable], *, within: bool = False) -> float:
    """Sum of squares between groups around the overall mean; with ``within``, of all samples."""
    mean = statistics.fmean(gain for _, gain in samples)
    if within:
        return math.fsum((gain - mean) ** 2 for _, gain in samples)
    groups = defaultdict(list)
    for point, gain in samples:
        groups[group(point)].append(gain)
    return math.fsum(len(gains) * (statistics.fmean(gains) - mean) ** 2 for gains in groups.values())


def _estimated(space: Space, samples: Sequence[Sample]) -> Importance:
    try:
        optuna = load_optuna("parameter importance")
    except ValueError as error:
        return Importance(note=str(error))
    known, distributions = optuna.distributions, {}
    for flag, domain in space.items():
        if domain.is_range:
            kind = known.FloatDistribution if domain.kind == "float" else known.IntDistribution
            distributions[flag] = kind(domain.low, domain.high, log=domain.log)
        else:
            distributions[flag] = known.CategoricalDistribution(domain.values)
    study = optuna.create_study(direction="maximize")
    for point, gain in samples:
        params = {flag: _inside(space[flag].low, space[flag].high, float(point[flag])) if space[flag].kind == "float"
                  else int(point[flag]) if space[flag].is_range else point[flag] for flag in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=gain))
    try:
        evaluator, name = optuna.importance.FanovaImportanceEvaluator(seed=0), "functional ANOVA"
    except ImportError:
        evaluator, name = optuna.importance.PedAnovaImportanceEvaluator(), "PED-ANOVA"
    try:
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError) as error:
        return Importance(note=f"Optuna gives no estimate: {error}")
    return Importance(tuple(shares.items()), f"{name} of Optuna, an estimate")


def _inside(low: float, high: float, value: float) -> float:
    """A number that was rounded for the command may lie a hair outside of its range."""
    return min(high, max(low, value))
