"""MMDM: angiography from the routine sequences, a Brownian bridge from each of them (docs/methods/mmdm.md).

Every source has an expert, a time-conditioned Restormer on a bridge of its own, that predicts source minus target in a
slab of adjacent slices. A fusion network weighs the experts' estimates pixel by pixel and adds a residual; what is
absent gets no weight, so that one model works from any sources. Vessels stay whole across slices by a loss on the
maximum intensity projection; learned variances weigh the losses (NAWS).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.base.options import require
from shared.base.randomness import Noise
from shared.base.records import Batch, Cut, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, Modality, Owner, beside, source
from shared.diffusion.bridge import Bridge, bridge, cross
from shared.diffusion.samplers import BRIDGES, Kind, Sampler, bridge_steps
from shared.methods.angiography import Diffused, choice
from shared.methods.contract import Network
from shared.methods.nets.mip import Gumbel, mip_loss
from shared.methods.nets.naws import Naws
from shared.methods.nets.precision import autocast
from shared.methods.nets.restormer import Restormer, RestormerShape

SIZES: Mapping[str, tuple[RestormerShape, RestormerShape]] = {  # an expert, the fusion
    "tiny": (
        RestormerShape(dim=8, blocks=(1, 1), heads=(1, 2), refinement=1, patch=2),
        RestormerShape(dim=8, blocks=(1,), heads=(1,), refinement=0, patch=2),
    ),
    "small": (
        RestormerShape(dim=16, blocks=(1, 1, 2), heads=(1, 2, 4), refinement=0, expansion=2.0, patch=2),
        RestormerShape(dim=16, blocks=(1, 1), heads=(1, 2), refinement=0, expansion=2.0, patch=2),
    ),
    "paper": (
        RestormerShape(dim=32, blocks=(2, 3, 3, 4), heads=(1, 2, 4, 8), refinement=2),
        RestormerShape(dim=32, blocks=(2, 2, 2), heads=(1, 2, 4), refinement=2),
    ),
}
FUSED = "fused"  # the name of the fused image's variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmdm(Diffused):
    """MMDM's options. The paper shows all sources to every sample: drop=0."""

    mip: bool = True  # ablation: false leaves the projections out of the loss
    naws: bool = True  # ablation: false is the plain sum of the losses
    tau: float = 0.05  # of the soft maximum, for images in [0, 1]
    gumbel: Gumbel = "off"

    def __post_init__(self) -> None:
        Diffused.__post_init__(self)
        require(self.tau > 0, "tau", self.tau, "above 0")

    @property
    def samplers(self) -> tuple[Kind, ...]:
        return BRIDGES

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="bridge"),)

    def network(self) -> "MmdmNet":
        return MmdmNet(self)

    def owners(self, net: nn.Module, phase: str) -> Owners:
        """An expert is its source's, as are the fusion's slices of it; gates need a second source to be trained."""
        assert isinstance(net, MmdmNet)
        owners: dict[str, Owner | Cut] = {name: SHARED for name, _ in net.named_parameters()}
        for m in self.sources:
            for name, _ in net.experts[m].named_parameters():
                owners[f"experts.{m}.{name}"] = source(m)
            if self.naws:
                owners[f"naws.rho.{m}"] = source(m)
        slab = self.slab * net.fusion.shape.patch**2  # space to depth keeps a channel's pixels together
        sources = [source(m) for m in self.sources]
        stem = [owner for owner in (*sources, *sources) for _ in range(slab)]
        stem += [owner for owner in sources for _ in range(net.fusion.shape.patch**2)]
        owners["fusion.stem.weight"] = Cut(dim=1, owners=tuple(stem))
        rows = tuple(owner for owner in (*map(beside, self.sources), SHARED) for _ in range(slab))
        owners["fusion.out.weight"] = Cut(dim=0, owners=rows)
        owners["fusion.out.bias"] = Cut(dim=0, owners=rows)
        return owners

    # --- training ------------------------------------------------------------------------------------------------

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        """Of each shown source's estimate and of the fused one, weighed or summed; per sample."""
        assert isinstance(net, MmdmNet)
        x_BSNHW, shown_BS, x0_BNHW = self.lesson(batch, net.multiple, generator)
        device = x_BSNHW.device
        t_B = self.random_times(len(x_BSNHW), generator)
        eps = torch.randn(x_BSNHW.shape, generator=generator, device=device)
        x_t = self._bridge.noised(x0_BNHW[:, None], x_BSNHW, t_B, eps)
        with autocast(device, self.precision):
            each_BSNHW, fused_BNHW = net.estimate(x_t, x_BSNHW, shown_BS, t_B)

        losses = {FUSED: (self._hybrid(fused_BNHW, x0_BNHW, generator), shown_BS.any(1))}
        for s, m in enumerate(self.sources):
            losses[m] = (self._hybrid(each_BSNHW[:, s], x0_BNHW, generator), shown_BS[:, s])
        values = {name: loss_B for name, (loss_B, _) in losses.items()}
        if net.naws is not None:
            delta_B = self._bridge.delta_T.to(device)[t_B].float()
            values = net.naws(values, dict.fromkeys(self.sources, delta_B))
        loss_B = sum(
            (torch.where(counts_B, values[name], 0.0) for name, (_, counts_B) in losses.items()),
            torch.zeros(len(x_BSNHW), device=device),
        )
        two_B = shown_BS.sum(1) > 1
        return Losses(
            loss_B=loss_B,
            gave={
                **self.gave(shown_BS),
                **{beside(m): shown_BS[:, s] & two_B for s, m in enumerate(self.sources)},
            },
        )

    def _hybrid(self, made_BNHW: Tensor, x0_BNHW: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error and, unless it is ablated, that of the projections."""
        error_B = (made_BNHW - x0_BNHW).square().mean((1, 2, 3))
        if not self.mip:
            return error_B
        # tau is told for [0, 1], and these are in [-1, 1]
        return error_B + mip_loss(made_BNHW, x0_BNHW, tau=2 * self.tau, gumbel=self.gumbel, generator=generator)

    # --- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: Noise
    ) -> Tensor:
        assert isinstance(net, MmdmNet)
        y_BSNHW, shown_BS = self.given(images_BMHW, shown_BM, net.multiple)
        self.can_synthesize(shown_BS)
        steps, eta = bridge_steps(sampler, self.times)

        def cooperative(x_BSNHW: Tensor, t: int) -> Tensor:
            t_B = torch.full((len(x_BSNHW),), t, device=x_BSNHW.device)
            with autocast(x_BSNHW.device, self.precision):
                _, fused_BNHW = net.estimate(x_BSNHW, y_BSNHW, shown_BS, t_B)
            return (fused_BNHW.clamp(-1, 1) if sampler.clip else fused_BNHW)[:, None]

        x0 = cross(cooperative, y_BSNHW, self._bridge, steps=steps, eta=eta, generator=generator)[:, 0]
        return self.assembled(images_BMHW, shown_BM, x0)

    @property
    def _bridge(self) -> Bridge:
        return bridge(self.times)


class MmdmNet(Network):
    def __init__(self, options: Mmdm) -> None:
        super().__init__()
        self.sources, self.slab = options.sources, options.slab
        expert, fusion = (dataclasses.replace(one, checkpoint=options.checkpoint) for one in SIZES[options.size])
        S, N = len(options.sources), options.slab
        self.experts = nn.ModuleDict({m: Restormer(2 * N, N, expert) for m in options.sources})
        self.fusion = Restormer(2 * S * N + S, (S + 1) * N, fusion)
        self.naws = Naws([*options.sources, FUSED]) if options.naws else None
        self.multiple = max(expert.multiple, fusion.multiple)  # of the images' height and width

    def estimate(
        self, x_BSNHW: Tensor, y_BSNHW: Tensor, shown_BS: Tensor, t_B: Tensor, *, skip: bool = True
    ) -> tuple[Tensor, Tensor]:
        """x_0 by each shown source's expert, 0 for others, and by their fusion. `skip`: absent ones cost no time."""
        each = []
        for s, m in enumerate(self.sources):
            x, y, rows = x_BSNHW[:, s], y_BSNHW[:, s], shown_BS[:, s]
            if skip and not bool(rows.all()):
                made = torch.zeros_like(y)
                if bool(rows.any()):
                    made[rows] = self._expert(m, x[rows], y[rows], t_B[rows])
            else:
                made = torch.where(rows[:, None, None, None], self._expert(m, x, y, t_B), 0.0)
            each.append(made)
        each_BSNHW = torch.stack(each, dim=1)
        return each_BSNHW, self._fuse(each_BSNHW, y_BSNHW, shown_BS, t_B)

    def _expert(self, m: Modality, x_BNHW: Tensor, y_BNHW: Tensor, t_B: Tensor) -> Tensor:
        difference: Tensor = self.experts[m](torch.cat([x_BNHW, y_BNHW], dim=1), t_B)
        return y_BNHW - difference.float()

    def _fuse(self, each_BSNHW: Tensor, y_BSNHW: Tensor, shown_BS: Tensor, t_B: Tensor) -> Tensor:
        B, S, N, H, W = each_BSNHW.shape
        maps_BSHW = shown_BS[:, :, None, None].to(each_BSNHW.dtype).expand(B, S, H, W)
        out = self.fusion(torch.cat([each_BSNHW.flatten(1, 2), y_BSNHW.flatten(1, 2), maps_BSHW], dim=1), t_B).float()
        gates_BSNHW, residual_BNHW = out[:, : S * N].reshape(B, S, N, H, W), out[:, S * N :]
        fused: Tensor = (choice(gates_BSNHW, shown_BS) * each_BSNHW).sum(1) + residual_BNHW
        return fused

    def forward(self, x_BSNHW: Tensor, y_BSNHW: Tensor, shown_BS: Tensor, t_B: Tensor) -> Tensor:
        """The cooperative estimate of x_0: what is exported. A source that is not shown must be 0."""
        return self.estimate(x_BSNHW, y_BSNHW, shown_BS, t_B, skip=False)[1]

    def example(self, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Inputs that `forward` takes, for exporters."""
        images = torch.zeros(batch, len(self.sources), self.slab, height, width)
        shown = torch.ones(batch, len(self.sources), dtype=torch.bool)
        return images, images.clone(), shown, torch.zeros(batch, dtype=torch.long)
