"""The arterial tree of a phantom: the circle of Willis and its main branches as splines, then twigs that wander off.

Every branch starts on its parent, so the tree is one piece; its fraction map stays so at any voxel size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import CubicSpline

from shared.data.phantom.fields import Array, Cube, Rng

Points = NDArray[np.float64]  # N 3, z y x in mm
STEP_MM = 0.8
THINNEST_MM = 0.35  # radius
BASE_Z = -0.08  # of the field of view: the arteries of the neck and of the base come in below

# Centre lines in units of half the brain's box (x on the right, y, z), and radius in mm at the root.
_PAIRED = (
    (((0.20, 0.10, -0.80), (0.22, 0.12, -0.62), (0.17, 0.17, -0.50), (0.20, 0.25, -0.42), (0.17, 0.20, -0.33)), 2.2),
    (
        (
            (0.17, 0.20, -0.33),
            (0.34, 0.22, -0.31),
            (0.52, 0.20, -0.27),
            (0.64, 0.10, -0.12),
            (0.70, -0.08, 0.06),
            (0.70, -0.30, 0.20),
        ),
        1.5,
    ),
    (
        (
            (0.17, 0.20, -0.33),
            (0.06, 0.30, -0.29),
            (0.03, 0.44, -0.10),
            (0.03, 0.44, 0.16),
            (0.03, 0.20, 0.36),
            (0.03, -0.12, 0.44),
        ),
        1.15,
    ),
    (
        ((0.00, -0.04, -0.34), (0.13, -0.10, -0.31), (0.21, -0.26, -0.26), (0.16, -0.50, -0.18), (0.10, -0.74, -0.08)),
        1.15,
    ),
    (((0.13, -0.16, -0.95), (0.06, -0.10, -0.76), (0.00, -0.05, -0.64)), 1.4),
    (((0.17, 0.20, -0.33), (0.13, 0.06, -0.335), (0.10, -0.08, -0.32)), 1.2),
)
_SINGLE = (
    (((0.00, -0.05, -0.64), (0.01, -0.02, -0.50), (0.00, -0.04, -0.34)), 1.6),  # basilar
    (((-0.06, 0.30, -0.29), (0.06, 0.30, -0.29)), 1.0),  # anterior communicating
)
_BRANCHING = (1, 2, 3)  # which of the paired ones give off twigs: middle, anterior and posterior cerebral


@dataclass(frozen=True, slots=True, kw_only=True)
class _Branch:
    points: Points
    radii: NDArray[np.float64]


def grow_vessels(
    sulci_DHW: Array, brain_DHW: Array, half_mm: tuple[float, float, float], cube: Cube, rng: Rng
) -> Array:
    """Grow the tree: how much of each voxel is artery. Twigs prefer the sulci's fluid, as pial arteries do."""
    fluid = _uphill(sulci_DHW, 2.0, cube)[1]
    depth, inward = _uphill(brain_DHW.astype(np.float32), 3.0, cube)
    main = [
        (buds, _Branch(points=_kept_inside(branch.points, depth, inward, cube), radii=branch.radii))
        for buds, branch in _main_arteries(np.array(half_mm), rng)
    ]
    twigs = list(_twigs(main, fluid, depth, inward, cube, rng))
    branches = [branch for _, branch in main] + twigs
    points = np.concatenate([branch.points for branch in branches])
    return _fill(points, np.concatenate([branch.radii for branch in branches]), cube)


def _main_arteries(half: Points, rng: Rng) -> Iterator[tuple[bool, _Branch]]:
    """(does it give off twigs, branch). Joints are shared points, so the same joint is moved the same way."""
    moved: dict[tuple[float, ...], Points] = {}

    def place(point_xyz: tuple[float, float, float], side: int) -> Points:
        key = (side * point_xyz[0], *point_xyz[1:])
        if key not in moved:
            moved[key] = (np.array(key)[::-1] + rng.normal(0, 0.018, 3)) * half
        return moved[key]

    for number, (line, radius) in enumerate((*_PAIRED, *_SINGLE)):
        for side in (-1, 1) if number < len(_PAIRED) else (1,):
            through = np.array([place(point, side) for point in line])
            length = np.linalg.norm(np.diff(through, axis=0), axis=1).sum()
            at = np.linspace(0, len(line) - 1, max(8, int(length / STEP_MM)))
            points = CubicSpline(np.arange(len(line)), through)(at) if len(line) > 2 else _between(through, at)
            wander = ndimage.gaussian_filter1d(rng.normal(0, 1, points.shape), 5, axis=0) * 2.0
            points = points + wander * np.sin(np.pi * at / at[-1])[:, None]  # the ends stay where they join
            yield number in _BRANCHING, _Branch(points=points, radii=radius * np.linspace(1.05, 0.7, len(points)))


