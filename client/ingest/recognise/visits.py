"""Series to visits: which studies of a patient belong together, and which of several series of a modality is taken.

STATE/ingest/acquired.json remembers every series taken and the number of every visit, so that a later ingest adds to a
cohort: a visit keeps its number, and a better series found later takes the place of the one used before.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from client.ingest.arrive.records import Acquired
from client.ingest.recognise.listing import Listed
from shared.base.errors import ConfigError, DataError
from shared.base.files import write_text
from shared.base.options import build, plain
from shared.base.vocabulary import Modality

RECORD = "acquired.json"
FINEST_MM3 = 0.25  # finer voxels add noise, not detail
COVERED_MM = 130.0  # a brain's height; what is covered beyond it counts no more

Rank = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A patient's studies that count as one point in time."""

    patient: str
    number: int  # from 1, in the order in which they came to this site's record
    date: str  # of its first study
    studies: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A converted series in the record, and what it is compared by."""

    acquired: Acquired
    rank: Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that this site has taken in so far."""

    visits: tuple[Visit, ...] = ()
    taken: tuple[Taken, ...] = ()

    @staticmethod
    def open(folder: Path) -> "Record":
        path = folder / RECORD
        if not path.exists():
            return Record()
        try:
            return build(Record, json.loads(path.read_text(encoding="utf-8")), "record")
        except (ConfigError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(
                f"{path}: damaged ({type(error).__name__}); delete it and ingest the sources again"
            ) from None

    def write(self, folder: Path) -> None:
        path = folder / RECORD
        write_text(path, json.dumps(plain(self), indent=1))

    @property
    def numbers(self) -> dict[tuple[str, str], int]:
        """(patient, study) -> number of the visit."""
        return {(visit.patient, study): visit.number for visit in self.visits for study in visit.studies}

    def merge(self, new: Sequence[Taken], seen: Iterable[str]) -> "Record":
        """What was taken now beside what was taken before; `seen` are the series of this ingest, taken or not."""
        seen, numbers = set(seen), self.numbers
        best: dict[tuple[str, int, Modality], Taken] = {}
        for one in (*(old for old in self.taken if old.acquired.series not in seen), *new):
            acquired = one.acquired
            place = (acquired.patient, numbers[acquired.patient, acquired.study], acquired.modality)
            if place not in best or one.rank > best[place].rank:
                best[place] = one
        return replace(self, taken=tuple(best[place] for place in sorted(best)))


def assign(visits: Sequence[Visit], studies: Iterable[tuple[str, str, str]], days: int) -> tuple[Visit, ...]:
    """Every (patient, study, date) in a visit: one at most `days` from its first study, or a new one after the last."""
    found = list(visits)
    known = {(visit.patient, study) for visit in visits for study in visit.studies}
    for patient, study, day in sorted(set(studies), key=lambda s: (s[0], s[2], s[1])):
        if (patient, study) in known:
            continue
        known.add((patient, study))
        near = [i for i, v in enumerate(found) if v.patient == patient and _apart(v.date, day) <= days]
        if near:
            found[near[0]] = replace(found[near[0]], studies=(*found[near[0]].studies, study))
        else:
            number = 1 + sum(visit.patient == patient for visit in found)
            found.append(Visit(patient=patient, number=number, date=day, studies=(study,)))
    return tuple(found)


def _apart(one: str, other: str) -> float:
    """Days; studies without a date are never together."""
    try:
        return abs((date.fromisoformat(one) - date.fromisoformat(other)).days)
    except ValueError:
        return float("inf")


def rank(listed: Listed) -> Rank:
    """Which of several series of one modality to take: a person's, then the one that covers more, 3D, finer, later.

    Later, because what is scanned again was spoilt the first time.
    """
    series = listed.series
    spacing = series.tags.get("PixelSpacing", (1.0, 1.0))
    voxel = max(float(spacing[0]) * float(spacing[1]) * max(series.step, 0.1), FINEST_MM3)
    return (
        float(listed.by == "person"),
        min(series.extent, COVERED_MM) // 20,
        float(series.first.text("MRAcquisitionType") == "3D"),
        -round(voxel, 2),
        float("NORM" in series.first.words("ImageType")),
        series.first.real("SeriesNumber") or 0.0,
    )
