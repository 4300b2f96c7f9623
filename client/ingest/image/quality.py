"""Figures of a prepared subject, and the rules that keep out what is no brain or no use. A person sees both.

What a brain is, in figures that need no training: as large as one, as long, as wide and as high as one, of the outline
of the reference brain once laid over it, and with insides that the reference's tissues explain. No one figure tells a
fruit from a brain: the fruit has the size, the grid phantom the contrast. Bounds are wide (a child of one year, an old
man, a large resection); what they refuse, a person may still accept (review.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from client.ingest.image import face, template
from client.ingest.image.resample import Mask, box_of, foreground
from shared.base.options import require
from shared.data.volumes import Array, Volume

ENOUGH = 200_000  # voxels tell the noise as well as all of them
LAPLACE = 6.0  # of a voxel's noise, what its second difference along one axis shows, as a variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a subject must have to be kept."""

    brain_ml: tuple[float, float] = (600.0, 2300.0)
    length_mm: tuple[float, float] = (120.0, 225.0)  # front to back
    width_mm: tuple[float, float] = (95.0, 190.0)
    height_mm: tuple[float, float] = (60.0, 190.0)  # thick slabs of a short stack are less than a brain
    min_overlap: float = 0.82  # with the reference brain's outline, after an affine
    min_tissue: float = 0.15  # share of the image that the reference's tissues explain
    max_face_ml: float = 0.5  # of eyes, nose or ears in what was taken for brain
    min_coverage: float = 0.85  # of the brain, by each other modality
    min_snr: float = 2.0
    max_voxel_mm: float = 8.0

    def __post_init__(self) -> None:
        for name in ("brain_ml", "length_mm", "width_mm", "height_mm"):
            low, high = getattr(self, name)
            require(0 <= low < high, name, (low, high), "a lower and an upper bound")
        require(self.max_face_ml >= 0, "max_face_ml", self.max_face_ml, "0 ml or more")
        for name in ("min_overlap", "min_tissue", "min_coverage"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainFigures:
    """Figures of the brain that was found in the reference volume."""

    ml: float
    length_mm: float
    width_mm: float
    height_mm: float
    overlap: float
    tissue: float
    cut: float  # share of the brain's surface that lies on the edge of the field
    face_ml: Mapping[str, float] = field(default_factory=dict)  # of eyes, nose and ears, where the reference has them


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFigures:
    """Figures of one modality's volume."""

    voxel_mm: tuple[float, float, float]  # as acquired
    snr: float
    ghost: float | None  # signal beside the head, in the direction of more of it, over the noise; None if blank
    coverage: float
    registration: float | None  # None: the reference
    shift_mm: float | None = None
    turn_deg: float | None = None
    start: str = ""


def of_brain(volume: Volume, brain_DHW: Mask, fit: template.Fit) -> BrainFigures:
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0)[::-1]
    reached = [np.flatnonzero(brain_DHW.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    height, length, width = (
        (r[-1] - r[0] + 1) * step if len(r) else 0.0 for r, step in zip(reached, steps, strict=True)
    )
    edge = np.zeros_like(brain_DHW)
    for axis in range(3):
        np.moveaxis(edge, axis, 0)[[0, -1]] = True
    rim = brain_DHW & ~ndimage.binary_erosion(brain_DHW, border_value=0)
    return BrainFigures(
        ml=float(brain_DHW.sum() * np.prod(steps) / 1000),
        length_mm=float(length),
        width_mm=float(width),
        height_mm=float(height),
        overlap=fit.overlap if template.is_plausible(fit.pose) else 0.0,
        tissue=fit.tissue,
        cut=float((rim & edge).sum() / max(1, rim.sum())),
        face_ml=face.left_ml(brain_DHW, volume.affine, fit.pose),
    )


def why_no_brain(figures: BrainFigures, limits: Limits) -> str | None:
    """Why this is not taken for a brain, or None."""
    for name, unit in (("ml", "ml"), ("length_mm", "mm"), ("width_mm", "mm"), ("height_mm", "mm")):
        low, high = getattr(limits, "brain_ml" if name == "ml" else name)
        value = getattr(figures, name)
        if not low <= value <= high:
            what = "holds" if name == "ml" else f"has a {name.removesuffix('_mm')} of"
            return f"no brain: what was found {what} {value:.0f} {unit}; a brain has {low:.0f} to {high:.0f}"
    if figures.overlap < limits.min_overlap:
        return f"no brain: its outline fits the reference brain by {figures.overlap:.2f}, below {limits.min_overlap:g}"
    if figures.tissue < limits.min_tissue:
        return (
            f"no brain: the reference's grey, white and fluid explain {figures.tissue:.0%} of it, "
            f"below {limits.min_tissue:.0%}"
        )
    for part, ml in figures.face_ml.items():
        if ml > limits.max_face_ml:
            return f"a face: {ml:.1f} ml lie where {part} are; at most {limits.max_face_ml:g} ml may"
    return None


def snr(data_DHW: Array, brain_DHW: Mask) -> float:
    """Median signal over noise; the noise from second differences, which anatomy hardly reaches (robust)."""
    box = box_of(brain_DHW)
    data, brain = data_DHW[box], brain_DHW[box]
    if not brain.any():
        return 0.0
    inside = ndimage.binary_erosion(brain, iterations=2)
    if inside.sum() < 100:
        inside = brain
    noise = min(_noise(data, inside, axis) for axis in range(3))
    return float(np.median(data[brain]) / max(noise, 1e-9))


def _noise(data_DHW: Array, inside: Mask, axis: int) -> float:
    """Of every so many-th voxel along the axis, where there are many."""
    size = data_DHW.shape[axis]
    if size < 3:
        return np.inf
    data, inside = np.moveaxis(data_DHW, axis, 0), np.moveaxis(inside, axis, 0)
    step = max(1, int(np.count_nonzero(inside)) // ENOUGH)
    middle = slice(1, size - 1, step)
    before, after = slice(0, size - 2, step), slice(2, size, step)
    values = (2 * data[middle] - data[before] - data[after])[inside[middle]]
    if not len(values):
        return np.inf
    return float(1.4826 * np.median(np.abs(values - np.median(values))) / np.sqrt(LAPLACE))


def ghost(data_DHW: Array) -> float | None:
    """Air beside the head along one in-plane axis against air in the corners: a phase-encoding ghost shows in one."""
    data_DHW = data_DHW[:: max(1, data_DHW.size // (10 * ENOUGH))]
    head = ndimage.binary_dilation(foreground(data_DHW), iterations=3)
    beside_y = head.any(axis=1, keepdims=True) & ~head
    beside_x = head.any(axis=2, keepdims=True) & ~head
    corner = ~head & ~beside_y & ~beside_x
    if corner.sum() < 500 or not data_DHW[corner].any():
        return None
    air = float(np.mean(data_DHW[corner]))
    means = [float(np.mean(data_DHW[where])) if where.sum() > 500 else air for where in (beside_y, beside_x)]
    return max(means) / max(air, 1e-9)


def why_not(figures: ImageFigures, limits: Limits) -> str | None:
    """Why one modality is not to be used, or None."""
    if max(figures.voxel_mm) > limits.max_voxel_mm:
        return f"voxels of {max(figures.voxel_mm):.1f} mm: over {limits.max_voxel_mm:g}"
    if figures.coverage < limits.min_coverage:
        return f"covers {figures.coverage:.0%} of the brain: {limits.min_coverage:.0%} are needed"
    if figures.snr < limits.min_snr:
        return f"signal over noise {figures.snr:.1f}: below {limits.min_snr:g}"
    return None
