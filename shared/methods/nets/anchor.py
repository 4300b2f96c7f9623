"""What a volume is told from, by sums over subjects that sites pool: the mean volume, and how modalities vary together.

The mean of a modality at each voxel inside the brain; and in small cubes of voxels the covariance of the modalities'
differences from it. With both, what is shown says something of what is not: a linear regression at each place, whose
weights change smoothly from cube to cube. What a generator makes is how a volume differs from that.

Before anything is pooled the mean is one half and nothing varies with anything: the difference is then the image
itself, from -1 to 1.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 0.1  # of a modality's own variance: a dozen subjects tell a slope only roughly

MEAN_CELLS = dict.fromkeys(("x", "n"), ("n", 4))  # a voxel of a modality
RELATION_CELLS = dict.fromkeys(("products", "voxels"), ("voxels", 4))  # a cube of a pair


class Anchor(nn.Module):
    mean_MDHW: Tensor
    covariance_MMDHW: Tensor  # of cubes

    def __init__(self, modalities: int, shape_DHW: tuple[int, int, int], cube: int) -> None:
        super().__init__()
        self.shape_DHW, self.cube = shape_DHW, cube
        cubes = [-(-n // cube) for n in shape_DHW]
        self.register_buffer("mean_MDHW", torch.full((modalities, *shape_DHW), 0.5))
        self.register_buffer("covariance_MMDHW", torch.zeros(modalities, modalities, *cubes))

    def differences(self, images_BMDHW: Tensor, exists_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Twice the difference from the mean inside the brain, 0 elsewhere; and where the brain is."""
        images, brain_BDHW = self.seen(images_BMDHW, exists_BM)
        inside = brain_BDHW[:, None] & exists_BM[:, :, None, None, None]
        return torch.where(inside, 2 * (images - self.mean_MDHW), 0.0), brain_BDHW

    def seen(self, images_BMDHW: Tensor, exists_BM: Tensor) -> tuple[Tensor, Tensor]:
        """What is there, and the brain: where any of it is above 0."""
        images = torch.where(exists_BM[:, :, None, None, None], images_BMDHW.float(), 0.0)
        return images, (images > 0).any(dim=1)

    def expected(self, k: int, differences_BMDHW: Tensor, shown_BM: Tensor) -> Tensor:
        """The difference of modality `k` that what is shown speaks for; `k` itself is never asked."""
        shown_BM = shown_BM & (torch.arange(shown_BM.shape[1], device=shown_BM.device) != k)
        weights_BMDHW = F.interpolate(self._weights(k, shown_BM), scale_factor=float(self.cube), mode="trilinear")
        D, H, W = self.shape_DHW
        shown = torch.where(shown_BM[:, :, None, None, None], differences_BMDHW, 0.0)
        return (weights_BMDHW[..., :D, :H, :W] * shown).sum(1)

    def _weights(self, k: int, shown_BM: Tensor) -> Tensor:
        """Solve for the weight of each modality in each cube; 0 for what is not shown."""
        cubes = self.covariance_MMDHW.shape[2:]
        cov_NMM = self.covariance_MMDHW.flatten(2).permute(2, 0, 1)
        both_B1MM = (shown_BM[:, :, None] & shown_BM[:, None])[:, None]
        own_B1MM = torch.diag_embed(torch.where(shown_BM, 1e-6, 1.0))[:, None]  # a row of its own for what is not shown
        about_BNM = torch.where(shown_BM[:, None], cov_NMM[:, :, k], 0.0)
        weights_BNM: Tensor = torch.linalg.solve(torch.where(both_B1MM, cov_NMM, 0.0) + own_B1MM, about_BNM)
        return weights_BNM.transpose(1, 2).reshape(*shown_BM.shape, *cubes)

    # --- what sites pool ---------------------------------------------------------------------------------------------

    def mean_sums(self, images_BMDHW: Tensor, exists_BM: Tensor) -> dict[str, Tensor]:
        """Each modality's sum and count at each voxel of the subjects' brains."""
        images, brain_BDHW = self.seen(images_BMDHW, exists_BM)
        return {
            "x": (images.double() * brain_BDHW[:, None]).sum(0),
            "n": torch.einsum("bm,bdhw->mdhw", exists_BM.double(), brain_BDHW.double()),
        }

    def settle_mean(self, sums: Mapping[str, Tensor], held_M: Tensor) -> None:
        """One subject's worth of a modality's usual value stands beside the subjects; one half for what nobody has."""
        counts = sums["n"].clamp(min=0)
        usual_M = (sums["x"].sum(dim=(1, 2, 3)) / counts.sum(dim=(1, 2, 3)).clamp(min=1)).clamp(0, 1)
        mean = (sums["x"] + usual_M[:, None, None, None]) / (counts + 1)
        self.mean_MDHW.copy_(torch.where(held_M[:, None, None, None], mean.clamp(0, 1), 0.5))

    def relation_sums(self, images_BMDHW: Tensor, exists_BM: Tensor) -> dict[str, Tensor]:
        """Of each pair of modalities, over the subjects that have both: products of differences, and brain voxels."""
        differences, brain_BDHW = self.differences(images_BMDHW, exists_BM)
        differences = differences.double()
        one, other = torch.triu_indices(len(self.mean_MDHW), len(self.mean_MDHW))
        both_BP = (exists_BM[:, one] & exists_BM[:, other]).double()
        return {
            "products": torch.stack(
                [
                    self._cubes((differences[:, i] * differences[:, j]).sum(0))
                    for i, j in zip(one.tolist(), other.tolist(), strict=True)
                ]
            ),
            "voxels": self._cubes(torch.einsum("bp,bdhw->pdhw", both_BP, brain_BDHW.double())),
        }

    def settle_relation(self, sums: Mapping[str, Tensor]) -> None:
        """One full cube's worth of the pair's usual covariance stands beside each cube's own.

        Pairs come from different subjects and need not fit together: the nearest correlations that do, and a ridge.
        """
        voxels_P = sums["voxels"].clamp(min=0)
        usual_P = sums["products"].sum(dim=(1, 2, 3), keepdim=True) / voxels_P.sum(dim=(1, 2, 3), keepdim=True).clamp(
            min=1
        )
        prior = self.cube**3
        covariance_P = (sums["products"] + prior * usual_P) / (voxels_P + prior)
        one, other = torch.triu_indices(len(self.mean_MDHW), len(self.mean_MDHW))
        whole = covariance_P.new_zeros(self.covariance_MMDHW.shape)
        whole[one, other] = covariance_P
        whole[other, one] = covariance_P
        cov_NMM = whole.flatten(2).permute(2, 0, 1)
        spread_NM = cov_NMM.diagonal(dim1=1, dim2=2).clamp(min=1e-8).sqrt()
        both_NMM = spread_NM[:, :, None] * spread_NM[:, None]
        values_NM, vectors_NMM = torch.linalg.eigh(cov_NMM / both_NMM)
        fits_NMM = (vectors_NMM * values_NM.clamp(min=0)[:, None]) @ vectors_NMM.mT
        eye_MM = torch.eye(len(self.mean_MDHW), dtype=fits_NMM.dtype, device=fits_NMM.device)
        settled = (fits_NMM + RIDGE * eye_MM) * both_NMM
        self.covariance_MMDHW.copy_(settled.permute(1, 2, 0).reshape(self.covariance_MMDHW.shape))

    def _cubes(self, x_DHW: Tensor) -> Tensor:
        """Add up the voxels of each cube; what it reaches beyond the volume is empty."""
        pads = [pad for n in reversed(self.shape_DHW) for pad in (0, -n % self.cube)]
        x = F.pad(x_DHW, pads)[None] if x_DHW.ndim == 4 else F.pad(x_DHW, pads)[None, None]
        sums: Tensor = F.avg_pool3d(x, self.cube, divisor_override=1)
        return sums[0] if x_DHW.ndim == 4 else sums[0, 0]
