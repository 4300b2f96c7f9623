"""`lacuna vessels`: finished runs that make angiograms, side by side on the same held-out subjects with paired seeds.

OUT/scores.csv     run, shown, subject, metric, value, key (of all that a score depends on): what is there is not made
                   again, so that a growing list of runs costs only the new ones
    summary.csv    means; lead over the first run, and cost of hiding sources, with 95 % paired intervals
    summary.json   how it was measured
    mips.png       projections of two subjects: truth, every run, and the errors of the axial ones
    mips/          what the picture is drawn from

Beside the runs stand two floors, and the truth itself, which says what the threshold alone costs. A subject is known
by its number; subjects and pictures stay where they are. What the metrics mean: shared/model/angiograms.py.
"""

import functools
import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from server.evaluation import vessel_tables
from server.evaluation.compare import find_cohorts
from server.evaluation.vessel_tables import Line, Score, Views
from server.runs import runs
from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.base.vocabulary import Modality, SiteName
from shared.data.cohort import Cohort
from shared.data.missing import all_patterns
from shared.data.modalities import in_order, parse
from shared.data.preparation import hash_file, hash_json
from shared.data.slices import Slices, Stack
from shared.data.volumes import read
from shared.diffusion.samplers import Sampler
from shared.model.angiograms import VIEWS, Mask, Threshold, image_scores, mip, vessel_scores, vessels
from shared.model.evaluation import MEAN, RIDGE, Filler, filler, floors
from shared.model.model import Model, Progress, read_model
from shared.plan.config import Config, load_sampler
from shared.plan.training import find_device

Shown: TypeAlias = tuple[Modality, ...]

VERSION = 1  # raise it when the same images would get other scores
TRUTH = "truth"
DRAWN = 2  # subjects in the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A run, a floor, or the truth: what makes angiograms."""

    name: str
    modalities: tuple[Modality, ...]  # that it knows, in its own order
    known_by: Mapping[str, Any]  # all that its images depend on, but for the subjects
    subsets: tuple[Shown, ...]  # that it is shown
    ready: Callable[[], Filler]  # what fills; made when it is needed


class Subject(NamedTuple):
    site: SiteName
    slices: Slices
    number: int  # at its site


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What all ways are asked."""

    target: Modality
    modalities: tuple[Modality, ...]  # that a subject must have
    subjects: tuple[Subject, ...]
    rule: Threshold

    def key(self, way: Way, shown: Shown) -> str:
        """Equal for equal scores."""
        held = [(subject.slices.cohort.digest, subject.number) for subject in self.subjects]
        asked = [VERSION, self.target, self.modalities, held, plain(self.rule)]
        return hash_json([asked, way.modalities, dict(way.known_by), shown])[:16]


def compare_vessels(
    names: Sequence[str],
    folder: Path,
    *,
    shown: Sequence[str] = (),
    samplers: Sequence[str] = (),
    subjects: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    rule: Threshold | None = None,
    progress: Progress | None = None,
) -> list[Line]:
    """Scores of the runs `names` in `folder`, and the floors'; files into `out`."""
    if len(set(names)) != len(names):
        raise ConfigError(f"runs {', '.join(names)}: must be named once each")
    configs = {name: runs.read_config(folder / name) for name in names}
    for name in names:
        if not runs.finished(folder / name):
            raise DataError(f"{name}: the run is not finished; go on with it by resume={name}")
    first = configs[names[0]]
    _check_worlds(configs)
    models = {name: read_model(folder / name / "final") for name in names}
    target = _target(models)
    sources = {name: tuple(m for m in model.modalities if m != target) for name, model in models.items()}
    subsets = _subsets(shown, sources, target)
    chosen = _samplers(samplers, models)
    modalities = in_order({target, *itertools.chain(*sources.values())})
    question = Question(
        target=target,
        modalities=modalities,
        subjects=_subjects(find_cohorts(first, "heldout"), modalities, subjects),
        rule=rule or Threshold(),
    )
    on = find_device(device)
    ways = [
        Way(
            name=name,
            modalities=model.modalities,
            known_by={
                "weights": hash_file(folder / name / "final" / "weights.safetensors"),
                "sampler": plain(chosen[name]),
                "seed": seed,
            },
            subsets=tuple(subset for subset in subsets if set(subset) <= set(sources[name])),
            ready=functools.partial(filler, model, sampler=chosen[name], seed=seed, device=on),
        )
        for name, model in models.items()
    ]
    ways += _floors(find_cohorts(first, "sites"), modalities, subsets)
    truth = functools.partial(_truth, question)
    ways.append(Way(name=TRUTH, modalities=modalities, known_by={}, subsets=((target,),), ready=truth))

    into = out or folder / names[0] / "vessels"
    scores = score(ways, question, into, progress)
    how = {
        "runs": {
            name: {"method": model.name, "sources": list(sources[name]), "sampler": plain(chosen[name])}
            for name, model in models.items()
        },
        "world": first.world,
        "subjects": len(question.subjects),
        "seed": seed,
        "target": target,
        "threshold": plain(question.rule),
        "device": str(on),
    }
    lines = vessel_tables.summarise(scores, names[0])
    vessel_tables.write(into, lines, how)
    _draw(ways, question, into)
    return lines


