"""A phantom subject: who it is, the shape of its brain, and what disease did to it, before any scanner looks.

Severity and amyloid are the hidden truth: they widen sulci and ventricles, shrink the hippocampus, add lesions and
move the clinical scores, while the scans of PET and MR see them each in their own way (docs/methods/data.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

from shared.base.errors import DataError
from shared.base.seeds import seed_of
from shared.data.phantom.anatomy import EDGE, PULL_STEP, REGIONS, Anatomy
from shared.data.phantom.fields import Array, Cube, Rng, field, flow, refine
from shared.data.phantom.lesions import (
    LESION_SHARE,
    LESIONS,
    Tumour,
    draw_tumour,
    grow_tumour,
    mass_effect,
    sclerosis,
    spots,
    stroke,
    tumour_labels,
    white_matter_lesions,
)
from shared.data.phantom.tissues import INDEX, TISSUES, Fractions
from shared.data.phantom.vessels import BASE_Z, grow_vessels

Mask = NDArray[np.bool_]
Rngs = Callable[[str], Rng]  # a generator of its own for each named purpose
Family = Literal["glioma", "dementia", "vessels", "everyone"]

PULLS = 5  # steps toward the ventricles, small enough that none goes beyond their middle
_AGES: Mapping[Family, tuple[float, float]] = {
    "glioma": (56, 13),
    "dementia": (74, 7),
    "vessels": (52, 15),
    "everyone": (55, 18),
}
_DIAGNOSES = {"HC": (0.06, 0.05, (1.0, 4.0)), "MCI": (0.36, 0.12, (2.0, 1.6)), "AD": (0.72, 0.13, (6.0, 1.5))}
_LATENT_WAVES_MM = {"t1": 24.0, "t2": 20.0, "density": 34.0, "pet": 17.0, "amyloid": 17.0, "iron": 15.0}
# Where disease starts, in units of half the brain's box: (|x|, y, z), spread in mm, strength.
_VULNERABLE = (
    ((0.72, -0.50, 0.10), 24, 1.0),
    ((0.08, -0.45, 0.42), 20, 1.0),
    ((0.60, 0.10, -0.45), 22, 0.55),
    ((0.55, 0.50, 0.25), 24, 0.35),
)
_PLAQUES = (
    ((0.10, 0.55, 0.25), 34, 1.0),
    ((0.08, -0.45, 0.40), 30, 1.0),
    ((0.70, -0.20, 0.10), 32, 0.8),
    ((0.55, 0.50, 0.00), 30, 0.7),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What the chart says, and the two hidden causes behind it."""

    age: float
    sex: str
    diagnosis: str | None
    severity: float  # of neurodegeneration, 0 to 1
    amyloid: float  # load, 0 to 1
    mmse: int | None = None
    adas13: float | None = None
    cdrsb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectPhantom:
    seed: int
    person: Person
    cube: Cube
    fractions: Fractions
    brain_DHW: Mask
    lesion_DHW: NDArray[np.uint8]  # tumour parts (lesions.py), or 1 for white matter lesions and lacunes
    vessels_DHW: Array
    vulnerable_DHW: Array  # where neurodegeneration lowers metabolism
    amyloid_DHW: Array  # where plaques gather
    latents: Mapping[str, Array]  # variations of the tissue that only some modalities see
    jitter_K3: Array  # this person's own PD, T1 and T2 of each tissue, against the usual ones

    def mix(self, values_K: NDArray[np.floating]) -> Array:
        """Turn one value per tissue into an image."""
        return np.tensordot(values_K.astype(np.float32), self.fractions.array, 1)


def draw_person(family: Family, seed: int) -> Person:
    """Draw who a subject is, without its brain: participants.tsv needs no more."""
    rng = np.random.default_rng(seed_of("person", seed))
    mean, spread = _AGES[family]
    age = round(float(np.clip(rng.normal(mean, spread), 19, 92)), 1)
    sex = str(rng.choice(["F", "M"]))
    if family != "dementia":
        return Person(age=age, sex=sex, diagnosis=None, severity=0.0, amyloid=0.0)
    diagnosis = str(rng.choice(list(_DIAGNOSES), p=[0.35, 0.4, 0.25]))
    mean, spread, plaques = _DIAGNOSES[diagnosis]
    severity = float(np.clip(rng.normal(mean, spread), 0, 1))
    amyloid = float(np.clip(rng.beta(*plaques) + (age - 75) / 150, 0, 1))
    luck = rng.standard_normal(3)
    return Person(
        age=age,
        sex=sex,
        diagnosis=diagnosis,
        severity=severity,
        amyloid=amyloid,
        mmse=int(np.clip(round(29.3 - 13 * severity + 1.3 * luck[0]), 0, 30)),
        adas13=round(float(np.clip(7 + 36 * severity + 4 * luck[1], 0, 85)), 1),
        cdrsb=float(np.clip(round(2 * (9.5 * severity**1.35 - 0.1 + 0.6 * luck[2])) / 2, 0, 18)),
    )


