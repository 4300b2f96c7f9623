"""From a list of series to converted volumes: for each visit and modality the best series, or the next best."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from client.ingest.arrive.records import Acquired, Aside
from client.ingest.arrive.source import SPARE
from client.ingest.image.convert import convert, estimate, is_converted
from client.ingest.recognise import bids
from client.ingest.recognise.listing import Listed
from client.ingest.recognise.series import Series
from client.ingest.recognise.visits import Record, Taken, assign, rank
from shared.base.display.progress import Bar
from shared.base.errors import DataError
from shared.base.files import make_folder
from shared.base.vocabulary import Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a source holds, before anything is converted."""

    files: int
    listed: tuple[Listed, ...]  # of DICOM
    ready: tuple[Taken, ...]  # of BIDS
    asides: tuple[Aside, ...]


def take(
    found: Found, wanted: Sequence[Modality] | None, folder: Path, *, days: int, workers: int | None, bar: Bar
) -> tuple[Record, list[Aside]]:
    """This ingest's volumes in the site's record, and what was not needed or failed."""
    old = Record.open(folder)
    usable = [one for one in found.listed if one.modality is not None]
    ready, asides = bids.of_one_folder(found.ready, old.visits)
    if wanted is not None:
        asides += [aside(o.series, f"{o.modality} was not asked for") for o in usable if o.modality not in wanted]
        usable = [one for one in usable if one.modality in wanted]
        ready = [one for one in ready if one.acquired.modality in wanted]
    studies = {(one.series.patient, one.series.study, one.series.date) for one in usable}
    studies |= {(one.acquired.patient, one.acquired.study, one.acquired.date) for one in ready}
    record = replace(old, visits=assign(old.visits, studies, days))
    numbers = record.numbers
    places: dict[tuple[str, int, str], list[Listed]] = defaultdict(list)
    for one in usable:
        number = numbers[one.series.patient, one.series.study]
        places[one.series.patient, number, str(one.modality)].append(one)
    groups = [sorted(candidates, key=rank, reverse=True) for candidates in places.values()]
    _check_disk(folder, [candidates[0] for candidates in groups])
    taken: list[Taken] = []
    count = (os.cpu_count() or 1) if workers is None else max(workers, 1)
    with bar("converting") as advance, ThreadPoolExecutor(count) as pool:
        for done, (best, left) in enumerate(pool.map(lambda g: _convert(g, folder), groups), start=1):
            taken += best
            asides += left
            advance(done, len(groups))
    seen = [one.series.key for one in found.listed] + [one.acquired.series for one in ready]
    return record.merge([*taken, *ready], seen), asides


def aside(series: Series, why: str) -> Aside:
    return Aside(what="series", where=series.key, why=why, patient=series.patient, series=series.uid)


def _convert(candidates: Sequence[Listed], folder: Path) -> tuple[list[Taken], list[Aside]]:
    """The first of some series of one modality, the best first, that can be converted; and why not the others."""
    taken: list[Taken] = []
    asides = []
    for one in candidates:
        modality = str(one.modality)
        if taken:
            asides.append(aside(one.series, f"another {modality} series of this visit was used"))
            continue
        try:
            made = convert(one.series, modality, folder / "converted")
        except (DataError, MemoryError) as error:
            asides.append(aside(one.series, f"{modality}: {str(error) or 'not enough memory'}"))
            continue
        header = one.series.first
        acquired = Acquired(
            patient=one.series.patient,
            study=one.series.study,
            series=one.series.key,
            date=one.series.date,
            modality=modality,
            nifti=made.nifti,
            sidecar=made.sidecar,
            source=one.series.paths,
            age=age(header.text("PatientAge"), header.text("PatientBirthDate"), one.series.date),
            sex=header.text("PatientSex"),
        )
        taken.append(Taken(acquired=acquired, rank=rank(one)))
    return taken, asides


def age(said: str, born: str, day: str) -> float | None:
    """In years, by the tag ("048Y") or by the dates."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    if len(said) == 4 and said[:3].isdigit() and said[3] in per_year and int(said[:3]):
        return round(int(said[:3]) / per_year[said[3]], 1)
    if len(born) == len(day) == 8 and born.isdigit() and day.isdigit() and born < day:
        return float(int(day[:4]) - int(born[:4]) - (day[4:] < born[4:]))
    return None


def _check_disk(folder: Path, best: Iterable[Listed]) -> None:
    """Before the first conversion: what all of them need against what is free."""
    needed = sum(estimate(o.series) for o in best if not is_converted(o.series, str(o.modality), folder / "converted"))
    make_folder(folder)
    free = shutil.disk_usage(folder).free - SPARE
    if needed > free:
        raise DataError(
            f"state: the converted series need up to {needed / 1e9:.2f} GB, and {max(free, 0) / 1e9:.2f} GB are free "
            "beside 1 GB that is kept; take another disk, or fewer studies at a time"
        )
