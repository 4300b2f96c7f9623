"""A site's BIDS cohort to its prepared cache, and the cache opened.

Why a cache: docs/methods/data.md, "From a cohort to a cache".

    derivatives/lacuna/<grid>/cohort.json           grid, subjects, digest of everything
                              exclusions.csv        what was done with each subject and file, and why
                              sub-01/vol.npy        float16 (D, M present, H, W): brain slices, on the grid, in [0, 1]
                                     brain.npy      uint8 (D, H, W)
                                     lesion.npy     uint8 (D, H, W), where a label map exists
                                     meta.json      geometry, scalings, hashes of what was read and written

Incomplete subjects are kept: they are what Lacuna is for. A file that can't be used costs its modality, never the
rest. The cache is patient data; so are its remarks, which name subjects.
"""

import csv
import io
import json
import multiprocessing
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError
from shared.base.files import make_folder, write_bytes, write_text
from shared.base.options import build, plain
from shared.base.vocabulary import Modality
from shared.data.bids import (
    SPLITS,
    Clinical,
    Done,
    Participant,
    Remark,
    Sources,
    find_subjects,
    read_participants,
    read_preparation,
)
from shared.data.intensities import Scaling, rules_version
from shared.data.modalities import in_order, parse
from shared.data.preparation import PIPELINE, Result, has_sizes, hash_file, hash_json, prepare_subject
from shared.data.volumes import Grid, Placement, shape_and_affine

LITTLE = 100e6  # bytes of new files that one process prepares in seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One subject of a prepared cohort."""

    name: str
    modalities: tuple[Modality, ...]  # present, in the order of vol.npy
    split: str
    clinical: Clinical
    depth: int
    brain_slices: tuple[int, ...]
    lesion: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a subject's cache goes back to the subject's own volumes."""

    placement: Placement
    affine: tuple[tuple[float, ...], ...]  # of the whole RAS volume
    scalings: Mapping[Modality, Scaling]
    judged: Mapping[Modality, Scaling]  # from a volume's darkest to its brightest: what is made of it is judged on that


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """A prepared cache, opened: what is in it, but no image yet."""

    folder: Path
    grid: Grid
    subjects: tuple[Subject, ...]
    modalities: tuple[Modality, ...]  # that any subject has
    digest: str
    preparation: str = ""  # digest of how `lacuna-site ingest` prepared the images; "" where it did not

    @staticmethod
    def open(cache: Path) -> "Cohort":
        """DataError when it is not there, was made by another pipeline, or was changed since."""
        again = "run `lacuna-site prepare` again"
        try:
            content = json.loads((cache / "cohort.json").read_text(encoding="utf-8"))
            entries = content["subjects"]
            if (content["pipeline"], content["rules"]) != (PIPELINE, _rules(entries)):
                raise DataError(f"cohort {cache.name}: was prepared by another version; {again}")
            if content["digest"] != _digest(content):
                raise DataError(f"cohort {cache.name}: cohort.json was changed after it was written; {again}")
        except FileNotFoundError:
            raise DataError(f"cohort {cache.name}: not prepared for this grid; run `lacuna-site prepare`") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"cohort {cache.name}: cohort.json is damaged ({type(error).__name__}); {again}") from None
        for number, entry in enumerate(entries):
            if not _is_whole(cache / entry["name"], entry["meta"]):
                raise DataError(f"cohort {cache.name}: files of subject {number} are missing or changed; {again}")
        names = ("name", "modalities", "split", "clinical", "depth", "brain_slices", "lesion")
        return Cohort(
            folder=cache,
            grid=build(Grid, content["grid"], "grid"),
            subjects=tuple(build(Subject, {name: entry[name] for name in names}, "subject") for entry in entries),
            modalities=tuple(content["modalities"]),
            digest=content["digest"],
            preparation=content.get("preparation", ""),
        )

    def of(self, *splits: str) -> "Cohort":
        """The same cache, with the subjects of these splits alone."""
        return replace(self, subjects=tuple(subject for subject in self.subjects if subject.split in splits))

    def patterns(self, split: str | None = None) -> dict[tuple[Modality, ...], int]:
        """Present modalities -> subjects that have just these."""
        counts = Counter(s.modalities for s in self.subjects if split is None or s.split == split)
        return dict(sorted(counts.items()))

    def image_hash(self, subject: Subject) -> str:
        """SHA-256 of all its images as they are cached."""
        meta = json.loads((self.folder / subject.name / "meta.json").read_text(encoding="utf-8"))
        return str(meta["written"]["vol.npy"]["sha256"])

    def geometry(self, subject: Subject) -> Geometry:
        meta = json.loads((self.folder / subject.name / "meta.json").read_text(encoding="utf-8"))
        return build(Geometry, {key: meta[key] for key in ("placement", "affine", "scalings", "judged")}, "meta")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What `prepare` did; `remarks` name subjects and stay at the site."""

    folder: Path
    cohort: Cohort
    remarks: tuple[Remark, ...]
    renewed: int  # subjects done now; the others were as they should be
    bytes: int

    def count(self, done: Done) -> int:
        """Subjects, or for "skipped modality" files."""
        of_files = done == "skipped modality"
        return sum(remark.done == done and bool(remark.file) == of_files for remark in self.remarks)

    @property
    def summary(self) -> tuple[tuple[str, str], ...]:
        """Rows for a table on the site's own screen."""
        patterns = self.cohort.patterns()
        return (
            ("subjects complete", str(self.count("used"))),
            ("subjects incomplete, kept", str(self.count("incomplete"))),
            ("subjects excluded", str(self.count("excluded"))),
            ("files left aside", str(self.count("skipped modality"))),
            *((f"with {', '.join(pattern)}", str(n)) for pattern, n in patterns.items()),
            ("prepared now, unchanged", f"{self.renewed}, {len(self.cohort.subjects) - self.renewed}"),
            ("size", f"{self.bytes / 1e6:.1f} MB"),
            ("digest", self.cohort.digest[:12]),
        )