def grow(family: Family, seed: int, anatomy: Anatomy, cube: Cube) -> SubjectPhantom:
    """Grow a subject's brain: the same family, seed, anatomy and cube give the same bits."""

    def rng(name: str) -> Rng:
        return np.random.default_rng(seed_of(name, seed))

    person = draw_person(family, seed)
    anyone = family == "everyone"
    disease = _disease(rng("disease")) if anyone else "tumour" if family == "glioma" else "age"
    tumour = draw_tumour(rng("tumour"), _tumour_sites(anatomy)) if disease == "tumour" else None
    scale = rng("scale").normal(1, 0.06 if anyone else 0.035, 3)
    half_mm = cast(tuple[float, float, float], tuple(np.array(anatomy.half_mm) * scale))
    fractions, ventricles = _shape(anatomy, cube, person, scale, tumour, rng)
    lesion = np.zeros(cube.shape, np.uint8)

    burden = _burden(person, rng("burden")) * (0.15 if disease == "none" else 1.0)
    distance_mm = _distance(ventricles > 0.5, cube)
    _age_lesions(fractions, distance_mm, cube, rng("age lesions"), person, burden)
    if disease == "sclerosis":
        sclerosis(fractions, distance_mm, cube, rng("sclerosis"), burden=rng("plaques").uniform(0.2, 1.2))
    if disease == "stroke":
        stroke(fractions, cube, rng("stroke"))
    if tumour is not None:
        grow_tumour(tumour, fractions, cube, rng("tumour growth"))
    if family in ("dementia", "everyone"):
        lesion = (fractions.total(LESIONS) > LESION_SHARE).astype(np.uint8)
    elif tumour is not None:
        lesion = tumour_labels(fractions)

    coat = rng("coat")
    limits_mm = (coat.uniform(2.5, 6.0), coat.uniform(-0.5, 1.5)) if anyone else (5.0, 1.0)
    brain = _brain_mask(fractions, (lesion > 0) | (ventricles > 0.5), cube, *limits_mm)
    sulci = np.where(ventricles > 0.1, 0, fractions["csf"])
    vessels = grow_vessels(sulci, brain, half_mm, cube, rng("vessels"))
    if family == "vessels":  # the base of the brain is kept, with the circle of Willis
        base = cube.axes()[0] < BASE_Z * cube.fov_mm
        brain |= ndimage.binary_dilation(vessels > 0.25) & (_distance(brain, cube) < 8) & base
    vessels = np.where(brain, vessels, 0).astype(np.float32)
    fractions["csf"] += np.clip(1 - fractions.array.sum(axis=0), 0, None)
    fractions.array *= brain
    fractions.turn("vessel", vessels, within=tuple(TISSUES))

    jitter = rng("jitter").normal(1, 0.05 if anyone else 0.03, (len(TISSUES), 3)).astype(np.float32)
    if anyone:
        _age_of(jitter, rng("lesion age"))
    return SubjectPhantom(
        seed=seed,
        person=person,
        cube=cube,
        fractions=fractions,
        brain_DHW=brain,
        lesion_DHW=np.where(brain, lesion, 0).astype(np.uint8),
        vessels_DHW=vessels,
        vulnerable_DHW=_pattern(_VULNERABLE, half_mm, cube, asymmetry=0.25 * rng("asymmetry").standard_normal()),
        amyloid_DHW=_pattern(_PLAQUES, half_mm, cube, asymmetry=0.0),
        latents={name: _latent(rng(f"latent {name}"), cube, wave) for name, wave in _LATENT_WAVES_MM.items()},
        jitter_K3=jitter,
    )


