"""Cohorts without a hospital: a world of sites, each with its own subjects, scanner and missing modalities.

    WORLD/world.json                       the options it was made with
          contact-sheet.png                subjects x modalities, and contact-sheet-planes.png with three planes
          sites/<site>/                    a BIDS training cohort, as incomplete as that site is
          heldout/<site>/                  complete test subjects from that site's scanner, never trained on
          coordinator/                     complete subjects of the coordinator's own

Same options, same bytes, whatever the number of workers; a stopped `write_world` goes on where it was
(docs/methods/data.md, "Phantoms").
"""

import csv
import io
import json
import multiprocessing
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from shared.base import pictures
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import ConfigError, DataError
from shared.base.files import make_folder, new_folder, write_json, write_text
from shared.base.options import plain, require
from shared.base.seeds import seed_of
from shared.base.vocabulary import Modality, SiteName
from shared.data import volumes
from shared.data.intensities import find_brain, find_scaling
from shared.data.modalities import MODALITIES, bids_path, lesion_path
from shared.data.phantom import anatomy
from shared.data.phantom.brains import Family, Person, draw_person, grow
from shared.data.phantom.fields import Cube
from shared.data.phantom.signals import draw_any_scanner, draw_scanner, render

FAMILIES: Mapping[str, tuple[Modality, ...]] = {
    "glioma": ("T1", "T1CE", "T2", "FLAIR"),
    "dementia": ("T1", "FLAIR", "T2S", "CT", "FDG", "AV45"),
    "vessels": ("T1", "T2", "FLAIR", "TOF"),
    "everyone": ("T1", "T1CE", "T2", "FLAIR"),
}
USUALLY_MISSING: Mapping[str, tuple[tuple[Modality, ...], ...]] = {  # by site, over and over
    "glioma": (("FLAIR",), ("T1CE",), ("T2",)),
    "dementia": (("AV45",), ("FDG",), ()),
    "vessels": (("FLAIR",), ("T2",), ("TOF",)),
    "everyone": (("FLAIR",), ("T1CE",), ("T2",)),
}
LEVEL = 800  # MR as whole numbers: healthy tissue is near this on a scanner of gain 1
VESSEL_SHARE = 0.1  # of a voxel, from which on it counts as artery in the truth
SHEET_ROWS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomOptions:
    family: Family = "glioma"
    subjects: int = 12  # per site
    counts: tuple[int, ...] = ()  # by site, where they are not all the same
    heldout: int = 4  # per site
    coordinator: int = 3
    sites: tuple[SiteName, ...] = ("site-a", "site-b", "site-c")
    missing: tuple[tuple[Modality, ...], ...] = ()  # per site, what it never acquires; () for nothing at any site
    drop: float = 0.0  # chance that a training subject lacks one more modality
    size: int = 64  # voxels along each edge
    fov_mm: float = 192.0
    seed: int = 0
    anatomy: Path | None = None  # folder of FreeSurfer-style label maps; None: nilearn's MNI152

    def __post_init__(self) -> None:
        require(self.family in get_args(Family), "family", self.family, f"one of {', '.join(FAMILIES)}")
        require(self.subjects >= 1, "subjects", self.subjects, "1 or more")
        require(
            len(self.counts) in (0, len(self.sites)), "counts", self.counts, f"one for each of {len(self.sites)} sites"
        )
        require(min(self.counts, default=1) >= 1, "counts", self.counts, "1 or more")
        require(self.heldout >= 0, "heldout", self.heldout, "0 or more")
        require(self.coordinator >= 0, "coordinator", self.coordinator, "0 or more")
        require(len(self.sites) >= 1, "sites", self.sites, "one name or more")
        require(len(set(self.sites)) == len(self.sites), "sites", self.sites, "different names")
        for name in self.sites:
            require(re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) is not None, "sites", name, "of a-z, 0-9 and dashes")
        require(
            len(self.missing) in (0, len(self.sites)),
            "missing",
            self.missing,
            f"one list for each of {len(self.sites)} sites",
        )
        for lacks in self.missing:
            require(
                set(lacks) < set(FAMILIES[self.family]), "missing", lacks, f"some of {FAMILIES[self.family]}, not all"
            )
        require(0 <= self.drop <= 1, "drop", self.drop, "from 0 to 1")
        require(16 <= self.size <= 256 and self.size % 2 == 0, "size", self.size, "an even number from 16 to 256")
        require(150 <= self.fov_mm <= 400, "fov_mm", self.fov_mm, "from 150 (a brain) to 400")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return FAMILIES[self.family]

    @property
    def cube(self) -> Cube:
        return Cube(size=self.size, fov_mm=self.fov_mm)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldReport:
    out: Path
    written: int
    kept: int  # there already, from a run that was stopped
    cohorts: Mapping[str, int]  # subjects by cohort folder

    def __str__(self) -> str:
        lines = [f"{count:5d}  {name}" for name, count in self.cohorts.items()]
        kept = f" ({self.kept} were there already)" if self.kept else ""
        return "\n".join([f"{self.written + self.kept} subjects in {self.out}{kept}", *lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One subject to draw and write, by any process."""

    cohort: Path
    subject: str
    family: Family
    seed: int
    cube: Cube
    anatomy: Path
    scanner: tuple[str | int, ...]  # keys of draw_scanner
    modalities: tuple[Modality, ...]

    @property
    def folder(self) -> Path:
        return self.cohort / f"sub-{self.subject}"


def usually_missing(family: Family, sites: Sequence[SiteName]) -> tuple[tuple[Modality, ...], ...]:
    """A pattern for any number of sites: most of them lack a modality, not all the same one."""
    patterns = USUALLY_MISSING[family]
    return tuple(patterns[i % len(patterns)] for i in range(len(sites)))


def write_world(
    options: PhantomOptions,
    out: Path,
    *,
    workers: int = 0,
    progress: Progress = unwatched,
    cache: Path | None = None,
) -> WorldReport:
    """Draw all subjects of all cohorts into `out`; what is there already from the same options is kept.

    `workers` processes, 0 for one per core. `cache` keeps prepared anatomies, by default within `out`.
    """
    _claim(out, options)
    brains = share_out(anatomy.prepare(options.anatomy, cache or out / ".anatomy"), options)
    tasks = list(_tasks(options, out, brains))
    cohorts: dict[Path, list[_Task]] = {}
    for task in tasks:
        cohorts.setdefault(task.cohort, []).append(task)
    for cohort, members in cohorts.items():
        _write_tables(cohort, members, options)

    todo = [task for task in tasks if not task.folder.exists()]
    kept = len(tasks) - len(todo)
    progress(kept, len(tasks))
    for drawn in _draw_all(todo, workers or os.cpu_count() or 1):
        progress(kept + drawn, len(tasks))
    _write_sheets(list(cohorts.values()), options, out)
    return WorldReport(
        out=out,
        written=len(todo),
        kept=kept,
        cohorts={cohort.relative_to(out).as_posix(): len(members) for cohort, members in cohorts.items()},
    )


def _claim(out: Path, options: PhantomOptions) -> None:
    """Take a folder for one world: what is there must have been made with the same options."""
    make_folder(out)
    text = json.dumps({"made_by": "lacuna phantom", "options": plain(options)}, indent=1, default=str) + "\n"
    path = out / "world.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"out={out}: holds a world made with other options (world.json); take another folder")
    if not path.exists() and any(child.name != ".anatomy" for child in out.iterdir()):
        raise ConfigError(f"out={out}: must be empty, or hold a world made with the same options")
    write_text(path, text)


def share_out(brains: Sequence[Path], options: PhantomOptions) -> Mapping[str, Sequence[Path]]:
    """Decide which anatomies each site, the held-out subjects and the coordinator get.

    Label maps are split: no map that is trained on is tested on, and sites share none as long as there are enough.
    MNI152 is one brain: there the deformation alone tells subjects apart.
    """
    if options.anatomy is None:
        return dict.fromkeys((*options.sites, "heldout", "coordinator"), brains)
    if len(brains) < 2:
        raise DataError(f"anatomy={options.anatomy}: {len(brains)} label map; 2 are needed, to train and to test on")
    tested = max(1, len(brains) // 4)
    watched = 1 if len(brains) - tested >= 2 else 0
    trained = brains[: len(brains) - tested - watched]
    shares = {
        site: trained[i :: len(options.sites)] or [trained[i % len(trained)]] for i, site in enumerate(options.sites)
    }
    heldout = brains[len(brains) - tested :]
    return {**shares, "heldout": heldout, "coordinator": brains[len(trained) : len(trained) + watched] or heldout}


def _tasks(options: PhantomOptions, out: Path, brains: Mapping[str, Sequence[Path]]) -> Iterator[_Task]:
    for i, site in enumerate(options.sites):
        lacks = options.missing[i] if options.missing else ()
        count = options.counts[i] if options.counts else options.subjects
        yield from _cohort(options, out / "sites" / site, site, site, count, brains[site], lacks)
    for site in options.sites:
        cohort = out / "heldout" / site
        yield from _cohort(options, cohort, f"{site}-heldout", site, options.heldout, brains["heldout"])
    cohort = out / "coordinator"
    yield from _cohort(options, cohort, "coordinator", "coordinator", options.coordinator, brains["coordinator"])


def _cohort(
    options: PhantomOptions,
    cohort: Path,
    name: str,
    scanner: str,
    count: int,
    brains: Sequence[Path],
    lacks: Sequence[Modality] = (),
) -> Iterator[_Task]:
    trained_on = cohort.parent.name == "sites"
    for number in range(1, count + 1):
        seed = seed_of("subject", options.seed, options.family, name, number)
        modalities = tuple(m for m in options.modalities if m not in lacks)
        chance = np.random.default_rng(seed_of("drop", seed))
        if trained_on and len(modalities) > 1 and chance.random() < options.drop:
            modalities = tuple(np.delete(modalities, chance.integers(len(modalities))).tolist())
        yield _Task(
            cohort=cohort,
            subject=f"{name.replace('-', '')}{number:03d}",
            family=options.family,
            seed=seed,
            cube=options.cube,
            anatomy=brains[(number - 1) % len(brains)],
            scanner=(options.seed, scanner),
            modalities=modalities,
        )


def _draw_all(tasks: Sequence[_Task], workers: int) -> Iterator[int]:
    """Draw all subjects; tells after each how many there are."""
    if workers == 1 or len(tasks) <= 1:
        for number, task in enumerate(tasks, start=1):
            _draw(task)
            yield number
        return
    spawn = multiprocessing.get_context("spawn")
    with _one_thread_each(), ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn) as pool:
        futures = [pool.submit(_draw, task) for task in tasks]
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                future.result()
                yield number
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """For the processes started meanwhile: as many as cores with as many threads each would take twice as long."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _draw(task: _Task) -> None:
    """Write a subject into a folder aside, which then gets its name: it is there whole or not at all."""
    phantom = grow(task.family, task.seed, anatomy.load(task.anatomy), task.cube)
    anyone = task.family == "everyone"  # and on any scanner
    scanner = draw_any_scanner(*task.scanner, task.subject) if anyone else draw_scanner(*task.scanner)
    with new_folder(task.folder, durable=False) as made:  # a simulated world is made again
        for modality in task.modalities:
            data, dtype = _stored(modality, render(phantom, modality, scanner), phantom.brain_DHW)
            _write(made.joinpath(*bids_path(task.subject, modality).split("/")[1:]), data, task.cube, dtype)
        if task.family == "vessels":
            truth = f"derivatives/truth/sub-{task.subject}/anat/sub-{task.subject}_label-vessel_mask.nii.gz"
            _write(task.cohort / truth, phantom.vessels_DHW > VESSEL_SHARE, task.cube, np.uint8)
        else:
            lesion = lesion_path(task.subject, tumour=task.family == "glioma")
            _write(made.joinpath(*lesion.split("/")[1:]), phantom.lesion_DHW, task.cube, np.uint8)


def _stored(
    modality: Modality, image_DHW: NDArray[np.float32], brain_DHW: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], type]:
    """Round as such files come: MR in whole numbers, CT in whole HU, PET as SUVR. The background alone is 0."""
    kind = MODALITIES[modality].kind
    if kind == "pet":
        return np.where(brain_DHW, np.maximum(image_DHW, 1e-4), 0), np.float32
    whole = np.rint(image_DHW * (LEVEL if kind == "mr" else 1))
    if kind == "mr":
        whole = np.where(brain_DHW, np.clip(whole, 1, np.iinfo(np.int16).max), 0)
    return whole, np.int16


def _write(path: Path, data_DHW: NDArray[np.generic], cube: Cube, dtype: type) -> None:
    make_folder(path.parent)
    volumes.write(path, data_DHW, cube.affine(), dtype=dtype)


def _write_tables(cohort: Path, members: Sequence[_Task], options: PhantomOptions) -> None:
    about = {
        "Name": f"Phantom {options.family} cohort {cohort.name}: simulated, no person",
        "BIDSVersion": "1.9.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "lacuna phantom"}],
    }
    write_json(cohort / "dataset_description.json", about)
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["participant_id", "age", "sex", "diagnosis", "mmse", "adas13", "cdrsb"])
    for task in members:
        writer.writerow([task.folder.name, *_chart(draw_person(options.family, task.seed))])
    write_text(cohort / "participants.tsv", table.getvalue())


