"""Who is compared on whom: finished runs on one world, what else fills in beside them, and the world's subjects.

A run that reads the chart can also be asked for as RUN:scores (not told the diagnosis), RUN:diagnosis (told nothing
else) or RUN:images (told nothing).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from server.runs import runs
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError
from shared.base.vocabulary import Modality, SiteName
from shared.data.apart import check_apart, tested
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.data.preparation import hash_file
from shared.data.slices import Slices, Stack
from shared.data.volumes import Grid
from shared.methods import ReadsChart
from shared.model.evaluation import Filler
from shared.model.model import Model, read_model
from shared.plan.config import Config

HEARD: Mapping[str, Callable[[str], bool]] = {  # which fields of those that a run reads
    "": lambda field: True,
    "scores": lambda field: field != "diagnosis",
    "diagnosis": lambda field: field == "diagnosis",
    "images": lambda field: False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every comparison of runs is given."""

    names: tuple[str, ...]  # a run, or RUN:PART of one
    runs: Path  # the folder of all runs
    seed: int = 0
    device: str = "auto"
    out: Path | None = None  # by default a folder in the first run
    strangers: bool = False  # held-out subjects may bear the names of trained ones
    progress: Progress = unwatched

    def into(self, what: str) -> Path:
        return self.out or self.runs / run_of(self.names[0]) / what


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What fills in: a run, a floor, or the truth. Without `ready` subjects that lost something are left out."""

    name: str
    modalities: tuple[Modality, ...] = ()  # that it knows, in its own order
    known_by: Mapping[str, Any]  # all that its images depend on, but for the subjects
    ready: Callable[[], Filler] | None  # what fills; made when it is needed
    drawn: bool = True  # other images in each generation
    told: tuple[str, ...] = ()  # fields of the chart that it hears


class Person(NamedTuple):
    """A subject that has all modalities, known by number."""

    site: SiteName
    number: int  # at its site
    slices: Slices

    @property
    def stack(self) -> Stack:
        return self.slices.volume(self.number)


# --- runs -----------------------------------------------------------------------------------------------------------


def run_of(name: str) -> str:
    return name.partition(":")[0]


def finished(folder: Path) -> Config:
    config = runs.read_config(folder)
    if not runs.finished(folder):
        raise DataError(f"{folder.name}: the run is not finished; go on with it by resume={folder.name}")
    return config


def read_runs(asked: Asked) -> tuple[Config, dict[str, Model]]:
    """The first run's config, and each run's model once; all on one world and grid."""
    if len(set(asked.names)) != len(asked.names):
        raise ConfigError(f"runs {', '.join(asked.names)}: must be named once each")
    configs = {name: finished(asked.runs / name) for name in dict.fromkeys(map(run_of, asked.names))}
    (first, one), *others = configs.items()
    for name, other in others:
        for key in ("world", "grid"):
            ours, theirs = getattr(one, key), getattr(other, key)
            if ours != theirs:
                raise ConfigError(f"run {name}: {key}={theirs}, but {first} has {ours}: must be one and the same")
    return one, {name: read_model(asked.runs / name / "final") for name in configs}


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


def weights_of(asked: Asked, name: str) -> str:
    """Equal for equal models."""
    return hash_file(asked.runs / run_of(name) / "final" / "weights.safetensors")


# --- subjects -------------------------------------------------------------------------------------------------------


def find_cohorts(config: Config, part: str) -> dict[SiteName, Cohort]:
    """A world's cohorts of one part (sites, heldout), prepared for the run's grid."""
    root = Path(str(config.world)) / part
    wanted = None if config.federation.sites == (runs.POOLED,) else config.federation.sites
    folders = [p for p in sorted(root.iterdir()) if p.is_dir()] if root.is_dir() else []
    return prepared([bids for bids in folders if wanted is None or bids.name in wanted], config.grid)


def prepared(folders: Iterable[Path], grid: Grid) -> dict[SiteName, Cohort]:
    """BIDS cohorts by name, prepared where that was not done yet."""
    cohorts = {}
    for bids in folders:
        prepare(bids, grid)
        cohorts[bids.name] = Cohort.open(cache_folder(bids, grid))
    return cohorts


def find_world(
    config: Config, what: str = "score on", *, strangers: bool
) -> tuple[dict[SiteName, Cohort], dict[SiteName, Cohort]]:
    """The world's training cohorts, and its held-out ones, nobody of whom was trained on."""
    trained, heldout = find_cohorts(config, "sites"), find_cohorts(config, "heldout")
    if not heldout:
        raise DataError(f"{config.world}/heldout: no held-out subjects to {what}")
    check_apart(heldout, trained, strangers=strangers)
    return trained, heldout


def find_tested(
    config: Config, *, strangers: bool
) -> tuple[dict[SiteName, Cohort], tuple[dict[SiteName, Cohort], ...]]:
    """The world's training cohorts; its held-out ones and who is of split test: nobody of these was trained on."""
    trained, heldout = find_cohorts(config, "sites"), find_cohorts(config, "heldout")
    check_apart(heldout, trained, strangers=strangers)
    inside = {site: found for site, cohort in trained.items() if (found := tested(cohort)) is not None}
    if not heldout and not inside:
        raise DataError(f"{config.world}: neither heldout/ nor a subject of split test to score on")
    return trained, tuple(part for part in (heldout, inside) if part)


def complete(cohorts: Mapping[SiteName, Cohort], modalities: Sequence[Modality]) -> list[Person]:
    """Those that have all modalities, site after site."""
    found = []
    for site, cohort in cohorts.items():
        slices = Slices(cohort, modalities, split=None, only=lambda held: held >= set(modalities))
        found += [Person(site, number, slices) for number in range(len(slices.subjects))]
    return found


def visible(images_MDHW: Tensor, shown_M: Tensor) -> Tensor:
    """What is shown; hidden images are not a number, so that a peek would not go unseen."""
    return torch.where(shown_M[:, None, None, None], images_MDHW, torch.nan)
