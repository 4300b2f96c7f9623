"""`lacuna vessels`: finished runs that make angiograms, side by side on the same held-out subjects with paired seeds.

OUT/scores.csv     run, shown, subject, metric, value, key (of all that a score depends on): what is there is not made
                   again, so that a growing list of runs costs only the new ones
    summary.csv    means; lead over the first run, and cost of hiding sources, with 95 % paired intervals
    summary.json   how it was measured
    mips.png       projections of two subjects: truth, every run, and the errors of the axial ones
    mips/          what the picture is drawn from

Beside the runs stand floors, and the truth itself, which says what the threshold alone costs. A subject is known
by its number; subjects and pictures stay where they are. What the metrics mean: shared/model/angiograms.py.
"""

import functools
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from server.evaluation import vessel_tables
from server.evaluation.vessel_tables import PLACE, Views
from server.evaluation.ways import (
    Asked,
    Person,
    Way,
    complete,
    find_world,
    read_runs,
    visible,
    weights_of,
)
from shared.base.display.progress import Progress
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.base.vocabulary import Modality, SiteName
from shared.data.bids import Clinical
from shared.data.cohort import Cohort
from shared.data.missing import all_patterns
from shared.data.modalities import in_order, parse
from shared.data.preparation import hash_json
from shared.data.slices import Stack
from shared.data.volumes import read
from shared.diffusion.samplers import Sampler
from shared.model.angiograms import VIEWS, Mask, Threshold, image_scores, mip, vessel_scores, vessels
from shared.model.evaluation import FLOORS, Filler, Keys, filler, floors
from shared.model.model import Model
from shared.model.tables import Frame, tidy
from shared.plan.settings import load_sampler
from shared.plan.training import find_device

Shown: TypeAlias = tuple[Modality, ...]

VERSION = 1  # raise it when the same images would get other scores
TRUTH = "truth"
DRAWN = 2  # subjects in the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What all ways are asked."""

    target: Modality
    modalities: tuple[Modality, ...]  # that a subject must have
    people: tuple[Person, ...]
    rule: Threshold

    def key(self, way: Way, shown: Shown) -> str:
        """Equal for equal scores."""
        held = [(person.slices.cohort.digest, person.number) for person in self.people]
        asked = [VERSION, self.target, self.modalities, held, plain(self.rule)]
        return hash_json([asked, way.modalities, dict(way.known_by), shown])[:16]


class Job(NamedTuple):
    """A way, and what it is shown."""

    way: Way
    shown: Shown
    key: str

    @property
    def place(self) -> tuple[str, str, str]:
        """The columns of its scores."""
        return self.way.name, "+".join(self.shown), self.key


def compare_vessels(
    asked: Asked,
    *,
    shown: Sequence[str] = (),
    samplers: Sequence[str] = (),
    subjects: int | None = None,
    rule: Threshold | None = None,
) -> Frame:
    """Means of the runs asked for, and the floors'; files beside them."""
    config, models = read_runs(asked)
    target = _target(models)
    sources = {name: tuple(m for m in model.modalities if m != target) for name, model in models.items()}
    subsets = _subsets(shown, sources, target)
    chosen = _samplers(samplers, models)
    modalities = in_order({target, *itertools.chain(*sources.values())})
    trained, heldout = find_world(config, strangers=asked.strangers)
    people = _few(complete(heldout, modalities), modalities, subjects)
    question = Question(target=target, modalities=modalities, people=people, rule=rule or Threshold())
    on = find_device(asked.device)
    ways = [
        Way(
            name=name,
            modalities=model.modalities,
            known_by={"weights": weights_of(asked, name), "sampler": plain(chosen[name]), "seed": asked.seed},
            ready=functools.partial(filler, model, sampler=chosen[name], seed=asked.seed, device=on),
        )
        for name, model in models.items()
    ]
    ways += _floors(trained, modalities)
    truth = Way(name=TRUTH, modalities=modalities, known_by={}, ready=lambda: _truth)
    pairs = [(way, subset) for way in ways for subset in subsets if set(subset) <= set(way.modalities)]
    jobs = [Job(way, subset, question.key(way, subset)) for way, subset in [*pairs, (truth, (target,))]]

    into = asked.into("vessels")
    scores = score(jobs, question, into, asked.progress)
    how = {
        "runs": {
            name: {"method": model.name, "sources": list(sources[name]), "sampler": plain(chosen[name])}
            for name, model in models.items()
        },
        "world": config.world,
        "subjects": len(question.people),
        "seed": asked.seed,
        "target": target,
        "threshold": plain(question.rule),
        "device": str(on),
    }
    lines = vessel_tables.summarise(scores, asked.names[0])
    vessel_tables.write(into, lines, how)
    _draw(jobs, question, into)
    return lines