def _chart(person: Person) -> list[object]:
    values = (person.age, person.sex, person.diagnosis, person.mmse, person.adas13, person.cdrsb)
    return ["n/a" if value is None else value for value in values]


def _write_sheets(cohorts: Sequence[Sequence[_Task]], options: PhantomOptions, out: Path) -> None:
    """The first subjects of each cohort, in turn, as they lie on disk."""
    turns = (members[i] for i in range(max(map(len, cohorts))) for members in cohorts if i < len(members))
    shown = [task for task, _ in zip(turns, range(SHEET_ROWS), strict=False)]
    title = f"{options.family}: phantom subjects (simulated), {options.size} voxels of {options.cube.voxel_mm:g} mm"
    rows, labels = [], []
    planes: list[list[pictures.Plane]] = []
    for task in shown:
        images, middle = _images(task)
        rows.append([images[m][middle[0]] if m in images else None for m in options.modalities])
        labels.append(f"{task.cohort.relative_to(out).as_posix()} {task.subject[-3:]}")
        if not planes and len(images) == len(options.modalities):
            views = [pictures.three_planes(images[m], middle) for m in options.modalities]
            planes = [list(row) for row in zip(*views, strict=True)]
            if options.family == "vessels":
                planes.append([*[None] * (len(views) - 1), images["TOF"].max(axis=0)])
    pictures.save_png(pictures.mosaic(rows, labels, options.modalities, title), out / "contact-sheet.png")
    if planes:
        names = ("axial", "coronal", "sagittal", "projection")[: len(planes)]
        sheet = pictures.mosaic(planes, names, options.modalities, title, cell=224)
        pictures.save_png(sheet, out / "contact-sheet-planes.png")


