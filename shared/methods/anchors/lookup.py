"""A floor: the mean of the target where the shown modalities were in the same bins, from joint histograms.

Histograms are sums, so sites can pool them exactly in one round. Up to three modalities are looked up together; of
more, and where nobody had all of them beside the target, the largest sets that somebody had speak, each by its pixels.
A cell that nobody filled leaves the word to smaller sets.
"""

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from shared.base.records import Batch
from shared.methods.nets.spectral import brain

MOST, BINS = 3, 16  # modalities looked up together, bins of each


class LookUp(nn.Module):
    """Every modality from any shown subset, in the brain; a shown one is itself."""

    total_PMC: Tensor  # P sets of shown modalities, M targets, C cells: sum of the target
    pixels_PMC: Tensor

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.modalities = modalities
        cells = BINS ** min(modalities, MOST)
        self.register_buffer("total_PMC", torch.zeros(2**modalities, modalities, cells, dtype=torch.float64))
        self.register_buffer("pixels_PMC", torch.zeros(2**modalities, modalities, cells, dtype=torch.float64))

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Total and count the target's pixels in every cell of every set that its subject had beside it."""
        exists_BM = batch.exists_BM
        images = torch.where(exists_BM[:, :, None, None], batch.images_BMHW.double(), 0.0)
        inside_BHW = brain(images, exists_BM)[:, 0]
        total, pixels = torch.zeros_like(self.total_PMC), torch.zeros_like(self.pixels_PMC)
        for pattern in torch.unique(exists_BM, dim=0):
            here = (exists_BM == pattern).all(dim=1)
            x_MN = images[here].movedim(1, 0)[:, inside_BHW[here]]
            have = pattern.nonzero().flatten().tolist()
            for size in range(1, min(MOST, len(have) - 1) + 1):
                for members in combinations(have, size):
                    code, cell_N = _code(members), _cell(x_MN[list(members)])
                    for target in (m for m in have if m not in members):
                        total[code, target].index_add_(0, cell_N, x_MN[target])
                        pixels[code, target].index_add_(0, cell_N, torch.ones_like(x_MN[target]))
        return {"total": total, "pixels": pixels}

    def settle(self, sums: Mapping[str, Tensor]) -> None:
        self.total_PMC.copy_(sums["total"])
        self.pixels_PMC.copy_(sums["pixels"])

    def forward(self, images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        """All modalities in [0, 1]; 0 outside the brain. What is hidden is never looked at."""
        out = torch.where(shown_BM[:, :, None, None], images_BMHW.float(), 0.0)
        inside_BHW = brain(out, shown_BM)[:, 0]
        for image_MHW, inside_HW, shown_M in zip(out, inside_BHW, shown_BM, strict=True):
            x_MN, shown = image_MHW[:, inside_HW].double(), shown_M.nonzero().flatten().tolist()
            for target in (~shown_M).nonzero().flatten().tolist():
                image_MHW[target][inside_HW] = self._told(x_MN, shown, target).float()
        return out

    def _told(self, x_MN: Tensor, shown: list[int], target: int) -> Tensor:
        made_N = x_MN.new_zeros(x_MN.shape[1])
        open_N = torch.ones_like(made_N, dtype=torch.bool)
        for size in range(min(MOST, len(shown)), 0, -1):
            total_N, pixels_N = torch.zeros_like(made_N), torch.zeros_like(made_N)
            for members in combinations(shown, size):
                code, cell_N = _code(members), _cell(x_MN[list(members)])
                total_N += self.total_PMC[code, target][cell_N]
                pixels_N += self.pixels_PMC[code, target][cell_N]
            known_N = open_N & (pixels_N > 0)
            made_N = torch.where(known_N, total_N / pixels_N.clamp(min=1), made_N)
            open_N &= ~known_N
        return made_N


def _cell(x_SN: Tensor) -> Tensor:
    """Which cell each pixel is in, of the set's own histogram."""
    bins_SN = (x_SN * BINS).long().clamp(0, BINS - 1)
    powers_S = BINS ** torch.arange(len(x_SN), device=x_SN.device)
    return (bins_SN * powers_S[:, None]).sum(0)


def _code(members: tuple[int, ...]) -> int:
    return sum(2**m for m in members)
