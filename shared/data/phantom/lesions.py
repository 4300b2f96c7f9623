"""What disease puts into a phantom: tumours, white matter lesions, and small spots of blood, fluid and calcium.

Each function turns part of the healthy tissue in `Fractions` into lesion, at any voxel size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.data.phantom.fields import Array, Cube, Rng, field
from shared.data.phantom.tissues import PARENCHYMA, Fractions

Mask = NDArray[np.bool_]
TUMOUR_LABELS = {"necrosis": 1, "oedema": 2, "non-enhancing": 3, "enhancing": 4}
LESIONS = ("white matter lesion", "lacune", *TUMOUR_LABELS)
LESION_SHARE = 0.5  # of a voxel, from which on it is labelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Tumour:
    """Where it is, and how far its core and its oedema reach."""

    centre_zyx: tuple[float, float, float]
    radius_mm: float
    high_grade: bool
    oedema_mm: float
    rim_mm: float


def draw_tumour(rng: Rng, sites_N3: NDArray[np.floating]) -> Tumour:
    """Draw a glioma at one of the places (z, y, x in mm) where one may grow."""
    high_grade = bool(rng.random() < 0.75)
    z, y, x = (float(at) for at in sites_N3[rng.integers(len(sites_N3))])
    return Tumour(
        centre_zyx=(z, y, x),
        radius_mm=rng.uniform(9, 18),
        high_grade=high_grade,
        oedema_mm=rng.uniform(8, 20) if high_grade else rng.uniform(2, 6),
        rim_mm=rng.uniform(2.5, 4.5),
    )


def mass_effect(tumour: Tumour, axes: Sequence[Array]) -> list[Array]:
    """How far the tissue around is pushed away: the source of each point, z y x in mm, relative to the point."""
    away = [axis - np.float32(at) for axis, at in zip(axes, tumour.centre_zyx, strict=True)]
    push = 0.35 * np.exp(-sum(d * d for d in away) / (2 * (1.1 * tumour.radius_mm) ** 2))
    return [-d * push for d in away]


def grow_tumour(tumour: Tumour, fractions: Fractions, cube: Cube, rng: Rng) -> None:
    """An irregular level set: necrosis inside an enhancing rim with gaps, then oedema that follows white matter."""
    coarse, fine = field(rng, cube, 11.0), field(rng, cube, 5.0)
    level = cube.distance(np.array(tumour.centre_zyx)) - tumour.radius_mm * (1 + 0.2 * coarse) + fine
    white = ndimage.gaussian_filter(fractions["white"], 3.0 / cube.voxel_mm)
    reach = tumour.oedema_mm * (1 + 0.5 * field(rng, cube, 14.0)) - np.clip(level, 0, None)
    fractions.turn("oedema", 0.9 * _soft(reach) * np.clip(1.7 * white - 0.25, 0, 1))
    fractions.turn("non-enhancing", _soft(-level), within=(*PARENCHYMA, "oedema", "white matter lesion"))
    if not tumour.high_grade:
        return
    ring = _soft(-(level + 1.0 + 0.8 * field(rng, cube, 7.0)))
    inner = level + (tumour.rim_mm + 1) * (1 + 0.35 * field(rng, cube, 12.0)) + 1.6 * fine
    necrosis = np.minimum(_soft(-inner), ring)
    gaps = np.clip(0.2 + 0.3 * field(rng, cube, 9.0), 0, 0.85)
    core = fractions["non-enhancing"].copy()
    fractions["necrosis"] += core * necrosis
    fractions["enhancing"] += core * (ring - necrosis) * (1 - gaps)
    fractions["non-enhancing"] -= core * (necrosis + (ring - necrosis) * (1 - gaps))


def tumour_labels(fractions: Fractions) -> NDArray[np.uint8]:
    """BraTS's four parts, where they fill the larger part of a voxel."""
    shares = np.stack([fractions[name] for name in TUMOUR_LABELS])
    labels = np.array(list(TUMOUR_LABELS.values()), np.uint8)[shares.argmax(axis=0)]
    return np.where(shares.sum(axis=0) > LESION_SHARE, labels, 0).astype(np.uint8)


