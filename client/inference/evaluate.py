"""`lacuna-site evaluate`: a site scores a bundle on its own cohort, each present modality hidden in turn.

The report stays at the site: it names subjects. Where participants.tsv has subjects of split test, these alone are
scored, and none of their images may be among the others'. On subjects that took part in training scores flatter the
model. Beside it stand floors that the site can compute alone (floors.py).
"""

from pathlib import Path
from typing import NamedTuple

from client.inference.floors import floors_here
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.options import plain
from shared.data.apart import tested
from shared.data.cohort import Cohort
from shared.data.slices import Slices
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.evaluation import Scoring, evaluate, filler
from shared.model.scorecard import write_scorecard
from shared.model.tables import Frame, write_csv
from shared.plan.training import find_device


class Scored(NamedTuple):
    """What a site finds out."""

    scores: Frame
    lines: Frame  # the model beside the floors
    split: str | None  # None: all subjects, whoever was trained on


def evaluate_here(
    bundle: Bundle,
    cohort: Cohort,
    out: Path,
    *,
    sampler: Sampler | None = None,
    seed: int = 0,
    every: int = 1,
    device: str = "auto",
    progress: Progress = unwatched,
) -> Scored:
    """Write scores.csv, figures and subjects.csv into `out`; `every`: one brain slice in so many."""
    model = bundle.model
    if cohort.grid != model.grid:
        raise DataError(
            f"cohort {cohort.folder.name}: prepared for grid {cohort.grid.name}; the bundle needs {model.grid.name}"
        )
    split = None if tested(cohort) is None else "test"
    scoring, sampler = Scoring.of(model, every=every, split=split), sampler or model.sampler
    made = {model.name: filler(model, sampler=sampler, seed=seed, device=find_device(device))}
    made |= floors_here(model, cohort, split=split)
    scores = evaluate(made, {"here": cohort}, model.modalities, scoring, progress=progress)
    if scores.empty:
        raise DataError(
            f"cohort {cohort.folder.name}: no subject has two of {', '.join(model.modalities)}: "
            "there is nothing to hide and compare with"
        )
    how = {"bundle": bundle.digest, "sampler": plain(sampler), "seed": seed, "every": every, "split": split or "all"}
    held = [m for m in model.modalities if m in cohort.modalities]
    lines = write_scorecard(scores, out, held, {}, how=how)
    names = [subject.name for subject in Slices(cohort, model.modalities, split=split).subjects]
    by_name = scores.assign(subject=scores["subject"].map(dict(enumerate(names))))
    write_csv(by_name, out / "subjects.csv", [c for c in scores if c != "site"], exact=True)
    return Scored(scores=scores, lines=lines, split=split)
