"""Which runs, floors and subjects a `task=diagnosis` compares; the work itself is server/evaluation/diagnosis.py.

A row is a finished run by name, or RUN:scores (the same run, not told the diagnosis), RUN:diagnosis (told nothing else)
or RUN:images (told nothing).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from server.evaluation import diagnosis_tables
from server.evaluation.compare import find_cohorts
from server.evaluation.diagnosis import DROP, Findings, Study, Way, check_apart, find_study, run
from server.evaluation.diagnosis_tables import Line
from server.runs import runs
from shared.base.display.progress import Progress
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.base.vocabulary import SiteName
from shared.data.bids import Clinical
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.data.preparation import hash_file
from shared.data.volumes import Grid
from shared.diffusion.samplers import Sampler
from shared.methods.baselines.voxelwise import MEAN_VOLUME, VOXELWISE, floors_3d
from shared.model.diagnosis import DiagnosisOptions
from shared.model.evaluation import Filler, Keys
from shared.model.model import Filled, Model, ReadsChart, fill, read_model
from shared.plan.config import Config
from shared.plan.training import find_device

HEARD: Mapping[str, Callable[[str], bool]] = {  # which fields of those that a run reads
    "": lambda field: True,
    "scores": lambda field: field != "diagnosis",
    "diagnosis": lambda field: field == "diagnosis",
    "images": lambda field: False,
}


def diagnose(
    names: Sequence[str],
    folder: Path,
    options: DiagnosisOptions,
    *,
    study: Path | None = None,
    strangers: bool = False,
    sampler: Sampler | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Findings, list[Line]]:
    """The table of the runs `names` in `folder`; files into `out`. `study`: a BIDS cohort, or a folder of such;
    `strangers`: its subjects may bear the names of trained ones.
    """
    if len(set(names)) != len(names):
        raise ConfigError(f"runs {', '.join(names)}: must be named once each")
    configs = read_configs([name.partition(":")[0] for name in names], folder)
    first = next(iter(configs.values()))
    models = {name: read_model(folder / name / "final") for name in configs}
    modalities = next(iter(models.values())).modalities
    for name, model in models.items():
        if model.modalities != modalities or set(model.method.targets) != set(modalities):
            made = f"makes {', '.join(model.method.targets)} from {', '.join(model.modalities)}"
            raise ConfigError(f"run {name}: {made}; all runs must make each of {', '.join(modalities)} from the others")
    trained = find_cohorts(first, "sites")
    tested = find_cohorts(first, "heldout") if study is None else read_study(study, first.grid)
    if not tested:
        raise DataError(f"{first.world}/heldout: nobody to study; name the study's cohort by study=FOLDER")
    check_apart(tested, trained, strangers=strangers)
    who, on = find_study(tested, modalities, options), find_device(device)
    ways = [_run(name, folder, models, sampler, seed, on) for name in names]
    ways += _floors(trained, who)
    into = out or folder / next(iter(configs)) / "diagnosis"
    found = run(ways, who, options, seed=seed, device=on, out=into, progress=progress)
    how = {
        "rows": {way.name: {"told": list(way.told), **plain(way.known_by)} for way in ways},
        "world": first.world,
        "study": str(study) if study is not None else f"{first.world}/heldout",
        "subjects": {options.ill: sum(who.ill), options.well: len(who.ill) - sum(who.ill)},
        "modalities": list(modalities),
        "options": plain(options),
        "classifier": plain(options.shape),
        "seed": seed,
        "device": str(on),
    }
    return found, diagnosis_tables.write(found, into, how)


def read_configs(names: Sequence[str], folder: Path) -> dict[str, Config]:
    """Of finished runs on one world and grid, each once."""
    configs = {name: runs.read_config(folder / name) for name in names}
    (first, one), *others = configs.items()
    for name in configs:
        if not runs.finished(folder / name):
            raise DataError(f"{name}: the run is not finished; go on with it by resume={name}")
    for name, other in others:
        for key in ("world", "grid"):
            ours, theirs = getattr(one, key), getattr(other, key)
            if ours != theirs:
                raise ConfigError(f"run {name}: {key}={theirs}, but {first} has {ours}: must be one and the same")
    return configs


def read_study(study: Path, grid: Grid) -> dict[SiteName, Cohort]:
    """A BIDS cohort, or every one in a folder of them; prepared where that was not done yet."""
    if not study.is_dir():
        raise ConfigError(f"study={study}: no such folder")
    alone = any(path.name.startswith("sub-") for path in study.iterdir())
    folders = [study] if alone else sorted(p for p in study.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = {}
    for bids in folders:
        prepare(bids, grid)
        found[bids.name] = Cohort.open(cache_folder(bids, grid))
    return found


def _run(
    name: str, folder: Path, models: Mapping[str, Model], sampler: Sampler | None, seed: int, device: torch.device
) -> Way:
    run_name = name.partition(":")[0]
    model = models[run_name]
    told = told_by(name, model)
    one = dataclasses.replace(sampler or model.sampler, samples=1)
    return Way(
        name=name,
        known_by={
            "weights": hash_file(folder / run_name / "final" / "weights.safetensors"),
            "sampler": plain(one),
            "told": list(told),
        },
        ready=lambda: mean_of(filled_by(model, one, seed, device, told)),
        drawn=one.kind != "mean",
        told=told,
    )


def told_by(name: str, model: Model) -> tuple[str, ...]:
    """The fields of the chart that a row's model hears; ConfigError for a row that would be the run itself."""
    _, named, part = name.partition(":")
    if part not in HEARD or (named and not part):
        raise ConfigError(
            f"{name}: must be RUN, RUN:scores (not told the diagnosis), RUN:diagnosis (told nothing else) or "
            "RUN:images (told nothing)"
        )
    reads = model.method.reads if isinstance(model.method, ReadsChart) else ()
    told = tuple(field for field in reads if HEARD[part](field))
    if named and told == reads:
        raise ConfigError(f"{name}: {model.name} reads nothing of the chart that could be withheld here")
    return told


