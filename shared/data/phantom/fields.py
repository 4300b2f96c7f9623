"""Random smooth fields and deformations on a cube of voxels: cubic B-splines with random coefficients."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]  # float32, but numpy's stubs lose that in mixed arithmetic
Rng = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Cube:
    """`size` voxels along each edge of a cube of `fov_mm`, centred on 0; arrays are D H W, points z y x in mm."""

    size: int
    fov_mm: float

    @property
    def voxel_mm(self) -> float:
        return self.fov_mm / self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, self.size

    def axis(self) -> Array:
        return ((np.arange(self.size) + 0.5) * self.voxel_mm - self.fov_mm / 2).astype(np.float32)

    def axes(self) -> tuple[Array, Array, Array]:
        """z, y and x in mm, ready to broadcast to D H W."""
        line = self.axis()
        return line[:, None, None], line[None, :, None], line[None, None, :]

    def distance(self, point_zyx: NDArray[Any]) -> Array:
        z, y, x = (axis - np.float32(at) for axis, at in zip(self.axes(), point_zyx, strict=True))
        return cast(Array, np.sqrt(z * z + y * y + x * x))

    def index(self, points_N3: NDArray[Any]) -> NDArray[np.intp]:
        """The voxels that hold the points, clipped to the cube."""
        at = np.floor((np.asarray(points_N3) + self.fov_mm / 2) / self.voxel_mm).astype(np.intp)
        return cast(NDArray[np.intp], np.clip(at, 0, self.size - 1))

    def affine(self) -> NDArray[np.float64]:
        """The affine of the XYZ volume: RAS, 0 mm at the middle of the cube."""
        affine = np.diag([self.voxel_mm] * 3 + [1.0])
        affine[:3, 3] = (self.voxel_mm - self.fov_mm) / 2
        return affine


def field(rng: Rng, cube: Cube, wave_mm: float) -> Array:
    """Draw a field of zero mean and unit variance, smooth over about `wave_mm`."""
    knots = _knots(cube, wave_mm)
    values = _spread(rng.standard_normal((knots,) * 3, np.float32), cube, knots)
    values -= values.mean()
    values /= values.std()
    return values


def flow(rng: Rng, cube: Cube, waves_mm: tuple[tuple[float, float], ...]) -> Array:
    """Draw a smooth one-to-one deformation, z y x in mm: a velocity followed for unit time (scaling and squaring).
    It bends, and on the whole does not shift.

    `waves_mm` lists (wave length, root mean square velocity) pairs that add up.
    """
    coarse = Cube(size=48, fov_mm=cube.fov_mm)
    velocity = np.stack([sum(speed * field(rng, coarse, wave) for wave, speed in waves_mm) for _ in range(3)])
    steps = 5
    move = velocity / (2**steps * coarse.voxel_mm)
    for _ in range(steps):
        move = move + _sample(move, move)
    middle = (slice(None),) + (slice(coarse.size // 5, -(coarse.size // 5)),) * 3
    move = (move - move[middle].mean(axis=(1, 2, 3), keepdims=True)) * np.float32(coarse.voxel_mm)
    return np.stack([refine(part, cube) for part in move])


def refine(part: Array, cube: Cube) -> Array:
    """Interpolate a smooth image, given on fewer voxels of the same cube, linearly."""
    return _along_each_axis(part, _linear_rows(cube.size, part.shape[0]))


def _sample(volumes_CDHW: Array, shift_3DHW: Array) -> Array:
    """Read each volume at (its own voxel + shift), linearly; beyond the edge the edge goes on."""
    lines = [np.arange(n, dtype=np.float32) for n in shift_3DHW.shape[1:]]
    at = [line.reshape([-1 if a == b else 1 for b in range(3)]) + shift_3DHW[a] for a, line in enumerate(lines)]
    return np.stack([ndimage.map_coordinates(volume, at, order=1, mode="nearest") for volume in volumes_CDHW])


def _knots(cube: Cube, wave_mm: float) -> int:
    return int(np.ceil(cube.fov_mm / max(wave_mm, cube.voxel_mm))) + 3


def _spread(coefficients: Array, cube: Cube, knots: int) -> Array:
    return _along_each_axis(coefficients, _spline_rows(cube.size, knots))


def _along_each_axis(part: Array, rows: Array) -> Array:
    for _ in range(3):  # each turn treats the last axis and brings it to the front
        part = np.moveaxis(part @ rows.T, -1, 0)
    return np.ascontiguousarray(part)


def _spline_rows(size: int, knots: int) -> Array:
    """Values of the uniform cubic B-splines at the voxel centres."""
    at = (np.arange(size) + 0.5) / size * (knots - 3) + 1
    distance = np.abs(at[:, None] - np.arange(knots))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _linear_rows(size: int, knots: int) -> Array:
    at = np.clip((np.arange(size) + 0.5) / size * knots - 0.5, 0, knots - 1)
    return cast(Array, np.clip(1 - np.abs(at[:, None] - np.arange(knots)), 0, None).astype(np.float32))
