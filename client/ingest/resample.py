"""A volume onto another grid, once, and the one place where an array meets SimpleITK.

Here an image is a RAS array D H W and its affine (shared/data/volumes.py); SimpleITK speaks LPS, so the first two rows
of an affine change their sign on the way in. A `Pose` maps a point of the reference, in RAS mm, to the same point of
the moving volume: that is what a resampler asks for.
"""

import math
from typing import Any, TypeAlias, cast

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

from shared.data.volumes import MAX_VOXELS, Affine, Array, Volume
from shared.errors import DataError

sitk: Any = SimpleITK  # untyped
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in one order, equal bits; subjects run side by side
Image: TypeAlias = Any  # sitk.Image
Transform: TypeAlias = Any  # sitk.Transform
Pose = NDArray[np.float64]  # 4 x 4, reference mm -> moving mm
Mask = NDArray[np.bool_]

SHEAR = 1e-2  # how far an affine's directions may be from right angles
COARSER = 1.5  # a grid so much coarser than the volume asks for smoothing first
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_sitk(data_DHW: NDArray[Any], affine: Affine) -> Image:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > SHEAR:
        raise DataError("its axes are not at right angles (a tilted gantry that was not resampled)")
    u, _, v = np.linalg.svd(direction)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data_DHW))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS @ affine)[:3, 3].tolist())
    image.SetDirection((_LPS[:3, :3] @ u @ v).ravel().tolist())
    return image


def from_sitk(image: Image) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(data_DHW=sitk.GetArrayFromImage(image).astype(np.float32, copy=False), affine=_LPS @ affine)


def to_transform(pose: Pose) -> Transform:
    lps = _LPS @ pose @ _LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def to_pose(transform: Transform) -> Pose:
    """Of any linear transform: where four points go says it all."""
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    moved = np.array([transform.TransformPoint(point.tolist()) for point in points])
    pose = np.eye(4)
    pose[:3, 3] = moved[0]
    pose[:3, :3] = (moved[1:] - moved[0]).T
    return _LPS @ pose @ _LPS


def is_same_grid(shape_DHW: tuple[int, ...], affine: Affine, volume: Volume) -> bool:
    return shape_DHW == volume.data_DHW.shape and bool(np.abs(affine - volume.affine).max() < 1e-4)


def resample(volume: Volume, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose, *, sharp: bool) -> Array:
    """The volume on another grid; beyond its field exactly 0. An unmoved volume on its own grid keeps its bits.

    sharp: cubic B-splines, held within the volume's own values; else linear, which makes no new dark or bright rims.
    """
    if is_same_grid(shape_DHW, affine, volume) and np.allclose(pose, np.eye(4), atol=1e-9):
        return volume.data_DHW
    smooth = _smoothed(volume, np.linalg.norm(affine[:3, :3], axis=0))
    image = to_sitk(smooth.data_DHW, smooth.affine)
    order = sitk.sitkBSpline if sharp else sitk.sitkLinear
    data_DHW = _onto(image, shape_DHW, affine, pose, order)
    return np.clip(data_DHW, float(volume.data_DHW.min()), float(volume.data_DHW.max()))


def resample_mask(mask_DHW: Mask, of: Affine, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose) -> Mask:
    image = to_sitk(mask_DHW.astype(np.float32), of)
    return _onto(image, shape_DHW, affine, pose, sitk.sitkLinear) >= 0.5


def covered(volume: Volume, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose) -> Mask:
    """Where the volume has voxels at all."""
    whole = np.ones(volume.data_DHW.shape, np.bool_)
    image = to_sitk(whole.astype(np.float32), volume.affine)
    return _onto(image, shape_DHW, affine, pose, sitk.sitkNearestNeighbor) >= 0.5


def grid_with_spacing(volume: Volume, spacing_mm: float) -> tuple[tuple[int, int, int], Affine]:
    """The same field of view in cubes of `spacing_mm`."""
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0)
    sizes_XYZ = np.maximum(1, np.round(np.array(volume.data_DHW.shape[::-1]) * steps / spacing_mm)).astype(int)
    if math.prod(sizes_XYZ.tolist()) > MAX_VOXELS:
        raise DataError(f"spacing {spacing_mm:g} mm would make {sizes_XYZ.tolist()} voxels: over {MAX_VOXELS}")
    affine = volume.affine.copy()
    affine[:3, :3] *= spacing_mm / steps
    first = (np.full(3, -0.5) * steps + 0.5 * spacing_mm) / steps  # the outer faces stay where they are
    affine[:3, 3] = volume.affine[:3, :3] @ first + volume.affine[:3, 3]
    x, y, z = sizes_XYZ.tolist()
    return (z, y, x), affine


def coarse(volume: Volume, spacing_mm: float) -> Volume:
    """The volume, smoothed, on a grid no finer than asked: what a search or a thumbnail needs."""
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0)
    if steps.min() >= spacing_mm / 1.25:
        return volume
    shape, affine = grid_with_spacing(volume, spacing_mm)
    return Volume(data_DHW=resample(volume, shape, affine, np.eye(4), sharp=False), affine=affine)


def _smoothed(volume: Volume, steps_mm: NDArray[np.float64]) -> Volume:
    """Against aliasing, along the axes that get coarser; both volumes are RAS, so their axes correspond."""
    own = np.linalg.norm(volume.affine[:3, :3], axis=0)
    sigmas = np.where(steps_mm > COARSER * own, 0.4 * steps_mm / own, 0.0)
    if not sigmas.any():
        return volume
    return Volume(data_DHW=ndimage.gaussian_filter(volume.data_DHW, sigmas[::-1]), affine=volume.affine)


def _onto(image: Image, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose, order: int) -> Array:
    like = to_sitk(np.zeros((1, 1, 1), np.uint8), affine)
    z, y, x = shape_DHW
    done = sitk.Resample(
        image, (x, y, z), to_transform(pose), order, like.GetOrigin(), like.GetSpacing(), like.GetDirection(), 0.0,
        sitk.sitkFloat32,
    )  # fmt: skip
    return cast(Array, sitk.GetArrayFromImage(done))
