"""Every sampler against a Gaussian whose score is known (docs/methods/diffusion.md): all are affine there."""

import random
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from shared.base.errors import ConfigError
from shared.diffusion.gaussian import Schedule, evenly, linear
from shared.diffusion.posterior import POSTERIORS
from shared.diffusion.samplers import SAMPLERS, Denoiser, Guess, Sampler, bridge_steps, draw

pytestmark = pytest.mark.slow  # left out of `make fast`

SCHEDULE = linear(1000)


class Gaussian:
    """x ~ N(mean, cov), of dimensions and values drawn when the test runs."""

    def __init__(self) -> None:
        self.seed = random.SystemRandom().randrange(2**31)
        g = torch.Generator().manual_seed(self.seed)
        self.dim = int(torch.randint(2, 6, (1,), generator=g))
        root = 0.3 * torch.randn(self.dim, self.dim, generator=g, dtype=torch.float64)
        self.mean = torch.randn(self.dim, generator=g, dtype=torch.float64)
        self.cov = root @ root.T + 0.05 * torch.eye(self.dim, dtype=torch.float64)
        self.heard: list[int] = []

    def denoiser(self, schedule: Schedule) -> Denoiser:
        def denoise(x: Tensor, t: int) -> Guess:
            self.heard.append(t)
            abar = schedule.abar_T[t]
            total = abar * self.cov + (1 - abar) * torch.eye(self.dim, dtype=torch.float64)
            eps = (1 - abar).sqrt() * torch.linalg.solve(total, (x - abar.sqrt() * self.mean).T).T
            return Guess((x - (1 - abar).sqrt() * eps) / abar.sqrt(), eps)

        return denoise


def moments(truth: Gaussian, options: Sampler, chains: int = 20_000) -> tuple[Tensor, Tensor]:
    """Exact by propagation where the sampler draws no noise of its own; else from many chains."""
    denoise = truth.denoiser(SCHEDULE)
    if options.kind != "ancestral" and options.eta == 0:
        eye = torch.eye(truth.dim, dtype=torch.float64)
        k = draw(denoise, SCHEDULE, 0 * eye[:1], options, None)
        K = draw(denoise, SCHEDULE, eye, options, None) - k
        return k[0], K.T @ K
    g = torch.Generator().manual_seed(truth.seed)
    x = torch.randn(chains, truth.dim, generator=g, dtype=torch.float64)
    x = draw(denoise, SCHEDULE, x, options, g)
    return x.mean(0), x.T.cov()


def error(truth: Gaussian, options: Sampler) -> tuple[float, float]:
    mean, cov = moments(truth, options)
    return (
        ((mean - truth.mean).norm() / truth.mean.norm()).item(),
        ((cov - truth.cov).norm() / truth.cov.norm()).item(),
    )


@pytest.mark.parametrize(
    ("options", "mean_within", "cov_within"),
    [
        (Sampler(kind="ancestral", steps=1000, clip=False), 0.05, 0.08),  # 20 000 chains: about 0.02 of noise
        (Sampler(kind="ancestral", steps=200, clip=False, variance="small"), 0.05, 0.18),
        (Sampler(kind="ddim", steps=1000, clip=False), 0.015, 0.03),
        (Sampler(kind="ddim", steps=200, eta=1.0, clip=False), 0.05, 0.18),
        (Sampler(kind="multistep", steps=20, clip=False), 0.015, 0.06),
        (Sampler(kind="multistep", steps=100, clip=False), 0.015, 0.01),
    ],
    ids=str,
)
def test_samplers_reach_a_gaussian(options: Sampler, mean_within: float, cov_within: float) -> None:
    truth = Gaussian()
    mean_error, cov_error = error(truth, options)
    assert mean_error < mean_within, truth.seed
    assert cov_error < cov_within, truth.seed


def test_mean_is_the_conditional_mean_of_a_gaussian() -> None:
    truth = Gaussian()
    x = torch.randn(3, truth.dim, dtype=torch.float64)
    out = draw(truth.denoiser(SCHEDULE), SCHEDULE, x, Sampler(kind="mean", clip=False), None)
    torch.testing.assert_close(out, truth.mean.expand_as(out), rtol=0, atol=1e-3)
    assert truth.heard == [999]


