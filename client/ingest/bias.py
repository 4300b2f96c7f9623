"""The slow shading of an MR image, taken out: N4 (Tustison, IEEE TMI 29:1310, 2010) on a shrunken copy."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK

from client.ingest.resample import to_sitk
from shared.data.volumes import Volume
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
    shown = sitk.OtsuThreshold(sitk.Shrink(image, shrink), 0, 1, 128)
    small = sitk.Shrink(image, shrink)
    seen = sitk.GetArrayViewFromImage(shown)
    if seen.sum() < 200 or min(small.GetSize()) < 4:
        return volume
    fitter = sitk.N4BiasFieldCorrectionImageFilter()
    fitter.SetNumberOfThreads(1)
    fitter.SetMaximumNumberOfIterations([options.iterations] * options.levels)
    fitter.Execute(small, shown)
    field = sitk.GetArrayFromImage(fitter.GetLogBiasFieldAsImage(image))
    field -= field[volume.data_DHW > np.median(volume.data_DHW)].mean() if (volume.data_DHW > 0).any() else 0
    return replace(volume, data_DHW=(volume.data_DHW / np.exp(np.clip(field, -2, 2))).astype(np.float32))
