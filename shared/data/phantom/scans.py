"""What disease and a scanner do to a made head: lesions, shading, thick slices, noise, ghosts, ringing, a cut field.

On a grid of cubes, in torch, because a network waits for it. MR is about 0 to 1, CT is in HU; D is up, H to the front.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.data.phantom.bending import field
from shared.data.phantom.contrasts import INDEX, Contrast
from shared.data.phantom.fields import Rng

MOST_MM = 6.5  # thick a slice


def put_lesions(
    image: Tensor, brain: Tensor, contrast: Contrast, step_mm: float, rng: Rng, noise: torch.Generator
) -> Tensor:
    """Many small ones, a mass with a rim, what a stroke left, blood; each of any brightness, within the brain."""
    inside = brain > 0.9
    if int(inside.sum()) < 1000:
        return image
    usual, spread = float(image[inside].mean()), float(image[inside].std())
    fluid = float(contrast.values_K[INDEX["csf"]])
    places = torch.nonzero(inside).numpy()

    def into(image: Tensor, share: Tensor, value: float) -> Tensor:
        return torch.lerp(image, torch.full_like(image, value), (share * brain).clamp(0, 1))

    def any_value() -> float:
        value = usual + spread * rng.uniform(-3, 4) + rng.uniform(-0.2, 0.3) * abs(usual)
        return value if contrast.ct else max(0.0, value)

    if rng.random() < 0.35:
        spots = field(image.shape, rng.uniform(6, 14) / step_mm, noise)
        image = into(image, ((spots - rng.uniform(1.3, 2.2)) * 4).clamp(0, 1), any_value())
    if rng.random() < 0.3:
        level = _ball(image, places, rng.uniform(8, 30), step_mm, rng, noise)
        image = into(image, (level + rng.uniform(0, 14)) / 6, any_value())  # oedema
        image = into(image, level / step_mm, any_value())
        image = into(image, (level - rng.uniform(2, 6)) / step_mm, any_value())
    if rng.random() < 0.2:
        level = _ball(image, places, rng.uniform(12, 45), step_mm, rng, noise)
        image = into(image, level / step_mm, fluid if rng.random() < 0.6 else any_value())
    if contrast.ct and rng.random() < 0.2:
        level = _ball(image, places, rng.uniform(5, 25), step_mm, rng, noise)
        image = into(image, level / step_mm, rng.uniform(55, 90))
    return image


def _ball(
    image: Tensor, places: NDArray[np.int64], radius_mm: float, step_mm: float, rng: Rng, noise: torch.Generator
) -> Tensor:
    """Depth beneath the surface of an uneven ball, mm."""
    z, y, x = (float(at) for at in places[rng.integers(len(places))])
    lines = [(torch.arange(n) - at) * step_mm for n, at in zip(image.shape, (z, y, x), strict=True)]
    away = (lines[0][:, None, None] ** 2 + lines[1][:, None] ** 2 + lines[2] ** 2).sqrt()
    return radius_mm * (1 + 0.25 * field(image.shape, 14 / step_mm, noise)) - away


def acquire(
    image: Tensor, contrast: Contrast, step_mm: float, rng: Rng, noise: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The image as a scanner gives it, and which voxels its field reaches; beyond it the image is 0, or air in CT."""
    ct, shape = contrast.ct, image.shape
    air = -1000.0 if ct else 0.0
    if ct:
        image = _table(image, rng) if rng.random() < 0.5 else image
        image = image + rng.uniform(0, 5) * field(shape, 40 / step_mm, noise) * (image > -200)
    else:
        grain = field(shape, rng.uniform(3, 10) / step_mm, noise)
        image = image.clamp_min(0) * (1 + rng.uniform(0, 0.1) * grain)
        image = image.clamp_min(0) ** rng.uniform(0.7, 1.4)
        image = image * torch.exp(rng.uniform(0, 0.45) * field(shape, rng.uniform(60, 160) / step_mm, noise))
    axis, thick = 0, step_mm
    if rng.random() < 0.65:
        axis, thick = int(rng.choice(3, p=(0.8, 0.1, 0.1))), rng.uniform(1, MOST_MM)
    down, up = _slices(shape[axis], step_mm, max(thick, step_mm), rng)
    image = torch.moveaxis(torch.tensordot(down, image, dims=([1], [axis])), 0, axis)
    plane = [a for a in range(3) if a != axis]
    for a in plane:
        if rng.random() < 0.5:
            image = _blur(image, a, rng.uniform(0.2, 1.6) / step_mm)
    if not ct:
        image = _faults(image, axis, plane, rng, noise)
    else:
        image = image + rng.uniform(1, 20) * torch.randn(image.shape, generator=noise)
    image = torch.moveaxis(torch.tensordot(up, image, dims=([1], [axis])), 0, axis)
    seen = _field_of_view(shape, step_mm, rng)
    return torch.where(seen, image, air), seen