def _between(ends: Points, at: NDArray[np.float64]) -> Points:
    return cast(Points, ends[0] + (ends[1] - ends[0]) * at[:, None])


def _uphill(image: Array, blur_mm: float, cube: Cube) -> tuple[Array, Array]:
    """The image smoothed, and its gradient per mm."""
    smooth = ndimage.gaussian_filter(image, blur_mm / cube.voxel_mm)
    return smooth, np.stack(np.gradient(smooth)) / np.float32(cube.voxel_mm)


def _kept_inside(points: Points, depth_DHW: Array, inward_3DHW: Array, cube: Cube) -> Points:
    """Arteries above the base of the brain are moved back into it; where two share a point, they still do."""
    above = points[:, 0] > BASE_Z * cube.fov_mm
    for _ in range(8):
        z, y, x = cube.index(points).T
        out = above & (depth_DHW[z, y, x] < 0.6)
        points = points + 12.0 * out[:, None] * inward_3DHW[:, z, y, x].T
    return points


def _twigs(
    main: list[tuple[bool, _Branch]], fluid_3DHW: Array, depth_DHW: Array, inward_3DHW: Array, cube: Cube, rng: Rng
) -> Iterator[_Branch]:
    """Walks with a slowly turning direction that leave their parent sideways, thin out, and fork.

    `fluid` and `inward` point to where there is more fluid, and into the brain.
    """
    buds = []
    for gives, branch in main:
        if gives:
            for i in np.sort(rng.choice(np.arange(len(branch.points) // 4, len(branch.points) - 1), 7, replace=False)):
                buds.append((branch.points[i], branch.points[i] - branch.points[i - 1], 0.7 * branch.radii[i]))
            tip = branch.points[-1] - branch.points[-3]
            buds += [(branch.points[-1], tip, 0.8 * branch.radii[-1])] * 2
    while buds:
        point, direction, radius = buds.pop()
        direction = direction / np.linalg.norm(direction) + rng.normal(0, 0.55, 3)
        bend, walk = np.zeros(3), [point]
        steps = int(rng.integers(35, 85))
        for step in range(steps):
            z, y, x = _voxel(point, cube)
            bend = 0.88 * bend + 0.035 * rng.standard_normal(3)
            direction = direction + bend + 0.9 * fluid_3DHW[:, z, y, x] + 0.004 * point / np.linalg.norm(point)
            if depth_DHW[z, y, x] < 0.55:
                direction = direction + 4.0 * inward_3DHW[:, z, y, x]
            direction = direction / np.linalg.norm(direction)
            point = point + STEP_MM * direction
            walk.append(point)
            thickness = radius * (1 - 0.45 * step / steps)
            if thickness > 1.4 * THINNEST_MM and rng.random() < 0.035:
                buds.append((point, direction, 0.8 * thickness))
        yield _Branch(points=np.array(walk), radii=np.maximum(radius * np.linspace(1, 0.55, len(walk)), THINNEST_MM))


def _voxel(point: Points, cube: Cube) -> tuple[int, int, int]:
    """As `Cube.index`, for one point at a time, and faster."""
    z, y, x = (
        min(max(int((at + cube.fov_mm / 2) / cube.voxel_mm), 0), cube.size - 1)
        for at in cast(list[float], point.tolist())
    )
    return z, y, x


def _fill(points: Points, radii: NDArray[np.float64], cube: Cube) -> Array:
    """Each tube as a Gaussian of its own width and the voxel's: thinner than a voxel is fainter, never broken."""
    share = np.zeros(cube.shape, np.float32)
    own, voxel = radii**2 / 2, (0.55 * cube.voxel_mm) ** 2
    width = own + voxel
    height = np.minimum(1.0, 1.8 * own / width)
    middle = cube.index(points)
    reach = 1 + int(np.ceil(1.2 * radii.max() / cube.voxel_mm))
    steps = np.arange(-reach, reach + 1)
    for step in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3):
        at = middle + step
        held = ((at >= 0) & (at < cube.size)).all(axis=1)
        away = (at[held] + 0.5) * cube.voxel_mm - cube.fov_mm / 2 - points[held]
        value = height[held] * np.exp(-(away**2).sum(axis=1) / (2 * width[held]))
        np.maximum.at(share, tuple(at[held].T), value.astype(np.float32))
    return share