# --- scoring --------------------------------------------------------------------------------------------------------


def score(ways: Sequence[Way], question: Question, out: Path, progress: Progress | None) -> list[Score]:
    """Every way from each of its subsets; what `out` has already is taken from there."""
    held: dict[tuple[str, str, str], list[Score]] = {}
    for s in vessel_tables.read_scores(out):
        held.setdefault((s.run, s.shown, s.key), []).append(s)
    jobs = [(way, shown, question.key(way, shown)) for way in ways for shown in way.subsets]
    done, total = 0, len(jobs) * len(question.subjects)
    for way, shown, key in jobs:
        place = (way.name, "+".join(shown), key)
        if place not in held or not _picture(out, way, shown, key).exists():
            found: list[Score] = []
            views: list[Views] = []
            fill_all = way.ready()
            for number in range(len(question.subjects)):
                values, seen = _one(way, fill_all, shown, question, number)
                found += [Score(*place[:2], number, metric, value, key) for metric, value in values.items()]
                views += [seen] if number < DRAWN else []
                if progress is not None:
                    progress(done + number + 1, total)
            vessel_tables.keep_views(_picture(out, way, shown, key), views)
            held = {at: rows for at, rows in held.items() if at[:2] != place[:2]} | {place: found}
            vessel_tables.write_scores(out, itertools.chain(*held.values()))
        done += len(question.subjects)
        if progress is not None:
            progress(done, total)
    return [s for way, shown, key in jobs for s in held[way.name, "+".join(shown), key]]


def _one(way: Way, fill_all: Filler, shown: Shown, question: Question, number: int) -> tuple[dict[str, float], Views]:
    """A subject's scores and projections."""
    subject = question.subjects[number]
    stack = subject.slices.volume(subject.number)
    row = [question.modalities.index(m) for m in way.modalities]
    shown_M = torch.tensor([m in shown for m in way.modalities])
    visible_MDHW = torch.where(shown_M[:, None, None, None], stack.images_MDHW[row], torch.nan)
    began = time.monotonic()
    made_MDHW = fill_all(visible_MDHW, shown_M, ("vessels", subject.site, subject.number), stack.clinical)
    seconds = time.monotonic() - began
    made_DHW = made_MDHW[way.modalities.index(question.target)]
    truth_DHW = stack.images_MDHW[question.modalities.index(question.target)]
    found, true = (vessels(x_DHW, stack.brain_DHW, question.rule) for x_DHW in (made_DHW, truth_DHW))
    values = image_scores(made_DHW, truth_DHW, stack.brain_DHW)
    values |= {f"vessels {name}": value for name, value in vessel_scores(found, true).items()}
    label = _labelled(subject, stack, number)
    if label is not None:
        values |= {f"label {name}": value for name, value in vessel_scores(found, label).items()}
    inside_DHW = made_DHW * stack.brain_DHW
    return values | {"seconds": seconds}, {view: mip(inside_DHW, view).numpy() for view in VIEWS}


