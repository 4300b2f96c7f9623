"""Files to series: who belongs together, what is there twice, and whether the slices make up a whole volume.

Folders and file names mean nothing here, the tags alone do. A DICOM series that holds several kinds of image (echoes,
magnitude and phase, a localiser among slices) becomes several `Series`, each judged by itself.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from client.ingest.arrive.faults import Tags
from client.ingest.arrive.headers import Header, Point
from client.ingest.arrive.records import Aside
from shared.data.limits import SPACING_LIMITS
from shared.data.preparation import hash_file
from shared.data.volumes import MAX_VOXELS

IMAGES = {  # SOP classes that hold what a scanner measured
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",  # legacy converted
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
    "1.2.840.10008.5.1.4.1.1.128.1": "PT",
}
_NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.7": "a secondary capture",
    "1.2.840.10008.5.1.4.1.1.4.2": "spectroscopy",
    "1.2.840.10008.5.1.4.1.1.4.3": "an image in colour",
    "1.2.840.10008.5.1.4.1.1.66": "raw data",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.104.1": "a PDF document",
}
SAME_PLACE = 0.02  # mm: closer positions are one
SAME_DIRECTION = 0.9998  # cosine; one degree
UNEVEN = 0.1  # of the usual step: dcm2niix evens out the slices of CT, of nothing else
GAP = 1.5  # usual steps, from which on a slice is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Images of one patient that make up one volume, or the reason why they do not."""

    patient: str
    study: str
    uid: str
    part: int  # from 1; a DICOM series of several kinds of image has several
    kind: str  # MR, CT, PT
    headers: tuple[Header, ...]  # along the slices
    slices: int  # places; 0 where unknown (a mosaic)
    extent: float  # mm from the first slice to the last
    step: float  # mm, as most are
    echoes: int  # of the whole DICOM series
    fault: str

    @property
    def key(self) -> str:
        """The series' name in every list: its UID, with the number of its part where it has several."""
        return self.uid if self.part == 1 else f"{self.uid}#{self.part}"

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def tags(self) -> Tags:
        return self.headers[0].tags

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(header.path for header in self.headers)

    @property
    def bytes(self) -> int:
        return sum(header.size for header in self.headers)

    @property
    def date(self) -> str:
        day = self.first.text("StudyDate") or self.first.text("SeriesDate") or self.first.acquired[:8]
        return day if len(day) == 8 and day.isdigit() else ""


def group(headers: Iterable[Header]) -> tuple[list[Series], list[Aside]]:
    """Every file ends in a series or among those left aside; the order of the files does not matter."""
    asides: list[Aside] = []
    by_series: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda h: str(h.path)):
        whose = (header.text("PatientID"), header.text("StudyInstanceUID"), header.text("SeriesInstanceUID"))
        missing = [name for name, value in zip(_WHOSE, whose, strict=True) if not value]
        if missing:
            asides.append(_file(header, f"has no {missing[0]}: nobody can tell whose image it is"))
        else:
            by_series[whose].append(header)

    found: list[Series] = []
    for whose, members in by_series.items():
        others = [header for header in members if header.sop_class not in IMAGES]
        if others:
            asides.append(_others(whose, others))
        sound = [header for header in members if header.sop_class in IMAGES]
        asides += [_file(header, header.fault) for header in sound if header.fault]
        once, doubles = _once([header for header in sound if not header.fault])
        asides += doubles
        if once:
            found += _parts(whose, once)
    return _check_identities(found), asides


_WHOSE = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")


def _file(header: Header, why: str) -> Aside:
    return Aside(
        what="file",
        where=str(header.path),
        why=why,
        patient=header.text("PatientID"),
        series=header.text("SeriesInstanceUID"),
    )


def _others(whose: tuple[str, str, str], headers: Sequence[Header]) -> Aside:
    kind = _NOT_IMAGES.get(headers[0].sop_class, "another kind of object")
    why = f"{kind}: not an image of MR, CT or PET ({len(headers)} files)"
    return Aside(what="series", where=whose[2], why=why, patient=whose[0], series=whose[2])


