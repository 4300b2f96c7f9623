"""Where a phantom's brain comes from: nilearn's MNI152 maps (always there), or a folder of FreeSurfer-style label maps.

Either way an `Anatomy` is one brain on a 1 mm grid: a map of its regions, and two level maps, of white matter against
grey and of fluid against tissue. Whoever draws a subject chooses the levels to cut at, so sulci can widen, the cortex
can thin and folds can be added, and the boundaries stay sharp at any voxel size. Figures: docs/methods/data.md.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from shared.base.errors import DataError
from shared.base.files import make_folder, writing
from shared.data import volumes
from shared.data.phantom.fields import Array

Bytes = NDArray[np.uint8]
Point = tuple[float, float, float]  # x, y, z in mm, as anatomists write it

EDGE = 200  # voxels of 1 mm along each edge, centred on the brain's box
PULL_STEP = 4  # mm between the points of the ventricle pull field
REGIONS = (
    "outside",
    "cerebrum",
    "cerebellum",
    "brainstem",
    "striatum",
    "pallidum",
    "thalamus",
    "hippocampus",
    "ventricle",
)
VERSION = 5  # of what is kept on disk

# FreeSurfer's LookUpTable, both sides. The cortex and its white matter are both "cerebrum": the levels part them.
_REGION_LABELS: Mapping[str, tuple[int, ...]] = {
    "cerebrum": (2, 3, 24, 25, 27, 41, 42, 57, 59, 77, 85, 136, 137, 163, 164, 30, 31, 62, 63, 72),
    "cerebellum": (7, 8, 46, 47, 15),
    "brainstem": (16,),
    "striatum": (11, 50, 12, 51, 26, 58),
    "pallidum": (13, 52),
    "thalamus": (9, 10, 28, 48, 49, 60),
    "hippocampus": (17, 18, 53, 54),
    "ventricle": (4, 5, 14, 43, 44),
}
_WHITE_LABELS = (2, 41, 25, 57, 77, 85, 136, 163, 7, 46, 16, 28, 60)
_FLUID_LABELS = (4, 5, 14, 15, 24, 30, 31, 43, 44, 62, 63, 72)

# Deep grey nuclei in MNI space: centre (right side), half axes, and pitch (degrees, the front end goes down).
_NUCLEI: Mapping[str, tuple[tuple[Point, Point, float], ...]] = {
    "striatum": (
        ((11.0, 14.0, 4.0), (6.5, 11.0, 9.5), 0.0),
        ((15.5, -2.0, 18.0), (5.0, 15.0, 6.0), 20.0),
        ((26.5, 3.0, 0.0), (6.5, 16.5, 10.5), 0.0),
    ),
    "pallidum": (((19.0, -4.0, -1.0), (5.0, 9.0, 6.0), 0.0),),
    "thalamus": (((11.5, -18.0, 7.5), (10.0, 14.5, 8.5), 0.0),),
    "hippocampus": (((27.0, -21.0, -14.0), (7.0, 17.0, 6.0), 22.0), ((23.0, -5.0, -19.0), (7.5, 8.0, 7.5), 0.0)),
}
_WHITEST = {"striatum": 0.68, "pallidum": 0.97, "thalamus": 0.85, "hippocampus": 0.45}  # beyond it: a white tract
_MNI_SCALE = 0.93  # MNI152 is larger than the average brain


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """One brain. Its grid is 1 mm, RAS, D H W, and its middle is the middle of the brain's box."""

    name: str
    region_DHW: Bytes  # index into REGIONS
    white_DHW: Bytes  # 0 grey to 255 white matter; the boundary is at 128
    fluid_DHW: Bytes  # 0 tissue to 255 fluid; the boundary is at 128
    pull_3DHW: NDArray[np.float16]  # toward the ventricles, at most 1 long, every PULL_STEP mm
    half_mm: tuple[float, float, float]  # half the brain's box: z, y, x


def prepare(source: Path | None, cache: Path) -> list[Path]:
    """One file per brain in `cache`, made if it is not there: label maps in the folder `source`, or MNI152."""
    make_folder(cache)
    if source is None:
        path = cache / f"mni152-v{VERSION}.npz"
        if not path.exists():
            _store(path, from_mni())
        return [path]
    maps = sorted([*source.glob("*.nii"), *source.glob("*.nii.gz")])
    if not maps:
        raise DataError(f"anatomy={source}: holds no .nii or .nii.gz label map")
    found = []
    for map_path in maps:
        digest = hashlib.blake2b(map_path.read_bytes(), digest_size=6).hexdigest()
        path = cache / f"{map_path.name.split('.')[0]}-{digest}-v{VERSION}.npz"
        if not path.exists():
            _store(path, from_labels(map_path))
        found.append(path)
    return found


