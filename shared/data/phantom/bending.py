"""Strong deformations of heads, and smooth fields: where in a label map each voxel of a new head comes from."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.data.phantom.fields import Rng

KNOTS = 32  # along each edge of the grid that the deformation is worked out on
WAVES_MM = ((90.0, 5.0), (45.0, 3.0), (22.0, 1.2))  # and how fast each moves, mm
USUAL_MM, SELDOM_MM = (14.0, 8.0, 5.0), (34.0, 20.0, 14.0)  # z y x, how far the field's middle is from the brain's


def points(
    sizes: Sequence[int],
    middle_zyx: tuple[float, float, float],
    shape: tuple[int, int, int],
    step_mm: float,
    rng: Rng,
    noise: torch.Generator,
) -> Tensor:
    """As grid_sample asks: 1 x D x H x W x 3, x y z, -1 to 1 over a map of `sizes` 1 mm voxels."""
    flow = _flow(shape, step_mm, float(rng.uniform(0.3, 1.6)), noise)
    pitch, roll, yaw = np.deg2rad(rng.normal(0, (13, 6, 6)))
    scale = np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.05, 3))
    matrix = _turn(pitch, roll, yaw) @ np.diag(1 / scale) + rng.normal(0, 0.02, (3, 3))
    if rng.random() < 0.5:
        matrix = np.diag([1.0, 1.0, -1.0]) @ matrix
    aside = rng.normal(0, 1, 3) * (USUAL_MM if rng.random() < 0.8 else SELDOM_MM)
    lines = [(np.arange(n) + 0.5 - n / 2) * step_mm + off for n, off in zip(shape, aside, strict=True)]
    z, y, x = torch.meshgrid(*(torch.from_numpy(line).float() for line in lines), indexing="ij")
    at = torch.einsum("ab,bdhw->adhw", torch.from_numpy(matrix).float(), torch.stack([z, y, x]) + flow)
    middle, edges = (torch.tensor(v, dtype=torch.float32)[:, None, None, None] for v in (middle_zyx, tuple(sizes)))
    unit = (2 * (at + middle) + 1) / edges - 1
    return unit.flip(0).permute(1, 2, 3, 0)[None]


def field(shape: Sequence[int], wave_voxels: float, noise: torch.Generator) -> Tensor:
    """Of about zero mean and unit variance, smooth over about `wave_voxels`."""
    knots = [max(2, round(n / wave_voxels) + 1) for n in shape]
    part = torch.randn(1, 1, *knots, generator=noise)
    out = functional.interpolate(part, tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    return (out - out.mean()) / out.std().clamp_min(1e-6)


def _turn(pitch: float, roll: float, yaw: float) -> NDArray[np.float64]:
    """Of z y x coordinates, about x, y and z."""
    out = np.eye(3)
    for angle, (a, b) in ((pitch, (0, 1)), (roll, (0, 2)), (yaw, (1, 2))):
        c, s = np.cos(angle), np.sin(angle)
        one = np.eye(3)
        one[a, a], one[a, b], one[b, a], one[b, b] = c, -s, s, c
        out = out @ one
    return out


def _flow(shape: tuple[int, int, int], step_mm: float, strength: float, noise: torch.Generator) -> Tensor:
    """A smooth one-to-one deformation, z y x in mm: a velocity followed for unit time, by scaling and squaring."""
    span = [n * step_mm for n in shape]
    coarse = (KNOTS,) * 3
    velocity = torch.zeros(3, *coarse)
    for wave, speed in WAVES_MM:
        for axis in range(3):
            knots = [max(3, round(mm / wave) + 2) for mm in span]
            part = torch.randn(1, 1, *knots, generator=noise)
            velocity[axis] += strength * speed * functional.interpolate(part, coarse, mode="trilinear")[0, 0]
    unit = torch.tensor([2 / mm for mm in span])[:, None, None, None]  # mm to -1 .. 1
    lines = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in coarse]
    still = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    move = velocity * unit / 32
    for _ in range(5):
        at = (still + move).flip(0).permute(1, 2, 3, 0)[None]
        move = move + functional.grid_sample(move[None], at, padding_mode="border", align_corners=False)[0]
    return functional.interpolate(move[None], shape, mode="trilinear")[0] / unit
