"""quality.html: every subject of a cohort on one page that loads nothing, sortable, with pictures, for a person.

The page shows brains: it is patient data and stays at the site. What it says is in quality.html.j2; its one script,
quality.js, sorts the table, and the page's own policy lets no other run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.ingest.image.resample import binned, box_of, cut, grid_with_spacing, resample
from shared.base import pictures
from shared.base.display import page
from shared.data.modalities import in_order
from shared.data.volumes import Array, Volume

if TYPE_CHECKING:
    from client.ingest.cohort.outcome import Outcome
    from client.ingest.image.preparation import Ready

PICTURE_MM = 1.5
EDGE_SHARE = 0.07  # of the brain's voxels: the strongest edges of the reference
COLUMNS = (
    "subject",
    "state",
    "why, and what to look at",
    "modalities",
    "brain ml",
    "fits",
    "tissue",
    "least registration",
    "least coverage",
    "least SNR",
    "ghost",
    "voxel mm",
)
TEMPLATE = Path(__file__).with_name("quality.html.j2")
SCRIPT = TEMPLATE.with_name("quality.js")


class Cell(NamedTuple):
    text: str
    sorts_by: str
    style: str = ""


def draw(ready: "Ready", path: Path) -> None:
    """Three planes of each modality; on all but the reference, the reference's edges."""
    if not ready.volumes or not ready.brain_DHW.any():
        path.unlink(missing_ok=True)
        return
    around = box_of(ready.brain_DHW)
    shown = binned(cut(_volume(ready.brain_DHW, ready), around), PICTURE_MM)
    shape, affine = grid_with_spacing(shown, PICTURE_MM)
    brain = resample(shown, shape, affine, np.eye(4), sharp=False) >= 0.5
    if not brain.any():
        path.unlink(missing_ok=True)
        return
    box = box_of(brain)
    images = {}
    for modality, data in ready.volumes.items():
        small = binned(cut(_volume(data, ready), around), PICTURE_MM)
        there = resample(small, shape, affine, np.eye(4), sharp=False)
        low, high = np.percentile(there[brain], (1, 99.5))
        images[modality] = np.where(brain, np.clip((there - low) / max(high - low, 1e-6), 0, 1), 0)[box]
    reference = ready.quality.reference
    edges = _edges(images[reference], brain[box]) if reference in images else None
    middle = [n // 2 for n in next(iter(images.values())).shape]
    names = in_order(images)
    rows = [
        [
            _with(p, e)
            for p, e in zip(
                pictures.three_planes(images[m], middle),
                pictures.three_planes(edges, middle) if edges is not None and m != reference else [None] * 3,
                strict=True,
            )
        ]
        for m in names
    ]
    pictures.save_png(pictures.mosaic(rows, names, ("axial", "coronal", "sagittal"), cell=120), path)


def _volume(data_DHW: NDArray[Any], ready: "Ready") -> Volume:
    return Volume(data_DHW=data_DHW.astype(np.float32, copy=False), affine=ready.affine)


def render(cohort: Path, outcomes: "Sequence[Outcome]", digest: str) -> str:
    return page.render(
        TEMPLATE,
        script=SCRIPT.read_text(encoding="utf-8"),
        kept=sum(outcome.excluded is None for outcome in outcomes),
        digest=digest[:12],
        columns=COLUMNS,
        rows=[(outcome.name, _cells(outcome), _picture(cohort, outcome.name)) for outcome in outcomes],
    )


def _cells(outcome: "Outcome") -> list[Cell]:
    quality = outcome.quality
    brain = quality.brain if quality is not None else None
    images = quality.images if quality is not None else {}
    used = [images[m] for m in outcome.files if m in images]
    notes = [outcome.excluded or "", *(f"{m} left out: {w}" for m, w in outcome.left.items())]
    notes += list(quality.warnings) if quality is not None else []
    state = "kept" if outcome.excluded is None else "excluded"
    return [
        _text(outcome.name),
        _text(state, state),
        _text(" · ".join(note for note in notes if note), "text"),
        _text(", ".join(outcome.files)),
        _number(brain.ml if brain else None, "{:.0f}"),
        _number(brain.overlap if brain else None),
        _number(brain.tissue if brain else None),
        _number(min((f.registration for f in used if f.registration is not None), default=None)),
        _number(min((f.coverage for f in used), default=None)),
        _number(min((f.snr for f in used), default=None), "{:.1f}"),
        _number(max((f.ghost for f in used if f.ghost is not None), default=None)),
        _number(max((v for f in used for v in f.voxel_mm), default=None)),
    ]


def _text(text: str, style: str = "") -> Cell:
    return Cell(text, text, style)


def _number(value: float | None, form: str = "{:.2f}") -> Cell:
    return Cell("n/a", "") if value is None else Cell(form.format(value), f"{value:.6g}")


def _picture(cohort: Path, name: str) -> str | None:
    path = cohort / "quality" / f"{name}.png"
    return page.embedded(path) if path.is_file() else None


def _edges(image: Array, brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The strongest gradients, thinned to their ridges along each plane."""
    steep = ndimage.gaussian_gradient_magnitude(image, 1.0)
    steep[~brain] = 0
    found: NDArray[np.bool_] = steep > np.quantile(steep[brain], 1 - 3 * EDGE_SHARE)
    found &= steep >= 0.97 * ndimage.maximum_filter(steep, size=3)
    return found


def _with(plane: NDArray[Any], edges: NDArray[Any] | None) -> NDArray[Any]:
    if edges is None:
        return plane
    colours = np.repeat(plane[..., None], 3, axis=2)
    colours[edges] = (0.95, 0.25, 0.2)
    return colours