def test_an_ancestral_step_is_the_posterior_of_the_next() -> None:
    """One step, propagated by hand from Bayes' rule: no coefficient of the implementation is used."""
    truth = Gaussian()
    times = [700, 400]
    grid = SCHEDULE.grid(times)
    g = torch.Generator().manual_seed(truth.seed)
    x = torch.randn(40_000, truth.dim, generator=g, dtype=torch.float64)
    steps = Sampler(kind="ancestral", variance="small", clip=False)
    two = SAMPLERS["ancestral"](truth.denoiser(SCHEDULE), x[:1].expand(40_000, -1), grid, steps, g)
    a, b = (SCHEDULE.abar_T[t].item() for t in times)
    x0 = truth.denoiser(SCHEDULE)(x[:1], 700).x0[0]
    # x_400 | x_700, x0: N(sqrt(b) x0, 1 - b) observed through x_700 = sqrt(a/b) x_400 + sqrt(1 - a/b) z
    precision = 1 / (1 - b) + (a / b) / (1 - a / b)
    mean = (b**0.5 * x0 / (1 - b) + (a / b) ** 0.5 * x[0] / (1 - a / b)) / precision
    jacobian = truth.denoiser(SCHEDULE)(torch.eye(truth.dim, dtype=torch.float64), 400).x0
    offset = truth.denoiser(SCHEDULE)(torch.zeros(1, truth.dim, dtype=torch.float64), 400).x0
    K = jacobian - offset
    expected_mean, expected_cov = mean @ K + offset[0], K.T @ K / precision
    noise = (expected_cov.diagonal() / 40_000).sqrt()
    assert bool(((two.mean(0) - expected_mean).abs() < 5 * noise).all()), truth.seed
    torch.testing.assert_close(two.T.cov(), expected_cov, rtol=0.1, atol=0.02 * expected_cov.norm().item())


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_network_hears_original_indices(kind: str) -> None:
    truth = Gaussian()
    steps = 1 if kind == "mean" else 9
    options = Sampler(kind=kind, steps=steps, clip=False)  # type: ignore[arg-type]
    draw(truth.denoiser(SCHEDULE), SCHEDULE, torch.zeros(1, truth.dim, dtype=torch.float64), options, None)
    assert truth.heard[0] == 999
    assert len(truth.heard) == steps
    if kind in ("ancestral", "ddim"):
        assert truth.heard == evenly(SCHEDULE, steps)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_equal_seeds_give_equal_bits_and_every_estimate_is_clipped(kind: str) -> None:
    options = Sampler(kind=kind, steps=1 if kind == "mean" else 6)  # type: ignore[arg-type]
    x = torch.randn(2, 1, 4, 4)

    def wild(x: Tensor, t: int) -> Guess:
        return Guess(100 * x + 50, x)

    one, two = (draw(wild, SCHEDULE, x, options, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.abs().max() <= 1 + 1e-6
    assert one.dtype == x.dtype


def test_multistep_beats_ddim_at_ten_steps() -> None:
    truth = Gaussian()
    assert (
        error(truth, Sampler(kind="multistep", steps=10, clip=False))[1]
        < error(truth, Sampler(kind="ddim", steps=10, clip=False))[1]
    ), truth.seed


def test_the_table_and_the_option_name_the_same_samplers() -> None:
    assert set(get_args(get_type_hints(Sampler)["kind"])) == set(SAMPLERS) | set(POSTERIORS) | {"bridge"}


def test_a_bridge_takes_its_own_sampler_and_the_single_estimate() -> None:
    assert bridge_steps(Sampler(kind="bridge", steps=7, eta=0.5), 1000) == (7, 0.5)
    assert bridge_steps(Sampler(kind="bridge", steps=200, eta=1.0), 50) == (50, 1.0)
    assert bridge_steps(Sampler(kind="mean"), 1000) == (1, 0.0)
    with pytest.raises(ConfigError, match="it takes bridge, mean"):
        bridge_steps(Sampler(kind="ddim", steps=3), 1000)


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "ddim", "steps": 0},
        {"kind": "multistep", "eta": 0.5},
        {"kind": "mean", "steps": 3},
        {"kind": "mean", "samples": 4},
        {"kind": "ddim", "eta": 1.5},
    ],
)
def test_options_that_mean_nothing_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Sampler(**bad)  # type: ignore[arg-type]
