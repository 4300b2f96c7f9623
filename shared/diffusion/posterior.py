"""Sampling given measurements y = A x + n, an operator per modality, without retraining (docs/methods/any2all.md).

MPS walks the ancestral chain and steps against the gradient of the residual, through the network. MDS puts what is
measured into the estimate of x_0 and goes on with the network's *raw* noise: with noise made anew from the corrected
estimate it would settle on a wrong conditional, however many steps it took. `mds_fast` is MDS with the second-order
solver of Lu et al. 2022 (SDE-DPM-Solver++(2M)) on what is not measured. All images are x_BMHW in [-1, 1].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from shared.base.randomness import Noise, normal
from shared.diffusion import conjugate
from shared.diffusion.gaussian import Grid, Schedule, Step, posterior
from shared.diffusion.operators import Measured, Operator
from shared.diffusion.samplers import Denoiser, Guess, Sampler, log_snr, spaced

Push: TypeAlias = Callable[
    [Tensor, Step], tuple[Guess, Tensor]
]  # (x_t, step) -> what the network thinks, what to subtract

ERROR = 0.1  # of the last estimates of x_0, on the scale of [-1, 1]
MOST_GAMMA = 1e3  # more would fit rounding, and conjugate gradients would need many iterations
_TINY = 1e-12  # under the root of a residual that is 0


def restore(
    denoise: Denoiser,
    schedule: Schedule,
    x: Tensor,
    measured: Sequence[Measured],
    options: Sampler,
    generator: Noise | None,
) -> Tensor:
    """Draw one sample of all modalities from pure noise `x`; clean modalities come back as they are, bit by bit."""
    grid = schedule.grid(spaced(schedule, options))
    x = POSTERIORS[options.kind](denoise, measured, x, grid, options, generator)
    return replace_clean(x, measured) if options.replace else x


def mps(
    denoise: Denoiser,
    measured: Sequence[Measured],
    x: Tensor,
    grid: Grid,
    options: Sampler,
    generator: Noise | None,
) -> Tensor:
    """Multimodal posterior sampling. The gradient is of the plain norm, for every sample of the batch alone."""

    anything = any(known.kind != "none" for known in measured)

    def push(x: Tensor, step: Step) -> tuple[Guess, Tensor]:
        if not anything:  # no residual, nothing to step against
            return denoise(x, step.t), torch.zeros_like(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            guess = denoise(x, step.t)
            (gradient,) = torch.autograd.grad(distance(guess.x0, measured).sum(), x)
        zeta = options.zeta * (math.sqrt(1 - step.abar) if options.anneal else 1.0)
        return Guess(guess.x0.detach(), guess.eps.detach()), zeta * gradient

    return guided(x, grid, options, generator, push)


def guided(x: Tensor, grid: Grid, options: Sampler, generator: Noise | None, push: Push) -> Tensor:
    """Walk the ancestral chain, pushing each of its steps: x_next = ancestral(x_t) - push(x_t)."""
    for step in grid:
        guess, back = push(x, step)
        x0 = guess.x0.clamp(-1, 1) if options.clip else guess.x0
        past = posterior(step.abar, step.abar_next, options.variance)
        x_next = past.on_x0 * x0 + past.on_x * x
        if step.abar_next < 1:
            x_next = x_next + math.sqrt(past.variance) * normal(x, generator)
        x = x_next - back
    return x


def distance(x0_BMHW: Tensor, measured: Sequence[Measured]) -> Tensor:
    """|y - A x_0| over all measured modalities, per sample."""
    square_B = x0_BMHW.new_full((len(x0_BMHW),), _TINY)
    for m, known in enumerate(measured):
        if known.kind != "none":
            assert known.y is not None
            seen = x0_BMHW[:, m] if known.operator is None else known.operator.forward(x0_BMHW[:, m])
            residual = (known.y - seen).flatten(1)
            square_B = square_B + (residual * residual.conj()).real.sum(1)
    return square_B.sqrt()


def mds(
    denoise: Denoiser,
    measured: Sequence[Measured],
    x: Tensor,
    grid: Grid,
    options: Sampler,
    generator: Noise | None,
) -> Tensor:
    """Multimodal decomposition sampling, with the network's raw noise."""
    for t, abar, abar_next in grid:
        guess = denoise(x, t)
        x0 = consistent(_clipped(guess.x0, options), measured, options, abar)
        x = _onward(x0, guess.eps, abar, abar_next, options, generator)
    return x


