"""The study that a synthesised series goes back to: whose it is, in which frame of reference, and where its slices lie.

Coordinates here are DICOM's: LPS, in mm. Only headers are read.
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from shared.base.errors import DataError

MODALITIES = ("MR", "CT", "PT")
MOST_FILES = 100_000
PARALLEL = 0.999  # cosine between the normals of slices that show the same plane

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One slice of a source series: an instance, or a frame of one."""

    sop_class: str
    sop_instance: str
    number: int | None  # of the frame, from 1, in a multi-frame instance
    position: Vector  # of its first pixel
    spacing: tuple[float, float]  # between rows, between columns
    size: tuple[int, int]  # rows, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSeries:
    uid: str
    frame_of_reference: str
    header: Dataset  # of its first instance, without pixels
    columns: Vector  # direction in which the column number grows: along a row
    rows: Vector  # direction in which the row number grows
    frames: tuple[Frame, ...]  # in the order of their place along the normal

    @property
    def normal(self) -> Vector:
        return np.cross(self.columns, self.rows)

    def corners(self) -> Vector:
        """The eight corners of the space that it shows."""
        found = []
        for frame in (self.frames[0], self.frames[-1]):
            for i in (0, frame.size[0] - 1):
                for j in (0, frame.size[1] - 1):
                    step = i * frame.spacing[0] * self.rows + j * frame.spacing[1] * self.columns
                    found.append(frame.position + step)
        return np.array(found)


def read_study(source: Path, files: Sequence[Path] | None = None) -> tuple[SourceSeries, ...]:
    """Read every image series of the one study in a folder (or file, or among `files`), the largest first."""
    files = _files(source) if files is None else files
    found: dict[str, list[Dataset]] = defaultdict(list)
    for path in files:
        header = _header(path)
        if header is not None and str(header.get("Modality", "")) in MODALITIES:
            found[str(header.get("SeriesInstanceUID", ""))].append(header)
    every = [header for headers in found.values() for header in headers]
    if not every:
        raise DataError(f"--dicom {source}: no MR, CT or PET image among its {len(files)} files")
    for keyword, what in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        values = {str(header.get(keyword, "")) for header in every}
        if len(values) > 1:
            raise DataError(f"--dicom {source}: holds images of {len(values)} {what}; name the folder of one")
        if keyword == "StudyInstanceUID" and values == {""}:
            raise DataError(f"--dicom {source}: its images have no StudyInstanceUID")
    series = [made for headers in found.values() if (made := _series(headers)) is not None]
    if not series:
        raise DataError(
            f"--dicom {source}: no series says where its slices lie (position, orientation, spacing, frame "
            "of reference)"
        )
    return tuple(sorted(series, key=lambda one: (-len(one.frames), one.uid)))


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"--dicom {source}: no such folder")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if len(files) > MOST_FILES:
        raise DataError(f"--dicom {source}: {len(files)} files; name the folder of one study")
    return files


def _header(path: Path) -> Dataset | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError, EOFError):
            return None
        except Exception as error:  # a damaged header can lead pydicom anywhere
            raise DataError(f"--dicom {path}: damaged header ({type(error).__name__})") from error


def _series(headers: Sequence[Dataset]) -> SourceSeries | None:
    """Make a series; None without geometry, or with slices that are not parallel (a localiser)."""
    try:
        placed = [place for header in headers for place in _places(header)]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None
    first = headers[0]
    if not placed or not first.get("FrameOfReferenceUID"):
        return None
    columns, rows = placed[0][1][:3], placed[0][1][3:]
    lengths = np.linalg.norm(columns), np.linalg.norm(rows)
    if not np.isfinite(placed[0][1]).all() or min(lengths) < 0.5 or abs(columns @ rows) > 1e-2:
        return None
    columns, rows = columns / lengths[0], rows / lengths[1]
    if any(np.abs(orientation - placed[0][1]).max() > 1e-3 for _, orientation in placed):
        return None
    normal = np.cross(columns, rows)
    frames = sorted((frame for frame, _ in placed), key=lambda frame: float(frame.position @ normal))
    return SourceSeries(
        uid=str(first.SeriesInstanceUID),
        frame_of_reference=str(first.FrameOfReferenceUID),
        header=first,
        columns=columns,
        rows=rows,
        frames=tuple(frames),
    )


def _places(header: Dataset) -> list[tuple[Frame, Vector]]:
    """Each frame of an instance, with its orientation."""
    groups: Sequence[Any] = header.get("PerFrameFunctionalGroupsSequence") or []
    if not groups:
        return [
            (
                _frame(header, header.ImagePositionPatient, header.PixelSpacing, None),
                np.array(header.ImageOrientationPatient, float),
            )
        ]
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    places = []
    for number, own in enumerate(groups, start=1):

        def macro(name: str, own: Dataset = own) -> Dataset:
            held: Dataset = (own if name in own else shared)[name].value[0]
            return held

        position = macro("PlanePositionSequence").ImagePositionPatient
        spacing = macro("PixelMeasuresSequence").PixelSpacing
        orientation = np.array(macro("PlaneOrientationSequence").ImageOrientationPatient, float)
        places.append((_frame(header, position, spacing, number), orientation))
    return places


def _frame(header: Dataset, position: Any, spacing: Any, number: int | None) -> Frame:
    place = np.array(position, float)
    if place.shape != (3,) or not np.isfinite(place).all() or min(map(float, spacing)) <= 0:
        raise ValueError
    return Frame(
        sop_class=str(header.SOPClassUID),
        sop_instance=str(header.SOPInstanceUID),
        number=number,
        position=place,
        spacing=(float(spacing[0]), float(spacing[1])),
        size=(int(header.Rows), int(header.Columns)),
    )