def _picture(out: Path, way: Way, shown: Shown, key: str) -> Path:
    return out / "mips" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', way.name)}.{'-'.join(shown)}.{key}.npz"


def _draw(ways: Sequence[Way], question: Question, out: Path) -> None:
    """Every way from the most that it is shown."""
    largest = ways[0].subsets[0] if ways[0].subsets else ()
    views = {}
    for way in ways:
        if way.subsets:
            shown = way.subsets[0]
            label = way.name if shown == largest or way.name == TRUTH else f"{way.name}: {'+'.join(shown)}"
            views[label] = vessel_tables.read_views(_picture(out, way, shown, question.key(way, shown)))
    truth = views.pop(TRUTH)
    title = f"{question.target} from {'+'.join(largest)}; errors: red too bright, blue too dark"
    vessel_tables.draw(out / "mips.png", truth, views, title)


def _labelled(subject: Subject, stack: Stack, number: int) -> Mask | None:
    """The cohort's own mask of the vessels, where it has one: phantoms have."""
    bids = subject.slices.cohort.folder.parents[2]
    path = bids / "derivatives" / "truth" / stack.subject / "anat" / f"{stack.subject}_label-vessel_mask.nii.gz"
    if not path.exists():
        return None
    label_DHW, placement = read(path).data_DHW, stack.geometry.placement
    if label_DHW.shape != placement.shape_DHW:
        raise DataError(f"vessel mask of subject {number}: shape {label_DHW.shape}, not {placement.shape_DHW}")
    inside: Mask = (placement.labels_to_grid(label_DHW) > 0) & stack.brain_DHW.numpy()
    return inside


def _truth(question: Question) -> Filler:
    """Shown the target, it gives the target."""
    return lambda images_MDHW, shown_M, keys, clinical: images_MDHW


def _floors(trained: Mapping[SiteName, Cohort], modalities: Shown, subsets: tuple[Shown, ...]) -> list[Way]:
    known_by = {"trained on": sorted(cohort.digest for cohort in trained.values())}

    @functools.cache
    def fitted() -> dict[str, Filler]:
        return floors(list(trained.values()), modalities)

    def way(name: str) -> Way:
        return Way(name=name, modalities=modalities, known_by=known_by, subsets=subsets, ready=lambda: fitted()[name])

    return [way(RIDGE), way(MEAN)] if trained else []


# --- what is asked --------------------------------------------------------------------------------------------------


def _check_worlds(configs: Mapping[str, Config]) -> None:
    (first, one), *others = configs.items()
    for name, other in others:
        for key in ("world", "grid"):
            ours, theirs = getattr(one, key), getattr(other, key)
            if ours != theirs:
                raise ConfigError(f"run {name}: {key}={theirs}, but {first} has {ours}: must be one and the same")


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


def _subjects(cohorts: Mapping[SiteName, Cohort], modalities: Shown, most: int | None) -> tuple[Subject, ...]:
    """Those that have all modalities, one of each site in turn: the first few of many are the few."""
    complete = {
        site: Slices(cohort, modalities, split=None, only=lambda held: held >= set(modalities))
        for site, cohort in cohorts.items()
    }
    longest = max((len(slices.subjects) for slices in complete.values()), default=0)
    found = [
        Subject(site, slices, number)
        for number in range(longest)
        for site, slices in complete.items()
        if number < len(slices.subjects)
    ]
    if not found:
        raise DataError(f"no held-out subject has all of {', '.join(modalities)}")
    return tuple(found[:most])
