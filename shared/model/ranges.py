"""What a model was made for, in a few numbers: how bright brains are in [0, 1], how large, how far apart slices lie.

The coordinator measures subjects of its own at export (never a site's: a range's ends are single subjects' values), and
the bundle carries lowest and highest. A site compares an input with them before it believes what comes out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from shared.data.preparation import Loaded

VERSION = 1
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of a modality in the brain, in [0, 1]
LEAST_SUBJECTS = 2
WIDTH = 0.1  # of an intensity's range, at least: two subjects don't show how far subjects differ
FACTOR = 1.3  # of a size's range, at least, between its ends
UNUSUAL, FAR = 0.5, 2.0  # widths beyond an end: said, refused
HUMAN: Mapping[
    str, tuple[float, float]
] = {  # where a bundle says nothing: heads of children and adults, usual scanners
    "brain volume in ml": (500.0, 2200.0),
    "slice distance in mm": (0.3, 8.0),
    "pixel size in mm": (0.2, 3.0),
    "width in mm": (90.0, 180.0),
    "length in mm": (110.0, 220.0),
}

Case = Mapping[str, Mapping[str, float]]  # "geometry" or a modality: name to value


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One value that lies outside, and how."""

    text: str
    far: bool


def measure(loaded: Loaded) -> Case:
    """The numbers of one subject, of the modalities that it has."""
    steps = np.linalg.norm(loaded.affine[:3, :3], axis=0)
    x, y, z = (float(s) for s in steps)
    dy, dx = y * loaded.placement.step_yx[0], x * loaded.placement.step_yx[1]
    voxel = abs(float(np.linalg.det(loaded.affine[:3, :3]))) * dy * dx / (y * x)
    brain = loaded.brain_DHW
    rows, columns = (np.flatnonzero(brain.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    geometry = {
        "brain volume in ml": float(brain.sum()) * voxel / 1000,
        "slice distance in mm": z,
        "pixel size in mm": (x * y) ** 0.5,
        "width in mm": (columns[-1] - columns[0] + 1) * dx,
        "length in mm": (rows[-1] - rows[0] + 1) * dy,
    }
    found: dict[str, dict[str, float]] = {"geometry": {name: float(value) for name, value in geometry.items()}}
    for modality, image in zip(loaded.scalings, loaded.images_MDHW, strict=True):
        values = np.quantile(image[brain], QUANTILES)
        found[modality] = {f"{100 * q:g} % quantile": float(v) for q, v in zip(QUANTILES, values, strict=True)}
    return found


def ranges_of(cases: Sequence[Case], source: str) -> dict[str, Any] | None:
    """Lowest and highest of each number; None where there are too few subjects to speak of a range."""
    if len(cases) < LEAST_SUBJECTS:
        return None
    parts = sorted({part for case in cases for part in case})
    limits: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        having = [case[part] for case in cases if part in case]
        limits[part] = {n: [min(c[n] for c in having), max(c[n] for c in having)] for n in having[0]}
    return {"version": VERSION, "from": source, "subjects": len(cases), "limits": limits}


def source_of(ranges: Any) -> str:
    """Whose subjects the ranges are, in words; what a bundle without them is compared with."""
    return str(ranges["from"]) if _usable(ranges) else "none: the bundle has no ranges, only human geometry is checked"


def judge(ranges: Any, case: Case) -> tuple[Finding, ...]:
    """What of an input lies outside of a bundle's ranges. Without them, an unlikely geometry is said, never refused."""
    if not _usable(ranges):
        outside = {n: case["geometry"][n] for n, (lo, hi) in HUMAN.items() if not lo <= case["geometry"][n] <= hi}
        return tuple(
            Finding(text=f"{n} is {v:.3g}: usual are {HUMAN[n][0]:g} to {HUMAN[n][1]:g}", far=False)
            for n, v in outside.items()
        )
    findings = []
    for part, values in case.items():
        for name, value in values.items():
            limits = cast(Mapping[str, Any], ranges["limits"]).get(part, {}).get(name)
            if limits is None:
                continue
            low, high = map(float, limits)
            beyond = _beyond(value, low, high, log=part == "geometry")
            if beyond > UNUSUAL:
                what = name if part == "geometry" else f"{part}: its {name} in the brain"
                text = f"{what} is {value:.3g}, trained on {low:.3g} to {high:.3g} ({ranges['from']})"
                findings.append(Finding(text=text, far=beyond > FAR))
    return tuple(findings)


def _beyond(value: float, low: float, high: float, *, log: bool) -> float:
    """How far outside, in widths of the range; 0 inside."""
    least = WIDTH
    if log:
        value, low, high = (math.log(max(number, 1e-6)) for number in (value, low, high))
        least = math.log(FACTOR)
    return max(0.0, low - value, value - high) / max(high - low, least)


def _usable(ranges: Any) -> bool:
    return isinstance(ranges, Mapping) and ranges.get("version") == VERSION
