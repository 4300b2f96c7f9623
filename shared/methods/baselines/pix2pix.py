"""Pix2pix: a U-Net from the sources to the target, and a critic of patches that tells made from true ones.

Isola et al. 2017 with least squares (docs/methods/baselines.md). The original trains both in turn, with an
optimiser each. Here one step moves both, from the same weights: their losses are one sum, in which the generator is
judged by a critic with detached weights, and the critic sees a detached image. Neither gets the other's gradient, and
the house's one AdamW scales each weight for itself, so the sum weighs nothing against anything; its betas are not the
original's (0.5, 0.999). No clipping by norm, which would tie the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from shared.base.errors import ConfigError
from shared.base.options import require
from shared.base.randomness import Noise
from shared.base.records import Batch, Cut, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, Owner
from shared.diffusion.samplers import Kind, Sampler
from shared.methods.angiography import Angiography, seen, seen_by
from shared.methods.contract import Network
from shared.methods.nets.precision import autocast


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    base: int
    downs: int  # halvings in the generator: height and width are multiples of 2^downs
    strided: int  # halvings in the critic: 2 see 34 x 34 pixels, 3 see 70 x 70


SIZES: Mapping[str, Shape] = {
    "tiny": Shape(base=8, downs=3, strided=2),
    "small": Shape(base=32, downs=3, strided=3),  # 64 x 56
    "paper": Shape(base=64, downs=5, strided=3),  # 320 x 288
}
WIDEST = 8  # in units of base


@dataclass(frozen=True, slots=True, kw_only=True)
class Pix2pix(Angiography):
    l1: float = 100.0  # weight of the absolute error against the critic's opinion
    dropout: float = 0.5  # in training alone

    def __post_init__(self) -> None:
        Angiography.__post_init__(self)
        require(self.l1 >= 0, "l1", self.l1, "0 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    @property
    def samplers(self) -> tuple[Kind, ...]:
        return ("mean",)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="adversarial"),)

    def network(self) -> "Pix2pixNet":
        return Pix2pixNet(self)

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """A source's input slices are its own, the generator's and the critic's."""
        owners: dict[str, Owner | Cut] = {name: SHARED for name, _ in net.named_parameters()}
        inputs = seen_by(self.sources, self.slab)
        owners["generator.down.0.weight"] = Cut(dim=1, owners=tuple(inputs))
        owners["critic.convs.0.weight"] = Cut(dim=1, owners=(*inputs, *[SHARED] * self.slab))
        return owners

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        """The generator's part and the critic's; per sample."""
        assert isinstance(net, Pix2pixNet)
        x_BSNHW, shown_BS, x0_BNHW = self.lesson(batch, net.multiple, generator)
        with autocast(x_BSNHW.device, self.precision):
            made_BNHW = net.generator(seen(x_BSNHW, shown_BS), self.dropout, generator).float()
        error_B = self.generators(net, x_BSNHW, shown_BS, x0_BNHW, made_BNHW)
        error_B = error_B + self.critics(net, x_BSNHW, shown_BS, x0_BNHW, made_BNHW)
        return Losses(loss_B=torch.where(shown_BS.any(1), error_B, 0.0), gave=self.gave(shown_BS))

    def generators(
        self, net: "Pix2pixNet", x_BSNHW: Tensor, shown_BS: Tensor, x0_BNHW: Tensor, made_BNHW: Tensor
    ) -> Tensor:
        """Score the generator: it has to look true to a critic that is held still, and be near the truth."""
        held = {name: p.detach() for name, p in net.critic.named_parameters()}
        with autocast(x_BSNHW.device, self.precision):
            inputs = torch.cat([seen(x_BSNHW, shown_BS), made_BNHW], dim=1)
            opinion: Tensor = functional_call(net.critic, held, (inputs,)).float()
        fooled_B = (opinion - 1).square().mean((1, 2, 3))
        return fooled_B + self.l1 * (made_BNHW - x0_BNHW).abs().mean((1, 2, 3))

    def critics(
        self, net: "Pix2pixNet", x_BSNHW: Tensor, shown_BS: Tensor, x0_BNHW: Tensor, made_BNHW: Tensor
    ) -> Tensor:
        """Score the critic: it has to say 1 for what is true, 0 for what was made."""
        inputs = seen(x_BSNHW, shown_BS)
        with autocast(x_BSNHW.device, self.precision):
            true: Tensor = net.critic(torch.cat([inputs, x0_BNHW], dim=1)).float()
            made: Tensor = net.critic(torch.cat([inputs, made_BNHW.detach()], dim=1)).float()
        return ((true - 1).square().mean((1, 2, 3)) + made.square().mean((1, 2, 3))) / 2

    @torch.no_grad()
    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        assert isinstance(net, Pix2pixNet)
        if sampler.kind != "mean":
            raise ConfigError(f"sampler={sampler.kind}: this method makes its image in one evaluation; it takes mean")
        x_BSNHW, shown_BS = self.given(images_BMHW, shown_BM, net.multiple)
        self.can_synthesize(shown_BS)
        with autocast(x_BSNHW.device, self.precision):
            made_BNHW = net(x_BSNHW, shown_BS).float()
        return self.assembled(images_BMHW, shown_BM, made_BNHW)