def _shape(
    anatomy: Anatomy, cube: Cube, person: Person, scale: NDArray[np.float64], tumour: Tumour | None, rng: Rngs
) -> tuple[Fractions, Array]:
    """The healthy tissues of this person's own brain, and its ventricles.

    The anatomy is looked up on a finer cube at moved points, its levels are cut there, and the cuts are averaged.
    """
    finer = 2 if cube.size <= 80 else 1
    fine = Cube(size=cube.size * finer, fov_mm=cube.fov_mm)
    atrophy = float(np.clip((person.age - 55) / 60, -0.1, 0.5)) + 0.8 * person.severity
    at = [points + np.float32((EDGE - 1) / 2) for points in _sources(anatomy, fine, atrophy, scale, tumour, rng)]

    def look_up(values_DHW: NDArray[np.uint8], order: int) -> NDArray[np.uint8]:
        return cast(NDArray[np.uint8], ndimage.map_coordinates(values_DHW, at, order=order, mode="nearest"))

    region = look_up(anatomy.region_DHW, 0)
    levels = rng("levels").normal(0, 0.03, 2)
    sulci = _folds(region, fine, rng("folds"))
    fluid_level = look_up(anatomy.fluid_DHW, 1).astype(np.float32) / 255 + 0.6 * sulci
    white_level = look_up(anatomy.white_DHW, 1).astype(np.float32) / 255 - 0.6 * np.sqrt(sulci)
    fluid = _cut(fluid_level, 0.58 - 0.24 * atrophy + levels[0])
    white = _cut(white_level, 0.52 + 0.05 * atrophy + levels[1])
    folia_white = _cut(white_level, 0.40)

    def within(name: str) -> Array:
        return (region == REGIONS.index(name)).astype(np.float32)

    solid, cerebrum, cerebellum, ventricle = 1 - fluid, within("cerebrum"), within("cerebellum"), within("ventricle")
    parts = {
        "csf": ventricle + fluid * ((region > 0) - ventricle),
        "white": cerebrum * solid * white,
        "cortex": cerebrum * solid * (1 - white),
        "cerebellar white": cerebellum * solid * folia_white,
        "cerebellar cortex": cerebellum * solid * (1 - folia_white),
        **{name: within(name) * solid for name in REGIONS if name in TISSUES},
    }
    fractions = Fractions(cube.shape)
    for tissue, part in parts.items():
        fractions[tissue] = _average(part, finer)
    shrunk = 0.45 * person.severity
    fractions.turn("csf", np.full(cube.shape, shrunk, np.float32), within=("hippocampus",))
    return fractions, _average(ventricle, finer)


def _sources(
    anatomy: Anatomy, cube: Cube, atrophy: float, scale: NDArray[np.float64], tumour: Tumour | None, rng: Rngs
) -> list[Array]:
    """Where in the anatomy (z, y, x in mm) each voxel of the subject comes from; smooth, so worked out on 3 mm."""
    smooth = Cube(size=64, fov_mm=cube.fov_mm)
    axes = smooth.axes()
    turn = (_rotation(*rng("pose").normal(0, 0.05, 3)) / scale).astype(np.float32)
    moved = flow(rng("flow"), smooth, ((62.0, 2.8), (30.0, 1.8), (15.0, 0.9)))
    at = [sum(turn[a, b] * axes[b] for b in range(3)) + moved[a] for a in range(3)]
    if tumour is not None:
        at = [points + push for points, push in zip(at, mass_effect(tumour, axes), strict=True)]
    lean = 1 + 0.3 * rng("lean").standard_normal() * np.tanh(axes[2] / 20)  # one ventricle is the larger
    strength = (9 * atrophy + rng("ventricles").normal(0, 1.3)) * lean
    pulls = anatomy.pull_3DHW.astype(np.float32)
    for _ in range(PULLS):
        grid = [(points + (EDGE - 1) / 2) / PULL_STEP for points in at]
        steps = [ndimage.map_coordinates(pull, grid, order=1, mode="nearest") for pull in pulls]
        at = [points + strength / PULLS * step for points, step in zip(at, steps, strict=True)]
    return [refine(points.astype(np.float32), cube) for points in at]


def _rotation(around_z: float, around_y: float, around_x: float) -> NDArray[np.float64]:
    """A matrix that turns z y x coordinates by small angles."""
    skew = np.array([[0, -around_x, around_y], [around_x, 0, -around_z], [-around_y, around_z, 0]])
    return cast(NDArray[np.float64], linalg.expm(skew))


