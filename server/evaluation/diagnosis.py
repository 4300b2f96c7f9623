"""`lacuna evaluate RUN... task=diagnosis`: what completed sets are worth to a classifier of AD against HC.

The study has subjects of its own that no generator was trained on. At each rate some of its training subjects lose one
or two modalities, every way completes the same ones, and the same classifier is trained from the same seed.

OUT/cells.jsonl     one trained classifier per line; what is there is not trained again
    diagnosis.csv   all generations          leads.csv    the first way over the others: mean and 95 % interval
    leaks.csv       what a linear rule finds in made and in real images
    summary.json    means, and how they were measured              accuracy.png   accuracy against the rate
    completed/      made volumes, float16, used at all rates: patient data, like the study itself

A generation has its own split, noise and classifier: intervals are over generations. A made volume is one sample of
the generator, never the mean of several, and blank outside the brain. Subjects are known by number.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from server.evaluation.ways import Person, Way, complete, visible
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.files import write_text, writing
from shared.base.options import plain
from shared.base.randomness import seed_of
from shared.base.vocabulary import Modality, SiteName
from shared.clinical.chart import chart_of
from shared.data.cohort import Cohort
from shared.data.preparation import hash_json
from shared.data.slices import Stack
from shared.model.diagnosis import PROBE, DiagnosisOptions, Draw, auc, draw, fit, judge, pooled, predict, probe
from shared.model.evaluation import Filler

VERSION = 1  # raise it when the same volumes would get other scores
ORACLE, DROP = "oracle", "drop"
KEPT = 64  # voxels along an edge up to which pooled volumes stay in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Complete subjects of two diagnoses; volumes are filled up with blank slices to one depth."""

    modalities: tuple[Modality, ...]
    people: tuple[Person, ...]
    ill: tuple[bool, ...]
    depth: int

    @property
    def key(self) -> str:
        held = [[p.site, p.number, p.slices.cohort.digest] for p in self.people]
        return hash_json([self.modalities, held, self.depth])[:16]

    def stack(self, i: int) -> Stack:
        return self.people[i].stack

    def deep(self, images_MDHW: Tensor) -> Tensor:
        return F.pad(images_MDHW, (0, 0, 0, 0, 0, self.depth - images_MDHW.shape[1]))


class Cell(NamedTuple):
    """One trained classifier."""

    way: str
    rate: float
    generation: int
    acc: float
    auc: float
    sen: float
    spe: float
    threshold: float
    trained: int
    tested: int
    auc_made: float  # over the test subjects that lost something; nan where none did
    seconds: float


