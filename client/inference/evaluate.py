"""`lacuna-site evaluate`: a site scores a bundle on its own cohort, each present modality hidden in turn.

The report stays at the site: it names subjects. On subjects that took part in training the scores flatter the model.
"""

import csv
import dataclasses
import io
from pathlib import Path

from shared.base.checkpoint import write_text
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.data.cohort import Cohort
from shared.data.slices import Slices
from shared.diffusion.samplers import Sampler
from shared.model.bundle import Bundle
from shared.model.evaluation import Score, evaluate, filler
from shared.model.model import Progress, ReadsChart
from shared.model.scorecard import write_scorecard
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
    progress: Progress | None = None,
) -> tuple[Score, ...]:
    """Writes scores.csv, figures and subjects.csv into `out`; `every`: one brain slice in so many."""
    model = bundle.model
    if cohort.grid != model.grid:
        raise DataError(
            f"cohort {cohort.folder.name}: prepared for grid {cohort.grid.name}; the bundle needs {model.grid.name}"
        )
    if every > 1 and model.method.slab > 1:
        raise ConfigError(f"--every {every}: {model.name} sees {model.method.slab} adjacent slices; it needs them all")
    sampler = sampler or model.sampler
    made = {model.name: filler(model, sampler=sampler, seed=seed, device=find_device(device))}
    targets = model.method.targets
    scores = evaluate(
        made,
        {"here": cohort},
        model.modalities,
        targets=targets,
        every=every,
        whole=isinstance(model.method, ReadsChart),
        split=split,
        progress=progress,
    )
    if not scores:
        raise DataError(
            f"cohort {cohort.folder.name}: no subject has two of {', '.join(model.modalities)}: "
            "there is nothing to hide and compare with"
        )
    how = {"bundle": bundle.digest, "sampler": plain(sampler), "seed": seed, "every": every, "split": split or "all"}
    write_scorecard(scores, out, model.modalities, {}, how=how)
    names = [subject.name for subject in Slices(cohort, model.modalities, split=split).subjects]
    write_text(out / "subjects.csv", _by_name(scores, names))
    return scores


def _by_name(scores: tuple[Score, ...], names: list[str]) -> str:
    text = io.StringIO()
    fields = [f.name for f in dataclasses.fields(Score) if f.name not in ("model", "site")]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        values = {name: getattr(score, name) for name in fields}
        writer.writerow({**values, "subject": names[score.subject], "shown": "+".join(score.shown)})
    return text.getvalue()