def _once(headers: Sequence[Header]) -> tuple[list[Header], list[Aside]]:
    """Each SOP instance once: of equal copies the first, of different ones with the same UID the first too."""
    kept: dict[str, Header] = {}
    doubles = []
    for header in headers:
        first = kept.setdefault(header.sop, header)
        if first is not header:
            same = first.size == header.size and hash_file(first.path) == hash_file(header.path)
            why = "a copy of another file" if same else "has the SOP Instance UID of another file and other content"
            doubles.append(_file(header, f"{why}, which was used"))
    return list(kept.values()), doubles


def _parts(whose: tuple[str, str, str], headers: Sequence[Header]) -> list[Series]:
    """One DICOM series as one `Series` per echo and kind of image, in the order of their instance numbers."""
    parts: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda h: (h.number is None, h.number or 0, h.sop)):
        parts[_kind_of_image(header)].append(header)
    echoes = len({round(echo, 1) for h in headers if (echo := h.real("EchoTime")) is not None})
    echoes = max(1, echoes, int(headers[0].real("Echoes") or 1))
    return [_build(whose, number, members, echoes) for number, members in enumerate(parts.values(), start=1)]


def _kind_of_image(header: Header) -> tuple[object, ...]:
    kind = IMAGES[header.sop_class]
    if kind != "MR":  # the slices of one CT may differ in kernel and thickness from base to top
        return kind, header.words("ImageType")[:2], "LOCALIZER" in header.words("ImageType")
    numbers = [header.real(tag) for tag in ("EchoTime", "InversionTime")]
    return kind, header.words("ImageType"), *(None if n is None else round(n, 1) for n in numbers)


def _build(whose: tuple[str, str, str], part: int, headers: Sequence[Header], echoes: int) -> Series:
    kind = IMAGES[headers[0].sop_class]
    plain = Series(
        patient=whose[0],
        study=whose[1],
        uid=whose[2],
        part=part,
        kind=kind,
        headers=tuple(headers),
        slices=0,
        extent=0.0,
        step=0.0,
        echoes=echoes,
        fault="",
    )
    for says in _FAULTS:
        fault = says(plain)
        if fault:
            return replace(plain, fault=fault)
    if "MOSAIC" in headers[0].words("ImageType"):
        return replace(plain, fault=f"{len(headers)} volumes over time, not one" if len(headers) > 1 else "")
    return _along(plain)


def _colour(series: Series) -> str:
    samples = series.first.real("SamplesPerPixel") or 1
    grey = series.first.text("PhotometricInterpretation").startswith("MONOCHROME")
    return "" if samples == 1 and grey else "an image in colour, not of measured values"


def _sizes(series: Series) -> str:
    sizes = {(h.real("Rows"), h.real("Columns")) for h in series.headers}
    if len(sizes) > 1:
        return f"images of {len(sizes)} sizes"
    spacings = {tuple(round(s, 3) for s in h.tags.get("PixelSpacing", ())) for h in series.headers}
    if len(spacings) > 1:
        return f"images of {len(spacings)} pixel spacings"
    spacing = next(iter(spacings))
    if not spacing:
        return "its pixel spacing is unknown"
    if min(spacing) < SPACING_LIMITS[0] or max(spacing) > SPACING_LIMITS[1]:
        return f"pixels of {max(spacing):g} mm: must be {SPACING_LIMITS[0]} to {SPACING_LIMITS[1]} mm"
    (rows, columns) = next(iter(sizes))
    images = max(len(series.headers), int(series.first.real("NumberOfFrames") or 1))
    if (rows or 0) * (columns or 0) * images > MAX_VOXELS:
        return f"more than {MAX_VOXELS} voxels"
    return ""


