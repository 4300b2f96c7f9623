"""Any2all: one unconditional prior over a stack of modalities, any task by inference alone (docs/methods/any2all.md).

The prior is a diffusion U-Net over all modalities at once. The paper trains it on complete stacks, with one noise level
for all. Here every modality has its own: one that a subject lacks is blank, silent in the time embedding and without
loss, so incomplete stacks train it too; and part of the samples sees some modalities clean, so that the network can be
*told* them. What was measured comes in by sampling: clean images, raw k-space, or nothing.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shared.base.errors import ConfigError, DataError
from shared.base.options import require
from shared.base.randomness import Noise, normal
from shared.base.records import Batch, Cut, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, Owner, source, target
from shared.data.missing import random_shown
from shared.diffusion import posterior
from shared.diffusion.gaussian import SCHEDULES, Schedule
from shared.diffusion.operators import Measured, clean, none
from shared.diffusion.samplers import GUIDED, Denoiser, Guess, Kind, Sampler, draw, from_noise
from shared.methods.anchors.mixture import CELLS, COMPONENTS, ITERATIONS, Mixture
from shared.methods.anchors.noisy import FAR, expected, in_images
from shared.methods.contract import Network, Restores
from shared.methods.nets.precision import autocast
from shared.methods.nets.unet import UNet, UNetShape

SIZES: Mapping[str, UNetShape] = {
    "tiny": UNetShape(base=16, mult=(1, 2), blocks=1, attention=1, patch=2),
    "small": UNetShape(base=32, mult=(1, 2, 2), blocks=1, attention=1, patch=2),
    "paper": UNetShape(base=128, mult=(1, 1, 2, 2, 4, 4), blocks=2, attention=3),
}
LEAST_ERROR = 0.04  # of what the mixture expects, on the scale of [-1, 1]
SPREAD = 5.0  # what brings its standard deviations to about 1
ABSENT = -1  # the time of a modality that is not there


@dataclass(frozen=True, slots=True, kw_only=True)
class Any2all(Restores):
    parameterisation: Literal["eps", "v"] = "v"  # eps is the paper's
    schedule: Literal["linear", "cosine"] = "cosine"  # with `linear` an absent modality is not quite pure noise
    times: int = 1000
    independent: float = 0.1  # share of samples in which every modality has a noise level of its own; the paper's is 0
    anchor: Literal["none", "mixture"] = "none"
    components: int = COMPONENTS  # kinds of tissue in the mixture
    iterations: int = ITERATIONS  # rounds in which it is fitted
    told: float = 0.4  # share of samples in which a random part of the modalities is clean; the paper's is 0
    noisiest: float = 0.0  # share of those at the last time, which the sampler `mean` reads; the others are uniform
    outside: float = 1.0  # weight of pixels outside the brain
    checkpoint: bool = False  # less memory, more time

    def __post_init__(self) -> None:
        Restores.__post_init__(self)
        require(len(self.modalities) >= 1, "modalities", self.modalities, "at least one")
        require(self.times >= 2, "times", self.times, "2 or more")
        for key in ("independent", "told", "noisiest", "outside"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        require(self.components >= 1, "components", self.components, "1 or more")
        require(self.iterations >= 1, "iterations", self.iterations, "1 or more")
        require(self.independent + self.told <= 1, "told", self.told, "at most 1 - independent")

    @property
    def samplers(self) -> tuple[Kind, ...]:
        return (*from_noise(self.parameterisation), *GUIDED)

    @property
    def phases(self) -> tuple[Phase, ...]:
        anchor = Phase(name="anchor", kind="sums", rounds=1 + self.iterations, cells=CELLS)
        return (*([anchor] if self.anchor == "mixture" else []), Phase(name="prior"))

    def network(self) -> "Prior":
        return Prior(self)

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """A modality's input slices, its part of the time embedding and its output rows are its own."""
        assert isinstance(net, Prior)
        if phase == "anchor":
            return {}
        owners: dict[str, Owner | Cut] = {name: SHARED for name, _ in net.named_parameters()}
        area, base = net.unet.shape.patch**2, net.unet.shape.base
        seen = [source(m) for m in self.modalities] + [SHARED] * net.told  # what is expected is there for all
        owners["unet.stem.weight"] = Cut(dim=1, owners=tuple(owner for owner in seen for _ in range(area)))
        owners["unet.time.first.weight"] = Cut(
            dim=1, owners=tuple(source(m) for m in self.modalities for _ in range(base))
        )
        rows = tuple(target(m) for m in self.modalities for _ in range(area))
        owners["unet.out.weight"] = Cut(dim=0, owners=rows)
        owners["unet.out.bias"] = Cut(dim=0, owners=rows)
        return owners

    # --- training ------------------------------------------------------------------------------------------------

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        """Mean over the modalities that exist and are not told, and over pixels, of the squared error; per sample."""
        assert isinstance(net, Prior)
        _check_size(batch.images_BMHW, net)
        exists_BM, device = batch.exists_BM, batch.images_BMHW.device
        x0 = 2 * torch.where(exists_BM[:, :, None, None], batch.images_BMHW.float(), 0.0) - 1
        t_BM, told_BM = self._times(exists_BM, generator)
        eps = torch.randn(x0.shape, generator=generator, device=device)
        x_t = self._schedule.noised(x0.flatten(0, 1), t_BM.flatten(), eps.flatten(0, 1)).reshape(x0.shape)
        x_t = torch.where(told_BM[:, :, None, None], x0, x_t)
        heard = self._hear(net, x_t, torch.where(exists_BM, t_BM, ABSENT), told_BM)
        with autocast(device, self.precision):
            raw: Tensor = net(*heard.inputs).float()
        wanted = eps if self.parameterisation == "eps" else (heard.mean - x0) / heard.sd
        counts_BM = exists_BM & ~told_BM
        error = torch.where(counts_BM[:, :, None, None], (raw - wanted).square(), 0.0)
        inside = (batch.images_BMHW > 0) & exists_BM[:, :, None, None]
        weight = torch.where(inside.any(dim=1, keepdim=True), 1.0, self.outside)
        total_B = weight.sum(dim=(1, 2, 3)) * counts_BM.sum(1)
        given_B = counts_BM.any(1)
        return Losses(
            loss_B=(error * weight).sum(dim=(1, 2, 3)) / total_B.clamp(min=1e-6),
            gave={
                SHARED: given_B,
                **{source(m): exists_BM[:, i] & given_B for i, m in enumerate(self.modalities)},
                **{target(m): counts_BM[:, i] for i, m in enumerate(self.modalities)},
            },
        )

    def _times(self, exists_BM: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw each modality's noise level, and which are told: at level 0, without loss."""
        (B, M), device = exists_BM.shape, exists_BM.device
        t_BM = torch.randint(self.times, (B, 1), generator=generator, device=device).expand(B, M)
        own_BM = torch.randint(self.times, (B, M), generator=generator, device=device)
        kind_B = torch.rand(B, generator=generator, device=device)
        t_BM = torch.where((kind_B < self.independent)[:, None], own_BM, t_BM)
        some_BM = random_shown(exists_BM, generator) & (exists_BM.sum(1) > 1)[:, None]
        some_BM = some_BM & (some_BM != exists_BM).any(1)[:, None]  # one at least is left to make
        told_BM = some_BM & (kind_B >= 1 - self.told)[:, None]
        last_B = torch.rand(B, generator=generator, device=device) < self.noisiest
        t_BM = torch.where((last_B & told_BM.any(1))[:, None], self.times - 1, t_BM)
        return torch.where(told_BM, 0, t_BM), told_BM

    # --- the anchor's sums ---------------------------------------------------------------------------------------

    def sums(self, net: nn.Module, batch: Batch, phase: str) -> Mapping[str, Tensor]:
        assert isinstance(net, Prior)
        assert net.anchor is not None
        return net.anchor.sums(batch)

    def settle(self, net: nn.Module, phase: str, sums: Mapping[str, Tensor]) -> None:
        assert isinstance(net, Prior)
        assert net.anchor is not None
        net.anchor.settle(sums)

    # --- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        """Make what is not shown; the rest comes back bit by bit. One pattern for a whole batch is fastest."""
        if not bool(shown_BM.any(1).all()):
            raise DataError("nothing to synthesize from: an image with no shown modality")
        made = torch.zeros(images_BMHW.shape, dtype=torch.float32, device=images_BMHW.device)
        for pattern in torch.unique(shown_BM, dim=0):
            rows = (shown_BM == pattern).all(1).nonzero().flatten()
            known = [clean(images_BMHW[rows, m]) if shown else none() for m, shown in enumerate(pattern.tolist())]
            own = generator if isinstance(generator, torch.Generator) else [generator[int(row)] for row in rows]
            like_BMHW = torch.zeros_like(made[rows])
            made[rows] = self.restore(net, known, sampler, own, like_BMHW=like_BMHW)
        return torch.where(shown_BM[:, :, None, None], images_BMHW.float(), made)

    @torch.no_grad()
    def restore(
        self,
        net: nn.Module,
        measured: Sequence[Measured],
        sampler: Sampler,
        generator: Noise,
        *,
        like_BMHW: Tensor,
        silent: Collection[int] = (),
    ) -> Tensor:
        """Make all modalities in [0, 1] from any mix of clean, measured and missing ones, in the shape of `like_BMHW`.

        With everything missing it is an unconditional sample of a complete set. `silent` modalities take no part, as
        in a subject that lacks them: theirs is no image.
        """
        assert isinstance(net, Prior)
        _check_size(like_BMHW, net)
        noise = normal(like_BMHW.float(), generator)
        if sampler.kind in GUIDED:
            denoise = self.denoiser(net, measured if sampler.told else (), silent)
            x = posterior.restore(denoise, self._schedule, noise, measured, sampler, generator)
        elif any(known.kind == "linear" for known in measured):
            raise ConfigError(f"sampler={sampler.kind}: takes clean images only; for raw data take {', '.join(GUIDED)}")
        else:
            denoise = self.denoiser(net, measured, silent)
            x = draw(denoise, self._schedule, noise, sampler, generator, self.samplers)
            x = posterior.replace_clean(x, measured)
        return (x.clamp(-1, 1) + 1) / 2

    def denoiser(self, net: nn.Module, told: Sequence[Measured] = (), silent: Collection[int] = ()) -> Denoiser:
        """The prior at one noise level; clean modalities that it is told stand at level 0 instead.

        The estimate of those is their image: what the network says of them was never trained.
        """
        clean_images = {m: known.y for m, known in enumerate(told) if known.kind == "clean" and known.y is not None}

        def with_told(x_BMHW: Tensor) -> Tensor:
            if not clean_images:
                return x_BMHW
            return torch.stack([clean_images.get(m, x_BMHW[:, m]) for m in range(x_BMHW.shape[1])], dim=1)

        def denoise(x_BMHW: Tensor, t: int) -> Guess:
            t_BM = torch.full(x_BMHW.shape[:2], t, dtype=torch.long, device=x_BMHW.device)
            t_BM[:, list(clean_images)] = 0
            t_BM[:, list(silent)] = ABSENT
            told_BM = torch.zeros_like(t_BM, dtype=torch.bool)
            told_BM[:, list(clean_images)] = True
            heard = self._hear(net, with_told(x_BMHW).float(), t_BM, told_BM)
            with autocast(x_BMHW.device, self.precision):
                raw: Tensor = net(*heard.inputs).float()
            t_B = t_BM.new_full((len(x_BMHW),), t)
            if self.parameterisation == "eps":
                return Guess(with_told(self._schedule.x0_from_eps(x_BMHW, t_B, raw)), raw)
            x0 = heard.mean - heard.sd * raw
            return Guess(with_told(x0), self._schedule.eps_from_x0(x_BMHW, t_B, x0))

        return denoise

    def _hear(self, net: nn.Module, x_BMHW: Tensor, t_BM: Tensor, told_BM: Tensor) -> "Heard":
        """`eps` hears x_t itself; `v` each modality as its own noise level lets it, E[x0 | x_t] of x0 ~ N(0, 1). Both
        see beside it what the mixture expects of all of them together; `v` speaks of what is left of x0.
        """
        assert isinstance(net, Prior)
        x_NHW, t_N = x_BMHW.flatten(0, 1), t_BM.clamp(min=0).flatten()
        mean, sd = self._schedule.given(x_NHW, t_N, 0.0, 1.0)
        mean = mean.reshape(x_BMHW.shape)
        heard = x_BMHW if self.parameterisation == "eps" else mean
        if net.anchor is None:
            return Heard(inputs=(heard, t_BM), mean=mean, sd=sd.reshape(*t_BM.shape, 1, 1))
        alpha, sigma = (v.reshape(*t_BM.shape, 1, 1) for v in self._schedule.scales(t_N, x_NHW))
        y_BMHW = torch.where(told_BM[:, :, None, None], x_BMHW, x_BMHW / alpha)
        noise_BM = torch.where(told_BM, 0.0, in_images(alpha, sigma)[:, :, 0, 0]).masked_fill(t_BM < 0, FAR)
        told = expected(net.anchor, (y_BMHW + 1) / 2, noise_BM)
        mean, sd = 2 * told.mean_BMHW - 1, (2 * told.sd_BMHW).clamp(min=LEAST_ERROR)
        return Heard(inputs=(heard, t_BM, torch.cat([mean, SPREAD * told.sd_BMHW], 1)), mean=mean, sd=sd)

    @property
    def _schedule(self) -> Schedule:
        return SCHEDULES[self.schedule](self.times)


class Heard(NamedTuple):
    """One look at noisy images."""

    inputs: tuple[Tensor, ...]  # of the network
    mean: Tensor  # of x0, before the network has looked, ...
    sd: Tensor  # ... and the scale of what it says of it


class Prior(Network):
    def __init__(self, options: Any2all) -> None:
        super().__init__()
        self.modalities = len(options.modalities)
        shape = dataclasses.replace(SIZES[options.size], checkpoint=options.checkpoint)
        self.anchor = Mixture(self.modalities, options.components) if options.anchor == "mixture" else None
        self.told = 0 if self.anchor is None else 2 * self.modalities  # channels
        self.unet = UNet(self.modalities + self.told, self.modalities, shape, times=self.modalities)

    def forward(self, x_BMHW: Tensor, t_BM: Tensor, told_BCHW: Tensor | None = None) -> Tensor:
        """The denoiser: what is exported. A modality at time -1 is absent, and is not looked at."""
        x_BMHW = torch.where((t_BM >= 0)[:, :, None, None], x_BMHW, 0.0)
        out: Tensor = self.unet(x_BMHW if told_BCHW is None else torch.cat([x_BMHW, told_BCHW], 1), t_BM)
        return out

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs that `forward` takes, for exporters."""
        inputs = (
            torch.zeros(batch, self.modalities, height, width),
            torch.zeros(batch, self.modalities, dtype=torch.long),
        )
        return inputs if self.anchor is None else (*inputs, torch.zeros(batch, self.told, height, width))


def _check_size(images_BMHW: Tensor, net: Prior) -> None:
    height, width = images_BMHW.shape[-2:]
    multiple = net.unet.shape.multiple
    if height % multiple or width % multiple:
        raise ConfigError(f"grid={height}x{width}: this network needs multiples of {multiple}")