def white_matter_lesions(fractions: Fractions, ventricle_mm: Array, cube: Cube, rng: Rng, *, burden: float) -> None:
    """Caps and bands around the ventricles, and scattered deep ones; `ventricle_mm` is the distance to a ventricle."""
    is_white = fractions["white"] > 0.5
    caps = 1.6 * (burden * 7.5 - ventricle_mm + 2.0 * field(rng, cube, 9.0) - 1.5)
    fractions.turn("white matter lesion", 0.95 * _soft(caps / 3) * is_white, within=("white",))
    scattered = 2.2 * (field(rng, cube, 5.5) - (3.4 - 1.15 * min(burden, 1.0)))
    fractions.turn("white matter lesion", np.clip(scattered, 0, 0.95) * (ventricle_mm > 5), within=("white",))


def sclerosis(fractions: Fractions, ventricle_mm: Array, cube: Cube, rng: Rng, *, burden: float) -> None:
    """Plaques: most of them beside the ventricles, some deep, some under the cortex; a few have lost all tissue."""
    white = fractions["white"] > 0.6
    edge = ndimage.gaussian_filter(fractions["cortex"], 2.0 / cube.voxel_mm) > 0.25
    places = (white & (ventricle_mm < 8), white & (ventricle_mm >= 8), white & edge)
    for where, share in zip(places, (0.6, 0.25, 0.15), strict=True):
        count = int(rng.poisson(45 * burden * share))
        spots(fractions, "white matter lesion", count, rng.uniform(2.0, 4.5), where, cube, rng)
    holes = fractions["white matter lesion"] > 0.7
    spots(fractions, "lacune", int(rng.poisson(4 * burden)), 2.0, holes, cube, rng, within=("white matter lesion",))
    spots(
        fractions, "enhancing", int(rng.poisson(1.5 * burden)), 2.5, holes, cube, rng, within=("white matter lesion",)
    )


def stroke(fractions: Fractions, cube: Cube, rng: Rng) -> None:
    """What an artery fed, cortex and white matter alike: swollen when new, a cavity within a scar when old."""
    places = np.argwhere(fractions["cortex"] > 0.6)
    if not len(places):
        return
    centre = (places[rng.integers(len(places))] + 0.5) * cube.voxel_mm - cube.fov_mm / 2
    radius = rng.uniform(9, 32)
    level = cube.distance(centre) - radius * (1 + 0.2 * field(rng, cube, 16.0)) + 1.5 * field(rng, cube, 6.0)
    if rng.random() < 0.4:
        fractions.turn("oedema", rng.uniform(0.5, 1.0) * _soft(-level))
        return
    scar_mm = rng.uniform(3, 8)
    fractions.turn("white matter lesion", rng.uniform(0.6, 0.95) * _soft(-level))
    fractions.turn("csf", _soft(-(level + scar_mm)), within=(*PARENCHYMA, "white matter lesion"))


def spots(
    fractions: Fractions,
    into: str,
    count: int,
    radius_mm: float,
    where: Mask,
    cube: Cube,
    rng: Rng,
    within: Sequence[str] = PARENCHYMA,
) -> None:
    """Put in `count` small balls of the tissue `into`, centred where allowed."""
    places = np.argwhere(where)
    if not len(places):
        return
    reach = int(np.ceil(2.5 * radius_mm / cube.voxel_mm))
    for place in places[rng.integers(0, len(places), count)]:
        radius = radius_mm * rng.uniform(0.7, 1.3)
        box = tuple(slice(max(0, int(at) - reach), int(at) + reach + 1) for at in place)
        lines = np.ogrid[tuple(slice(s.start, min(s.stop, cube.size)) for s in box)]
        away_mm = cube.voxel_mm * np.sqrt(sum((line - at) ** 2 for line, at in zip(lines, place, strict=True)))
        filled = min(1.0, (2 * radius / cube.voxel_mm) ** 3)  # of the middle voxel, when that is larger than the spot
        ball = filled / (1 + np.exp(np.clip((away_mm - radius) * 3 / cube.voxel_mm, -30, 30)))
        fractions.turn(into, ball.astype(np.float32), within, at=box)


def _soft(level_mm: Array) -> Array:
    """1 well inside, 0 well outside, half at 0 mm."""
    return cast(Array, 1 / (1 + np.exp(-np.clip(1.8 * level_mm, -30, 30))))
