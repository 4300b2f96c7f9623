"""The slow shading of an MR image, taken out: N4 (Tustison, IEEE TMI 29:1310, 2010) on a shrunken copy."""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import SimpleITK

from client.ingest.resample import Mask, to_sitk
from shared.data.volumes import Array, Volume
from shared.options import require

sitk: Any = SimpleITK  # untyped


@dataclass(frozen=True, slots=True, kw_only=True)
class N4:
    """`shrink_mm`: the field is fitted on voxels of about this size; it is smooth, so the finer ones add only time."""

    shrink_mm: float = 4.0
    levels: int = 3
    iterations: int = 40  # per level
    knots_mm: float = 200.0  # between the coarsest spline's knots

    def __post_init__(self) -> None:
        require(1 <= self.shrink_mm <= 8, "shrink_mm", self.shrink_mm, "1 to 8 mm")
        require(1 <= self.levels <= 5, "levels", self.levels, "1 to 5")
        require(1 <= self.iterations <= 200, "iterations", self.iterations, "1 to 200")


def correct(volume: Volume, options: N4) -> Volume:
    """The volume over its own shading; values keep their usual size. A volume with no foreground stays as it is."""
    steps = np.linalg.norm(volume.affine[:3, :3], axis=0)
    shrink = [max(1, round(options.shrink_mm / float(step))) for step in steps]
    image = to_sitk(np.maximum(volume.data_DHW, 0), volume.affine)
    small = sitk.Shrink(image, shrink)
    seen = _head(sitk.GetArrayFromImage(small))
    if seen.sum() < 200 or min(small.GetSize()) < 4:
        return volume
    shown = sitk.GetImageFromArray(seen.astype(np.uint8))
    shown.CopyInformation(small)
    fitter = sitk.N4BiasFieldCorrectionImageFilter()
    fitter.SetNumberOfThreads(1)
    fitter.SetMaximumNumberOfIterations([options.iterations] * options.levels)
    extents = [n * s for n, s in zip(small.GetSize(), small.GetSpacing(), strict=True)]
    fitter.SetNumberOfControlPoints([3 + max(1, round(extent / options.knots_mm)) for extent in extents])
    fitter.Execute(small, shown)
    field = _onto(fitter.GetLogBiasFieldAsImage(small), image)
    field -= np.median(field[_head(volume.data_DHW)])
    return replace(volume, data_DHW=(volume.data_DHW / np.exp(np.clip(field, -2, 2))).astype(np.float32))


def _onto(field: Any, image: Any) -> Array:
    """The field is smooth: lines between its coarse voxels will do, and beyond the last of them it stays."""
    field = sitk.Cast(field, sitk.sitkFloat32)
    done = sitk.Resample(
        field, image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True
    )  # the last argument: the nearest value outside
    return cast(Array, sitk.GetArrayFromImage(done))


def _head(data_DHW: Array) -> Mask:
    """Brighter than air. Not Otsu's threshold: beside bright fat it would take the brain for air."""
    low, high = np.percentile(data_DHW, (2, 98))
    return cast(Mask, data_DHW > low + 0.1 * (high - low))
