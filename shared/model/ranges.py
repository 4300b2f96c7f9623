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
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of a modality in the brain, from its darkest to its brightest: on the
# scale that networks see, a T2 called T1 looks nearly right
LEAST_SUBJECTS = 2
WIDTH = 0.1  # of an intensity's range, at least: two subjects don't show how far subjects differ
FACTOR = 1.3  # of a size's range, at least, between its ends
UNUSUAL, FAR = 0.5, 2.0  # widths beyond an end: said, refused
HUMAN: Mapping[str, tuple[float, float]] = {  # where a bundle says nothing: children to adults, usual scanners
    "brain volume in ml": (500.0, 2200.0),
    "slice distance in mm": (0.3, 8.0),
    "pixel size in mm": (0.2, 3.75),
    "width in mm": (90.0, 180.0),
    "length in mm": (110.0, 220.0),
}
SIZES: Mapping[str, tuple[str, str]] = {  # below and above, in words
    "brain volume in ml": ("brain smaller", "brain larger"),
    "slice distance in mm": ("slices closer", "slices further apart"),
    "pixel size in mm": ("pixels finer", "pixels coarser"),
    "width in mm": ("brain narrower", "brain wider"),
    "length in mm": ("brain shorter", "brain longer"),
}

Case = Mapping[str, Mapping[str, float]]  # "geometry" or a modality: name to value


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A modality, or a size, that lies outside: what that means, and the figures."""

    words: str  # such as "T2 darker"
    figures: tuple[str, ...]
    far: bool


def measure(loaded: Loaded) -> Case:
    """The numbers of one subject, of the modalities that it has."""
    z, y, x = (float(size) for size in np.linalg.norm(loaded.affine[:3, 2::-1], axis=0))
    dz, dy, dx = (size * step for size, step in zip((z, y, x), loaded.placement.step_zyx, strict=True))
    voxel = abs(float(np.linalg.det(loaded.affine[:3, :3]))) * math.prod(loaded.placement.step_zyx)
    brain = loaded.brain_DHW
    rows, columns = (np.flatnonzero(brain.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    geometry = {
        "brain volume in ml": float(brain.sum()) * voxel / 1000,
        "slice distance in mm": dz,
        "pixel size in mm": (dx * dy) ** 0.5,
        "width in mm": (columns[-1] - columns[0] + 1) * dx,
        "length in mm": (rows[-1] - rows[0] + 1) * dy,
    }
    found: dict[str, dict[str, float]] = {"geometry": {name: float(value) for name, value in geometry.items()}}
    for modality, image in zip(loaded.scalings, loaded.images_MDHW, strict=True):
        gain, offset = loaded.scalings[modality].onto(loaded.judged[modality])
        values = np.quantile(np.clip(image[brain] * gain + offset, 0, 1), QUANTILES)
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
    """What of an input lies outside of a bundle's ranges. Without them, an unlikely geometry is said, never refused.

    A modality is judged by the mean over its quantiles: a single tail differs from scanner to scanner, all of them in
    another contrast (docs/log.md, "2026-11-30 Real patients through a demo's bundle").
    """
    geometry = case["geometry"]
    if not _usable(ranges):
        outside = {n: geometry[n] for n, (low, high) in HUMAN.items() if not low <= geometry[n] <= high}
        return tuple(
            Finding(
                words=SIZES[n][v > HUMAN[n][1]],
                figures=(f"{n} is {v:.3g}: usual are {HUMAN[n][0]:g} to {HUMAN[n][1]:g}",),
                far=False,
            )
            for n, v in outside.items()
        )
    limits = cast(Mapping[str, Mapping[str, Sequence[float]]], ranges["limits"])
    findings = [
        _finding(SIZES[n], {n: v}, {n: limits["geometry"][n]}, n, log=True)
        for n, v in geometry.items()
        if n in limits.get("geometry", {})
    ]
    findings += [
        _finding((f"{m} darker", f"{m} brighter"), values, limits[m], f"{m}: its {{}} in the brain")
        for m, values in case.items()
        if m != "geometry" and m in limits
    ]
    return tuple(finding for finding in findings if finding is not None)


def _finding(
    ways: tuple[str, str],
    values: Mapping[str, float],
    limits: Mapping[str, Sequence[float]],
    called: str,
    *,
    log: bool = False,
) -> Finding | None:
    """Of numbers that are judged together; `ways`: what it is called below and above."""
    apart = {n: _beyond(v, *map(float, limits[n]), log=log) for n, v in values.items() if n in limits}
    beyond = sum(map(abs, apart.values())) / max(1, len(apart))
    if beyond <= UNUSUAL:
        return None
    one_way = len({d > 0 for d in apart.values() if d}) == 1
    return Finding(
        words=ways[sum(apart.values()) > 0] if one_way else f"{ways[0].partition(' ')[0]} of another contrast",
        figures=tuple(
            f"{called.format(n)} is {values[n]:.3g}, trained on {limits[n][0]:.3g} to {limits[n][1]:.3g}"
            for n, d in apart.items()
            if abs(d) > UNUSUAL
        ),
        far=beyond > FAR,
    )


def _beyond(value: float, low: float, high: float, *, log: bool) -> float:
    """How far outside, in widths of the range, with its sign; 0 inside."""
    least = WIDTH
    if log:
        value, low, high = (math.log(max(number, 1e-6)) for number in (value, low, high))
        least = math.log(FACTOR)
    return (max(0.0, value - high) - max(0.0, low - value)) / max(high - low, least)


def _usable(ranges: Any) -> bool:
    return isinstance(ranges, Mapping) and ranges.get("version") == VERSION