def _faults(image: Tensor, axis: int, plane: list[int], rng: Rng, noise: torch.Generator) -> Tensor:
    a = plane[int(rng.integers(2))]
    size = image.shape[a]
    if rng.random() < 0.2:  # ringing: the outer part of k-space was not measured
        k = torch.fft.fft(image, dim=a)
        cut = int(size * rng.uniform(0.28, 0.45))
        k = k.moveaxis(a, 0)
        k[cut : size - cut] = 0
        image = torch.fft.ifft(k.moveaxis(0, a), dim=a).real.abs()
    if rng.random() < 0.2:  # a ghost of what moved between lines
        image = image + rng.uniform(0.02, 0.2) * torch.roll(image, int(size / rng.choice([2, 3, 4, 8])), dims=a)
    if rng.random() < 0.3:  # slices that differ
        lines = [1] * 3
        lines[axis] = image.shape[axis]
        image = image * (1 + rng.uniform(0, 0.1) * torch.randn(image.shape[axis], generator=noise)).reshape(lines)
    level = rng.uniform(0, 0.28) ** 2
    one, other = (level * torch.randn(image.shape, generator=noise) for _ in range(2))
    image = torch.sqrt((image + one) ** 2 + other**2)
    if rng.random() < 0.3:  # what a scanner masks
        image = torch.where(image < rng.uniform(0.01, 0.08), 0.0, image)
    return image


def _slices(size: int, step_mm: float, thick_mm: float, rng: Rng) -> tuple[Tensor, Tensor]:
    """Matrices: the mean over each slice, a gap left out, and linear interpolation back."""
    count = max(2, int(np.ceil(size * step_mm / thick_mm)))
    offset = rng.uniform(-0.5, 0.5) * thick_mm * (thick_mm > step_mm)
    middles = (torch.arange(count) + 0.5) * thick_mm + offset
    voxels = (torch.arange(size) + 0.5) * step_mm
    profile = max(step_mm, thick_mm * rng.uniform(0.65, 1.05))
    away = (middles[:, None] - voxels).abs()
    down = ((profile + step_mm) / 2 - away).clamp(0, step_mm)
    down = down / down.sum(dim=1, keepdim=True).clamp_min(1e-6)
    up = (1 - away.T / thick_mm).clamp_min(0)
    up = up / up.sum(dim=1, keepdim=True).clamp_min(1e-6)
    return down.float(), up.float()


def _blur(image: Tensor, axis: int, sigma: float) -> Tensor:
    reach = torch.arange(-3, 4)
    kernel = torch.exp(-0.5 * (reach / max(sigma, 0.1)) ** 2)
    kernel = kernel / kernel.sum()
    size = [1, 1, 1, 1, 1]
    size[axis + 2] = len(kernel)
    pad = [0, 0, 0]
    pad[axis] = len(kernel) // 2
    return functional.conv3d(image[None, None], kernel.reshape(size), padding=tuple(pad))[0, 0]


def _field_of_view(shape: tuple[int, ...], step_mm: float, rng: Rng) -> Tensor:
    """A box that the scan is cut to, and a face that was cut off before."""
    seen = torch.ones(shape, dtype=torch.bool)
    if rng.random() < 0.5:
        seen[: int(shape[0] * rng.uniform(0, 0.3))] = False
    if rng.random() < 0.15:
        seen[shape[0] - int(shape[0] * rng.uniform(0, 0.25)) :] = False
    if rng.random() < 0.15:
        for axis in (1, 2):
            cut = int(shape[axis] * rng.uniform(0, 0.15))
            part = seen.moveaxis(axis, 0)
            part[:cut] = False
            part[shape[axis] - cut :] = False
    if rng.random() < 0.12:
        z, y = (torch.arange(n).float() * step_mm for n in shape[:2])
        slope, reach = rng.uniform(-1, 0.6), rng.uniform(0.55, 0.85) * shape[1] * step_mm
        off = (y[None, :] - reach) > slope * (z[:, None] - 0.25 * shape[0] * step_mm)
        off &= z[:, None] < 0.4 * shape[0] * step_mm
        seen &= ~off[:, :, None]
    return seen


def _table(image: Tensor, rng: Rng) -> Tensor:
    """The plate that a head lies on."""
    height, width = image.shape[1:]
    middle = (torch.arange(width) - width / 2) / width
    top = height * rng.uniform(0.02, 0.14) + rng.uniform(0, 1.2) * height * middle**2
    rows = torch.arange(height)[:, None]
    plate = ((rows - top).abs() < rng.uniform(0.5, 2.5)).expand(image.shape)
    return torch.where(plate & (image < -500), rng.uniform(-400, 600), image)
