"""The slow shading of an MR image, taken out: N4 (Tustison, IEEE TMI 29:1310, 2010) on a shrunken copy."""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from client.ingest.image.resample import foreground, sitk, to_sitk
from shared.base.options import require
from shared.data.volumes import Array, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class N4:
    """`shrink_mm`: the field is fitted on voxels of about this size; it is smooth, so the finer ones add only time."""

    shrink_mm: float = 6.0
    levels: int = 3
    iterations: int = 40  # per level, at most
    tolerance: float = 0.003  # a level ends when the field moves less; ITK's 0.001 costs twice and gains nothing
    knots_mm: float = 200.0  # between the coarsest spline's knots

    def __post_init__(self) -> None:
        require(1 <= self.shrink_mm <= 8, "shrink_mm", self.shrink_mm, "1 to 8 mm")
        require(1 <= self.levels <= 5, "levels", self.levels, "1 to 5")
        require(1 <= self.iterations <= 200, "iterations", self.iterations, "1 to 200")
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "between 0 and 1")


def correct(volume: Volume, options: N4) -> Volume:
    """The volume over its own shading; values keep their usual size. A volume with no foreground stays as it is."""
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0)
    shrink = [max(1, round(options.shrink_mm / float(step))) for step in steps]
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = to_sitk(volume.data_DHW, volume.affine)
    small = sitk.Clamp(sitk.Shrink(image, shrink), sitk.sitkFloat32, 0.0)
    seen_DHW = foreground(sitk.GetArrayFromImage(small), 0.1)
    if seen_DHW.sum() < 200 or min(small.GetSize()) < 4:
        return volume
    shown = sitk.GetImageFromArray(seen_DHW.astype(np.uint8))
    shown.CopyInformation(small)
    fitter = sitk.N4BiasFieldCorrectionImageFilter()
    fitter.SetMaximumNumberOfIterations([options.iterations] * options.levels)
    fitter.SetConvergenceThreshold(options.tolerance)
    extents = [n * s for n, s in zip(small.GetSize(), small.GetSpacing(), strict=True)]
    fitter.SetNumberOfControlPoints([3 + max(1, round(extent / options.knots_mm)) for extent in extents])
    fitter.Execute(small, shown)
    field_DHW = sitk.GetArrayFromImage(fitter.GetLogBiasFieldAsImage(small)).astype(np.float32)
    field_DHW -= np.median(field_DHW[seen_DHW])
    gain_DHW = np.exp(-np.clip(field_DHW, -2, 2))
    first = np.array(image.TransformPhysicalPointToContinuousIndex(small.GetOrigin()))
    for axis, (start, step) in enumerate(zip(first[::-1], shrink[::-1], strict=True)):
        gain_DHW = _along(gain_DHW, axis, (np.arange(volume.data_DHW.shape[axis]) - start) / step)
    gain_DHW *= volume.data_DHW
    return replace(volume, data_DHW=gain_DHW)


def _along(data: Array, axis: int, at: NDArray[np.float64]) -> Array:
    """Lines between the field's coarse voxels, one axis after another; beyond the last of them it stays."""
    last = data.shape[axis] - 1
    low = np.clip(np.floor(at), 0, max(0, last - 1)).astype(int)
    share = np.clip(at - low, 0, 1).astype(np.float32)
    share = share.reshape([-1 if a == axis else 1 for a in range(3)])
    before, after = data.take(low, axis), data.take(np.minimum(low + 1, last), axis)
    after -= before
    after *= share
    after += before
    return cast(Array, after)
