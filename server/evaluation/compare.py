"""`lacuna evaluate`: what the federation bought its sites, on subjects that nobody trained on: held-out cohorts, and
those of split test within the sites' own.

The global model, each site trained alone (runs/RUN/alone), and floors: the training mean, patch-ridge regression and
the mixture of tissues, of methods that see whole volumes the voxelwise ones; all fitted on all sites' training cohorts
together (sums that a federation can pool exactly as well).

With several samplers the global model stands there once for each, so that what is a mean and what is a sample can be
told apart: a sample keeps texture and costs decibels.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from server.evaluation import calibrate
from server.evaluation.ways import Asked, find_tested, finished
from server.runs import runs
from shared.base.errors import ConfigError
from shared.base.options import plain
from shared.data.cohort import Cohort
from shared.diffusion.samplers import Sampler
from shared.methods.anchors.mixture import COMPONENTS, Mixture
from shared.methods.baselines.voxelwise import floors_3d
from shared.model.evaluation import (
    FLOORS,
    MIXTURE,
    Either,
    Filler,
    Scoring,
    evaluate,
    filled_by,
    filler,
    floors,
    never_acquired,
    of_slices,
)
from shared.model.model import Model, read_model
from shared.model.scorecard import worth_of_samples, write_scorecard
from shared.model.tables import Frame, stacked
from shared.plan.settings import load_sampler
from shared.plan.training import find_device

FEDERATED = "federated"


def compare(asked: Asked, *, samplers: Sequence[str] = (), every: int) -> tuple[Frame, Frame]:
    """Scores of a finished run into its evaluation/ folder; gives the lines of the table, and those of the samples.

    `samplers`: KIND or KIND:SAMPLES; the first is also that of the sites alone. By default the run's own.
    """
    folder = asked.runs / asked.names[0]
    config = finished(folder)
    trained, tested = find_tested(config, strangers=asked.strangers)
    model = read_model(folder / "final")
    scoring = Scoring.of(model, every=every)
    chosen = {FEDERATED if len(samplers) == 1 else f"{FEDERATED}, {word}": named(word) for word in samplers}
    chosen = chosen or {FEDERATED: model.sampler}
    first, on = next(iter(chosen.values())), find_device(asked.device)
    calibrated = calibrate.read(folder)
    made: dict[str, Either] = {
        name: filled_by(
            model,
            sampler=sampler,
            seed=asked.seed,
            device=on,
            calibration=calibrated if calibrated is not None and calibrated.sampler == sampler else None,
        )
        for name, sampler in chosen.items()
    }
    alone = {
        site: filler(read_model(folder / "alone" / site / "final"), sampler=first, seed=asked.seed, device=on)
        for site in trained
        if runs.finished(folder / "alone" / site)
    }
    made |= _floors(model, list(trained.values()), scoring, exact=config.privacy.mode == "off")
    scores = _numbered(
        [evaluate(made, part, model.modalities, scoring, alone=alone, progress=asked.progress) for part in tested]
    )
    never = never_acquired(trained, model.modalities)
    how = {
        "run": folder.name,
        "sampler": plain(first),
        "samplers": {name: plain(sampler) for name, sampler in chosen.items()},
        "calibrated": None if calibrated is None else calibrated.source,
        "seed": asked.seed,
        "every": every,
    }
    lines = write_scorecard(scores, asked.into("evaluation"), model.modalities, never, how=how)
    return lines, worth_of_samples(scores, list(chosen))


def _floors(model: Model, cohorts: Sequence[Cohort], scoring: Scoring, *, exact: bool) -> dict[str, Filler]:
    """The mixture is the run's own where it fitted one as large, by exact sums: the same sites', the same rounds."""
    if scoring.whole:
        return floors_3d(cohorts, model.modalities, model.method.slab)
    own = [part for part in model.net.children() if isinstance(part, Mixture) and len(part.weight_K) == COMPONENTS]
    if not (own and exact):
        return floors(cohorts, model.modalities, (*FLOORS, MIXTURE))
    return floors(cohorts, model.modalities, FLOORS) | {MIXTURE: of_slices(own[0])}


def named(word: str) -> Sampler:
    """KIND, or KIND:SAMPLES for another number of samples than its preset has."""
    kind, given, samples = word.partition(":")
    sampler = load_sampler(kind)
    if not given:
        return sampler
    if not samples.isdecimal() or int(samples) < 1:
        raise ConfigError(f"--sampler {word}: must be KIND or KIND:SAMPLES, such as multistep:8")
    return dataclasses.replace(sampler, samples=int(samples))


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
