"""Which runs, floors and subjects a `task=diagnosis` compares; the work itself is server/evaluation/diagnosis.py."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from server.evaluation import diagnosis_tables
from server.evaluation.diagnosis import DROP, Findings, Study, find_study, run
from server.evaluation.ways import (
    Asked,
    Way,
    find_cohorts,
    prepared,
    read_runs,
    run_of,
    told_by,
    weights_of,
)
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.base.vocabulary import SiteName
from shared.data.apart import check_apart
from shared.data.cohort import Cohort
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods.baselines.voxelwise import MEAN_VOLUME, VOXELWISE, floors_3d
from shared.model.diagnosis import DiagnosisOptions
from shared.model.evaluation import filled_by, mean_of
from shared.model.model import Model
from shared.model.tables import Frame
from shared.plan.training import find_device


def diagnose(
    asked: Asked, options: DiagnosisOptions, *, study: Path | None = None, sampler: Sampler | None = None
) -> tuple[Findings, Frame]:
    """The table of the runs asked for; files beside it. `study`: a BIDS cohort, or a folder of such."""
    first, models = read_runs(asked)
    modalities = next(iter(models.values())).modalities
    for name, model in models.items():
        if model.modalities != modalities or set(model.method.targets) != set(modalities):
            made = f"makes {', '.join(model.method.targets)} from {', '.join(model.modalities)}"
            raise ConfigError(f"run {name}: {made}; all runs must make each of {', '.join(modalities)} from the others")
    trained = find_cohorts(first, "sites")
    tested = find_cohorts(first, "heldout") if study is None else read_study(study, first.grid)
    if not tested:
        raise DataError(f"{first.world}/heldout: nobody to study; name the study's cohort by study=FOLDER")
    check_apart(tested, trained, strangers=asked.strangers)
    who = find_study(tested, modalities, options)
    ways = [_run(name, asked, models[run_of(name)], sampler) for name in asked.names]
    ways += _floors(trained, who)
    into, on = asked.into("diagnosis"), find_device(asked.device)
    found = run(ways, who, options, seed=asked.seed, device=on, out=into, progress=asked.progress)
    how = {
        "rows": {way.name: {"told": list(way.told), **plain(way.known_by)} for way in ways},
        "world": first.world,
        "study": str(study) if study is not None else f"{first.world}/heldout",
        "subjects": {options.ill: sum(who.ill), options.well: len(who.ill) - sum(who.ill)},
        "modalities": list(modalities),
        "options": plain(options),
        "classifier": plain(options.shape),
        "seed": asked.seed,
        "device": str(on),
    }
    return found, diagnosis_tables.write(found, into, how)


def read_study(study: Path, grid: Grid) -> dict[SiteName, Cohort]:
    """A BIDS cohort, or every one in a folder of them."""
    if not study.is_dir():
        raise ConfigError(f"study={study}: no such folder")
    if any(path.name.startswith("sub-") for path in study.iterdir()):
        return prepared([study], grid)
    return prepared(sorted(p for p in study.iterdir() if p.is_dir() and not p.name.startswith(".")), grid)


def _run(name: str, asked: Asked, model: Model, sampler: Sampler | None) -> Way:
    told, on = told_by(name, model), find_device(asked.device)
    one = dataclasses.replace(sampler or model.sampler, samples=1)
    return Way(
        name=name,
        known_by={"weights": weights_of(asked, name), "sampler": plain(one), "told": list(told)},
        ready=lambda: mean_of(filled_by(model, sampler=one, seed=asked.seed, device=on, told=told)),
        drawn=one.kind != "mean",
        told=told,
    )


def _floors(trained: Mapping[SiteName, Cohort], study: Study) -> list[Way]:
    """What needs no diffusion, and what needs nothing at all."""
    cohorts = list(trained.values())
    depth = max([study.depth, *(subject.depth for cohort in cohorts for subject in cohort.subjects)])
    fitted = functools.cache(lambda: floors_3d(cohorts, study.modalities, depth))
    known_by = {"trained on": sorted(cohort.digest for cohort in cohorts), "depth": depth}

    def floor(name: str) -> Way:
        return Way(name=name, known_by={**known_by, "floor": name}, ready=lambda: fitted()[name], drawn=False)

    return [floor(VOXELWISE), floor(MEAN_VOLUME), Way(name=DROP, known_by={"way": DROP}, ready=None)]