def cache_folder(bids: Path, grid: Grid) -> Path:
    return bids / "derivatives" / "lacuna" / grid.name


def prepare(
    bids: Path,
    grid: Grid,
    *,
    modalities: Sequence[Modality] | None = None,
    out: Path | None = None,
    workers: int | None = None,
    progress: Progress = unwatched,
) -> Prepared:
    """BIDS cohort -> cache. Done again, it only renews the subjects whose files changed, and forgets those that left.

    `modalities` None: all that are found. `workers` None: one process per core where that pays; 0: this process.
    """
    folder = cache_folder(bids, grid) if out is None else out
    participants = read_participants(bids)
    wanted = None if modalities is None else in_order(parse(modality) for modality in modalities)
    sources = [_only(subject, wanted) for subject in find_subjects(bids)]
    try:
        make_folder(folder)
        _check_disk(sources, grid, folder)
        done = []
        count = _processes(sources, folder) if workers is None else workers
        for result in _in_order(partial(prepare_subject, grid=grid, folder=folder, root=bids), sources, count):
            done.append(result)
            progress(len(done), len(sources))
        return _conclude(folder, grid, wanted, participants, done, read_preparation(bids))
    except OSError as error:
        raise DataError(f"cohort {bids.name}: its cache can't be written: {error.strerror or error}") from error


def _processes(sources: Sequence[Sources], folder: Path) -> int:
    """One per core, unless there is so little to do that starting them would take longer."""
    unseen = [subject for subject in sources if not (folder / subject.subject / "meta.json").exists()]
    new = sum(path.stat().st_size for subject in unseen for path in subject.files.values() if path.exists())
    return (os.cpu_count() or 1) if new > LITTLE else 0


def _in_order(work: Callable[[Sources], Result], sources: Sequence[Sources], workers: int) -> Iterator[Result]:
    count = min(workers, len(sources))
    if count <= 1:
        yield from map(work, sources)
        return
    try:
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(work, sources)
    except BrokenProcessPool:
        raise DataError("a worker process died, most likely for lack of memory: prepare with fewer workers") from None


def _only(sources: Sources, modalities: Sequence[Modality] | None) -> Sources:
    if modalities is None:
        return sources
    return replace(sources, files={m: path for m, path in sources.files.items() if m in modalities})


def _check_disk(sources: Sequence[Sources], grid: Grid, folder: Path) -> None:
    """An upper bound from the headers of all subjects that have no cache yet, against what is free."""
    needed = 0
    for subject in sources:
        if not (folder / subject.subject).exists():
            for path in subject.files.values():
                with suppress(DataError):  # its line comes when it is read
                    (depth, _, _), affine = shape_and_affine(path)
                    needed += (
                        grid.slices(depth, affine) * grid.height * grid.width * 3
                    )  # float16, and a share of the masks
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"the cache needs up to {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")


