"""Samplers, side by side, one signature: (denoise, x, grid, options, generator) -> x_0.

What differs is the name. Guidance wraps the denoiser, not the sampler; so does clipping. Coefficients are Python
floats made from the fp64 table; x keeps the precision it came in.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from shared.diffusion.gaussian import Grid, Schedule, Variance, evenly, evenly_in_log_snr, posterior
from shared.options import require
from shared.randomness import Noise, normal


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    kind: Literal["ancestral", "ddim", "multistep", "mean"] = "mean"
    steps: int = 1
    samples: int = 1  # Monte-Carlo samples per image, averaged by the caller
    eta: float = 0.0  # ddim only: 0 draws noise at the start alone, 1 at every step
    variance: Variance = "large"  # ancestral only
    clip: bool = True  # every estimate of x_0 to [-1, 1]

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(self.samples >= 1, "samples", self.samples, "1 or more")
        require(0 <= self.eta <= 1, "eta", self.eta, "in [0, 1]")
        require(self.eta == 0 or self.kind == "ddim", "eta", self.eta, f"0 for kind={self.kind}")
        if self.kind == "mean":  # a second evaluation would be the same one
            require(self.steps == 1, "steps", self.steps, "1 for kind=mean")
            require(self.samples == 1, "samples", self.samples, "1 for kind=mean")


class Guess(NamedTuple):
    """What a network thinks of x_t. Both are kept: a guided x0 may go with the network's own eps."""

    x0: Tensor
    eps: Tensor


Denoiser: TypeAlias = Callable[[Tensor, int], Guess]  # (x_t, original index t)


def draw(denoise: Denoiser, schedule: Schedule, x: Tensor, options: Sampler, generator: Noise | None) -> Tensor:
    """One sample from pure noise `x`."""
    spacing = evenly_in_log_snr if options.kind == "multistep" else evenly
    grid = schedule.grid(spacing(schedule, options.steps))
    if options.clip:
        denoise = clipped(denoise, schedule)
    return SAMPLERS[options.kind](denoise, x, grid, options, generator)


def ancestral(denoise: Denoiser, x: Tensor, grid: Grid, options: Sampler, generator: Noise | None) -> Tensor:
    """Ho et al. 2020, algorithm 2, on any respacing; no noise after the last step."""
    for t, abar, abar_next in grid:
        step = posterior(abar, abar_next, options.variance)
        x = step.on_x0 * denoise(x, t).x0 + step.on_x * x
        if abar_next < 1:
            x = x + math.sqrt(step.variance) * normal(x, generator)
    return x


def ddim(denoise: Denoiser, x: Tensor, grid: Grid, options: Sampler, generator: Noise | None) -> Tensor:
    """Song et al. 2021, eq. 12."""
    for t, abar, abar_next in grid:
        guess = denoise(x, t)
        spread = options.eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
        x = math.sqrt(abar_next) * guess.x0 + math.sqrt(1 - abar_next - spread**2) * guess.eps
        if spread > 0:
            x = x + spread * normal(x, generator)
    return x


def multistep(denoise: Denoiser, x: Tensor, grid: Grid, options: Sampler, generator: Noise | None) -> Tensor:
    """Lu et al. 2022, DPM-Solver++(2M): x_0 is extrapolated linearly in log-SNR from the last two evaluations."""
    last: tuple[Tensor, float] | None = None  # x0 and the step in log-SNR that led here
    for t, abar, abar_next in grid:
        x0 = denoise(x, t).x0
        if abar_next == 1:  # an infinite step: only x0 is left
            return x0
        h = _log_snr(abar_next) - _log_snr(abar)
        if last is None:
            ahead = x0
        else:
            x0_before, h_before = last
            ahead = x0 + h / (2 * h_before) * (x0 - x0_before)
        x = math.sqrt((1 - abar_next) / (1 - abar)) * x - math.sqrt(abar_next) * math.expm1(-h) * ahead
        last = x0, h
    return x


def mean(denoise: Denoiser, x: Tensor, grid: Grid, options: Sampler, generator: Noise | None) -> Tensor:
    """The conditional mean, in one evaluation: x_T tells nothing of x_0, so 0 stands for it and no noise is drawn."""
    return denoise(torch.zeros_like(x), grid.times[0]).x0


Algorithm: TypeAlias = Callable[[Denoiser, Tensor, Grid, Sampler, Noise | None], Tensor]
SAMPLERS: Mapping[str, Algorithm] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "multistep": multistep,
    "mean": mean,
}


def clipped(denoise: Denoiser, schedule: Schedule) -> Denoiser:
    """x0 kept in [-1, 1], and eps made to agree with it."""

    def denoise_clipped(x: Tensor, t: int) -> Guess:
        x0 = denoise(x, t).x0.clamp(-1, 1)
        return Guess(x0, schedule.eps_from_x0(x, torch.full((len(x),), t, device=x.device), x0))

    return denoise_clipped


def _log_snr(abar: float) -> float:
    return 0.5 * math.log(abar / (1 - abar))