def load(path: Path) -> Anatomy:
    """Read a prepared brain."""
    with np.load(path, allow_pickle=False) as kept:
        z, y, x = (float(edge) for edge in kept["half"])
        return Anatomy(
            name=str(kept["name"]),
            region_DHW=kept["region"],
            white_DHW=kept["white"],
            fluid_DHW=kept["fluid"],
            pull_3DHW=kept["pull"],
            half_mm=(z, y, x),
        )


def from_labels(path: Path) -> Anatomy:
    """A FreeSurfer-style label map; labels of skull and skin, and unknown ones, are left out."""
    volume = volumes.read(path)
    labels = volume.data_DHW.astype(np.int32)
    brain = np.isin(labels, [label for region in _REGION_LABELS.values() for label in region if label != 24])
    if not brain.any():
        raise DataError(f"anatomy: {path.name} holds none of FreeSurfer's brain labels")
    spacing = tuple(np.abs(np.diag(volume.affine))[:3][::-1].tolist())
    box = np.array([np.flatnonzero(brain.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))])
    start = [slice(int(low), int(high) + 1) for low, high in box]
    labels_DHW = _onto_cube(labels[tuple(start)], spacing, order=0).astype(np.int32)

    region_DHW = np.zeros(labels_DHW.shape, np.uint8)
    for name, members in _REGION_LABELS.items():
        region_DHW[np.isin(labels_DHW, members)] = REGIONS.index(name)
    fluid = np.isin(labels_DHW, _FLUID_LABELS) | (region_DHW == 0)
    return _assemble(
        name=path.name.split(".")[0],
        region_DHW=region_DHW,
        white_DHW=ndimage.gaussian_filter(np.isin(labels_DHW, _WHITE_LABELS).astype(np.float32), 0.7),
        fluid_DHW=ndimage.gaussian_filter(fluid.astype(np.float32), 0.7),
        half_mm=tuple((box[:, 1] - box[:, 0]) / 2 * spacing),
    )


def from_mni() -> Anatomy:
    """The MNI152 2009 average that comes inside the nilearn package; no file is fetched.

    An average of 152 brains is soft. Its T1 template still shows each sulcus as a dark valley, so the valleys are
    deepened by local contrast until they reach fluid, and the white matter map is cut against grey, not against 1.
    """
    from nilearn import datasets  # its import costs 2 CPU-s, and only the first phantom of a machine needs it

    images = (
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    )
    t1, grey, white, mask = (np.asarray(image.dataobj, np.float32).transpose(2, 1, 0) for image in images)
    origin_xyz = np.asarray(images[0].affine)[:3, 3]
    brain = ndimage.binary_fill_holes(mask > 0.5)
    box = np.array([np.flatnonzero(brain.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))])
    start = tuple(slice(int(low), int(high) + 1) for low, high in box)
    at = [np.arange(low, high + 1, dtype=np.float32) for low, high in box]
    z, y, x = at[0][:, None, None] + origin_xyz[2], at[1][:, None] + origin_xyz[1], at[2] + origin_xyz[0]
    t1, grey, white, brain = t1[start] * brain[start], grey[start], white[start], brain[start]

    share_white = white / np.maximum(grey + white, 0.05)
    local = _local_mean(t1, brain, 3.0)
    valley = np.clip(local - t1, 0, None)  # a sulcus that the average has half filled
    dark = np.clip((0.66 - t1) / 0.3, 0, 1)
    fluid = np.clip(dark + 3.0 * valley, 0, 1)
    ventricles = brain & (fluid > 0.5) & _is_by_the_ventricles(z, y, x)

    region = np.where(brain, np.uint8(REGIONS.index("cerebrum")), np.uint8(0))
    region[brain & is_cerebellum(z, y, x)] = REGIONS.index("cerebellum")
    region[brain & _is_brainstem(z, y, x)] = REGIONS.index("brainstem")
    for name, parts in _NUCLEI.items():
        for centre, half_axes, pitch in parts:
            inside = _ellipsoid(z, y, np.abs(x), centre, half_axes, pitch) < 1
            region[inside & brain & (share_white < _WHITEST[name])] = REGIONS.index(name)
    region[ventricles] = REGIONS.index("ventricle")
    return _assemble(
        name="mni152",
        region_DHW=_onto_cube(region, (_MNI_SCALE,) * 3, order=0).astype(np.uint8),
        white_DHW=_onto_cube(share_white, (_MNI_SCALE,) * 3, order=1),
        fluid_DHW=_onto_cube(np.where(brain, fluid, 1.0), (_MNI_SCALE,) * 3, order=1, beyond=1.0),
        half_mm=tuple((box[:, 1] - box[:, 0]) / 2 * _MNI_SCALE),
    )