def filled_by(
    model: Model, sampler: Sampler, seed: int, device: torch.device, told: Sequence[str]
) -> Callable[[Tensor, Tensor, Keys, Clinical], Filled]:
    """What is hidden, by a model that is told these fields of the chart."""

    def fill_all(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Filled:
        hidden = [m for m, shown in zip(model.modalities, shown_M.tolist(), strict=True) if not shown]
        return fill(
            model,
            images_MDHW,
            shown_M,
            slices=range(images_MDHW.shape[1]),
            sampler=sampler,
            keys=(seed, *keys),
            device=device,
            clinical={name: value for name, value in clinical.items() if name in told},
            wanted=hidden,
        )

    return fill_all


def mean_of(fill_all: Callable[[Tensor, Tensor, Keys, Clinical], Filled]) -> Filler:
    """The Monte-Carlo mean; of one sample, the sample."""
    return lambda images_MDHW, shown_M, keys, clinical: fill_all(images_MDHW, shown_M, keys, clinical).mean_MDHW


def _floors(trained: Mapping[SiteName, Cohort], study: Study) -> list[Way]:
    """What needs no diffusion, and what needs nothing at all."""
    cohorts = list(trained.values())
    depth = max([study.depth, *(subject.depth for cohort in cohorts for subject in cohort.subjects)])
    fitted = functools.cache(lambda: floors_3d(cohorts, study.modalities, depth))
    known_by = {"trained on": sorted(cohort.digest for cohort in cohorts), "depth": depth}

    def floor(name: str) -> Way:
        return Way(name=name, known_by={**known_by, "floor": name}, ready=lambda: fitted()[name], drawn=False)

    return [floor(VOXELWISE), floor(MEAN_VOLUME), Way(name=DROP, known_by={"way": DROP}, ready=None)]