def _images(task: _Task) -> tuple[Mapping[Modality, NDArray[np.float32]], tuple[int, int, int]]:
    """A subject's volumes in [0, 1], and the voxel to cut them at: the lesion's middle, or the ventricles' height."""
    data = {m: volumes.read(task.cohort / bids_path(task.subject, m)).data_DHW for m in task.modalities}
    brain = find_brain(data)
    images = {m: _stretched(find_scaling(m, volume).apply(volume, brain), brain) for m, volume in data.items()}
    inside = np.argwhere(brain)
    z, y, x = (inside.min(axis=0) + (inside.max(axis=0) - inside.min(axis=0)) * [0.56, 0.5, 0.47]).astype(int).tolist()
    if task.family == "glioma":
        lesion = np.argwhere(volumes.read(task.cohort / lesion_path(task.subject, tumour=True)).data_DHW > 0)
        if len(lesion):
            z, y, x = lesion.mean(axis=0).round().astype(int).tolist()
    return images, (z, y, x)


def _stretched(image_DHW: NDArray[np.float32], brain_DHW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Stretch an image for the eye, from dark to bright over what this brain holds; outside stays black."""
    low, high = np.percentile(image_DHW[brain_DHW], (0.5, 99.7))
    return np.where(brain_DHW, np.clip((image_DHW - low) / max(high - low, 1e-6), 0, 1), 0).astype(np.float32)
