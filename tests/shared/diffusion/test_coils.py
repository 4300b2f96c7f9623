"""Coil maps out of the data: what the coils are, up to the phase that the image has."""

import math

import pytest
import torch
from torch import Tensor

from shared.base.errors import DataError
from shared.diffusion.acquisition import birdcage, equispaced
from shared.diffusion.coils import LEAST_LINES, complex_sense, espirit, smooth, with_phase
from shared.diffusion.fourier import fft2c


def scene(height: int, width: int, coils: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps, a positive image in an ellipse, its smooth phase, and noisy k-space."""
    noise = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    inside = (y**2 + x**2 / 0.8) < 0.6
    a, b, c = (torch.rand(3, generator=noise) * 2 - 1).tolist()
    image = inside * (0.6 + 0.3 * torch.sin(9 * x) * torch.cos(7 * y))
    phase = torch.polar(torch.ones_like(x), 2 * (a * x + b * y + 0.5 * c * x * y) + 3 * a)
    maps_CHW = birdcage(coils, height, width)[0]
    y_CHW = fft2c(maps_CHW * image * phase)
    return maps_CHW, image, phase, y_CHW + 0.003 * torch.randn(y_CHW.shape, generator=noise, dtype=y_CHW.dtype)


@pytest.mark.parametrize(("height", "width", "coils", "lines"), [(48, 48, 8, 23), (47, 50, 5, 15), (40, 33, 4, 7)])
def test_espirit_finds_the_maps_wherever_there_is_signal(height: int, width: int, coils: int, lines: int) -> None:
    maps, image, phase, y = scene(height, width, coils, seed=height)
    mask = equispaced(width, 4, acs=lines)
    found = espirit(torch.where(mask, y, 0), lines)
    inside = image > 0
    alike = (found.conj() * maps).sum(0).abs()
    assert alike[inside].min() > 0.95
    assert alike[inside].mean() > 0.998
    size = found.abs().square().sum(0)
    assert bool((((size - 1).abs() < 1e-4) | (size == 0)).all())
    turned = with_phase(found, torch.where(mask, y, 0), mask)
    off = ((turned.conj() * maps * phase).sum(0) / alike.clamp(min=1e-6)).angle().abs()
    assert off[inside].mean() < 0.1


def test_what_lies_far_from_any_signal_has_no_maps() -> None:
    _, image, _, y = scene(48, 48, 8)
    found = espirit(y, 47)
    assert (found[:, image > 0].abs().sum(0) > 0).all()
    assert (found[:, :4, :4] == 0).all()


@pytest.mark.parametrize("lines", range(LEAST_LINES))
def test_too_few_lines_are_refused(lines: int) -> None:
    with pytest.raises(DataError, match=f"^{lines} fully measured lines .*too few to estimate coil maps"):
        espirit(scene(16, 16, 3)[3], lines)


def test_blank_lines_are_refused() -> None:
    with pytest.raises(DataError, match="are all 0: no coil maps"):
        espirit(torch.zeros(3, 16, 16, dtype=torch.complex64), 9)


def test_the_image_s_phase_goes_into_supplied_maps() -> None:
    maps, image, phase, y = scene(48, 40, 6, seed=3)
    turned = with_phase(maps, y, equispaced(40, 2))
    inside = image > 0
    assert torch.allclose(turned.abs(), maps.abs(), atol=1e-6)
    assert ((turned / maps).mean(0) / phase)[inside].angle().abs().mean() < 0.1
    kept = with_phase(maps, fft2c(maps * image), torch.ones(40, dtype=torch.bool))  # a real image has none
    assert (kept - maps)[:, inside].abs().max() < 0.02


def test_complex_sense_gives_complete_data_back() -> None:
    maps, image, phase, y = scene(24, 21, 4)
    found = complex_sense(fft2c(maps * image * phase)[None], maps[None], torch.ones(24, 21, dtype=torch.bool))[0]
    assert torch.allclose(found * 1.01, image * phase, atol=1e-3)  # shrunk by its strength, 1e-2
    assert y.shape == (4, 24, 21)


@pytest.mark.parametrize("n", [16, 17])
def test_smoothing_keeps_the_mean_and_takes_the_fast(n: int) -> None:
    wave = torch.exp(2j * math.pi * (n // 2 - 1) / n * torch.arange(n))[None].expand(n, n)
    assert torch.allclose(smooth(torch.full((n, n), 2 + 1j), 6), torch.full((n, n), 2 + 1j), atol=1e-5)
    assert smooth(wave, 6).abs().max() < 1e-5
