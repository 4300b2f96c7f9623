import random

import pytest
import torch

from shared.diffusion.fourier import fft2c, ifft2c


def drawn(parity: tuple[int, int]) -> tuple[torch.Generator, int, int]:
    """A seed and a size, printed where a test fails; parity 1 is odd."""
    seed = random.SystemRandom().randrange(2**31)
    pick = random.Random(seed)
    height, width = (2 * pick.randint(1, 9) + odd for odd in parity)
    print(f"seed {seed}: {height} x {width}")
    return torch.Generator().manual_seed(seed), height, width


@pytest.mark.parametrize("parity", [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_the_transform_is_unitary_with_its_zero_frequency_in_the_middle(parity: tuple[int, int]) -> None:
    g, H, W = drawn(parity)
    x, y = torch.randn(2, 3, H, W, generator=g, dtype=torch.complex128)
    torch.testing.assert_close(ifft2c(fft2c(x)), x)
    torch.testing.assert_close(fft2c(ifft2c(x)), x)
    torch.testing.assert_close((fft2c(x).conj() * y).sum(), (x.conj() * ifft2c(y)).sum())
    torch.testing.assert_close(fft2c(x)[:, H // 2, W // 2], x.sum((1, 2)) / (H * W) ** 0.5)


@pytest.mark.parametrize("parity", [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_the_origin_of_an_image_is_its_middle_pixel(parity: tuple[int, int]) -> None:
    """The other half of centring: a point there has no phase anywhere, and swapped shifts would give it one."""
    _, H, W = drawn(parity)
    point = torch.zeros(H, W, dtype=torch.float64)
    point[H // 2, W // 2] = 1
    torch.testing.assert_close(fft2c(point), torch.full((H, W), (H * W) ** -0.5, dtype=torch.complex128))


def test_it_is_the_sum_that_defines_it() -> None:
    g, H, W = drawn((1, 0))
    x = torch.randn(H, W, generator=g, dtype=torch.complex128)
    along = [
        torch.polar(
            torch.full((n, n), n**-0.5, dtype=torch.float64),
            -2 * torch.pi / n * torch.outer(torch.arange(n) - n // 2, torch.arange(n) - n // 2).double(),
        )
        for n in (H, W)
    ]
    torch.testing.assert_close(fft2c(x), along[0] @ x @ along[1].T)
