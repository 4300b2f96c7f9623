"""`lacuna evaluate`: what the federation bought its sites, on subjects that nobody trained on: held-out cohorts, and
those of split test within the sites' own.

The global model, each site trained alone (runs/RUN/alone), and floors: the training mean, patch-ridge regression and
the mixture of tissues, of methods that see whole volumes the voxelwise ones; all fitted on all sites' training cohorts
together (sums that a federation can pool exactly as well).
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from server.evaluation.ways import Asked, find_tested, finished
from server.runs import runs
from shared.base.options import plain
from shared.diffusion.samplers import Sampler
from shared.methods.baselines.voxelwise import floors_3d
from shared.model.evaluation import HATS, MEAN, MIXTURE, RIDGE, Scoring, evaluate, filler, floors, never_acquired
from shared.model.model import read_model
from shared.model.scorecard import write_scorecard
from shared.model.tables import Frame, stacked
from shared.plan.training import find_device

FEDERATED = "federated"


def compare(asked: Asked, *, sampler: Sampler | None, every: int) -> Frame:
    """Scores of a finished run into its evaluation/ folder; gives the lines of the table."""
    folder = asked.runs / asked.names[0]
    config = finished(folder)
    trained, tested = find_tested(config, strangers=asked.strangers)
    model = read_model(folder / "final")
    scoring = Scoring.of(model, every=every)
    sampler, on = sampler or model.sampler, find_device(asked.device)
    alone = {
        site: filler(read_model(folder / "alone" / site / "final"), sampler=sampler, seed=asked.seed, device=on)
        for site in trained
        if runs.finished(folder / "alone" / site)
    }
    made = {FEDERATED: filler(model, sampler=sampler, seed=asked.seed, device=on)}
    cohorts = list(trained.values())
    made |= (
        floors_3d(cohorts, model.modalities, model.method.slab)
        if scoring.whole
        else floors(cohorts, model.modalities, (MEAN, RIDGE, HATS, MIXTURE))
    )
    scores = _numbered(
        [evaluate(made, part, model.modalities, scoring, alone=alone, progress=asked.progress) for part in tested]
    )
    never = never_acquired(trained, model.modalities)
    how = {"run": folder.name, "sampler": plain(sampler), "seed": asked.seed, "every": every}
    return write_scorecard(scores, asked.into("evaluation"), model.modalities, never, how=how)


def _numbered(parts: Sequence[Frame]) -> Frame:
    """As one table: a site's subjects of one part count on from those of the part before."""
    so_far: Counter[str] = Counter()
    numbered = []
    for part in parts:
        numbered.append(part.assign(subject=part["subject"] + part["site"].map(so_far)))
        so_far.update(part.groupby("site")["subject"].max().add(1).to_dict())
    return stacked(numbered)


def headline_figures(folder: Path) -> dict[str, float]:
    """What the bundle says of itself; empty before an evaluation."""
    summary = folder / "evaluation" / "summary.json"
    if not summary.exists():
        return {}
    found = json.loads(summary.read_text(encoding="utf-8")).get("headlines", {})
    return {str(name): float(value) for name, value in found.items()}