def _is_whole(target: Path, meta_hash: str) -> bool:
    return hash_file(target / "meta.json") == meta_hash and has_sizes(
        target, json.loads((target / "meta.json").read_text(encoding="utf-8"))
    )


def _conclude(
    folder: Path,
    grid: Grid,
    asked: Sequence[Modality] | None,
    participants: Mapping[str, Participant],
    done: Sequence[Result],
    preparation: str,
) -> Prepared:
    """cohort.json and exclusions.csv, and a sweep of what is no longer part of the cohort."""
    entries, remarks = [], []
    found = in_order(m for result in done if result.entry is not None for m in result.entry["modalities"])
    wanted = found if asked is None else asked
    for result in done:
        participant = participants.get(result.subject, Participant())
        remarks += [*result.remarks, *participant.remarks]
        if result.entry is None:
            continue
        if participant.split not in SPLITS:
            why = f"split={participant.split!r} in participants.tsv: must be one of {', '.join(SPLITS)}"
            remarks.append(Remark(subject=result.subject, file="", done="excluded", why=why))
            continue
        present = result.entry["modalities"]
        lacking = [m for m in wanted if m not in present]
        why = ", ".join(present) + (f"; lacks {', '.join(lacking)}" if lacking else "")
        why += "; no row in participants.tsv" if participants and result.subject not in participants else ""
        remarks.append(Remark(subject=result.subject, file="", done="incomplete" if lacking else "used", why=why))
        entries.append({**result.entry, "split": participant.split, "clinical": dict(participant.clinical)})
    for subject in sorted(participants.keys() - {result.subject for result in done}):
        remarks.append(Remark(subject=subject, file="", done="excluded", why="in participants.tsv, but has no folder"))

    write_text(folder / "exclusions.csv", _table(remarks))
    content = {
        "pipeline": PIPELINE,
        "rules": _rules(entries),
        "grid": plain(grid),
        "modalities": found,
        "subjects": entries,
    }
    if preparation:
        content["preparation"] = preparation
    content = {**plain(content), "digest": _digest(content)}
    write_text(folder / "cohort.json", json.dumps(content, indent=1, sort_keys=True))
    _sweep(folder, {entry["name"] for entry in entries})
    if not entries:
        first = next((remark.why for remark in remarks if remark.file), remarks[0].why)
        raise DataError(f"cohort {folder.name}: no subject can be used; the first reason of {len(remarks)}: {first}")
    return Prepared(
        folder=folder,
        cohort=Cohort.open(folder),
        remarks=tuple(remarks),
        renewed=sum(result.renewed for result in done),
        bytes=sum(entry["bytes"] for entry in entries),
    )


def forget(cache: Path, subject: str) -> bool:
    """Take a subject and its files out of a cache, as if it had never been prepared. False where it was not there."""
    content = json.loads((cache / "cohort.json").read_text(encoding="utf-8"))
    entries = [entry for entry in content["subjects"] if entry["name"] != subject]
    found = len(entries) < len(content["subjects"]) or (cache / subject).exists()
    content |= {"subjects": entries, "modalities": in_order({m for entry in entries for m in entry["modalities"]})}
    content["rules"] = _rules(entries)
    content["digest"] = _digest(content)
    write_text(cache / "cohort.json", json.dumps(content, indent=1, sort_keys=True))  # first: it names no lost file
    forget_rows(cache / "exclusions.csv", subject)
    _sweep(cache, {entry["name"] for entry in entries})
    return found


def forget_rows(path: Path, subject: str) -> None:
    """Take the lines of a table away that begin with this subject."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        name = re.compile(rb'"?(sub-)?' + re.escape(subject.removeprefix("sub-").encode()) + rb'"?([,\t\r\n]|$)')
        kept = [line for line in lines if not name.match(line)]
        if len(kept) < len(lines):
            write_bytes(path, b"".join(kept))


def _sweep(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        ours = path.name.startswith((".sub-", "sub-")) and path.is_dir()
        if ours and path.name not in names:
            shutil.rmtree(path)


def _table(remarks: Sequence[Remark]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("subject", "file", "done", "why"))
    rows.writerows((remark.subject, remark.file, remark.done, remark.why) for remark in remarks)
    return text.getvalue()


def _rules(entries: Sequence[Mapping[str, Any]]) -> str:
    return rules_version(modality for entry in entries for modality in entry["modalities"])


def _digest(content: Mapping[str, Any]) -> str:
    return hash_json({key: value for key, value in content.items() if key != "digest"})