def _folds(region: NDArray[np.uint8], cube: Cube, rng: Rng) -> Array:
    """Sulci of this person's own: the zero lines of a random field, fading with depth; 1 at the bottom of a sulcus."""
    outside = region[::2, ::2, ::2] == 0
    depth_mm = refine(_distance(outside, Cube(size=cube.size // 2, fov_mm=cube.fov_mm)), cube)
    line = np.exp(-((field(rng, cube, 9.0) / 0.2) ** 2) - (depth_mm / 11) ** 2)
    return cast(Array, line * (region == REGIONS.index("cerebrum")))


def _cut(level: Array, threshold: float) -> Array:
    """Share above the threshold: a steep but not hard step, so that boundaries are smooth at any voxel size."""
    return cast(Array, 1 / (1 + np.exp(-np.clip((level - np.float32(threshold)) / 0.06, -30, 30))))


def _average(part: Array, factor: int) -> Array:
    if factor == 1:
        return cast(Array, ndimage.gaussian_filter(part, 0.4))
    for _ in range(3):  # each turn treats the last axis and brings it to the front
        part = np.moveaxis(np.asarray(sum(part[..., i::factor] for i in range(factor)) / factor), -1, 0)
    return np.ascontiguousarray(part)


def _tumour_sites(anatomy: Anatomy) -> NDArray[np.float32]:
    """Find where a tumour may lie: deep white matter, away from the midline, as z y x in mm."""
    step = 5
    z, y, x = (np.argwhere(anatomy.white_DHW[::step, ::step, ::step] > 200) * step - (EDGE - 1) / 2).T
    half = anatomy.half_mm
    allowed = (np.abs(x) > 15) & (np.abs(x) < 0.6 * half[2]) & (z > -0.1 * half[0]) & (z < 0.5 * half[0])
    allowed &= np.abs(y) < 0.6 * half[1]
    if not allowed.any():
        raise DataError(f"anatomy {anatomy.name}: has no deep white matter, where a tumour could grow")
    return np.stack([z, y, x], axis=1)[allowed].astype(np.float32)


def _burden(person: Person, rng: Rng) -> float:
    """Draw how much small vessel disease there is: it comes with age."""
    return float(np.clip(rng.gamma(1.6, 0.16) * (max(person.age, 40) - 30) / 40 + 0.15 * person.severity, 0, 1.3))


def _age_lesions(
    fractions: Fractions, ventricle_mm: Array, cube: Cube, rng: Rng, person: Person, burden: float
) -> None:
    white_matter_lesions(fractions, ventricle_mm, cube, rng, burden=burden)
    white, deep = fractions["white"] > 0.6, fractions.total(("striatum", "thalamus")) > 0.6
    bleeds = int(rng.poisson(1 + 4 * burden + 3 * person.amyloid))
    spots(fractions, "microbleed", bleeds, 1.9, white | (fractions["cortex"] > 0.6), cube, rng)
    spots(fractions, "lacune", int(rng.poisson(2.5 * burden)), 3.0, deep | (fractions["white"] > 0.9), cube, rng)
    spots(fractions, "calcification", int(rng.poisson(1.5)), 1.8, fractions["pallidum"] > 0.5, cube, rng)
    _, y, x = cube.axes()
    plexus = (ventricle_mm < 2) & (y < -12) & (y > -40) & (np.abs(x) > 8)  # of the choroid, calcified with age
    spots(fractions, "calcification", 2, 2.0, plexus, cube, rng)


def _age_of(jitter_K3: Array, rng: Rng) -> None:
    """A lesion may be new and full, or old and empty: water comes in, and all its times grow toward those of fluid."""
    for name in ("white matter lesion", "oedema", "non-enhancing"):
        empty = rng.uniform(0, 1)
        jitter_K3[INDEX[name]] *= (1 + 0.12 * empty, 1 + 0.7 * empty, 1 + 1.1 * empty**1.5)


def _disease(rng: Rng) -> str:
    return str(rng.choice(["none", "age", "sclerosis", "stroke", "tumour"], p=[0.25, 0.2, 0.22, 0.15, 0.18]))


def _brain_mask(fractions: Fractions, surely: Mask, cube: Cube, close_mm: float, coat_mm: float) -> Mask:
    """Mask what skull stripping leaves: tissue, the sulci in it, closed, and a coat of fluid (below 0: less)."""
    tissue = (fractions.array.sum(axis=0) - fractions["csf"] > 0.5) | surely
    grown = _distance(tissue, cube) < close_mm
    filled = ndimage.binary_fill_holes(_distance(~grown, cube) > close_mm - coat_mm)
    filled |= tissue if coat_mm > 0 else surely
    parts, count = ndimage.label(filled)
    return cast(Mask, parts == 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]))


def _distance(mask: Mask, cube: Cube) -> Array:
    """Measure each voxel's distance to the mask in mm: 0 in it, far where the mask is empty."""
    if not mask.any():
        return np.full(cube.shape, np.float32(cube.fov_mm))
    return (ndimage.distance_transform_edt(~mask) * cube.voxel_mm).astype(np.float32)


def _pattern(
    blobs: Sequence[tuple[tuple[float, float, float], float, float]],
    half_mm: tuple[float, float, float],
    cube: Cube,
    *,
    asymmetry: float,
) -> Array:
    """A sum of soft balls on both sides, at most about 1, the stronger on one side."""
    total = np.zeros(cube.shape, np.float32)
    for (x, y, z), spread_mm, strength in blobs:
        for side in (-1, 1):
            centre = np.array([z, y, side * x]) * half_mm
            total += np.float32(strength) * np.exp(-((cube.distance(centre) / np.float32(spread_mm)) ** 2) / 2)
    return cast(Array, np.clip(total, 0, 1.2) * (1 + np.float32(asymmetry) * np.tanh(cube.axes()[2] / 30)))


def _latent(rng: Rng, cube: Cube, wave_mm: float) -> Array:
    """Draw a hidden pattern: a broad variation and a fine grain."""
    return np.float32(0.85) * field(rng, cube, wave_mm) + np.float32(0.5) * field(rng, cube, 2.5)
