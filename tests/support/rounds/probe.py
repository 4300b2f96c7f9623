"""A method small enough for laws: a linear autoencoder with owned slices, no randomness, one phase of each kind."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.base.records import Batch, Cut, Losses, Owners, Phase
from shared.base.vocabulary import SHARED, Modality, source, target
from shared.diffusion.samplers import Sampler
from shared.methods import Method, Network

CELLS = dict.fromkeys(("total_M", "pixels_M"), ("pixels_M", 1))


class Net(Network):
    def __init__(self, m: int) -> None:
        super().__init__()
        self.stem = nn.Linear(m, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, m)
        self.level = Level(m)

    def forward(self, x_BMHW: Tensor) -> Tensor:
        x = x_BMHW.movedim(1, -1)
        out: Tensor = self.head(torch.tanh(self.body(self.stem(x))))
        return out.movedim(-1, 1) + self.level.mean_M[None, :, None, None]


class Level(nn.Module):
    def __init__(self, m: int) -> None:
        super().__init__()
        self.register_buffer("mean_M", torch.zeros(m))


@dataclass(frozen=True, kw_only=True)
class Probe(Method):
    modalities: tuple[Modality, ...] = ("T1", "T2", "FLAIR")
    width: float = 1.0

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="level", kind="sums", cells=CELLS), Phase(name="fit", collapse=("feature_std", 1e-6)))

    def network(self) -> Network:
        return Net(len(self.modalities))

    def owners(self, net: nn.Module, phase: str) -> Owners:
        stem = Cut(dim=1, owners=tuple(source(m) for m in self.modalities))
        rows = tuple(target(m) for m in self.modalities)
        return {
            "stem.weight": stem,
            "stem.bias": SHARED,
            "body.weight": SHARED,
            "body.bias": SHARED,
            "head.weight": Cut(dim=0, owners=rows),
            "head.bias": Cut(dim=0, owners=rows),
        }

    def loss(self, net: nn.Module, batch: Batch, phase: str, generator: torch.Generator) -> Losses:
        dtype = next(net.parameters()).dtype
        exists = batch.exists_BM[:, :, None, None]
        shown = torch.where(batch.shown_BM[:, :, None, None], batch.images_BMHW, 0).to(dtype)
        wanted = torch.where(exists, batch.images_BMHW, 0).to(dtype)
        error = torch.where(exists, net(shown) - wanted, 0)
        n_B = batch.exists_BM.sum(dim=1).clamp(min=1)
        loss_B = error.square().mean(dim=(2, 3)).sum(dim=1) / n_B
        gave = {SHARED: batch.exists_BM.any(dim=1)}
        gave |= {source(m): batch.shown_BM[:, i] for i, m in enumerate(self.modalities)}
        gave |= {target(m): batch.exists_BM[:, i] for i, m in enumerate(self.modalities)}
        return Losses(loss_B=loss_B, gave=gave, watch={"feature_std": 1.0})

    def sums(self, net: nn.Module, batch: Batch, phase: str) -> Mapping[str, Tensor]:
        exists = batch.exists_BM[:, :, None, None]
        total = torch.where(exists, batch.images_BMHW, 0).double().sum(dim=(0, 2, 3))
        pixels = batch.exists_BM.sum(dim=0) * batch.images_BMHW[0, 0].numel()
        return {"total_M": total, "pixels_M": pixels.double()}

    def settle(self, net: nn.Module, phase: str, sums: Mapping[str, Tensor]) -> None:
        assert isinstance(net, Net)
        net.level.mean_M.copy_(sums["total_M"] / sums["pixels_M"].clamp(min=1))

    def synthesize(
        self, net: nn.Module, images_BMHW: Tensor, shown_BM: Tensor, sampler: Sampler, generator: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            out: Tensor = net(torch.where(shown_BM[:, :, None, None], images_BMHW, 0))
            return out.clamp(0, 1)
