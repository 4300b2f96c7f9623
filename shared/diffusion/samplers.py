"""Samplers, side by side, one signature: (denoise, x, grid, options, generator) -> x_0.

What differs is the name. Guidance wraps the denoiser, not the sampler; so does clipping. Coefficients are Python
floats made from the fp64 table; x keeps the precision it came in.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from shared.base.errors import ConfigError
from shared.base.options import require
from shared.base.randomness import Noise, normal
from shared.diffusion.gaussian import SPACINGS, Grid, Schedule, Variance, posterior

Kind: TypeAlias = Literal["ancestral", "ddim", "multistep", "mean", "mps", "mds", "mds_fast", "bridge"]
GUIDED: tuple[Kind, ...] = ("mps", "mds", "mds_fast")  # shared/diffusion/posterior.py: they bring measurements in


BRIDGES: tuple[Kind, ...] = ("bridge", "mean")  # shared/diffusion/bridge.py: from a source, not from noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    kind: Kind = "mean"
    steps: int = 1
    samples: int = 1  # Monte-Carlo samples per image, averaged by the caller
    eta: float = 0.0  # ddim, mds, bridge: 0 draws no noise after the start, 1 at every step
    eta_convention: Literal["ddim", "dds"] = "ddim"  # mds: what eta means (docs/methods/any2all.md)
    variance: Variance = "large"  # ancestral, mps
    spacing: Literal["even", "log_snr", "mixed"] | None = None  # of the times; None: what suits the kind
    zeta: float = 0.5  # mps: length of the step against the residual
    anneal: bool = False  # mps: that length shrinks with the noise
    gamma: float | None = 5.0  # linear measurements: their weight against the estimate; None: from the noise, by step
    cg: int = 5  # linear measurements: iterations of conjugate gradients in each step
    told: bool = (
        False  # mps, mds, mds_fast: the network is shown clean modalities at noise level 0, each having its own
    )
    replace: bool = True  # mps: clean modalities are put in at the end
    clip: bool = True  # every estimate of x_0 to [-1, 1]
    stride: int = 1  # slices from one window to the next, for methods that see slabs
    guidance: float = 1.0  # of a method that reads the chart: above 1 the chart says more, 0 it is not heard

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "1 or more")
        require(self.samples >= 1, "samples", self.samples, "1 or more")
        require(0 <= self.eta <= 1, "eta", self.eta, "in [0, 1]")
        require(self.eta == 0 or self.kind in ("ddim", "mds", "bridge"), "eta", self.eta, f"0 for kind={self.kind}")
        require(
            self.eta_convention == "ddim" or self.kind == "mds",
            "eta_convention",
            self.eta_convention,
            f"ddim for kind={self.kind}",
        )
        require(0 < self.zeta < math.inf, "zeta", self.zeta, "above 0 and finite")
        require(not self.anneal or self.kind == "mps", "anneal", self.anneal, f"false for kind={self.kind}")
        require(self.gamma is None or 0 <= self.gamma < math.inf, "gamma", self.gamma, "0 or more and finite, or null")
        require(self.cg >= 1, "cg", self.cg, "1 or more")
        require(self.stride >= 1, "stride", self.stride, "1 or more")
        require(0 <= self.guidance < math.inf, "guidance", self.guidance, "0 or more and finite")
        require(
            not self.told or self.kind in GUIDED, "told", self.told, f"false for kind={self.kind}, which always does"
        )
        if self.kind == "mean":  # a second evaluation would be the same one
            require(self.steps == 1, "steps", self.steps, "1 for kind=mean")
            require(self.samples == 1, "samples", self.samples, "1 for kind=mean")


class Guess(NamedTuple):
    """What a network thinks of x_t. Both are kept: a guided x0 may go with the network's own eps."""

    x0: Tensor
    eps: Tensor


Denoiser: TypeAlias = Callable[[Tensor, int], Guess]  # (x_t, original index t)


def from_noise(parameterisation: str) -> tuple[Kind, ...]:
    """The samplers of a network that starts from noise. `mean` would divide an error of eps by alpha of the last time,
    and so make it 157 (linear) to 20 000 times (cosine) as large; of v it is v's own.
    """
    return tuple(kind for kind in SAMPLERS if kind != "mean" or parameterisation == "v")


def draw(
    denoise: Denoiser,
    schedule: Schedule,
    x: Tensor,
    options: Sampler,
    generator: Noise | None,
    takes: Collection[Kind] | None = None,
) -> Tensor:
    """Draw one sample from pure noise `x`, by a network that knows its condition already; `takes`: by default all."""
    takes = SAMPLERS if takes is None else takes
    if options.kind not in SAMPLERS or options.kind not in takes:
        raise ConfigError(f"sampler={options.kind}: this method, as it is set, takes {', '.join(takes)}")
    grid = schedule.grid(spaced(schedule, options))
    if options.clip:
        denoise = clipped(denoise, schedule)
    return SAMPLERS[options.kind](denoise, x, grid, options, generator)


def spaced(schedule: Schedule, options: Sampler) -> list[int]:
    """Choose the times of the steps, noisiest first."""
    usual = {"multistep": "log_snr", "mds_fast": "log_snr"}
    return SPACINGS[options.spacing or usual.get(options.kind, "even")](schedule, options.steps)


def bridge_steps(options: Sampler, times: int) -> tuple[int, float]:
    """Read steps and eta of a Brownian bridge (diffusion/bridge.py); `mean` is one estimate, from the source itself."""
    if options.kind not in BRIDGES:
        raise ConfigError(
            f"sampler={options.kind}: this method is a bridge from its source; it takes {', '.join(BRIDGES)}"
        )
    return (1, 0.0) if options.kind == "mean" else (min(options.steps, times), options.eta)


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
        h = log_snr(abar_next) - log_snr(abar)
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
SAMPLERS: Mapping[Kind, Algorithm] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "multistep": multistep,
    "mean": mean,
}


def clipped(denoise: Denoiser, schedule: Schedule) -> Denoiser:
    """Wrap a denoiser: x0 is kept in [-1, 1], and eps made to agree with it."""

    def denoise_clipped(x: Tensor, t: int) -> Guess:
        x0 = denoise(x, t).x0.clamp(-1, 1)
        return Guess(x0, schedule.eps_from_x0(x, torch.full((len(x),), t, device=x.device), x0))

    return denoise_clipped


def log_snr(abar: float) -> float:
    return 0.5 * math.log(abar / (1 - abar))
