"""The brain's surface, found by a sphere that grows until it meets it: Smith, Human Brain Mapping 17:143 (2002).

Written from the paper: robust intensities (§ "Estimation of basic image and brain parameters"), a tessellated sphere,
and a force per vertex with a part along the surface, a part that smooths it and a part that pushes it out or in by the
intensities beneath it (§ "Main iterated loop"). All vertices move at once. Lengths are mm.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from client.ingest.image.resample import Mask
from shared.base.errors import DataError
from shared.data.volumes import Affine, Volume

Points = NDArray[np.float64]  # N x 3: x, y, z
Triangles = NDArray[np.intp]

LEVELS = 4  # of the icosahedron's subdivision: 2562 vertices
ITERATIONS = 1000
R_MIN, R_MAX = 3.33, 10.0  # radii of curvature between which the surface may bend
D_OUT, D_IN = 20.0, 10.0  # how far beneath a vertex the darkest and the brightest voxel are looked for
MOST_FOLDED = 800  # triangles that face the centre; with more the surface has folded over, and is tried again, stiffer
HEAD_MM = 170.0  # from the crown down: below it is neck, which would pull the centre away


@dataclass(frozen=True, slots=True, kw_only=True)
class Robust:
    """What the paper calls t2, t98, t, tm; the centre of gravity; and the radius of the brain as a sphere."""

    dark: float
    bright: float
    threshold: float
    middle: float
    centre: Points
    radius: float


def estimate(volume: Volume) -> Robust:
    data_DHW = volume.data_DHW
    dark, bright = (float(p) for p in np.percentile(data_DHW, (2, 98)))
    if not bright > dark:
        raise DataError("flat: its darkest and brightest voxels are alike")
    threshold = dark + 0.1 * (bright - dark)
    weight = np.where(data_DHW > threshold, np.clip(data_DHW, dark, bright), 0).astype(np.float64)
    step = float(np.linalg.norm(volume.affine[:3, 2]))
    filled = np.count_nonzero(weight, axis=(1, 2)) * _area(volume.affine)
    reached = np.flatnonzero(filled > 500)  # mm^2: a slice that shows a head and not a nose's tip
    if not len(reached):
        raise DataError("no slice shows anything of a head's size")
    weight[: max(0, int(reached[-1] + 1 - HEAD_MM / step))] = 0
    voxels = np.argwhere(weight > 0)
    values = weight[tuple(voxels.T)]
    index = (voxels * values[:, None]).sum(axis=0) / values.sum()
    centre = volume.affine[:3, :3] @ index[::-1] + volume.affine[:3, 3]
    radius = float((3 * len(voxels) * abs(np.linalg.det(volume.affine[:3, :3])) / (4 * np.pi)) ** (1 / 3))
    away = np.linalg.norm(voxels[:, ::-1] @ volume.affine[:3, :3].T + volume.affine[:3, 3] - centre, axis=1)
    inside = data_DHW[tuple(voxels[away < radius].T)]
    inside = inside[(inside > dark) & (inside < bright)]
    middle = float(np.median(inside)) if len(inside) else threshold
    return Robust(dark=dark, bright=bright, threshold=threshold, middle=middle, centre=centre, radius=radius)


def surface(volume: Volume, found: Robust, fraction: float) -> tuple[Points, Triangles]:
    """The brain's surface. A larger `fraction` (0 to 1, the paper's b_t) makes a smaller brain."""
    sphere, triangles = icosphere(LEVELS)
    smoother = 1.0
    for _ in range(2):
        points = _grow(volume, found, fraction, sphere, triangles, smoother)
        if not np.isfinite(points).all() or np.abs(points - found.centre).max() > 4 * found.radius:
            raise DataError("no brain found: the surface that grows within a head burst")
        if _folded(points, triangles, points.mean(axis=0)) <= MOST_FOLDED:
            break
        smoother *= 3.0  # as the paper does for its second try
    return points, triangles


def _grow(
    volume: Volume, found: Robust, fraction: float, sphere: Points, triangles: Triangles, smoother: float
) -> Points:
    mean_of, summing = _neighbours(triangles, len(sphere))
    look = _Look(volume)
    points = found.centre + 0.5 * found.radius * sphere
    low_bend, high_bend = 1 / R_MAX, 1 / R_MIN
    middle_bend, spread = (low_bend + high_bend) / 2, 6 / (high_bend - low_bend)
    for iteration in range(ITERATIONS):
        normals = _normals(points, triangles, summing)
        around = mean_of @ points
        away = around - points
        along = (away * normals).sum(axis=1, keepdims=True)
        normal_part = along * normals
        tangential = away - normal_part
        if iteration % 50 == 0:
            length = _edge_length(points, triangles)
        bend = 2 * np.abs(along[:, 0]) / length**2  # 1 / radius of curvature
        stiff = 0.5 * (1 + np.tanh(spread * (bend - middle_bend)))
        stiff *= smoother if iteration > 75 else 1.0
        darkest, brightest = look.beneath(points, normals, found)
        limit = (brightest - found.dark) * fraction + found.dark
        push = 2 * (darkest - limit) / np.maximum(brightest - found.dark, 1e-6)
        points = points + 0.5 * tangential + np.minimum(stiff, 1)[:, None] * normal_part
        points += (0.05 * length * push)[:, None] * normals
    return points


class _Look:
    """Intensities beneath the surface, by the nearest voxel; in float32, of which an index of a voxel needs little."""

    def __init__(self, volume: Volume) -> None:
        inverse = np.linalg.inv(volume.affine)
        self.turn, self.offset = inverse[:3, :3].T, inverse[:3, 3] + 0.5
        step = float(np.linalg.norm(volume.affine[:3, :3], axis=0).min())
        self.depths = np.arange(max(1.0, 0.5 * step), D_OUT + 1e-6, max(1.0, step), dtype=np.float32)
        self.near = int((self.depths <= D_IN).sum())
        depth, height, width = volume.data_DHW.shape
        self.data = np.ascontiguousarray(volume.data_DHW).ravel()
        self.sizes, self.strides = (width, height, depth), (1, width, width * height)

    def beneath(self, points: Points, normals: Points, found: Robust) -> tuple[Points, Points]:
        """The paper's I_min and I_max of each vertex."""
        at, step = ((part @ self.turn).astype(np.float32) for part in (points, normals))
        at += self.offset.astype(np.float32)
        index = np.zeros((len(points), len(self.depths)), np.int32)
        for axis in range(3):
            line = at[:, axis, None] - step[:, axis, None] * self.depths
            np.clip(line, 0, self.sizes[axis] - 0.5, out=line)
            index += line.astype(np.int32) * np.int32(self.strides[axis])
        values = self.data.take(index)
        darkest = np.maximum(found.dark, np.minimum(found.middle, values.min(axis=1)))
        brightest = np.minimum(found.middle, np.maximum(found.threshold, values[:, : self.near].max(axis=1)))
        return darkest, brightest


