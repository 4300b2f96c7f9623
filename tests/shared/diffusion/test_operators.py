"""Every operator keeps the laws of docs/methods/reconstruction.md, at sizes and values drawn when the test runs."""

import dataclasses
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.model.draws import C128, F64, B, Draw, mri_lines, mri_placed_each, mri_points_each
from support.model.operators import GaussianBlur, SuperResolution
from torch import Tensor

from shared.base.errors import ConfigError, DataError
from shared.diffusion.operators import (
    CartesianMRI,
    Measured,
    Operator,
    Place,
    clean,
    measured,
    simulate,
)


def mri_lines_each(d: Draw) -> CartesianMRI:
    return CartesianMRI(maps_BCHW=d.maps(1, d.H, d.W), mask=d.mask(B, 1, d.W), sigma=0.1)


def mri_whole(d: Draw) -> CartesianMRI:
    return CartesianMRI(maps_BCHW=d.maps(1, d.H, d.W), mask=torch.ones(d.W, dtype=torch.bool), sigma=0.1)


def mri_espirit(d: Draw) -> CartesianMRI:
    """Supplied maps: 0 outside an object, and there about normalised, as they are."""
    inside = torch.rand(1, 1, d.H, d.W, generator=d.g) < 0.6
    maps = torch.where(inside, d.maps(1, d.H, d.W) * (1 - 0.02 * torch.rand(d.H, d.W, generator=d.g)), 0)
    return CartesianMRI(maps_BCHW=maps, mask=d.mask(1, d.H, d.W), sigma=0.1)


def mri_placed(d: Draw) -> CartesianMRI:
    H, W = d.H + 5, d.W + 2
    place = Place(rows=d.normal(H, d.H), columns=d.normal(W, d.W))
    return CartesianMRI(maps_BCHW=d.maps(1, H, W), mask=d.mask(W), sigma=0.1, placement=place)


def super_resolution(d: Draw) -> SuperResolution:
    d.H, d.W = d.H * d.factor, d.W * d.factor
    return SuperResolution(factor=d.factor, sigma=0.1)


def blur(d: Draw) -> GaussianBlur:
    return GaussianBlur(sd=d.sd, sigma=0.1)


OPERATORS: Mapping[str, Callable[[Draw], Any]] = {
    f.__name__: f
    for f in (
        mri_lines,
        mri_lines_each,
        mri_points_each,
        mri_whole,
        mri_espirit,
        mri_placed,
        mri_placed_each,
        super_resolution,
        blur,
    )
}
PARITIES = [(0, 0), (1, 1), (0, 1), (1, 0)]
every = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)


@pytest.fixture(params=PARITIES, ids=["even", "odd", "even-odd", "odd-even"])
def draw(request: pytest.FixtureRequest) -> Draw:
    return Draw(request.param)


# --- the laws ---------------------------------------------------------------------------------------------------------


@every
def test_the_adjoint_is_an_adjoint(draw: Draw, make: Callable[[Draw], Any]) -> None:
    operator = make(draw)
    x = draw.normal(B, draw.H, draw.W)
    y = torch.randn_like(operator.forward(x))  # complex or real
    ahead, back = (operator.forward(x).conj() * y).real.sum((-1, -2)), x * operator.adjoint(y)
    ahead, back = ahead.reshape(B, -1).sum(1), back.sum((1, 2))
    assert operator.adjoint(y).dtype == F64
    assert ((ahead - back).abs() < 1e-10 * (1 + ahead.abs())).all(), (ahead, back)


@every
def test_an_operator_is_linear_and_real(draw: Draw, make: Callable[[Draw], Any]) -> None:
    operator = make(draw)
    x, z = draw.normal(2, B, draw.H, draw.W)
    torch.testing.assert_close(operator.forward(2 * x - z), 2 * operator.forward(x) - operator.forward(z))
    assert not operator.forward(0 * x).abs().any()


