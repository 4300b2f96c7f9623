"""Reconstructions without a prior keep the laws that define them, on images and scans drawn when the test runs."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import optimize
from support.model.operators import GaussianBlur, SuperResolution
from torch import Tensor
from torch.nn import functional as F

from shared.base.errors import ConfigError, DataError
from shared.diffusion.acquisition import birdcage, equispaced, unit_maps
from shared.diffusion.operators import CartesianMRI, Operator, Place, simulate
from shared.methods.baselines.reconstruction import (
    cg_sense,
    gradient,
    gradient_adjoint,
    largest,
    total_variation,
    zero_filled,
)
from shared.model.metrics import psnr

pytestmark = pytest.mark.slow  # left out of `make fast`

F64, C128 = torch.float64, torch.complex128


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return seed


def ellipses(seed: int, side: int = 24, batch: int = 2) -> Tensor:
    """Piecewise constant images in [0, 1], dark outside."""
    pick = random.Random(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = torch.zeros(batch, side, side, dtype=F64)
    for image in images:
        for k in range(6):
            cy, cx = (side / 2 + pick.uniform(-1, 1) * side / 5 * (k > 0) for _ in range(2))
            ry, rx = (side * (pick.uniform(0.06, 0.2) if k else pick.uniform(0.35, 0.45)) for _ in range(2))
            image[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = pick.uniform(0.1, 1)
    return images


def scan(side: int = 24, acceleration: int = 4, acs: int = 0, sigma: float = 0.0, coils: int = 4) -> CartesianMRI:
    mask = equispaced(side, acceleration, acs, offset=None)
    return CartesianMRI(maps_BCHW=birdcage(coils, side, side, dtype=C128), mask=mask, sigma=sigma)


def objective(x: Tensor, y: Tensor, operator: Operator, strength: float) -> Tensor:
    """What TV minimises, written out."""
    down, across = F.pad(x.diff(dim=1), (0, 0, 0, 1)), F.pad(x.diff(dim=2), (0, 1))
    misfit = (operator.forward(x) - y).abs().square().flatten(1).sum(1)
    return 0.5 * misfit + strength * (down.square() + across.square()).sqrt().sum((1, 2))


ALL: dict[str, Callable[[Tensor, Operator], Tensor]] = {
    "zero_filled": zero_filled,
    "cg_sense": lambda y, operator: cg_sense(y, operator, strength=0, iterations=100),
    "total_variation": lambda y, operator: total_variation(y, operator, strength=0, iterations=30),
}
all_of_them = pytest.mark.parametrize("reconstruct", ALL.values(), ids=ALL)


# --- laws of all ------------------------------------------------------------------------------------------------------


@all_of_them
def test_a_whole_noiseless_kspace_gives_the_image_back(
    seed: int, reconstruct: Callable[[Tensor, Operator], Tensor]
) -> None:
    x, operator = ellipses(seed), scan(acceleration=1)
    torch.testing.assert_close(reconstruct(operator.forward(x), operator), x, rtol=0, atol=1e-6)


@all_of_them
def test_supplied_maps_give_the_image_back_where_they_see_it_and_0_elsewhere(
    seed: int, reconstruct: Callable[[Tensor, Operator], Tensor]
) -> None:
    x = ellipses(seed)
    seen = (x > 0)[:1]
    maps = unit_maps(torch.where(seen[:, None], 0.98 * birdcage(4, 24, 24, dtype=C128), 0))
    operator = CartesianMRI(maps_BCHW=maps, mask=torch.ones(24, dtype=torch.bool))
    expected = torch.where(seen, x, 0)
    torch.testing.assert_close(reconstruct(operator.forward(x), operator), expected, rtol=0, atol=1e-6)


@all_of_them
def test_they_are_real_and_never_negative_and_in_the_units_of_the_image(
    seed: int, reconstruct: Callable[[Tensor, Operator], Tensor]
) -> None:
    operator = scan(sigma=0.3)
    y = simulate(operator, ellipses(seed), torch.Generator().manual_seed(seed))
    image = reconstruct(y, operator)
    assert image.dtype == F64
    assert image.min() == 0  # the noise would go below
    torch.testing.assert_close(reconstruct(256.0 * y, operator), 256.0 * image, rtol=1e-5, atol=1e-3)


@all_of_them
def test_a_sample_is_reconstructed_as_if_it_were_alone(
    seed: int, reconstruct: Callable[[Tensor, Operator], Tensor]
) -> None:
    x = ellipses(seed, batch=3) * torch.tensor([1.0, 1e-3, 1e3], dtype=F64)[:, None, None]
    operator = scan()
    y = operator.forward(x)
    together = reconstruct(y, operator)
    for b in range(3):
        alone = reconstruct(y[[b]], operator)[0]
        torch.testing.assert_close(together[b], alone, rtol=0, atol=1e-5 * x[b].max().item())


@all_of_them
def test_fp32_gives_what_fp64_does(seed: int, reconstruct: Callable[[Tensor, Operator], Tensor]) -> None:
    x, operator = ellipses(seed), scan(acs=8)
    single = CartesianMRI(maps_BCHW=operator.maps_BCHW.to(torch.complex64), mask=operator.mask)
    y = operator.forward(x)
    image = reconstruct(y.to(torch.complex64), single)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image.double(), reconstruct(y, operator), rtol=0, atol=2e-3)


@all_of_them
def test_nothing_measured_but_0_gives_0(reconstruct: Callable[[Tensor, Operator], Tensor]) -> None:
    operator = scan()
    zero = torch.zeros(2, 24, 24, dtype=F64)
    assert torch.equal(reconstruct(operator.forward(zero), operator), zero)


@all_of_them
def test_raw_data_that_are_no_numbers_are_refused(reconstruct: Callable[[Tensor, Operator], Tensor]) -> None:
    operator = scan()
    y = operator.forward(ellipses(1))
    y[0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="measurement: holds 1 NaN or infinite value"):
        reconstruct(y, operator)
    with pytest.raises(DataError, match="k-space of shape"):
        reconstruct(y[:, 1:], operator)


# --- each its own -----------------------------------------------------------------------------------------------------


def test_zero_filled_is_the_adjoint_on_the_images_own_grid(seed: int) -> None:
    operator = scan(sigma=0.05)
    y = simulate(operator, ellipses(seed), torch.Generator().manual_seed(seed))
    torch.testing.assert_close(zero_filled(y, operator), operator.adjoint(y).clamp(min=0))


def test_zero_filled_keeps_the_brightness_of_a_plain_image_on_any_grid(seed: int) -> None:
    """Where an adjoint alone is too bright or too dark: between two grids, and from fewer pixels."""
    fine = torch.linspace(0, 23, 31, dtype=F64)
    weights = (1 - (fine[:, None] - torch.arange(24)).abs()).clamp(min=0)  # linear interpolation
    place = Place(rows=weights, columns=weights)
    whole = CartesianMRI(
        maps_BCHW=birdcage(4, 31, 31, dtype=C128), mask=torch.ones(31, dtype=torch.bool), placement=place
    )
    plain = torch.full((2, 24, 24), random.Random(seed).uniform(0.1, 5), dtype=F64)
    for operator in (whole, SuperResolution(factor=3)):
        torch.testing.assert_close(zero_filled(operator.forward(plain), operator), plain)


def test_cg_sense_is_the_tikhonov_solution(seed: int) -> None:
    operator, strength = scan(12, 3, sigma=0.1), random.Random(seed).uniform(0.01, 1)
    y = simulate(operator, ellipses(seed, 12) + 1, torch.Generator().manual_seed(seed))
    eye = torch.eye(144, dtype=F64)
    matrix = operator.normal(eye.reshape(-1, 12, 12)).flatten(1) + strength * eye
    exact = torch.linalg.solve(matrix, operator.adjoint(y).flatten(1).T).T.reshape(2, 12, 12).clamp(min=0)
    found = cg_sense(y, operator, strength=strength, iterations=300)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_cg_sense_unfolds_what_its_coils_can_tell_apart(seed: int) -> None:
    """R = 2 with 8 coils is solved by the data alone; more strength pulls the image to 0."""
    x, operator = ellipses(seed), scan(acceleration=2, coils=8)
    y = operator.forward(x)
    quality = [psnr(cg_sense(y, operator, strength=s, iterations=300), x, x >= 0) for s in (0.0, 1e-3, 1e-1, 10.0)]
    assert quality[0] > 45
    assert quality == sorted(quality, reverse=True)
    assert psnr(zero_filled(y, operator), x, x >= 0) < quality[0] - 15
    huge = cg_sense(y, operator, strength=1e9, iterations=300)
    assert huge.max() < 1e-6


def test_total_variation_never_raises_its_objective_and_reaches_its_least(seed: int) -> None:
    """Against any other image: the truth, the floors, and its own neighbours."""
    operator = scan(16, sigma=0.02)
    x = ellipses(seed, 16)
    y = simulate(operator, x, torch.Generator().manual_seed(seed))
    strength = random.Random(seed).uniform(1e-3, 1e-2)
    path = torch.stack(
        [
            objective(total_variation(y, operator, strength=strength, iterations=n), y, operator, strength)
            for n in (1, 3, 10, 20, 40, 160)
        ]
    )
    assert bool((path.diff(dim=0) <= 1e-9 * path[0]).all()), path
    best = total_variation(y, operator, strength=strength, iterations=160)
    least = objective(best, y, operator, strength)
    assert bool((path[-2] - least <= 0.05 * least).all()), path  # 40 iterations are near it
    others = [x, zero_filled(y, operator), cg_sense(y, operator, strength=1e-2, iterations=50), 0.99 * best]
    g = torch.Generator().manual_seed(seed)
    others += [(best + 0.02 * torch.randn(best.shape, generator=g, dtype=F64)).clamp(min=0) for _ in range(5)]
    for other in others:
        assert bool((least <= objective(other, y, operator, strength) * (1 + 1e-4)).all())


def test_total_variation_is_the_minimum_that_a_plain_search_finds(seed: int) -> None:
    """Four pixels through an identity: lengths of gradients, not sums of their parts."""
    pick = random.Random(seed)
    identity, strength = GaussianBlur(sd=0.05), pick.uniform(0.05, 0.15)
    y = torch.tensor([pick.uniform(0.2, 1) for _ in range(4)], dtype=F64).reshape(1, 2, 2)

    def cost(x: NDArray[np.float64]) -> float:
        return objective(torch.from_numpy(x).reshape(1, 2, 2), y, identity, strength).item()

    search = optimize.minimize(
        cost, y.flatten().numpy(), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000}
    )
    found = total_variation(y, identity, strength=strength, iterations=60)
    assert objective(found, y, identity, strength).item() <= search.fun + 1e-7


def test_total_variation_never_oscillates(seed: int) -> None:
    """Momentum alone would: without the M of MFISTA the objective rises and falls where the problem is easy."""
    operator, x = scan(10, acceleration=2, coils=6, sigma=0.05), ellipses(seed, 10)
    y = simulate(operator, x, torch.Generator().manual_seed(seed))
    path = torch.stack(
        [objective(total_variation(y, operator, strength=1e-3, iterations=n), y, operator, 1e-3) for n in range(1, 31)]
    )
    assert bool((path.diff(dim=0) <= 1e-12 * path[0]).all()), path


def test_total_variation_beats_the_other_two_on_a_piecewise_constant_image(seed: int) -> None:
    operator = scan(32, acs=6, sigma=0.02, coils=6)
    x = ellipses(seed, 32)
    y = simulate(operator, x, torch.Generator().manual_seed(seed))
    tv = psnr(total_variation(y, operator, strength=3e-3, iterations=100), x, x >= 0)
    sense = max(psnr(cg_sense(y, operator, strength=s, iterations=100), x, x >= 0) for s in (1e-3, 1e-2, 1e-1))
    plain = psnr(zero_filled(y, operator), x, x >= 0)
    print(plain, sense, tv)
    assert tv > plain + 3
    assert tv > sense + 1


def test_total_variation_without_strength_is_least_squares_and_with_all_of_it_flat(seed: int) -> None:
    operator, x = scan(16, acceleration=2, coils=8), ellipses(seed, 16)
    y = operator.forward(x)
    nearly = total_variation(y, operator, strength=1e-9, iterations=60)
    torch.testing.assert_close(nearly, total_variation(y, operator, strength=0, iterations=60), rtol=0, atol=1e-5)
    assert psnr(nearly, x, x >= 0) > 40
    flat = total_variation(y, operator, strength=1e4, iterations=60)
    assert (flat - flat.mean((1, 2), keepdim=True)).abs().max() < 1e-2


def test_total_variation_of_c_times_the_data_is_c_times_the_image(seed: int) -> None:
    operator = scan(sigma=0.02)
    y = simulate(operator, ellipses(seed), torch.Generator().manual_seed(seed))
    one = total_variation(y, operator, strength=0.01, iterations=20)
    torch.testing.assert_close(total_variation(64 * y, operator, strength=0.64, iterations=20), 64 * one)


@pytest.mark.parametrize("operator", [GaussianBlur(sd=1.5, sigma=0.01), SuperResolution(factor=2, sigma=0.01)])
def test_they_take_any_operator(seed: int, operator: Operator) -> None:
    x = ellipses(seed)
    y = simulate(operator, x, torch.Generator().manual_seed(seed))
    plain, sense, tv = (
        psnr(image, x, x >= 0)
        for image in (
            zero_filled(y, operator),
            cg_sense(y, operator, strength=0.01, iterations=30),
            total_variation(y, operator, strength=2e-3, iterations=60),
        )
    )
    print(plain, sense, tv)
    assert tv > plain
    assert tv > sense


# --- parts ------------------------------------------------------------------------------------------------------------


def test_the_gradient_has_its_adjoint_and_its_norm_is_below_8(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, p = torch.randn(3, 7, 10, generator=g, dtype=F64), torch.randn(3, 2, 7, 10, generator=g, dtype=F64)
    ahead, back = (gradient(x) * p).sum((1, 2, 3)), (x * gradient_adjoint(p)).sum((1, 2))
    torch.testing.assert_close(ahead, back, rtol=1e-10, atol=1e-10)
    whole = gradient_adjoint(gradient(torch.eye(70, dtype=F64).reshape(-1, 7, 10))).flatten(1)
    assert torch.linalg.eigvalsh(whole).max() <= 8


def test_the_largest_eigenvalue_is_found_from_above(seed: int) -> None:
    """A step beyond it may diverge, so the estimate must not fall short."""
    pick = random.Random(seed)
    place = Place(rows=torch.eye(12, dtype=F64).repeat_interleave(pick.randint(1, 4), 0), columns=torch.eye(12))
    maps = birdcage(3, len(place.rows), 12, dtype=C128) * pick.uniform(0.1, 10)
    operators: list[Operator] = [
        scan(12, 3),
        CartesianMRI(maps_BCHW=maps, mask=equispaced(12, 2), placement=place),
        GaussianBlur(sd=pick.uniform(0.3, 4)),
        SuperResolution(factor=3),
    ]
    for operator in operators:
        whole = operator.normal(torch.eye(144, dtype=F64).reshape(-1, 12, 12)).flatten(1)
        exact = torch.linalg.eigvalsh(whole).max()
        found = largest(operator, torch.zeros(1, 12, 12, dtype=F64)).item()
        assert exact <= found <= 1.11 * exact, operator


def test_options_that_mean_nothing_are_refused() -> None:
    operator = scan()
    y = operator.forward(ellipses(1))
    for method in (cg_sense, total_variation):
        with pytest.raises(ConfigError, match="strength=-1"):
            method(y, operator, strength=-1, iterations=5)
        with pytest.raises(ConfigError, match="iterations=0"):
            method(y, operator, strength=1, iterations=0)
