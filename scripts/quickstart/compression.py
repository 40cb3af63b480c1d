"""GLMD+al (Tan et al. 2023, arXiv:2306.06625) at small scale: what a student loses with a smaller word table.

Two students take the same three distilled steps from one teacher: text, then two task stages. The compressed one keeps
half of the vocabulary, each dropped token being read as the kept one that the teacher finds most similar, and
factorises its word table as ALBERT does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scripts.quickstart.report import Experiment, Report, Row, mean_and_spread, num_seeds_said, questions_said
from scripts.quickstart.steps import DISTILLED, TEACHER, Compression, Recipe, Source, StepMaker, Who

COMPRESSED = "compressed student"
MODELS = (TEACHER, DISTILLED, COMPRESSED)

#: The world's 857 tokens are padded to 896 rows, of which 448 are kept; a multiple of 128 would keep 512.
WORLD_MULTIPLE = 64


def glmd_al(run: Path, recipe: Recipe, source: Source, seeds: int, *, first_seed: int = 1) -> Experiment:
    """A teacher, shared by all seeds, and two students of each seed that differ in the word table alone."""
    if source.world:
        recipe = replace(recipe, vocabulary_multiple=WORLD_MULTIPLE)
    maker = StepMaker(run, recipe, source)
    teacher = Who(TEACHER, first_seed, recipe.teacher)
    steps = [*maker.shared(first_seed), maker.frequencies(),
             maker.measure("teacher-measure", teacher, "teacher-pretrain")]
    for seed in range(first_seed, first_seed + seeds):
        plain = Who(DISTILLED, seed, recipe.student)
        compressed = Who(COMPRESSED, seed, recipe.student, Compression(0.5, recipe.student.hidden // 2))
        for kind, who in (("distilled", plain), ("compressed", compressed)):
            first, *others = maker.distilled(kind, who)
            steps += [first, maker.measure(f"{kind}-measure-{seed}", who, first.name), *others]
    return Experiment(steps, MODELS, baseline=DISTILLED, treated=COMPRESSED, source=source, sentences=_sentences)


def _sentences(experiment: Experiment, report: Report) -> list[str]:
    teacher, plain, compressed = (report.row(model) for model in MODELS)
    return [
        questions_said(experiment, report),
        f"The compressed student has half of the vocabulary's rows and a word table of half its width: "
        f"{_share(compressed, teacher)} of the teacher's parameters and {_share(compressed, plain)} of the "
        f"uncompressed student's.",
        f"Against the uncompressed student it scores {mean_and_spread(report.gain, 1, sign=True)} points, and its "
        f"validation loss over all tokens changes by {mean_and_spread(report.loss_change, 3, sign=True)}"
        f"{num_seeds_said(report)}.",
    ]


def _share(part: Row, whole: Row) -> str:
    return f"{100 * part.parameters / whole.parameters:.1f} %"
