"""The quick start's own experiment: what a student gains by a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scripts.quickstart.report import Experiment, Report, mean_and_spread, num_seeds_said, questions_said
from scripts.quickstart.steps import DISTILLED, TEACHER, Recipe, Source, Step, StepMaker, Who

ALONE, SCRATCH = "student alone", "student without pretraining"
MODELS = (TEACHER, ALONE, DISTILLED, SCRATCH)


def quickstart(run: Path, recipe: Recipe, source: Source, seeds: int, *, first_seed: int = 1) -> Experiment:
    """A teacher, shared by all seeds; a student alone, one that is distilled, one that has read nothing."""
    maker = StepMaker(run, recipe, source)
    steps = (*maker.shared(first_seed),
             *(step for seed in range(first_seed, first_seed + seeds) for step in _students(maker, seed)))
    return Experiment(steps, MODELS, baseline=ALONE, treated=DISTILLED, source=source, sentences=_sentences)


def _students(maker: StepMaker, seed: int) -> Iterator[Step]:
    """The students of one seed, the longest way to the table first."""
    recipe, at = maker.recipe, f"-{seed}"
    distilled, alone, scratch = (Who(model, seed, recipe.student) for model in (DISTILLED, ALONE, SCRATCH))
    yield from maker.distilled("distilled", distilled)
    why = "the same student, steps and text without a teacher: what distillation is compared with"
    yield maker.pretrain(f"alone-pretrain{at}", ("Pretrain the student alone", why), alone)
    why = "on the labelled questions, as without a teacher"
    yield maker.finetune(f"alone-finetune{at}", ("Fine-tune the student alone", why), alone, recipe.label_epochs,
                         start=f"alone-pretrain{at}")
    why = "the check that the held-out questions need the text: it should be near chance"
    yield maker.finetune(f"scratch-finetune{at}", ("Fine-tune a student without pretraining", why), scratch,
                         recipe.label_epochs)


def _sentences(experiment: Experiment, report: Report) -> list[str]:
    gaps = [-change for change in report.loss_change]
    return [
        questions_said(experiment, report),
        f"Distillation gained {mean_and_spread(report.gain, 1)} points over the student alone{num_seeds_said(report)}.",
        f"Its validation loss after the same number of steps on the same text is {mean_and_spread(gaps, 3)} lower.",
    ]
