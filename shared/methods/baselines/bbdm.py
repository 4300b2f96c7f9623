"""BBDM: one Brownian bridge in pixel space, from a gated sum of the shown sources to the target.

Beside the original: docs/methods/baselines.md, "BBDM".

The start y weighs the sources pixel by pixel: a softmax of a 1x1 convolution of each, absent ones excluded. The network
sees x_t beside y and predicts m_t (y - x_0) + sqrt(delta_t) eps, which is x_t - x_0: L1. The gates learn through x_t.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.base.randomness import Noise
from shared.base.records import Batch, Cut, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, beside
from shared.diffusion.bridge import Bridge, bridge, cross
from shared.diffusion.samplers import BRIDGES, Kind, Sampler, bridge_steps
from shared.methods.angiography import Diffused, choice, only
from shared.methods.contract import Network
from shared.methods.nets.precision import autocast
from shared.methods.nets.unet import UNet, UNetShape, zeroed

SIZES: Mapping[str, UNetShape] = {
    "tiny": UNetShape(base=16, mult=(1, 2), blocks=1, attention=1, patch=2),
    "small": UNetShape(base=32, mult=(1, 2, 2), blocks=1, attention=1, patch=2),
    "paper": UNetShape(base=64, mult=(1, 2, 2, 4, 4), blocks=2, attention=1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bbdm(Diffused):
    @property
    def samplers(self) -> tuple[Kind, ...]:
        return BRIDGES

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="bridge"),)

    def network(self) -> "BbdmNet":
        return BbdmNet(self)

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """The bridge is everybody's; a source's gate is trained where another is shown beside it."""
        owners = {name: SHARED for name, _ in net.named_parameters()}
        gates = Cut(dim=0, owners=tuple(beside(m) for m in self.sources for _ in range(self.slab)))
        return {**owners, "gate.weight": gates, "gate.bias": gates}

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        """Mean over pixels of the absolute error of the objective; per sample."""
        assert isinstance(net, BbdmNet)
        x_BSNHW, shown_BS, x0_BNHW = self.lesson(batch, net.unet.shape.multiple, generator)
        device = x_BSNHW.device
        t_B = self.random_times(len(x_BSNHW), generator)
        eps = torch.randn(x0_BNHW.shape, generator=generator, device=device)
        with autocast(device, self.precision):
            y_BNHW = net.start(x_BSNHW, shown_BS)
            x_t = self._bridge.noised(x0_BNHW, y_BNHW, t_B, eps)
            raw = net.objective(x_t, y_BNHW, t_B)
        error_B = (raw - (x_t - x0_BNHW)).abs().mean((1, 2, 3))
        two_B = shown_BS.sum(1) > 1
        return Losses(
            loss_B=torch.where(shown_BS.any(1), error_B, 0.0),
            gave={
                SHARED: shown_BS.any(1),
                **{beside(m): shown_BS[:, s] & two_B for s, m in enumerate(self.sources)},
            },
        )

    @torch.no_grad()
    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        assert isinstance(net, BbdmNet)
        x_BSNHW, shown_BS = self.given(images_BMHW, shown_BM, net.unet.shape.multiple)
        self.can_synthesize(shown_BS)
        steps, eta = bridge_steps(sampler, self.times)
        with autocast(x_BSNHW.device, self.precision):
            y_BNHW = net.start(x_BSNHW, shown_BS)

        def estimate(x_BNHW: Tensor, t: int) -> Tensor:
            t_B = torch.full((len(x_BNHW),), t, device=x_BNHW.device)
            with autocast(x_BNHW.device, self.precision):
                x0_BNHW = x_BNHW - net.objective(x_BNHW, y_BNHW, t_B)
            return x0_BNHW.clamp(-1, 1) if sampler.clip else x0_BNHW

        x0 = cross(estimate, y_BNHW, self._bridge, steps=steps, eta=eta, generator=generator)
        return self.assembled(images_BMHW, shown_BM, x0)

    @property
    def _bridge(self) -> Bridge:
        return bridge(self.times)


class BbdmNet(Network):
    def __init__(self, options: Bbdm) -> None:
        super().__init__()
        self.sources, self.slab = len(options.sources), options.slab
        channels = self.sources * self.slab
        # in groups: a source's gate reads that source alone, so that what is absent trains nothing
        self.gate = zeroed(nn.Conv2d(channels, channels, 1, groups=self.sources))
        shape = dataclasses.replace(SIZES[options.size], checkpoint=options.checkpoint)
        self.unet = UNet(2 * self.slab, self.slab, shape)

    def start(self, x_BSNHW: Tensor, shown_BS: Tensor) -> Tensor:
        """Make y, where the bridge starts: the gated sum of the shown sources."""
        x_BSNHW = only(x_BSNHW, shown_BS)
        logits_BSNHW = self.gate(x_BSNHW.flatten(1, 2)).float().reshape(x_BSNHW.shape)
        return (choice(logits_BSNHW, shown_BS) * x_BSNHW).sum(1)

    def objective(self, x_BNHW: Tensor, y_BNHW: Tensor, t_B: Tensor) -> Tensor:
        out: Tensor = self.unet(torch.cat([x_BNHW, y_BNHW], dim=1), t_B).float()
        return out

    def forward(self, x_BNHW: Tensor, x_BSNHW: Tensor, shown_BS: Tensor, t_B: Tensor) -> Tensor:
        """x_0 and the bridge's start y, side by side on axis 1, from x_t, sources and time: what is exported."""
        y_BNHW = self.start(x_BSNHW, shown_BS)
        return torch.stack([x_BNHW - self.objective(x_BNHW, y_BNHW, t_B), y_BNHW], dim=1)

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs that `forward` takes, for exporters."""
        return (
            torch.zeros(batch, self.slab, height, width),
            torch.zeros(batch, self.sources, self.slab, height, width),
            torch.ones(batch, self.sources, dtype=torch.bool),
            torch.zeros(batch, dtype=torch.long),
        )
