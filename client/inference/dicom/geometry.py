"""From a NIfTI grid to slices in DICOM's coordinates, turned the way in which the source's slices lie.

NIfTI's affine is RAS, DICOM is LPS. Axes are only swapped and reversed, never resampled: each voxel keeps its value and
its place. Where the grid is the source's own, the slices come out at the source's own positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from client.inference.dicom.source import PARALLEL, Frame, SourceSeries, Vector
from shared.base.errors import DataError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHEAR = 1e-3  # cosine between rows and columns: DICOM's pixels are rectangles
INSIDE = 0.5  # of the volume's box that must lie in what the source shows


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """A volume as DICOM holds it."""

    data_KRC: NDArray[np.float32]  # slice, row, column
    affine: NDArray[np.float64]  # (column, row, slice) to mm in LPS

    @property
    def orientation(self) -> list[float]:
        columns, rows = (self.affine[:3, i] / np.linalg.norm(self.affine[:3, i]) for i in (0, 1))
        return [*map(float, columns), *map(float, rows)]

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """Between rows, between columns."""
        return float(np.linalg.norm(self.affine[:3, 1])), float(np.linalg.norm(self.affine[:3, 0]))

    @property
    def slice_spacing(self) -> float:
        """Along the normal, which is where slices may be sheared against each other."""
        columns, rows = self.affine[:3, 0], self.affine[:3, 1]
        normal = np.cross(columns, rows)
        return float(abs(self.affine[:3, 2] @ normal) / np.linalg.norm(normal))

    def position(self, k: int) -> Vector:
        return np.asarray(self.affine[:3, 3] + k * self.affine[:3, 2], np.float64)


def to_slices(data_XYZ: NDArray[np.float32], affine: NDArray[np.float64], like: SourceSeries) -> Slices:
    """The volume with its axes in the order and directions of the source's columns, rows and normal."""
    lps = RAS_TO_LPS @ affine
    wanted = np.stack([like.columns, like.rows, like.normal], axis=1)
    steps = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    along = wanted.T @ steps  # cosine between each wanted direction and each axis of the array
    order = max(permutations(range(3)), key=lambda axes: sum(abs(along[i, axes[i]]) for i in range(3)))
    turned, made = data_XYZ.transpose(order), lps[:, [*order, 3]].copy()
    for i in range(3):
        if along[i, order[i]] < 0:
            turned = np.flip(turned, i)
            made[:3, 3] += (turned.shape[i] - 1) * made[:3, i]
            made[:3, i] *= -1
    cosine = abs(made[:3, 0] @ made[:3, 1]) / np.prod(np.linalg.norm(made[:3, :2], axis=0))
    if cosine > SHEAR:
        raise DataError("the volume's rows and columns are not at right angles; DICOM can't say that")
    return Slices(data_KRC=np.ascontiguousarray(turned.transpose(2, 1, 0)), affine=made)


def best_series(study: Sequence[SourceSeries], shape_XYZ: tuple[int, ...], affine: NDArray[np.float64]) -> SourceSeries:
    """The series that the volume was made in the space of: its own grid, or else the one that shows most of it.

    DataError when no series shows half of the volume: it then lies in another space, such as a template's.
    """
    lps = RAS_TO_LPS @ affine
    grid = np.stack(np.meshgrid(*(np.linspace(0, n - 1, 9) for n in shape_XYZ), indexing="ij"), -1).reshape(-1, 3)
    points = grid @ lps[:3, :3].T + lps[:3, 3]

    def shown(series: SourceSeries) -> float:
        frame = series.frames[0]
        axes = np.stack([series.columns, series.rows, series.normal])
        low, high = ((axes @ series.corners().T).min(axis=1), (axes @ series.corners().T).max(axis=1))
        margin = np.array([frame.spacing[1], frame.spacing[0], 5.0])
        at = points @ axes.T
        return float(((at >= low - margin) & (at <= high + margin)).all(axis=1).mean())

    def same_grid(series: SourceSeries) -> bool:
        ends = np.array([[0, 0, 0], [n - 1 for n in shape_XYZ]]) @ lps[:3, :3].T + lps[:3, 3]
        near = np.linalg.norm(series.corners()[:, None] - ends[None], axis=2).min(axis=0)
        return len(series.frames) in shape_XYZ and bool((near < 0.5 * min(series.frames[0].spacing)).all())

    best = max(study, key=lambda series: (same_grid(series), round(shown(series), 2), len(series.frames)))
    if shown(best) < INSIDE:
        raise DataError(
            f"the volume lies outside of the source study: a series shows at best {100 * shown(best):.0f} % of it. "
            "Prepare the subject in its own space (no template), from this study"
        )
    return best


def shown_by(series: SourceSeries, position: Vector, reach: float) -> list[Frame]:
    """The frames of a source series that lie within `reach` of a slice, along the normal."""
    at, normal = position @ series.normal, series.normal
    return [frame for frame in series.frames if abs(float(frame.position @ normal - at)) <= reach]


def is_parallel(series: SourceSeries, orientation: Sequence[float]) -> bool:
    normal = np.cross(orientation[:3], orientation[3:])
    return abs(float(series.normal @ normal)) > PARALLEL