def fill(points: Points, triangles: Triangles, shape_DHW: tuple[int, int, int], affine: Affine) -> Mask:
    """The voxels within a closed surface: along each column its crossings, by their direction, are summed."""
    inverse = np.linalg.inv(affine)
    at = points @ inverse[:3, :3].T + inverse[:3, 3]
    at[:, :2] += (1.37e-5, 2.71e-5)  # no vertex on a column: none is counted twice
    a, b, c = (at[triangles[:, k]] for k in range(3))
    depth, height, width = shape_DHW
    low = np.ceil(np.minimum(np.minimum(a, b), c)[:, :2]).astype(int)
    high = np.floor(np.maximum(np.maximum(a, b), c)[:, :2]).astype(int)
    crossings = np.zeros((depth + 1, height, width), np.int16)
    most = (high - low).max(axis=0) + 1
    for dy in range(int(most[1])):
        for dx in range(int(most[0])):
            x, y = low[:, 0] + dx, low[:, 1] + dy
            kept = (x <= high[:, 0]) & (y <= high[:, 1]) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
            x, y, p, q, r = x[kept], y[kept], a[kept], b[kept], c[kept]
            area = (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])
            area = np.where(area == 0, 1e-12, area)
            u = ((x - p[:, 0]) * (r[:, 1] - p[:, 1]) - (y - p[:, 1]) * (r[:, 0] - p[:, 0])) / area
            v = ((q[:, 0] - p[:, 0]) * (y - p[:, 1]) - (q[:, 1] - p[:, 1]) * (x - p[:, 0])) / area
            hit = (u >= 0) & (v >= 0) & (u + v <= 1)
            z = p[:, 2] + u * (q[:, 2] - p[:, 2]) + v * (r[:, 2] - p[:, 2])
            level = np.clip(np.ceil(z[hit]), 0, depth).astype(int)
            np.add.at(crossings, (level, y[hit], x[hit]), np.sign(area[hit]).astype(np.int16))
    return cast(Mask, np.cumsum(crossings[:-1], axis=0) != 0)