@every
def test_normal_is_the_adjoint_of_forward(draw: Draw, make: Callable[[Draw], Any]) -> None:
    operator = make(draw)
    x = draw.normal(B, draw.H, draw.W)
    torch.testing.assert_close(operator.normal(x), operator.adjoint(operator.forward(x)), rtol=1e-10, atol=1e-10)


def dense(operator: Operator, H: int, W: int) -> Tensor:
    """A^T A as a matrix, for an operator that serves any batch."""
    return operator.normal(torch.eye(H * W, dtype=F64).reshape(-1, H, W)).flatten(1)


@pytest.mark.parametrize("make", [mri_lines, mri_whole, mri_espirit, super_resolution, blur])
def test_the_normal_operator_is_symmetric_and_between_0_and_1(draw: Draw, make: Callable[[Draw], Any]) -> None:
    matrix = dense(make(draw), draw.H, draw.W)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert eigenvalues.max() <= 1 + 1e-12
    assert eigenvalues.min() >= -1e-12
    assert eigenvalues.max() > 0.01  # it is not nothing that is between


def test_a_whole_kspace_with_unit_maps_is_the_identity(draw: Draw) -> None:
    x = draw.normal(B, draw.H, draw.W)
    torch.testing.assert_close(mri_whole(draw).normal(x), x)


@pytest.mark.parametrize("make", [mri_lines, mri_lines_each, mri_points_each])
def test_masking_twice_is_masking_once(draw: Draw, make: Callable[[Draw], CartesianMRI]) -> None:
    operator = make(draw)
    y = draw.normal(B, draw.coils, draw.H, draw.W, dtype=C128)
    once = operator.sampled(y)
    assert torch.equal(operator.sampled(once), once)
    mask = operator.mask.reshape(-1, 1, operator.mask.shape[-2] if operator.mask.ndim == 3 else 1, draw.W)
    mask = mask.expand(B, draw.coils, draw.H, draw.W)
    assert torch.equal(once[mask], y[mask])
    assert not once[~mask].abs().any()
    seen = operator.forward(draw.normal(B, draw.H, draw.W))
    assert torch.equal(operator.sampled(seen), seen)


def test_forward_is_coil_maps_then_transform_then_mask(one: Draw) -> None:
    """Written out sample by sample, coil by coil, with sums for the transform."""
    operator = mri_points_each(one)
    x = one.normal(B, one.H, one.W)
    waves = [
        np.exp(-2j * np.pi / n * np.outer(np.arange(n) - n // 2, np.arange(n) - n // 2)) / n**0.5
        for n in (one.H, one.W)
    ]
    y = operator.forward(x).numpy()
    for b in range(B):
        for c in range(one.coils):
            kspace = waves[0] @ (operator.maps_BCHW[b, c].numpy() * x[b].numpy()) @ waves[1].T
            np.testing.assert_allclose(y[b, c], np.where(operator.mask[b].numpy(), kspace, 0), atol=1e-12)


def test_the_mean_of_an_image_lies_at_the_middle_of_kspace(draw: Draw) -> None:
    mask = torch.zeros(draw.W, dtype=torch.bool)
    mask[draw.W // 2] = True
    operator = CartesianMRI(maps_BCHW=torch.ones(1, 1, draw.H, draw.W, dtype=C128), mask=mask)
    y = operator.forward(torch.full((1, draw.H, draw.W), 0.7, dtype=F64))
    assert y[0, 0, draw.H // 2, draw.W // 2].item() == pytest.approx(0.7 * (draw.H * draw.W) ** 0.5)
    assert y.abs().square().sum().item() == pytest.approx(0.49 * draw.H * draw.W)


@every
def test_one_sample_of_the_batch_has_its_own_parts(draw: Draw, make: Callable[[Draw], Any]) -> None:
    operator = make(draw)
    x = draw.normal(B, draw.H, draw.W)
    y = operator.forward(x)
    for index in ([1], [2, 0], [1, 1, 2, 0]):
        chosen = operator.at(index)
        torch.testing.assert_close(chosen.forward(x[index]), y[index])
        torch.testing.assert_close(chosen.adjoint(y[index]), operator.adjoint(y)[index])
        sigma = operator.sigma[index] if isinstance(operator.sigma, Tensor) else operator.sigma
        torch.testing.assert_close(chosen.sigma, sigma)


@every
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))],
)
def test_an_operator_moves_whole(one: Draw, make: Callable[[Draw], Any], device: str) -> None:
    operator = make(one)
    x = one.normal(B, one.H, one.W)
    moved = operator.to(device)
    torch.testing.assert_close(moved.normal(x.to(device)).cpu(), operator.normal(x))
    known = measured(operator.forward(x), operator, 2.0).to(device)
    assert known.y is not None
    assert known.operator is not None
    assert known.y.device.type == known.operator.forward(x.to(device)).device.type == device