def mds_fast(
    denoise: Denoiser,
    measured: Sequence[Measured],
    x: Tensor,
    grid: Grid,
    options: Sampler,
    generator: Noise | None,
) -> Tensor:
    """MDS at eta = 1 in few steps: x_0 of what is not measured is extrapolated linearly in log-SNR."""
    free_M = torch.tensor([known.kind == "none" for known in measured], device=x.device)[:, None, None]
    last: tuple[Tensor, float] | None = None
    for t, abar, abar_next in grid:
        guess = denoise(x, t)
        x0 = consistent(_clipped(guess.x0, options), measured, options, abar)
        if abar_next == 1:
            return x0
        h = log_snr(abar_next) - log_snr(abar)
        ahead = x0 if last is None else x0 + h / (2 * last[1]) * (x0 - last[0])
        z = normal(x, generator)
        spread = math.sqrt((1 - abar_next) * -math.expm1(-2 * h))  # both solvers' at eta = 1
        free = (
            math.sqrt((1 - abar_next) / (1 - abar)) * math.exp(-h) * x
            - math.sqrt(abar_next) * math.expm1(-2 * h) * ahead
        )
        bound = math.sqrt(abar_next) * x0 + math.sqrt(1 - abar_next - spread**2) * guess.eps
        x = torch.where(free_M, free, bound) + spread * z
        last = x0, h
    return x


Posterior: TypeAlias = Callable[[Denoiser, Sequence[Measured], Tensor, Grid, Sampler, Noise | None], Tensor]
POSTERIORS: Mapping[str, Posterior] = {"mps": mps, "mds": mds, "mds_fast": mds_fast}


def consistent(x0_BMHW: Tensor, measured: Sequence[Measured], options: Sampler, abar: float) -> Tensor:
    """Correct x_0: a clean modality is its image, a linear one argmin gamma |y - A x|^2 + |x - x_0|^2."""
    images = list(x0_BMHW.unbind(1))
    for m, known in enumerate(measured):
        if known.kind == "none":
            continue
        assert known.y is not None
        if known.operator is None:
            images[m] = known.y.to(x0_BMHW.dtype)
            continue
        images[m] = _proximal(images[m], known.operator, known.y, _weight(known.operator, options, abar), options.cg)
    return torch.stack(images, dim=1)


def _proximal(x0_BHW: Tensor, operator: Operator, y: Tensor, gamma: Tensor | float, iterations: int) -> Tensor:
    return conjugate.solve(
        lambda x_BHW: x_BHW + gamma * operator.normal(x_BHW),
        x0_BHW + gamma * operator.adjoint(y),
        x0_BHW,
        iterations=iterations,
    )


def _weight(operator: Operator, options: Sampler, abar: float) -> Tensor | float:
    """gamma; or, where it is None, as a MAP estimate has it: the estimate's squared error over the noise's variance.

    The error of x_0 is taken to be sigma_t, what a prior of unit variance leaves open, and never below ERROR. For
    complex samples, whose sigma is that of both components, this is half of a MAP's weight: on the careful side.
    """
    if options.gamma is not None:
        return options.gamma
    noise_B11 = torch.as_tensor(operator.sigma, dtype=torch.float64).reshape(-1, 1, 1)
    gamma_B11 = (max(1 - abar, ERROR**2) / noise_B11.square().clamp(min=1e-12)).clamp(max=MOST_GAMMA)
    return gamma_B11.float() if len(gamma_B11) > 1 else float(gamma_B11)


def replace_clean(x_BMHW: Tensor, measured: Sequence[Measured]) -> Tensor:
    images = [
        known.y.to(x_BMHW.dtype) if known.kind == "clean" and known.y is not None else x_BMHW[:, m]
        for m, known in enumerate(measured)
    ]
    return torch.stack(images, dim=1)


def _onward(
    x0: Tensor, eps: Tensor, abar: float, abar_next: float, options: Sampler, generator: Noise | None
) -> Tensor:
    """The next x of a DDIM chain; `dds` is what the code of Chung et al. 2024 means by eta, and distorts the prior."""
    if options.eta_convention == "ddim":
        spread = options.eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
    else:
        spread = options.eta * math.sqrt(1 - abar_next)
    on_eps = math.sqrt(max(0.0, 1 - abar_next - spread**2))  # dds at eta 1: 0, and rounding may pass below it
    x = math.sqrt(abar_next) * x0 + on_eps * eps
    if spread > 0:
        x = x + spread * normal(x, generator)
    return x


def _clipped(x0: Tensor, options: Sampler) -> Tensor:
    return x0.clamp(-1, 1) if options.clip else x0