class Pix2pixNet(Network):
    def __init__(self, options: Pix2pix) -> None:
        super().__init__()
        self.sources, self.slab = len(options.sources), options.slab
        shape = SIZES[options.size]
        inputs = self.sources * (self.slab + 1)
        self.generator = Generator(inputs, self.slab, shape)
        self.critic = Critic(inputs + self.slab, shape)
        self.multiple = 2**shape.downs  # of the images' height and width
        for name, p in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(p, std=0.02)
            else:
                nn.init.zeros_(p)

    def forward(self, x_BSNHW: Tensor, shown_BS: Tensor) -> Tensor:
        """The generator without dropout: what is exported. A source that is not shown is not looked at."""
        out: Tensor = self.generator(seen(x_BSNHW, shown_BS))
        return out

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs that `forward` takes, for exporters."""
        shown = torch.ones(batch, self.sources, dtype=torch.bool)
        return torch.zeros(batch, self.sources, self.slab, height, width), shown


class Generator(nn.Module):
    """No norm on the first layer, the last one and the bottom, which may be a single pixel."""

    def __init__(self, c_in: int, c_out: int, shape: Shape) -> None:
        super().__init__()
        widths = [shape.base * min(2**level, WIDEST) for level in range(shape.downs)]
        last = shape.downs - 1
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2, 1, bias=level in (0, last))
            for level, (a, b) in enumerate(zip([c_in, *widths], widths, strict=False))
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(
                widths[level] * (1 if level == last else 2),
                widths[level - 1] if level else c_out,
                4,
                2,
                1,
                bias=level == 0,
            )
            for level in reversed(range(shape.downs))
        )
        self.dropped = min(3, shape.downs - 2)  # decoders with dropout, counted from the bottom

    def forward(self, h: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        skips: list[Tensor] = []
        last = len(self.down) - 1
        for level, down in enumerate(self.down):
            h = down(F.leaky_relu(h, 0.2) if level else h)
            h = normed(h) if 0 < level < last else h
            skips.append(h)
        skips.pop()
        for i, up in enumerate(self.up):
            h = up(F.relu(h))
            if i == last:
                break
            h = normed(h)
            if dropout and i < self.dropped:
                kept = torch.rand(h.shape, generator=generator, device=h.device) >= dropout
                h = torch.where(kept, h / (1 - dropout), 0.0)
            h = torch.cat([h, skips.pop()], dim=1)
        return h.float().tanh()


class Critic(nn.Module):
    """An opinion of every patch: 1 is true, 0 is made."""

    def __init__(self, c_in: int, shape: Shape) -> None:
        super().__init__()
        widths = [shape.base * min(2**level, WIDEST) for level in range(shape.strided + 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, 2 if level < shape.strided else 1, 1, bias=level in (0, len(widths)))
            for level, (a, b) in enumerate(zip([c_in, *widths], [*widths, 1], strict=True))
        )

    def forward(self, h: Tensor) -> Tensor:
        last = len(self.convs) - 1
        for level, conv in enumerate(self.convs):
            h = conv(F.leaky_relu(h, 0.2) if level else h)
            h = normed(h) if 0 < level < last else h
        return h


def normed(h_BCHW: Tensor) -> Tensor:
    """Instance norm: of each image and channel for itself, so that no sample touches another."""
    out: Tensor = F.instance_norm(h_BCHW.float()).to(h_BCHW.dtype)
    return out