def single(value: Any) -> Any:
    """The same operator in fp32."""
    if isinstance(value, Tensor):
        return (
            value.to(torch.complex64) if value.is_complex() else value.float() if value.is_floating_point() else value
        )
    if isinstance(value, CartesianMRI | Place):
        parts = {f.name: single(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value)(**parts)
    return value


@every
def test_fp32_stays_fp32_and_autocast_changes_no_bit(one: Draw, make: Callable[[Draw], Any]) -> None:
    operator = make(one)
    x = one.normal(B, one.H, one.W)
    exact = operator.forward(x)
    operator, x = single(operator), x.float()
    y, image = operator.forward(x), operator.normal(x)
    assert (y.dtype, image.dtype) == (torch.complex64 if y.is_complex() else torch.float32, torch.float32)
    torch.testing.assert_close(y.to(exact.dtype), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(operator.forward(x), y)
        assert torch.equal(operator.adjoint(y), operator.adjoint(y.clone()))
        assert torch.equal(operator.normal(x), image)
    assert operator.forward(x.bfloat16()).dtype == y.dtype  # what an autocast network hands over


@every
def test_gradients_pass_through_it(one: Draw, make: Callable[[Draw], Any]) -> None:
    """MPS lives on this: d/dx 1/2 |y - A x|^2 = A^T (A x - y)."""
    operator = make(one)
    x = one.normal(B, one.H, one.W).requires_grad_()
    y = torch.randn_like(operator.forward(x.detach()))
    y = operator.sampled(y) if isinstance(operator, CartesianMRI) else y
    residual = operator.forward(x) - y
    (gradient,) = torch.autograd.grad(0.5 * (residual * residual.conj()).real.sum(), x)
    torch.testing.assert_close(gradient, operator.adjoint(residual.detach()))


# --- the noise --------------------------------------------------------------------------------------------------------


def test_the_noise_is_sigma_per_sample_of_kspace_and_half_its_variance_in_each_part() -> None:
    d = Draw((0, 0))
    d.H = d.W = 64
    sigma = random.Random(d.seed).uniform(0.01, 3)
    operator = CartesianMRI(maps_BCHW=d.maps(1, 64, 64), mask=d.mask(64), sigma=sigma)
    y = simulate(operator, torch.zeros(B, 64, 64, dtype=F64), d.g)[..., operator.mask]
    n = y.numel()
    assert y.abs().square().mean().sqrt().item() == pytest.approx(sigma, rel=5 / n**0.5)
    assert y.real.std().item() == pytest.approx(sigma / 2**0.5, rel=5 / (2 * n) ** 0.5)
    assert y.imag.std().item() == pytest.approx(sigma / 2**0.5, rel=5 / (2 * n) ** 0.5)
    assert abs((y.real * y.imag).mean().item()) < 5 * sigma**2 / 2 / n**0.5
    image = simulate(GaussianBlur(sd=1.0, sigma=sigma), torch.zeros(B, 64, 64, dtype=F64), d.g)
    assert image.std().item() == pytest.approx(sigma, rel=5 / (2 * image.numel()) ** 0.5)


def test_a_seed_gives_the_same_noise_whatever_the_mask_and_none_where_nothing_is_measured(one: Draw) -> None:
    maps, x = one.maps(1, one.H, one.W), one.normal(B, one.H, one.W)
    few = CartesianMRI(maps_BCHW=maps, mask=one.mask(one.W), sigma=0.3)
    all_ = CartesianMRI(maps_BCHW=maps, mask=torch.ones(one.W, dtype=torch.bool), sigma=0.3)
    y, whole = (simulate(operator, x, torch.Generator().manual_seed(one.seed)) for operator in (few, all_))
    assert torch.equal(y, few.sampled(whole))
    assert not torch.equal(y, few.forward(x))


def test_a_sample_with_its_own_generator_has_its_own_noise_and_its_own_sd(one: Draw) -> None:
    operator = mri_placed_each(one)
    x = one.normal(B, one.H, one.W)
    seeds = [torch.Generator().manual_seed(one.seed + b) for b in range(B)]
    y = simulate(operator, x, seeds)
    alone = simulate(operator.at([1]), x[[1]], [torch.Generator().manual_seed(one.seed + 1)])
    torch.testing.assert_close(alone, y[[1]])


@every
@pytest.mark.parametrize("each", [False, True], ids=["one scale", "a scale each"])
def test_a_measurement_in_physical_units_is_told_on_the_networks_scale(
    one: Draw, make: Callable[[Draw], Any], each: bool
) -> None:
    operator = make(one)
    scale: float | Tensor = 0.1 + 100 * torch.rand(B, generator=one.g, dtype=F64) if each else 37.5
    scale_B11 = torch.as_tensor(scale, dtype=F64).reshape(-1, 1, 1)
    x = 2 * torch.rand(B, one.H, one.W, generator=one.g, dtype=F64) - 1
    physical = (x + 1) / 2 * scale_B11
    exact = measured(operator.forward(physical), operator, scale)
    assert exact.y is not None
    assert exact.operator is not None
    torch.testing.assert_close(exact.y, exact.operator.forward(x))

    y = simulate(operator, physical, torch.Generator().manual_seed(one.seed))
    noisy = measured(y, operator, scale)
    assert noisy.y is not None
    noise = (y - operator.forward(physical)).reshape(B, -1) * 2 / scale_B11[:, 0]
    torch.testing.assert_close((noisy.y - operator.forward(x)).reshape(B, -1), noise)
    assert noisy.operator is not None
    torch.testing.assert_close(
        torch.as_tensor(noisy.operator.sigma, dtype=F64).expand(B),
        (2 / scale_B11[:, 0, 0] * torch.as_tensor(operator.sigma, dtype=F64)).expand(B),
    )


# --- super-resolution and blur ----------------------------------------------------------------------------------------


def test_super_resolution_sees_means_of_blocks(one: Draw) -> None:
    operator = super_resolution(one)
    x, f = one.normal(B, one.H, one.W), one.factor
    y = operator.forward(x)
    for b, i, j in np.ndindex(*y.shape):
        assert y[b, i, j].item() == pytest.approx(x[b, i * f : (i + 1) * f, j * f : (j + 1) * f].mean().item())


def test_the_blur_is_a_gaussian_with_nothing_beyond_the_border(one: Draw) -> None:
    x = one.normal(B, one.H, one.W)
    expected = ndimage.gaussian_filter(x.numpy(), (0, one.sd, one.sd), mode="constant", truncate=9)
    np.testing.assert_allclose(GaussianBlur(sd=one.sd).forward(x).numpy(), expected, atol=1e-7)


# --- what is refused --------------------------------------------------------------------------------------------------


def parts(d: Draw) -> dict[str, Any]:
    return {"maps_BCHW": d.maps(1, d.H, d.W), "mask": d.mask(d.W)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: {"mask": p["mask"][1:]}, r"mask of shape \(\d+,\): must be"),
        (lambda p: {"mask": p["mask"][None]}, "mask of shape"),
        (lambda p: {"mask": p["mask"].expand(1, 2, -1)}, "mask of shape"),
        (lambda p: {"mask": p["mask"].float()}, "mask of torch.float32: must be of bool"),
        (lambda p: {"mask": p["mask"] & False}, "mask: leaves no sample"),
        (lambda p: {"mask": torch.stack([p["mask"], p["mask"] & False])[:, None]}, "mask: leaves no sample"),
        (lambda p: {"maps_BCHW": p["maps_BCHW"].real}, "coil maps of torch.float64"),
        (lambda p: {"maps_BCHW": p["maps_BCHW"][0]}, "coil maps of .* must be complex, with axes"),
        (lambda p: {"maps_BCHW": p["maps_BCHW"] * torch.tensor(float("nan"))}, "coil maps: holds .* NaN"),
        (
            lambda p: {"maps_BCHW": p["maps_BCHW"].expand(2, -1, -1, -1), "mask": p["mask"].expand(3, 1, -1)},
            r"samples.*\[2, 3\]",
        ),
        (lambda p: {"placement": Place(rows=torch.eye(3), columns=torch.eye(3))}, "placement in a field of view"),
    ],
)
def test_parts_that_do_not_fit_are_refused(one: Draw, change: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        CartesianMRI(**{**parts(one), **change(parts(one))})
    assert "\n" not in str(error.value)


def test_kspace_that_does_not_fit_is_refused(one: Draw) -> None:
    operator = mri_points_each(one)
    y = operator.forward(one.normal(B, one.H, one.W))
    for wrong in (y[:, :, :-1], y[:, :, :, 1:], y[:2], y[0], torch.cat([y, y], dim=1)):
        with pytest.raises(DataError, match=r"k-space of shape \(.*\): must be \(3, "):
            measured(wrong, operator, 1.0)
    with pytest.raises(DataError, match=r"k-space of torch.float64: must be complex"):
        measured(y.real, operator, 1.0)


@pytest.mark.parametrize("value", [complex("nan"), complex(0, math.inf)])
def test_a_broken_value_in_kspace_is_refused(one: Draw, value: complex) -> None:
    """Where the mask leaves it out, too: whoever wrote the file did not mean it."""
    operator = mri_lines(one)
    y = operator.forward(one.normal(B, one.H, one.W))
    y[1, 0, 2, 3] = value
    with pytest.raises(DataError, match=f"measurement: holds 1 NaN or infinite values of {y.numel()}"):
        measured(y, operator, 1.0)
    with pytest.raises(DataError, match="image: holds 1 NaN"):
        clean(torch.full((1, 1), float("nan")))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, torch.tensor([1.0, 0.0, 1.0]), torch.ones(2)])
def test_a_scale_that_is_none_is_refused(one: Draw, scale: float | Tensor) -> None:
    operator = mri_lines(one)
    with pytest.raises(DataError, match=r"scale .*must be"):
        measured(operator.forward(one.normal(B, one.H, one.W)), operator, scale)


def test_what_does_not_divide_or_is_no_width_is_refused() -> None:
    for shape in ((9, 8), (8, 9)):
        with pytest.raises(DataError, match=r"image of shape .*: must divide by the factor 2"):
            SuperResolution(factor=2).forward(torch.zeros(1, *shape))
    with pytest.raises(ConfigError, match="factor=0"):
        SuperResolution(factor=0)
    for sd in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="sd="):
            GaussianBlur(sd=sd)


def test_a_measurement_is_one_of_three_kinds() -> None:
    with pytest.raises(AssertionError):
        Measured("clean")
    with pytest.raises(AssertionError):
        Measured("linear", torch.zeros(1, 2, 2))
    with pytest.raises(AssertionError):
        Measured("none", torch.zeros(1, 2, 2))
