"""Overlapping windows on a volume, and their weighted mean: how a method that sees slabs fills a volume of any size.

A window weighs most in its middle and least at its border, where it knows least of what lies around it; so the mean has
no seams. Memory is that of the result, whatever the number of windows.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """First slice, row and column."""

    z: int
    y: int
    x: int


def starts(length: int, size: int, step: int) -> list[int]:
    """Where windows of `size` begin: every `step`, the last one flush with the end."""
    last = max(0, length - size)
    return sorted({*range(0, last, step), last})


def lay(shape_DHW: Sequence[int], reached: tuple[int, int], size_DHW: Sequence[int], stride: int) -> list[Window]:
    """Windows over the slices `reached` (from, up to), `stride` slices apart and overlapping by half in the plane.

    They look beyond `reached` only where it is thinner than a window.
    """
    depth, height, width = shape_DHW
    first, end = reached
    first = max(0, min(first, depth - size_DHW[0]))
    along = [first + z for z in starts(end - first, size_DHW[0], min(stride, size_DHW[0]))]
    down, across = (starts(n, size, max(1, size // 2)) for n, size in ((height, size_DHW[1]), (width, size_DHW[2])))
    return [Window(z, y, x) for z, y, x in itertools.product(along, down, across)]


def cut(images_MDHW: Tensor, at: Window, size_DHW: Sequence[int]) -> Tensor:
    """What a window sees; slices that are not there are 0."""
    D, H, W = size_DHW
    part_MDHW = images_MDHW[:, at.z : at.z + D, at.y : at.y + H, at.x : at.x + W]
    short = D - part_MDHW.shape[1]
    return torch.nn.functional.pad(part_MDHW, (0, 0, 0, 0, 0, short)) if short else part_MDHW


@dataclass(slots=True, kw_only=True)
class Blend:
    """Running weighted means of the windows' means, and of their variances: the spread of a voxel is their root."""

    mean_MDHW: Tensor
    variance_MDHW: Tensor | None
    size_DHW: tuple[int, int, int]
    _weight_DHW: Tensor = field(init=False)
    _ramp_DHW: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._weight_DHW = torch.zeros(self.mean_MDHW.shape[1:])
        D, H, W = (_ramp(size) for size in self.size_DHW)
        self._ramp_DHW = D[:, None, None] * H[:, None] * W

    def add(self, at: Window, mean_MDHW: Tensor, sd_MDHW: Tensor) -> None:
        depth = min(self.size_DHW[0], self.mean_MDHW.shape[1] - at.z)
        here = tuple(slice(a, a + n) for a, n in zip(at, (depth, *self.size_DHW[1:]), strict=True))
        ramp = self._ramp_DHW[:depth]
        self._weight_DHW[here] += ramp
        share = ramp / self._weight_DHW[here]
        self.mean_MDHW[:, *here] += share * (mean_MDHW[:, :depth] - self.mean_MDHW[:, *here])
        if self.variance_MDHW is not None:
            self.variance_MDHW[:, *here] += share * (sd_MDHW[:, :depth].square() - self.variance_MDHW[:, *here])


def _ramp(size: int) -> Tensor:
    up = torch.arange(1, size + 1, dtype=torch.float32)
    return torch.minimum(up, up.flip(0)) / ((size + 1) // 2)
