"""Conditional DDPM: a U-Net on the noisy target, the sources, blank where absent, and their presence maps.

T = 1000, linear (docs/methods/baselines.md). The usual one predicts eps, ours v, as other methods here do: at
the last time, which the sampler `mean` reads, x_0 is -v, while an error of eps would be divided by alpha = 0.006:
with eps there is no `mean`. A network of v hears alpha x_t (Schedule.heard).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shared.base.randomness import Noise, normal
from shared.base.records import Batch, Cut, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, Owner
from shared.diffusion.gaussian import Schedule, linear
from shared.diffusion.samplers import Guess, Kind, Sampler, draw, from_noise
from shared.methods.angiography import Diffused, seen, seen_by
from shared.methods.contract import Network
from shared.methods.nets.precision import autocast
from shared.methods.nets.unet import UNet, UNetShape

SIZES: Mapping[str, UNetShape] = {
    "tiny": UNetShape(base=16, mult=(1, 2), blocks=1, attention=1, patch=2),
    "small": UNetShape(base=32, mult=(1, 2, 2), blocks=1, attention=1, patch=2),
    "paper": UNetShape(base=64, mult=(1, 2, 2, 4, 4), blocks=2, attention=1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddpm(Diffused):
    parameterisation: Literal["eps", "v"] = "v"

    @property
    def samplers(self) -> tuple[Kind, ...]:
        return from_noise(self.parameterisation)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="diffusion"),)

    def network(self) -> "DdpmNet":
        return DdpmNet(self)

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """A source's input slices are its own."""
        assert isinstance(net, DdpmNet)
        owners: dict[str, Owner | Cut] = {name: SHARED for name, _ in net.named_parameters()}
        area = net.unet.shape.patch**2  # space to depth keeps a channel's pixels together
        stem = [SHARED] * (self.slab * area) + seen_by(self.sources, self.slab, area)
        owners["unet.stem.weight"] = Cut(dim=1, owners=tuple(stem))
        return owners

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        """Mean over pixels of the squared error; per sample."""
        assert isinstance(net, DdpmNet)
        x_BSNHW, shown_BS, x0_BNHW = self.lesson(batch, net.unet.shape.multiple, generator)
        device = x_BSNHW.device
        t_B = self.random_times(len(x_BSNHW), generator)
        eps = torch.randn(x0_BNHW.shape, generator=generator, device=device)
        x_t = self._schedule.noised(x0_BNHW, t_B, eps)
        with autocast(device, self.precision):
            raw = net(self._heard(x_t, t_B), x_BSNHW, shown_BS, t_B).float()
        wanted = eps if self.parameterisation == "eps" else self._schedule.v_of(t_B, x0_BNHW, eps)
        error_B = (raw - wanted).square().mean((1, 2, 3))
        return Losses(loss_B=torch.where(shown_BS.any(1), error_B, 0.0), gave=self.gave(shown_BS))

    @torch.no_grad()
    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        assert isinstance(net, DdpmNet)
        x_BSNHW, shown_BS = self.given(images_BMHW, shown_BM, net.unet.shape.multiple)
        self.can_synthesize(shown_BS)

        def denoise(x_t: Tensor, t: int) -> Guess:
            t_B = torch.full((len(x_t),), t, device=x_t.device)
            with autocast(x_t.device, self.precision):
                raw = net(self._heard(x_t, t_B), x_BSNHW, shown_BS, t_B).float()
            if self.parameterisation == "eps":
                return Guess(self._schedule.x0_from_eps(x_t, t_B, raw), raw)
            return Guess(self._schedule.x0_from_v(x_t, t_B, raw), self._schedule.eps_from_v(x_t, t_B, raw))

        noise = normal(x_BSNHW[:, 0], generator)
        x0_BNHW = draw(denoise, self._schedule, noise, sampler, generator, self.samplers)
        return self.assembled(images_BMHW, shown_BM, x0_BNHW)

    def _heard(self, x_t: Tensor, t_B: Tensor) -> Tensor:
        return x_t if self.parameterisation == "eps" else self._schedule.heard(x_t, t_B)

    @property
    def _schedule(self) -> Schedule:
        return linear(self.times)


class DdpmNet(Network):
    def __init__(self, options: Ddpm) -> None:
        super().__init__()
        self.sources, self.slab = len(options.sources), options.slab
        shape = dataclasses.replace(SIZES[options.size], checkpoint=options.checkpoint)
        self.unet = UNet(self.slab + self.sources * (self.slab + 1), self.slab, shape)

    def forward(self, x_BNHW: Tensor, x_BSNHW: Tensor, shown_BS: Tensor, t_B: Tensor) -> Tensor:
        """The denoiser: what is exported. A source that is not shown is not looked at."""
        out: Tensor = self.unet(torch.cat([x_BNHW, seen(x_BSNHW, shown_BS)], dim=1), t_B)
        return out

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs that `forward` takes, for exporters."""
        return (
            torch.zeros(batch, self.slab, height, width),
            torch.zeros(batch, self.sources, self.slab, height, width),
            torch.ones(batch, self.sources, dtype=torch.bool),
            torch.zeros(batch, dtype=torch.long),
        )