# --- scoring --------------------------------------------------------------------------------------------------------


def score(jobs: Sequence[Job], question: Question, out: Path, progress: Progress) -> Frame:
    """Every way from each of its subsets; what `out` has already is taken from there."""
    held = {
        place: list(rows.itertuples(index=False))
        for place, rows in vessel_tables.read_scores(out).groupby(PLACE, sort=False)
    }
    done, total = 0, len(jobs) * len(question.people)
    for job in jobs:
        if job.place not in held or not _picture(out, job).exists():
            found: list[Any] = []
            views: list[Views] = []
            assert job.way.ready is not None
            fill_all = job.way.ready()
            for number in range(len(question.people)):
                values, seen = _one(job, fill_all, question, number)
                run, shown, key = job.place
                found += [(run, shown, number, metric, value, key) for metric, value in values.items()]
                views += [seen] if number < DRAWN else []
                progress(done + number + 1, total)
            vessel_tables.keep_views(_picture(out, job), views)
            # another sampler, seed or threshold takes the place of the one before
            held = {at: rows for at, rows in held.items() if at[:2] != job.place[:2]} | {job.place: found}
            vessel_tables.write_scores(out, itertools.chain(*held.values()))
        done += len(question.people)
        progress(done, total)
    return tidy([row for job in jobs for row in held[job.place]], vessel_tables.SCORES)


def _one(job: Job, fill_all: Filler, question: Question, number: int) -> tuple[dict[str, float], Views]:
    """A subject's scores and projections."""
    person, way = question.people[number], job.way
    stack = person.stack
    row = [question.modalities.index(m) for m in way.modalities]
    shown_M = torch.tensor([m in job.shown for m in way.modalities])
    visible_MDHW = visible(stack.images_MDHW[row], shown_M)
    began = time.monotonic()
    made_MDHW = fill_all(visible_MDHW, shown_M, ("vessels", person.site, person.number), stack.clinical)
    seconds = time.monotonic() - began
    made_DHW = made_MDHW[way.modalities.index(question.target)]
    truth_DHW = stack.images_MDHW[question.modalities.index(question.target)]
    found, true = (vessels(x_DHW, stack.brain_DHW, question.rule) for x_DHW in (made_DHW, truth_DHW))
    values = image_scores(made_DHW, truth_DHW, stack.brain_DHW)
    values |= {f"vessels {name}": value for name, value in vessel_scores(found, true).items()}
    label = _labelled(person, stack, number)
    if label is not None:
        values |= {f"label {name}": value for name, value in vessel_scores(found, label).items()}
    inside_DHW = made_DHW * stack.brain_DHW
    return values | {"seconds": seconds}, {view: mip(inside_DHW, view).numpy() for view in VIEWS}


def _picture(out: Path, job: Job) -> Path:
    return out / "mips" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', job.way.name)}.{'-'.join(job.shown)}.{job.key}.npz"


def _draw(jobs: Sequence[Job], question: Question, out: Path) -> None:
    """Every way from the most that it is shown."""
    largest = jobs[0].shown
    most = {job.way.name: job for job in reversed(jobs)}  # the first of each
    views = {}
    for job in (most[name] for name in dict.fromkeys(job.way.name for job in jobs)):
        is_usual = job.shown == largest or job.way.name == TRUTH
        label = job.way.name if is_usual else f"{job.way.name}: {'+'.join(job.shown)}"
        views[label] = vessel_tables.read_views(_picture(out, job))
    truth = views.pop(TRUTH)
    title = f"{question.target} from {'+'.join(largest)}; errors: red too bright, blue too dark"
    vessel_tables.draw(out / "mips.png", truth, views, title)


