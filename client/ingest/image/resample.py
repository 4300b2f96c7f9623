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

from shared.base.errors import DataError
from shared.data.volumes import MAX_VOXELS, Affine, Array, Volume

sitk: Any = SimpleITK  # untyped
Image: TypeAlias = Any  # sitk.Image
Transform: TypeAlias = Any  # sitk.Transform
Pose = NDArray[np.float64]  # 4 x 4, reference mm -> moving mm
Mask = NDArray[np.bool_]

SHEAR = 1e-2  # how far an affine's directions may be from right angles
COARSER = 1.5  # a grid so much coarser than the volume asks for smoothing first
CHUNK = 2**15  # points at a time: what is at work stays in the processor's cache
BORDER = 12  # voxels around a part that is cut out: a cubic spline hardly reaches further
SAMPLED = 1_000_000  # voxels that robust limits are taken from, at most
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_sitk(data_DHW: NDArray[Any], affine: Affine) -> Image:
    if is_sheared(affine):
        raise DataError("its axes are not at right angles (a tilted gantry that was not resampled)")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(affine[:3, :3] / spacing)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data_DHW))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS @ affine)[:3, 3].tolist())
    image.SetDirection((_LPS[:3, :3] @ u @ v).ravel().tolist())
    return image


def to_transform(pose: Pose) -> Transform:
    lps = _LPS @ pose @ _LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def to_euler(pose: Pose, centre: NDArray[np.float64]) -> Transform:
    """Of a rigid pose: turned about `centre`, so that angles and shifts are searched independently."""
    lps = _LPS @ pose @ _LPS
    middle = _LPS[:3, :3] @ centre
    transform = sitk.Euler3DTransform()
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(lps[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((lps[:3, 3] + lps[:3, :3] @ middle - middle).tolist())
    return transform


def search(bins: int, metric: str = "mutual information") -> Any:
    """A registration method whose sums are taken in one order, so that equal images give equal bits.

    Its own number of threads does not do that: it is how many parts ITK makes by default that decides. Gradients are
    taken where they are asked for, not of every voxel.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # subjects run side by side, not voxels
    method = sitk.ImageRegistrationMethod()
    if metric == "joint histogram":
        method.SetMetricAsJointHistogramMutualInformation(bins)
    else:
        method.SetMetricAsMattesMutualInformation(bins)
    method.SetMetricUseFixedImageGradientFilter(False)
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def climb(
    method: Any, fixed: Image, moving: Image, start: Transform, *, step_mm: float, least_mm: float, iterations: int
) -> tuple[float, Pose | None]:
    """From `start`, which is moved: the metric's value, the lower the better, and the pose that reaches it.

    None where too few points of the reference fall into the moving image.
    """
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step_mm,
        minStep=least_mm,
        numberOfIterations=iterations,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetInitialTransform(start, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        return math.inf, None
    return float(method.GetMetricValue()), to_pose(start)


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


def resample(
    volume: Volume,
    shape_DHW: tuple[int, int, int],
    affine: Affine,
    pose: Pose,
    *,
    sharp: bool,
    within_DHW: Mask | None = None,
) -> Array:
    """The volume on another grid, or `within` a part of it; elsewhere, and beyond the volume's field, exactly 0.

    An unmoved volume on its own grid keeps its bits. sharp: cubic B-splines, held within the volume's own values; else
    linear, which makes no new dark or bright rims.
    """
    if is_same_grid(shape_DHW, affine, volume) and np.allclose(pose, np.eye(4), atol=1e-9):
        return volume.data_DHW if within_DHW is None else np.where(within_DHW, volume.data_DHW, np.float32(0))
    smooth = _smoothed(volume, np.linalg.norm(affine[:3, :3], axis=0))
    return _sampled(smooth, shape_DHW, affine, pose, sharp, within_DHW)


def resample_mask(mask_DHW: Mask, of: Affine, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose) -> Mask:
    share = Volume(data_DHW=mask_DHW.astype(np.float32), affine=of)
    return _sampled(share, shape_DHW, affine, pose, False, None) >= 0.5


def covered(volume: Volume, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose) -> Mask:
    """Which voxels of the asked grid lie within the volume's field."""
    z, y, x = (np.arange(n, dtype=float) for n in shape_DHW)
    at = _voxels(volume, affine, pose, z[:, None, None], y[:, None], x)
    seen = np.ones(shape_DHW, np.bool_)
    for line, size in zip(at, volume.data_DHW.shape, strict=True):
        seen &= (line >= -0.5) & (line <= size - 0.5)
    return seen


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


def binned(volume: Volume, spacing_mm: float) -> Volume:
    """Means over blocks of whole voxels, no coarser than asked: what a search or a thumbnail needs."""
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0).tolist()
    sizes = volume.data_DHW.shape[::-1]
    blocks = [max(1, min(n, int(spacing_mm / step + 0.01))) for n, step in zip(sizes, steps, strict=True)]
    if max(blocks) == 1:
        return volume
    image = sitk.BinShrink(sitk.GetImageFromArray(volume.data_DHW), blocks)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((np.array(blocks) - 1) / 2)
    affine[:3, :3] *= blocks
    return Volume(data_DHW=sitk.GetArrayFromImage(image), affine=affine)


def binned_mask(mask_DHW: Mask, affine: Affine, spacing_mm: float) -> Mask:
    return binned(Volume(data_DHW=mask_DHW.astype(np.float32), affine=affine), spacing_mm).data_DHW >= 0.5


def percentiles(data: NDArray[Any], shares: tuple[float, ...]) -> tuple[float, ...]:
    """Of every so many-th voxel, where there are many."""
    line = data.ravel()
    return tuple(float(p) for p in np.percentile(line[:: max(1, line.size // SAMPLED)], shares))


def foreground(data: Array, share: float = 0.2) -> Mask:
    """Brighter than air by a share of the image's range. Not Otsu's threshold: beside bright fat, brain is dark."""
    low, high = percentiles(data, (2.0, 98.0))
    return data > low + share * (high - low)


def centre_of(mask_DHW: Mask, affine: Affine) -> NDArray[np.float64]:
    """The mask's centre of mass, as a point in mm."""
    middle = np.array(ndimage.center_of_mass(mask_DHW))[::-1]
    return cast(NDArray[np.float64], affine[:3, :3] @ middle + affine[:3, 3])


def is_sheared(affine: Affine) -> bool:
    """Do its axes stand at other than right angles?"""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > SHEAR)


def box_of(mask: NDArray[np.bool_], margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds all of the mask, and a margin within the array."""
    box = []
    for axis, size in enumerate(mask.shape):
        reached = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        first, last = (reached[0], reached[-1]) if len(reached) else (0, -1)
        box.append(slice(max(0, int(first) - margin), min(size, int(last) + 1 + margin)))
    return tuple(box)


def cut(volume: Volume, box: tuple[slice, ...]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [float(s.start) for s in reversed(box)]
    return Volume(data_DHW=np.ascontiguousarray(volume.data_DHW[box]), affine=affine)


def _smoothed(volume: Volume, steps_mm: NDArray[np.float64]) -> Volume:
    """Against aliasing, along the axes that get coarser; both volumes are RAS, so their axes correspond."""
    own = np.linalg.norm(volume.affine[:3, :3], axis=0)
    sigmas = np.where(steps_mm > COARSER * own, 0.4 * steps_mm / own, 0.0)
    if not sigmas.any():
        return volume
    return Volume(data_DHW=ndimage.gaussian_filter(volume.data_DHW, sigmas[::-1]), affine=volume.affine)


def _sampled(
    volume: Volume, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose, sharp: bool, within: Mask | None
) -> Array:
    """Each voxel's value by the four (sharp) or two voxels around it along each axis."""
    out = np.zeros(math.prod(shape_DHW), np.float32)
    places = None if within is None else np.flatnonzero(within)
    count = len(out) if places is None else len(places)
    if not count:
        return out.reshape(shape_DHW)
    part = _part(volume, shape_DHW, affine, pose, within)
    lowest, highest = float(volume.data_DHW.min()), float(volume.data_DHW.max())
    source = ndimage.spline_filter(part.data_DHW, 3, output=np.float32, mode="mirror") if sharp else part.data_DHW
    source = source.astype(np.float32, copy=False)
    padded = np.pad(source, (1, 2) if sharp else (0, 1), mode="reflect" if sharp else "edge")
    weigh = _cubic if sharp else _linear
    sizes = part.data_DHW.shape
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        here = np.arange(start, stop) if places is None else places[start:stop]
        rows, x = np.divmod(here, shape_DHW[2])
        z, y = np.divmod(rows, shape_DHW[1])
        at = _voxels(part, affine, pose, z, y, x)
        first, weights = np.zeros(len(here), np.int32), []
        for line, size, stride in zip(at, sizes, padded.strides, strict=True):
            near = np.clip(line, 0, size - 1)
            whole = near.astype(np.int32)
            first += whole * np.int32(stride // 4)
            weights.append(weigh((near - whole).astype(np.float32)))
        values = _weighted(padded, first, weights)
        if sharp:
            np.clip(values, lowest, highest, out=values)
        for line, size in zip(at, sizes, strict=True):
            values[(line < -0.5) | (line > size - 0.5)] = 0
        out[here] = values
    return out.reshape(shape_DHW)


def _part(volume: Volume, shape_DHW: tuple[int, int, int], affine: Affine, pose: Pose, within: Mask | None) -> Volume:
    """What of the volume the asked grid can reach, so that no more of it is filtered."""
    box = tuple(slice(0, n) for n in shape_DHW) if within is None else box_of(within)
    z, y, x = np.array(np.meshgrid(*((s.start, s.stop - 1) for s in box), indexing="ij"), float).reshape(3, 8)
    needed = []
    for line, size in zip(_voxels(volume, affine, pose, z, y, x), volume.data_DHW.shape, strict=True):
        low = min(max(0, math.floor(line.min()) - BORDER), size - 1)
        needed.append(slice(low, max(low + 1, min(size, math.ceil(line.max()) + 1 + BORDER))))
    return cut(volume, tuple(needed))


def _voxels(volume: Volume, affine: Affine, pose: Pose, z: Any, y: Any, x: Any) -> list[Any]:
    """Where voxels of a grid lie in the volume's own: rows z, y, x."""
    to = np.linalg.inv(volume.affine) @ pose @ affine
    return [to[row, 0] * x + to[row, 1] * y + to[row, 2] * z + to[row, 3] for row in (2, 1, 0)]


def _weighted(padded: Array, first: NDArray[np.int32], weights: list[list[Any]]) -> Array:
    flat = padded.ravel()
    _, height, width = padded.shape
    values = np.zeros(len(first), np.float32)
    for k, wz in enumerate(weights[0]):
        for j, wy in enumerate(weights[1]):
            row = first + np.int32((k * height + j) * width)
            line = flat.take(row, mode="clip") * weights[2][0]
            for i, wx in enumerate(weights[2][1:], start=1):
                line += flat.take(row + np.int32(i), mode="clip") * wx
            line *= wy * wz
            values += line
    return values


def _linear(t: Array) -> list[Any]:
    return [1 - t, t]


def _cubic(t: Array) -> list[Any]:
    """The cubic B-spline's values at t + 1, t, 1 - t, 2 - t."""
    s = 1 - t
    return [s * s * s / 6, (4 - 6 * t * t + 3 * t * t * t) / 6, (4 - 6 * s * s + 3 * s * s * s) / 6, t * t * t / 6]