@lru_cache(maxsize=2)
def icosphere(levels: int) -> tuple[Points, Triangles]:
    """A unit sphere of 10 * 4^levels + 2 vertices; its triangles turn the same way, seen from outside."""
    golden = (1 + 5**0.5) / 2
    corners = [(s, t * golden, 0) for s in (-1, 1) for t in (-1, 1)]
    points = np.array([np.roll(corner, k) for k in range(3) for corner in corners], float)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    edge = np.linalg.norm(points[:, None] - points[None], axis=2)
    near = edge < 1.2 * edge[edge > 0].min()
    np.fill_diagonal(near, False)
    triangles = np.array(
        [(i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] and near[j, k] and near[i, k]]
    )
    for _ in range(levels):
        points, triangles = _divide(points, triangles)
    a, b, c = (points[triangles[:, k]] for k in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(axis=1) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    return points, triangles


def _divide(points: Points, triangles: Triangles) -> tuple[Points, Triangles]:
    edges = np.sort(triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    unique, where = np.unique(edges, axis=0, return_inverse=True)
    middles = points[unique].mean(axis=1)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    ab, bc, ca = (len(points) + where.reshape(-1, 3)).T
    a, b, c = triangles.T
    parts = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    return np.concatenate([points, middles]), np.concatenate([np.stack(part, axis=1) for part in parts])


def _neighbours(triangles: Triangles, count: int) -> tuple[Any, Any]:
    """Sparse matrices: the mean of each vertex's neighbours, and the sum over each vertex's triangles."""
    pairs = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    linked = sparse.coo_matrix((np.ones(len(pairs)), pairs.T), (count, count))
    linked = ((linked + linked.T) > 0).astype(float).tocsr()
    mean_of = sparse.diags(1 / np.asarray(linked.sum(axis=1)).ravel()) @ linked
    rows = triangles.ravel()
    summing = sparse.coo_matrix(
        (np.ones(len(rows)), (rows, np.repeat(np.arange(len(triangles)), 3))), (count, len(triangles))
    )
    return mean_of.tocsr(), summing.tocsr()


def _normals(points: Points, triangles: Triangles, summing: Any) -> Points:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    normals = summing @ np.cross(b - a, c - a)
    return cast(Points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))


def _edge_length(points: Points, triangles: Triangles) -> float:
    edges = points[triangles] - points[triangles[:, [1, 2, 0]]]
    return float(np.linalg.norm(edges, axis=2).mean())


def _folded(points: Points, triangles: Triangles, centre: Points) -> int:
    """Triangles that face the centre."""
    a, b, c = (points[triangles[:, k]] - centre for k in range(3))
    return int(((np.cross(b - a, c - a) * a).sum(axis=1) < 0).sum())


def _area(affine: Affine) -> float:
    return float(np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1])))