def _is_by_the_ventricles(z: Array, y: Array, x: Array) -> NDArray[np.bool_]:
    """Around the lateral ventricles, but not around the third and the cistern behind it, which hardly widen."""
    near = (np.abs(x) < 36) & (y > -52) & (y < 36) & (z > -2) & (z < 30)
    return near & ((np.abs(x) > 10) | (z > 6)) & ((np.abs(x) > 10) | (y > -12))


def is_cerebellum(z: Array, y: Array, x: Array) -> NDArray[np.bool_]:
    """Under the tentorium, which rises toward the middle and falls toward the back."""
    tentorium = -12.0 - 0.28 * (np.abs(x) - 8.0) - 0.002 * (y + 55) ** 2
    return (z < tentorium) & (y < -36) & (y > -100)


def _is_brainstem(z: Array, y: Array, x: Array) -> NDArray[np.bool_]:
    """Midbrain to medulla: a column that leans back as it goes down."""
    middle = -22.0 + 0.25 * (z + 10)
    depth = np.where(z > -40, 15.0, 11.0)
    width = np.where((z > -38) & (z < -18), 17.0, 12.0)
    return (z < -6) & ((x / width) ** 2 + ((y - middle) / depth) ** 2 < 1)


def _ellipsoid(z: Array, y: Array, x: Array, centre: Point, half_axes: Point, pitch: float) -> Array:
    dx, dy, dz = x - centre[0], y - centre[1], z - centre[2]
    c, s = np.cos(np.deg2rad(pitch)), np.sin(np.deg2rad(pitch))
    along, across = c * dy - s * dz, s * dy + c * dz
    return cast(Array, (dx / half_axes[0]) ** 2 + (along / half_axes[1]) ** 2 + (across / half_axes[2]) ** 2)


def _local_mean(image: Array, inside: NDArray[np.bool_], sigma: float) -> Array:
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    mean = ndimage.gaussian_filter(np.where(inside, image, 0), sigma) / np.maximum(weight, 1e-3)
    return np.where(inside, mean, 0).astype(np.float32)


def _onto_cube(part: NDArray[Any], spacing_mm: Sequence[float], *, order: int, beyond: float = 0.0) -> Array:
    """The brain's box, resampled to 1 mm and laid in the middle of the cube; `beyond` it one value."""
    axes = [
        (np.arange(EDGE) - (EDGE - 1) / 2) / step + (size - 1) / 2
        for step, size in zip(spacing_mm, part.shape, strict=True)
    ]
    if order == 0:
        rows = [np.rint(axis).astype(int) for axis in axes]
        inside = [(row >= 0) & (row < size) for row, size in zip(rows, part.shape, strict=True)]
        cube = np.zeros((EDGE,) * 3, np.float32)
        cube[np.ix_(*inside)] = part[np.ix_(*[row[ok] for row, ok in zip(rows, inside, strict=True)])]
        return cube
    grid = np.meshgrid(*axes, indexing="ij")
    return cast(Array, ndimage.map_coordinates(part.astype(np.float32), grid, order=1, cval=beyond))


def _assemble(
    *,
    name: str,
    region_DHW: Bytes,
    white_DHW: Array,
    fluid_DHW: Array,
    half_mm: tuple[float, ...],
) -> Anatomy:
    ventricles = region_DHW == REGIONS.index("ventricle")
    coarse = ndimage.gaussian_filter(ventricles.astype(np.float32), PULL_STEP * 1.5)
    pull = np.stack(np.gradient(coarse[::PULL_STEP, ::PULL_STEP, ::PULL_STEP]))
    pull /= np.abs(pull).max() + 1e-6
    half_z, half_y, half_x = (float(edge) for edge in half_mm)
    return Anatomy(
        name=name,
        region_DHW=region_DHW,
        white_DHW=np.rint(255 * np.clip(white_DHW, 0, 1)).astype(np.uint8),
        fluid_DHW=np.rint(255 * np.clip(fluid_DHW, 0, 1)).astype(np.uint8),
        pull_3DHW=pull.astype(np.float16),
        half_mm=(half_z, half_y, half_x),
    )


def _store(path: Path, anatomy: Anatomy) -> None:
    with writing(path) as file:
        np.savez_compressed(
            file,
            name=np.str_(anatomy.name),
            region=anatomy.region_DHW,
            white=anatomy.white_DHW,
            fluid=anatomy.fluid_DHW,
            pull=anatomy.pull_3DHW,
            half=np.array(anatomy.half_mm),
        )