class Leak(NamedTuple):
    """What a linear rule finds of the diagnosis in a way's images, and in the real ones of the same subjects."""

    way: str
    generation: int
    modality: Modality
    made: float  # AUC on held-out subjects
    real: float
    subjects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The first of `ways` is what the others are compared with."""

    cells: tuple[Cell, ...]
    leaks: tuple[Leak, ...]
    ways: tuple[Way, ...]
    options: DiagnosisOptions


def key_of(way: Way) -> str:
    """Equal for equal volumes."""
    return hash_json([VERSION, dict(way.known_by), way.drawn])[:16]


def find_study(cohorts: Mapping[SiteName, Cohort], modalities: Sequence[Modality], options: DiagnosisOptions) -> Study:
    """Of all cohorts, whoever has all modalities and one of the two diagnoses."""
    people, ill = [], []
    for person in complete(cohorts, modalities):
        found = chart_of(person.slices.subjects[person.number].clinical, ("diagnosis",)).diagnosis
        if found in (options.ill, options.well):
            people.append(person)
            ill.append(found == options.ill)
    if not (any(ill) and not all(ill)):
        what = f"{sum(ill)} {options.ill} and {len(ill) - sum(ill)} {options.well} subjects"
        raise DataError(
            f"the study has {what} with all of {', '.join(modalities)}: both are needed "
            "(column diagnosis of participants.tsv)"
        )
    depth = max(p.slices.subjects[p.number].depth for p in people)
    return Study(modalities=tuple(modalities), people=tuple(people), ill=tuple(ill), depth=depth)


# --- completed sets -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Sets:
    """Real and completed volumes, made once and kept on disk."""

    study: Study
    folder: Path
    edge: int | None
    seed: int
    _kept: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def path(self, way: Way, g: int, i: int) -> Path:
        key = hash_json([key_of(way), self.study.key, self.seed])[:16]
        return self.folder / key / f"{g if way.drawn else 0}" / f"{i:04d}.npy"

    def complete(self, way: Way, fill: Filler, g: int, i: int, lost: frozenset[int]) -> None:
        """Make what is lost from what is left."""
        stack, person = self.study.stack(i), self.study.people[i]
        shown_M = torch.tensor([m not in lost for m in range(len(self.study.modalities))])
        keys = ("diagnosis", g if way.drawn else 0, person.site, person.number)
        made_MDHW = fill(visible(stack.images_MDHW, shown_M), shown_M, keys, stack.clinical)[sorted(lost)].clamp(0, 1)
        if not bool(made_MDHW.isfinite().all()):
            raise DataError(f"{way.name}: made values that are not finite")
        path = self.path(way, g, i)
        with writing(path, durable=False) as file:  # made again by every run of this
            np.save(file, torch.where(stack.brain_DHW, made_MDHW, 0.0).half().numpy())

    def read(self, way: Way | None, g: int, i: int, lost: frozenset[int]) -> Tensor:
        """MDHW as the classifier sees it; `way` None: the real set."""
        if not lost:
            way = None
        found = (way.name if way is not None else "", g if way is not None and way.drawn else 0, i)
        if found in self._kept:
            return self._kept[found]
        images_MDHW = self.study.stack(i).images_MDHW
        if way is not None:
            images_MDHW[sorted(lost)] = torch.from_numpy(np.load(self.path(way, g, i))).float()
        seen_MDHW = pooled(self.study.deep(images_MDHW), self.edge)
        if self.edge is not None and self.edge <= KEPT:
            others = [key for key in self._kept if way is not None and key[0] and key[:2] != found[:2]]
            for key in others:  # the real ones stay, and those of one way
                del self._kept[key]
            self._kept[found] = seen_MDHW
        return seen_MDHW


# --- the work -------------------------------------------------------------------------------------------------------


def run(
    ways: Sequence[Way],
    study: Study,
    options: DiagnosisOptions,
    *,
    seed: int,
    device: torch.device,
    out: Path,
    progress: Progress = unwatched,
) -> Findings:
    """Every way at every rate in every generation, and the oracle; what `out` has is not done again."""
    draws = [draw(study.ill, study.modalities, options, seed, g) for g in range(options.generations)]
    if options.test_loses:
        ways = [way for way in ways if way.ready is not None]  # nobody who comes for a diagnosis can be left out
    sets = Sets(study=study, folder=out / "completed", edge=options.shape.edge, seed=seed)
    cells = _read_cells(out / "cells.jsonl")
    oracle = Way(name=ORACLE, known_by={"way": ORACLE}, ready=None)
    jobs = [(g, 0.0, oracle) for g in range(options.generations)]
    jobs += [(g, rate, way) for g in range(options.generations) for rate in options.rates for way in ways]
    keys = [_cell_key(study, options, seed, job) for job in jobs]
    todo = [(job, key) for job, key in zip(jobs, keys, strict=True) if key not in cells]
    wanted = list(_wanted([job for job, _ in todo], draws, sets))
    total, done = len(wanted) + len(jobs), len(jobs) - len(todo)

    def show() -> None:
        progress(done, total)

    show()
    ready: tuple[str, Filler] | None = None
    for way, g, i, lost in wanted:
        assert way.ready is not None
        if ready is None or ready[0] != way.name:
            ready = way.name, way.ready()  # one at a time: several may not fit into memory
        sets.complete(way, ready[1], g, i, lost)
        done += 1
        show()
    ready = None
    for job, key in todo:
        cells[key] = _cell(job, draws[job[0]], sets, options, seed, device)
        _append(out / "cells.jsonl", key, cells[key])
        done += 1
        show()
    named = tuple(cells[key]._replace(way=way.name) for (_, _, way), key in zip(jobs, keys, strict=True))
    leaks = tuple(_leaks(ways, draws, sets, options, seed))
    return Findings(cells=named, leaks=leaks, ways=tuple(ways), options=options)


Job = tuple[int, float, Way]


def _wanted(jobs: Sequence[Job], draws: Sequence[Draw], sets: Sets) -> Iterator[tuple[Way, int, int, frozenset[int]]]:
    """What the jobs need and the disk lacks, way after way."""
    seen = set()
    for g, rate, way in sorted(jobs, key=lambda job: job[2].name):
        if way.ready is None:
            continue
        one = draws[g]
        for i in (*one.train, *one.val, *one.test):
            lost, path = one.lost(i, rate), sets.path(way, g, i)
            if lost and path not in seen and not path.exists():
                seen.add(path)
                yield way, g, i, lost


def _cell_key(study: Study, options: DiagnosisOptions, seed: int, job: Job) -> str:
    g, rate, way = job
    asked = {**plain(options), "rates": None, "generations": None, "shape": plain(options.shape)}
    return hash_json([VERSION, study.key, asked, seed, g, rate, key_of(way)])[:24]


def _cell(job: Job, one: Draw, sets: Sets, options: DiagnosisOptions, seed: int, device: torch.device) -> Cell:
    g, rate, way = job
    ill, began, shape = sets.study.ill, time.monotonic(), options.shape
    train = [i for i in one.train if way.name != DROP or not one.lost(i, rate)]

    def read(i: int) -> Tensor:
        return sets.read(way, g, i, one.lost(i, rate))

    net = fit(read, train, ill, shape, steps=options.steps or shape.steps, seed=seed_of(seed, "fit", g), device=device)
    val, test = (predict(net, read, part, shape, device) for part in (one.val, one.test))
    found = judge(val, [ill[i] for i in one.val], test, [ill[i] for i in one.test])
    made = [k for k, i in enumerate(one.test) if one.lost(i, rate)]
    return Cell(
        way=way.name,
        rate=rate,
        generation=g,
        **found._asdict(),
        trained=len(train),
        tested=len(one.test),
        auc_made=auc(test[made], [ill[one.test[k]] for k in made]),
        seconds=round(time.monotonic() - began, 2),
    )


def _leaks(
    ways: Sequence[Way], draws: Sequence[Draw], sets: Sets, options: DiagnosisOptions, seed: int
) -> Iterator[Leak]:
    """From the training subjects of the highest rate whose made volumes are on the disk."""
    study, most = sets.study, max(options.rates)
    for way in ways:
        for g, one in enumerate(draws):
            if way.ready is None or (g and not way.drawn):
                continue
            members = [i for i in one.train if one.lost(i, most) and sets.path(way, g, i).exists()]
            for m, modality in enumerate(study.modalities):
                those = [i for i in members if m in one.loses[i]]
                ill = [study.ill[i] for i in those]
                if min(sum(ill), len(ill) - sum(ill)) < 2:
                    continue
                made, real = [], []
                for i in those:
                    volumes = torch.from_numpy(np.load(sets.path(way, g, i))).float()
                    made.append(volumes[sorted(one.loses[i]).index(m)])
                    real.append(study.stack(i).images_MDHW[m])
                values = [
                    probe(torch.stack([_coarse(study, x) for x in images]), ill, seed_of(seed, "probe", g))
                    for images in (made, real)
                ]
                yield Leak(way.name, g, modality, values[0], values[1], len(those))


def _coarse(study: Study, image_DHW: Tensor) -> Tensor:
    return pooled(study.deep(image_DHW[None]), PROBE).flatten()


def _read_cells(path: Path) -> dict[str, Cell]:
    """A last line that was cut off by a kill is done again; any other damage is told."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            values: list[Any] = [math.nan if value is None else value for value in entry["cell"]]
            found[str(entry["key"])] = Cell(*values)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise DataError(f"{path}: line {number} is damaged; delete the file, and all is done again") from None
    return found


def _append(path: Path, key: str, cell: Cell) -> None:
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = before[: before.rfind("\n") + 1]  # without a line that was cut off
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in cell]
    write_text(path, whole + json.dumps({"key": key, "cell": values}) + "\n")
