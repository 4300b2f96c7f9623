"""MPS, and the guided chain it is made of, against a Gaussian stack (docs/methods/any2all.md, "MPS").

With the exact likelihood in place of the norm the chain must hit the true posterior; the norm itself is not exact, so
it is held to its gradient, to one step by hand and to its limits.
"""

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from support.model.gaussians import (
    Seen,
    Stack,
    ancestral,
    exact_push,
    exactly_guided,
    follow,
    propagate,
    standard_errors,
)
from torch import Tensor

from shared.diffusion import samplers
from shared.diffusion.gaussian import Schedule, Step, cosine, evenly, linear
from shared.diffusion.operators import Measured
from shared.diffusion.posterior import Push, guided, mps, restore
from shared.diffusion.samplers import Guess, Sampler

pytestmark = pytest.mark.slow  # left out of `make fast`

NOISE = 0.1  # of linear measurements
KINDS = ["none", "linear", "clean", "linear"]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def subject(modalities: int | None = None) -> tuple[Stack, list[Seen]]:
    """What is known is in some order, its operators real or complex."""
    stack = Stack(modalities)
    order = torch.randperm(stack.modalities, generator=stack.random).tolist()
    return stack, stack.seen([KINDS[m] for m in order], complex_rows=bool(stack.seed % 2))


def known(seen: Sequence[Seen], batch: int) -> list[Measured]:
    return [one.measured(batch) for one in seen]


def exact(stack: Stack, seen: Sequence[Seen], abar_T: Tensor) -> Push:
    """grad log p(y | x_t) in closed form, where MPS has the gradient of a norm."""
    denoise = stack.denoiser(abar_T)

    def push(x: Tensor, step: Step) -> tuple[Guess, Tensor]:
        K, k, _ = exact_push(stack, seen, NOISE, step.abar, step.abar_next)
        return denoise(x, step.t), (x.flatten(1) @ K.T + k).reshape(x.shape)

    return push


@pytest.mark.parametrize("make", [linear, cosine])
def test_the_exact_likelihood_hits_the_true_posterior(make: Callable[[int], Schedule]) -> None:
    """The chain is the affine one, whose mean is right at any T and whose covariance is off by about 1 / T."""
    stack, seen = subject()
    truth, cov = stack.conditional(seen, NOISE)
    errors = []
    for times in (100, 400, 1600):
        schedule = make(times)
        grid, abars = schedule.grid(evenly(schedule, times)), schedule.abar_T.flip(0).tolist()
        steps = exactly_guided(stack, seen, abars, sigma=NOISE)
        m, C = propagate(steps, stack.dim)
        assert (m - truth).abs().max() < 2e-3, (times, stack.seed)
        errors.append(((C - cov).norm() / cov.norm()).item())
        if times == 1600:
            break
        chains = 10_000 if times == 100 else 3
        x = stack.noise(chains)
        options = Sampler(kind="mps", steps=times, clip=False)
        out = guided(x, grid, options, seeded(stack.seed), exact(stack, seen, schedule.abar_T))
        torch.testing.assert_close(out, follow(steps, x, seeded(stack.seed)), rtol=0, atol=1e-8, msg=str(stack.seed))
        assert chains == 3 or standard_errors(out, m, C) < 5, stack.seed
    assert errors[0] > 3 * errors[1] > 9 * errors[2], (errors, stack.seed)
    assert errors[2] < 0.02, (errors, stack.seed)


def one_step(stack: Stack, seen: Sequence[Seen], x: Tensor, t: int, options: Sampler) -> Tensor:
    """The last step of a chain, which ends at x_0 - zeta g: g."""
    schedule = linear(1000)
    out = mps(stack.denoiser(schedule.abar_T), known(seen, len(x)), x, schedule.grid([t]), options, None)
    P, p, _ = stack.score(schedule.abar_T[t].item())[0]
    return ((x.flatten(1) @ P.T + p).reshape(x.shape) - out) / options.zeta


@pytest.mark.parametrize("t", [0, 20, 300, 950])
def test_the_gradient_is_that_of_the_norm(t: int) -> None:
    """-G^T A^T r / |r| of every sample alone, all measured modalities under one root."""
    stack, seen = subject()
    x, options = stack.noise(5), Sampler(kind="mps", zeta=0.3, clip=False)
    A, y, _ = stack.likelihood(seen, NOISE)
    P, p, _ = stack.score(linear(1000).abar_T[t].item())[0]
    r = y - (x.flatten(1) @ P.T + p) @ A.T
    expected = stack.shape(-(r / r.norm(dim=1, keepdim=True)) @ A @ P)
    torch.testing.assert_close(one_step(stack, seen, x, t, options), expected, rtol=0, atol=1e-6, msg=str(stack.seed))


