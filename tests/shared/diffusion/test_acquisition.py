import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from shared.base.errors import ConfigError, DataError
from shared.diffusion.acquisition import SUPPORT, birdcage, equispaced, random_lines, unit_maps


@pytest.fixture
def pick() -> random.Random:
    """Its seed is printed where a test fails."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize("parity", [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_the_birdcage_is_sigpys(pick: random.Random, parity: tuple[int, int]) -> None:
    """Its published formula, coil by coil and pixel by pixel, and its normalisation."""
    height, width = (2 * pick.randint(2, 8) + odd for odd in parity)
    coils, radius = pick.randint(1, 9), pick.uniform(1.1, 3)
    print(f"{coils} coils at {radius}, {height} x {width}")
    expected = np.zeros((coils, height, width), complex)
    for c, y, x in np.ndindex(coils, height, width):
        turn = c * 2 * np.pi / coils
        dx = (x - width / 2) / (width / 2) - radius * np.cos(turn)
        dy = (y - height / 2) / (height / 2) - radius * np.sin(turn)
        expected[c, y, x] = np.exp(1j * (np.arctan2(dx, -dy) - turn)) / np.sqrt(dx**2 + dy**2)
    expected /= np.sqrt((np.abs(expected) ** 2).sum(0))
    maps = birdcage(coils, height, width, radius, torch.complex128)
    assert maps.shape == (1, coils, height, width)
    np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-12)
    assert birdcage(coils, height, width).dtype == torch.complex64


def test_supplied_maps_are_made_unit_where_they_say_something_and_0_elsewhere(pick: random.Random) -> None:
    """ESPIRiT's: 0 outside the object, about normalised inside, and at its rim as faint as noise."""
    g = torch.Generator().manual_seed(pick.randrange(2**31))
    about = unit_maps(torch.randn(2, 4, 9, 8, generator=g, dtype=torch.complex128))
    about = about * (0.9 + 0.2 * torch.rand(2, 1, 9, 8, generator=g, dtype=torch.float64))
    about[:, :, :3] = 0
    about[:, :, 3] *= 0.1 * SUPPORT
    maps = unit_maps(about)
    assert torch.equal(maps[:, :, :4], torch.zeros_like(maps[:, :, :4]))
    rss = maps.abs().square().sum(1).sqrt()
    torch.testing.assert_close(rss[:, 4:], torch.ones_like(rss[:, 4:]))
    torch.testing.assert_close(maps[:, :, 4:].angle(), about[:, :, 4:].angle())
    torch.testing.assert_close(unit_maps(1e-7 * about), maps)  # whatever their scale


def test_maps_that_say_nothing_are_refused() -> None:
    maps = torch.ones(2, 3, 4, 4, dtype=torch.complex64)
    for wrong, says in (
        (maps * torch.tensor([1, 0])[:, None, None, None], "are 0 everywhere"),
        (maps * float("inf"), "NaN or infinite"),
    ):
        with pytest.raises(DataError, match=f"coil maps: .*{says}"):
            unit_maps(wrong)


def holds_centre(mask_W: torch.Tensor) -> bool:
    return bool(mask_W[len(mask_W) // 2])


def test_an_equispaced_mask_keeps_every_rth_line_and_the_middle(pick: random.Random) -> None:
    for _ in range(50):
        width, R = pick.randint(4, 70), pick.randint(1, 4)
        offset, acs = pick.randrange(R), pick.randint(0, width)
        print(width, R, offset, acs)
        mask = equispaced(width, R, acs, offset).tolist()
        for n, kept in enumerate(mask):
            in_middle = -(acs // 2) <= n - width // 2 < acs - acs // 2
            assert kept == (n % R == offset or in_middle)
        assert holds_centre(equispaced(width, R, offset=offset)) == (width // 2 % R == offset)
        assert holds_centre(equispaced(width, R, offset=None))
        assert sum(equispaced(width, R, offset=None).tolist()) in (width // R, -(-width // R))
        assert acs == 0 or holds_centre(equispaced(width, R, acs, offset))


def test_random_lines_are_as_many_as_asked_with_the_middle_and_the_rest_alike(pick: random.Random) -> None:
    width, R, acs = pick.randint(20, 40), pick.uniform(1, 4), pick.randint(0, 5)
    g = torch.Generator().manual_seed(pick.randrange(2**31))
    masks = torch.stack([random_lines(width, R, acs, g) for _ in range(2000)])
    print(width, R, acs)
    assert (masks.sum(1) == round(width / R)).all()
    share = masks.double().mean(0)
    middle = torch.zeros(width, dtype=torch.bool)
    middle[width // 2 - acs // 2 : width // 2 - acs // 2 + acs] = True
    assert (share[middle] == 1).all()
    expected = (round(width / R) - acs) / (width - acs)
    assert (share[~middle] - expected).abs().max() <= 6 * (expected * (1 - expected) / 2000) ** 0.5
    one, two = (random_lines(width, R, acs, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: birdcage(0, 8, 8), "coils=0"),
        (lambda: birdcage(4, 8, 8, 1.0), "radius=1.0"),
        (lambda: equispaced(16, 0), "acceleration=0"),
        (lambda: equispaced(16, 17), "acceleration=17"),
        (lambda: equispaced(16, 4, offset=4), "offset=4"),
        (lambda: equispaced(16, 4, acs=17), "acs=17"),
        (lambda: equispaced(16, 4, acs=-1), "acs=-1"),
        (lambda: random_lines(16, 0.5, 0, torch.Generator()), "acceleration=0.5"),
        (lambda: random_lines(16, 4, 5, torch.Generator()), "acs=5: must be at most 4"),
    ],
)
def test_what_no_scanner_does_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
