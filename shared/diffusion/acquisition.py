"""Coil maps and k-space masks for `CartesianMRI`: simulated, or somebody's own made fit."""

import math

import torch
from torch import Tensor

from shared.base.errors import DataError
from shared.base.options import require

SUPPORT = 1e-3  # of the largest root sum of squares: below it, maps mean nothing


def birdcage(coils: int, height: int, width: int, radius: float = 1.5, dtype: torch.dtype = torch.complex64) -> Tensor:
    """Make normalised 1CHW maps of coils on a circle around the image (SigPy's); `radius` in half image widths."""
    require(coils >= 1, "coils", coils, "1 or more")
    require(1 < radius < math.inf, "radius", radius, "above 1: coils are outside the image")
    angle_C11 = 2 * math.pi / coils * torch.arange(coils, dtype=torch.float64)[:, None, None]
    y_H1 = torch.arange(height, dtype=torch.float64)[:, None] / (height / 2) - 1
    x_1W = torch.arange(width, dtype=torch.float64)[None] / (width / 2) - 1
    dx, dy = x_1W - radius * angle_C11.cos(), y_H1 - radius * angle_C11.sin()
    maps_CHW = torch.polar(1 / torch.hypot(dx, dy), torch.atan2(dx, -dy) - angle_C11)
    return unit_maps(maps_CHW[None]).to(dtype)


def unit_maps(maps_BCHW: Tensor) -> Tensor:
    """Maps whose squares add up to 1 over the coils, and 0 where they say nothing.

    Supplied maps (ESPIRiT) are only about normalised and 0 outside the object: each pixel is divided by its own root
    sum of squares, or made 0 where that is under SUPPORT of the largest. The image is then in the units of y.
    """
    if not bool(torch.isfinite(maps_BCHW).all()):
        raise DataError("coil maps: hold NaN or infinite values")
    rss_B1HW = maps_BCHW.abs().square().sum(1, keepdim=True).sqrt()
    floor = SUPPORT * rss_B1HW.amax((-2, -1), keepdim=True)
    if not bool((floor > 0).all()):
        raise DataError("coil maps: are 0 everywhere")
    return torch.where(rss_B1HW > floor, maps_BCHW / rss_B1HW.clamp(min=floor), 0)


def equispaced(width: int, acceleration: int, acs: int = 0, offset: int | None = 0) -> Tensor:
    """Make Mask_W: every `acceleration`-th column from `offset` on, and of the `acs` columns around the centre.

    The centre, column width // 2, is the mean of the image. Without `acs` it is measured only if
    (width // 2 - offset) divides by the acceleration (`holds_centre`); offset=None sees to that.
    """
    require(1 <= acceleration <= width, "acceleration", acceleration, f"from 1 to the {width} columns")
    offset = width // 2 % acceleration if offset is None else offset
    require(0 <= offset < acceleration, "offset", offset, f"from 0 to {acceleration - 1}")
    mask_W = _centre(width, acs)
    mask_W[offset::acceleration] = True
    return mask_W


def random_lines(width: int, acceleration: float, acs: int, generator: torch.Generator) -> Tensor:
    """Make Mask_W of width / acceleration columns: `acs` around the centre, the others anywhere else, each alike."""
    require(1 <= acceleration <= width, "acceleration", acceleration, f"from 1 to the {width} columns")
    lines = round(width / acceleration)
    mask_W = _centre(width, acs)
    require(acs <= lines, "acs", acs, f"at most {lines}, the lines that acceleration {acceleration:g} leaves")
    others = (~mask_W).nonzero().flatten()
    chosen = torch.randperm(len(others), generator=generator, device=generator.device).cpu()[: lines - acs]
    mask_W[others[chosen]] = True
    return mask_W


def _centre(width: int, acs: int) -> Tensor:
    require(0 <= acs <= width, "acs", acs, f"from 0 to the {width} columns")
    mask_W = torch.zeros(width, dtype=torch.bool)
    first = width // 2 - acs // 2
    mask_W[first : first + acs] = True
    return mask_W