def test_the_gradient_goes_through_a_network_whose_jacobian_is_not_symmetric() -> None:
    stack, seen = subject()
    W, b = stack.normal(stack.dim, stack.dim), stack.normal(stack.dim)

    def denoise(x: Tensor, t: int) -> Guess:
        x0 = torch.tanh(x.flatten(1) @ W.T + b).reshape(x.shape)
        return Guess(x0, x - x0)

    x, options = stack.noise(4), Sampler(kind="mps", zeta=0.7, clip=False)
    with torch.no_grad():  # as a caller would
        out = mps(denoise, known(seen, 4), x, linear(1000).grid([500]), options, None)
    assert not out.requires_grad
    x0 = torch.tanh(x.flatten(1) @ W.T + b)
    A, y, _ = stack.likelihood(seen, NOISE)
    r = y - x0 @ A.T
    expected = -(r / r.norm(dim=1, keepdim=True)) @ A * (1 - x0**2) @ W
    torch.testing.assert_close((stack.shape(x0) - out) / 0.7, stack.shape(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("anneal", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_step_is_ancestral_and_then_back_along_the_gradient(variance: str, anneal: bool) -> None:
    """The second image that the network hears, by hand from Bayes' rule and the norm's gradient."""
    stack, seen = subject()
    schedule, zeta, x = cosine(1000), 0.2, stack.noise(3)
    options = Sampler(kind="mps", steps=2, zeta=zeta, anneal=anneal, variance=variance, clip=False)  # type: ignore[arg-type]
    mps(stack.denoiser(schedule.abar_T), known(seen, 3), x, schedule.grid([700, 400]), options, seeded(4))
    a, b = schedule.abar_T[700].item(), schedule.abar_T[400].item()
    on_x0, on_x, sd = ancestral(a, b, variance)
    P, p, _ = stack.score(a)[0]
    A, y, _ = stack.likelihood(seen, NOISE)
    x0 = x.flatten(1) @ P.T + p
    r = y - x0 @ A.T
    back = (zeta * math.sqrt(1 - a) if anneal else zeta) * -(r / r.norm(dim=1, keepdim=True)) @ A @ P
    z = torch.randn(x.shape, generator=seeded(4), dtype=torch.float64)
    expected = stack.shape(on_x0 * x0 + on_x * x.flatten(1) - back) + sd * z
    torch.testing.assert_close(stack.heard[1][1], expected, rtol=0, atol=1e-7, msg=str(stack.seed))


def test_a_sample_does_not_feel_another_with_a_residual_a_hundred_times_its_own() -> None:
    stack, seen = subject()
    x, options = stack.noise(2), Sampler(kind="mps", zeta=0.5, clip=False)
    alone = one_step(stack, seen, x[:1], 100, options)
    x[1] *= 100
    torch.testing.assert_close(one_step(stack, seen, x, 100, options)[:1], alone, rtol=0, atol=1e-12)


def test_a_residual_of_nothing_has_a_finite_gradient() -> None:
    stack = Stack()
    x = stack.noise(3)
    P, p, _ = stack.score(linear(1000).abar_T[50].item())[0]
    x0 = (x.flatten(1) @ P.T + p).reshape(x.shape)
    measured = [Measured("clean", x0[:, m]) for m in range(stack.modalities)]
    options = Sampler(kind="mps", clip=False)
    out = mps(stack.denoiser(linear(1000).abar_T), measured, x, linear(1000).grid([50]), options, None)
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-6)


def test_a_clipped_estimate_enters_the_chain_and_the_gradient_is_not_cut() -> None:
    """Far outside [-1, 1] a clamp inside the graph would have no gradient."""
    stack, seen = subject()

    def wild(x: Tensor, t: int) -> Guess:
        return Guess(50 * x, x)

    x, options = stack.noise(4), Sampler(kind="mps", zeta=0.1)
    out = mps(wild, known(seen, 4), x, linear(1000).grid([500]), options, None)
    A, y, _ = stack.likelihood(seen, NOISE)
    r = y - 50 * x.flatten(1) @ A.T
    back = 0.1 * -(r / r.norm(dim=1, keepdim=True)) @ A * 50
    expected = (50 * x).clamp(-1, 1) - stack.shape(back)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6, msg=str(stack.seed))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_step_of_no_length_is_the_ancestral_sampler_bit_by_bit(variance: str) -> None:
    stack, seen = subject()
    schedule, x = cosine(1000), stack.noise(4)
    grid, denoise = schedule.grid(evenly(schedule, 12)), stack.denoiser(schedule.abar_T)
    options = Sampler(kind="mps", steps=12, zeta=1e-200, variance=variance, clip=False)  # type: ignore[arg-type]
    free = Sampler(kind="ancestral", steps=12, variance=variance, clip=False)  # type: ignore[arg-type]
    expected = samplers.ancestral(denoise, x, grid, free, seeded(9))
    assert torch.equal(mps(denoise, known(seen, 4), x, grid, options, seeded(9)), expected), stack.seed


def test_where_nothing_is_measured_mps_is_the_ancestral_sampler_bit_by_bit() -> None:
    stack = Stack()
    schedule, x = cosine(1000), stack.noise(4)
    grid, denoise = schedule.grid(evenly(schedule, 12)), stack.denoiser(schedule.abar_T)
    expected = samplers.ancestral(denoise, x, grid, Sampler(kind="ancestral", steps=12, clip=False), seeded(9))
    hidden = known([Seen()] * stack.modalities, 4)
    out = mps(denoise, hidden, x, grid, Sampler(kind="mps", steps=12, clip=False), seeded(9))
    assert torch.equal(out, expected), stack.seed


def test_one_clean_modality_is_left_half_a_step_away_until_it_is_put_in() -> None:
    """docs/methods/any2all.md, "MPS": the step of fixed length ends in a limit cycle of residual zeta / 2."""
    stack, schedule = Stack(1), cosine(1000)
    y, x = stack.noise(300), stack.noise(300)
    zeta = random.SystemRandom().uniform(0.1, 1.0)
    measured, denoise = [Measured("clean", y[:, 0])], stack.denoiser(schedule.abar_T)

    def out(replace: bool) -> Tensor:
        options = Sampler(kind="mps", steps=250, zeta=zeta, clip=False, replace=replace)
        return restore(denoise, schedule, x, measured, options, seeded(stack.seed))

    residual = (out(replace=False) - y).flatten(1).norm(dim=1) / zeta
    assert 0.4 < residual.mean() < 0.6, (stack.seed, zeta)
    assert residual.max() < 1.1, (stack.seed, zeta)
    assert torch.equal(out(replace=True), y), stack.seed