def _directions(series: Series) -> str:
    first = series.first.tags.get("ImageOrientationPatient")
    if first is None:
        return "its orientation is unknown"
    groups: list[tuple[float, ...]] = []
    for orientation in {h.tags.get("ImageOrientationPatient") for h in series.headers}:
        if orientation is None:
            return "the orientation of some images is unknown"
        if not any(_aligned(orientation, other) for other in groups):
            groups.append(orientation)
    return f"{len(groups)} orientations in one series: a localiser, or slices around an axis" if len(groups) > 1 else ""


def _aligned(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(
        sum(a * b for a, b in zip(one[i : i + 3], other[i : i + 3], strict=True)) > SAME_DIRECTION for i in (0, 3)
    )


_FAULTS: tuple[Callable[[Series], str], ...] = (_colour, _sizes, _directions)


def _along(series: Series) -> Series:
    """The slices in the order of their places, and what is wrong with these."""
    x, y, z, u, v, w = series.tags["ImageOrientationPatient"]
    normal = (y * w - z * v, z * u - x * w, x * v - y * u)
    if any(not header.positions for header in series.headers):
        return replace(series, fault="the place of some slices is unknown")
    ordered = sorted(series.headers, key=lambda h: (_on(normal, h.positions[0]), h.number or 0))
    places = sorted(_on(normal, point) for header in ordered for point in header.positions)
    distinct = [places[0]]
    for place in places[1:]:
        if place - distinct[-1] > SAME_PLACE:
            distinct.append(place)
    steps = [b - a for a, b in pairwise(distinct)]
    step = median(steps) if steps else 0.0
    series = replace(
        series,
        headers=tuple(ordered),
        slices=len(distinct),
        extent=distinct[-1] - distinct[0],
        step=step,
    )
    return replace(series, fault=_places_fault(series, len(places), steps))


def _places_fault(series: Series, images: int, steps: Sequence[float]) -> str:
    if images != series.slices:
        if images % series.slices == 0:
            return f"4D: {images // series.slices} images at each of {series.slices} places"
        return f"{images} images at {series.slices} places: some slices are missing or there twice"
    thickest = max((h.real("SliceThickness") or 0 for h in series.headers), default=0)
    varied = series.kind == "CT" and len({h.real("SliceThickness") for h in series.headers}) > 1
    gaps = [s for s in steps if s > GAP * series.step and not (varied and s <= GAP * thickest)]
    if gaps:
        lost = sum(round(gap / series.step) - 1 for gap in gaps)
        return f"about {lost} slices are missing: steps of {max(gaps):.3g} mm among steps of {series.step:.3g} mm"
    if series.kind != "CT" and any(abs(s - series.step) > UNEVEN * series.step for s in steps):
        return f"slices at uneven steps, from {min(steps):.3g} to {max(steps):.3g} mm"
    return ""


def _on(normal: Point, point: Point) -> float:
    return math.fsum(a * b for a, b in zip(normal, point, strict=True))


def _check_identities(series: Sequence[Series]) -> list[Series]:
    """One study is one patient's, and one PatientID is one person: else nothing of either is used."""
    owners: dict[str, set[str]] = defaultdict(set)
    born: dict[str, set[str]] = defaultdict(set)
    for one in series:
        owners[one.study].add(one.patient)
        owners[one.uid].add(one.patient)
        born[one.patient] |= {day for h in one.headers if (day := h.text("PatientBirthDate"))}
    checked = []
    for one in series:
        fault = ""
        if len(born[one.patient]) > 1:
            fault = f"its PatientID stands for people of {len(born[one.patient])} birth dates"
        elif len(owners[one.study]) > 1 or len(owners[one.uid]) > 1:
            fault = f"its study is filed under {max(len(owners[one.study]), len(owners[one.uid]))} patients"
        checked.append(replace(one, fault=fault) if fault else one)
    return sorted(checked, key=lambda s: (s.patient, s.date, s.first.real("SeriesNumber") or 0, s.key))
