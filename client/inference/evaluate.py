"""`lacuna-site evaluate`: a site scores a bundle on its own cohort, each present modality hidden in turn.

The report stays at the site: it names subjects. On subjects that took part in training the scores flatter the model.
"""

from pathlib import Path

from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.options import plain
from shared.data.cohort import Cohort
from shared.data.slices import Slices
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.evaluation import Scoring, evaluate, filler
from shared.model.scorecard import write_scorecard
from shared.model.tables import Frame, write_csv
from shared.plan.training import find_device


def evaluate_here(
    bundle: Bundle,
    cohort: Cohort,
    out: Path,
    *,
    sampler: Sampler | None = None,
    seed: int = 0,
    every: int = 1,
    split: str | None = None,
    device: str = "auto",
    progress: Progress = unwatched,
) -> Frame:
    """Write scores.csv, figures and subjects.csv into `out`; `every`: one brain slice in so many."""
    model = bundle.model
    if cohort.grid != model.grid:
        raise DataError(
            f"cohort {cohort.folder.name}: prepared for grid {cohort.grid.name}; the bundle needs {model.grid.name}"
        )
    scoring, sampler = Scoring.of(model, every=every, split=split), sampler or model.sampler
    made = {model.name: filler(model, sampler=sampler, seed=seed, device=find_device(device))}
    scores = evaluate(made, {"here": cohort}, model.modalities, scoring, progress=progress)
    if scores.empty:
        raise DataError(
            f"cohort {cohort.folder.name}: no subject has two of {', '.join(model.modalities)}: "
            "there is nothing to hide and compare with"
        )
    how = {"bundle": bundle.digest, "sampler": plain(sampler), "seed": seed, "every": every, "split": split or "all"}
    write_scorecard(scores, out, model.modalities, {}, how=how)
    names = [subject.name for subject in Slices(cohort, model.modalities, split=split).subjects]
    by_name = scores.assign(subject=scores["subject"].map(dict(enumerate(names))))
    write_csv(by_name, out / "subjects.csv", [c for c in scores if c not in ("model", "site")], exact=True)
    return scores