def _labelled(person: Person, stack: Stack, number: int) -> Mask | None:
    """The cohort's own mask of the vessels, where it has one: phantoms have."""
    bids = person.slices.cohort.folder.parents[2]
    path = bids / "derivatives" / "truth" / stack.subject / "anat" / f"{stack.subject}_label-vessel_mask.nii.gz"
    if not path.exists():
        return None
    label_DHW, placement = read(path).data_DHW, stack.geometry.placement
    if label_DHW.shape != placement.shape_DHW:
        raise DataError(f"vessel mask of subject {number}: shape {label_DHW.shape}, not {placement.shape_DHW}")
    inside: Mask = (placement.labels_to_grid(label_DHW) > 0) & stack.brain_DHW.numpy()
    return inside


def _truth(images_MDHW: Tensor, shown_M: Tensor, keys: Keys, clinical: Clinical) -> Tensor:
    """Shown the target, it gives the target."""
    return images_MDHW


def _floors(trained: Mapping[SiteName, Cohort], modalities: Shown) -> list[Way]:
    known_by = {"trained on": sorted(cohort.digest for cohort in trained.values())}
    fitted = functools.cache(lambda: floors(list(trained.values()), modalities))

    def way(name: str) -> Way:
        return Way(name=name, modalities=modalities, known_by=known_by, ready=lambda: fitted()[name])

    return [way(name) for name in FLOORS] if trained else []


# --- what is asked --------------------------------------------------------------------------------------------------


def _target(models: Mapping[str, Model]) -> Modality:
    """The one modality that every run can make."""
    common = set.intersection(*(set(model.method.targets) for model in models.values()))
    if len(common) != 1:
        made = "; ".join(f"{name}: {', '.join(model.method.targets)}" for name, model in models.items())
        raise ConfigError(f"the runs make {made}: must have one modality in common")
    return common.pop()


def _subsets(asked: Sequence[str], sources: Mapping[str, Shown], target: Modality) -> tuple[Shown, ...]:
    """Unasked, all sources of each run: one that knows more is then shown as much as one that knows less."""
    every = in_order(set(itertools.chain(*sources.values())))
    found: list[Shown] = [] if asked else [in_order(held) for held in sources.values()]
    for entry in asked:
        if entry == "all":
            found += reversed(all_patterns(every))
            continue
        subset = in_order({parse(name) for name in entry.split("+")})
        if not any(set(subset) <= set(held) for held in sources.values()):
            raise ConfigError(f"--shown {entry}: no run makes {target} from it; sources are {', '.join(every)}")
        found.append(subset)
    return tuple(sorted(dict.fromkeys(found), key=lambda subset: -len(subset)))  # what is asked first stays first


def _samplers(given: Sequence[str], models: Mapping[str, Model]) -> dict[str, Sampler]:
    """KIND for all runs that take it, RUN=KIND for one; a run that is not told keeps what it was validated with."""
    general: Sampler | None = None
    chosen: dict[str, Sampler] = {}
    for entry in given:
        name, is_for_one, kind = entry.rpartition("=")
        if is_for_one and name not in models:
            raise ConfigError(f"--sampler {entry}: run {name} is not among {', '.join(models)}")
        if is_for_one:
            chosen[name] = load_sampler(kind)
            continue
        if general is not None:
            raise ConfigError(f"--sampler {entry}: one for all runs was given already; RUN=KIND is for one run")
        general = load_sampler(kind)
    for name, model in models.items():
        takes = general is not None and general.kind in model.method.samplers
        chosen.setdefault(name, general if general is not None and takes else model.sampler)
    return chosen


def _few(people: Sequence[Person], modalities: Shown, most: int | None) -> tuple[Person, ...]:
    """One of each site in turn: the first few of many are the few."""
    if not people:
        raise DataError(f"no held-out subject has all of {', '.join(modalities)}")
    return tuple(sorted(people, key=lambda person: person.number)[:most])
