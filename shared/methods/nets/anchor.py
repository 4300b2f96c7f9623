"""What a volume is told from, by sums over subjects that sites pool: the mean volume, and how modalities vary together.

The mean of a modality at each voxel inside the brain; and in small cubes of voxels the covariance of the modalities'
differences from it. With both, what is shown says something of what is not: a linear regression at each place, whose
weights change smoothly from cube to cube. What a generator makes is how a volume differs from that.

Of a subject that is in the sums they know too much: its own values and its own products. So training looks at it with
what is its own taken out of them (`left_out`), as every other subject will be seen. The sums are kept for that, and
wiped before a model is released (`AcaNet.forget`): they count subjects.

Before anything is pooled the mean is one half and nothing varies with anything: the difference is then the image
itself, from -1 to 1.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 0.1  # of a modality's own variance: a dozen subjects tell a slope only roughly

MEAN_CELLS = dict.fromkeys(("x", "n"), ("n", 4))  # a voxel of a modality
RELATION_CELLS = dict.fromkeys(("products", "voxels"), ("voxels", 4))  # a cube of a pair


class LeftOut(NamedTuple):
    """Subjects of the sums, told from all the others of them."""

    differences_BMDHW: Tensor
    brain_BDHW: Tensor
    covariance_BMMDHW: Tensor  # each subject's, of cubes


class Anchor(nn.Module):
    mean_MDHW: Tensor
    covariance_MMDHW: Tensor  # of cubes
    subjects_MDHW: Tensor  # in the mean; 0: nothing was pooled, or it was wiped, and nothing is taken out
    products_PDHW: Tensor  # the pooled sums by pair of modalities, of cubes
    voxels_PDHW: Tensor

    def __init__(self, modalities: int, shape_DHW: tuple[int, int, int], cube: int) -> None:
        super().__init__()
        self.shape_DHW, self.cube = shape_DHW, cube
        cubes = [-(-n // cube) for n in shape_DHW]
        self.register_buffer("mean_MDHW", torch.full((modalities, *shape_DHW), 0.5))
        self.register_buffer("covariance_MMDHW", torch.zeros(modalities, modalities, *cubes))
        self.register_buffer("subjects_MDHW", torch.zeros(modalities, *shape_DHW))
        pairs = modalities * (modalities + 1) // 2
        self.register_buffer("products_PDHW", torch.zeros(pairs, *cubes))
        self.register_buffer("voxels_PDHW", torch.zeros(pairs, *cubes))

    def differences(self, images_BMDHW: Tensor, exists_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Twice the difference from the mean inside the brain, 0 elsewhere; and where the brain is."""
        images, brain_BDHW = self.seen(images_BMDHW, exists_BM)
        inside = brain_BDHW[:, None] & exists_BM[:, :, None, None, None]
        return torch.where(inside, 2 * (images - self.mean_MDHW), 0.0), brain_BDHW

    def seen(self, images_BMDHW: Tensor, exists_BM: Tensor) -> tuple[Tensor, Tensor]:
        """What is there, and the brain: where any of it is above 0."""
        images = torch.where(exists_BM[:, :, None, None, None], images_BMDHW.float(), 0.0)
        return images, (images > 0).any(dim=1)

    def left_out(self, images_BMDHW: Tensor, exists_BM: Tensor) -> LeftOut:
        """Each subject told from the others: its values leave the mean, its products the covariances.

        The others' products stay those of differences from the mean of all, which is off by one part in their number
        squared. With mu = (sum + usual) / (n + 1), leaving x out makes x - mu longer by (n + 1) / n. Where a subject
        can't be in the sums (they are wiped, or clipped for privacy), nothing is taken out.
        """
        differences_BMDHW, brain_BDHW = self.differences(images_BMDHW, exists_BM)
        n_MDHW = self.subjects_MDHW
        longer_MDHW = torch.where(n_MDHW > 0, (n_MDHW + 1) / n_MDHW.clamp(min=1), 1.0)
        left_BMDHW = longer_MDHW * differences_BMDHW
        if not bool(self.voxels_PDHW.any()):
            return LeftOut(left_BMDHW, brain_BDHW, self.covariance_MMDHW.expand(len(exists_BM), *[-1] * 5))
        products_BPDHW, voxels_BPDHW = self._by_pair(differences_BMDHW, brain_BDHW, exists_BM)
        cov_BMMDHW = torch.empty(len(exists_BM), *self.covariance_MMDHW.shape, device=differences_BMDHW.device)
        for b, (products_PDHW, voxels_PDHW) in enumerate(zip(products_BPDHW, voxels_BPDHW, strict=True)):
            held_PDHW = self.voxels_PDHW > voxels_PDHW - 0.5
            others_P = self.products_PDHW - torch.where(held_PDHW, products_PDHW, 0.0)
            cov_BMMDHW[b] = self._covariance(others_P, self.voxels_PDHW - torch.where(held_PDHW, voxels_PDHW, 0.0))
        return LeftOut(left_BMDHW, brain_BDHW, cov_BMMDHW)

    def wipe(self) -> None:
        for sums in (self.subjects_MDHW, self.products_PDHW, self.voxels_PDHW):
            sums.zero_()

    def expected(
        self, k: int, differences_BMDHW: Tensor, shown_BM: Tensor, covariance_BMMDHW: Tensor | None = None
    ) -> Tensor:
        """The difference of modality `k` that what is shown speaks for; `k` itself is never asked.

        `covariance_BMMDHW`: each subject's own, where it is left out of the pooled one.
        """
        shown_BM = shown_BM & (torch.arange(shown_BM.shape[1], device=shown_BM.device) != k)
        cov_BMMDHW = self.covariance_MMDHW[None] if covariance_BMMDHW is None else covariance_BMMDHW
        weights = self._weights(k, shown_BM, cov_BMMDHW)
        weights_BMDHW = F.interpolate(weights, scale_factor=float(self.cube), mode="trilinear")
        D, H, W = self.shape_DHW
        shown = torch.where(shown_BM[:, :, None, None, None], differences_BMDHW, 0.0)
        return (weights_BMDHW[..., :D, :H, :W] * shown).sum(1)

    def _weights(self, k: int, shown_BM: Tensor, cov_BMMDHW: Tensor) -> Tensor:
        """Solve for the weight of each modality in each cube; 0 for what is not shown."""
        cubes = cov_BMMDHW.shape[3:]
        cov_BNMM = cov_BMMDHW.flatten(3).permute(0, 3, 1, 2)
        both_B1MM = (shown_BM[:, :, None] & shown_BM[:, None])[:, None]
        own_B1MM = torch.diag_embed(torch.where(shown_BM, 1e-6, 1.0))[:, None]  # a row of its own for what is not shown
        about_BNM = torch.where(shown_BM[:, None], cov_BNMM[..., k], 0.0)
        weights_BNM: Tensor = torch.linalg.solve(torch.where(both_B1MM, cov_BNMM, 0.0) + own_B1MM, about_BNM)
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
        self.subjects_MDHW.copy_(counts)

    def relation_sums(self, images_BMDHW: Tensor, exists_BM: Tensor) -> dict[str, Tensor]:
        """Of each pair of modalities, over the subjects that have both: products of differences, and brain voxels."""
        products_BPDHW, voxels_BPDHW = self._by_pair(*self.differences(images_BMDHW, exists_BM), exists_BM)
        return {"products": products_BPDHW.sum(0), "voxels": voxels_BPDHW.sum(0)}

    def _by_pair(self, differences_BMDHW: Tensor, brain_BDHW: Tensor, exists_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Of each subject and pair, in fp64: the products' sum over each cube, and its brain voxels; 0 without both."""
        one, other = self._pairs
        differences = differences_BMDHW.double()
        products = [differences[:, i] * differences[:, j] for i, j in zip(one.tolist(), other.tolist(), strict=True)]
        both_BP = (exists_BM[:, one] & exists_BM[:, other]).double()
        voxels_BPDHW = torch.einsum("bp,bdhw->bpdhw", both_BP, brain_BDHW.double())
        return self._cubes(torch.stack(products, dim=1)), self._cubes(voxels_BPDHW)

    @property
    def _pairs(self) -> Tensor:
        M = len(self.mean_MDHW)
        return torch.triu_indices(M, M)

    def settle_relation(self, sums: Mapping[str, Tensor]) -> None:
        self.products_PDHW.copy_(sums["products"])
        self.voxels_PDHW.copy_(sums["voxels"])
        self.covariance_MMDHW.copy_(self._covariance(sums["products"], sums["voxels"]))

    def _covariance(self, products_PDHW: Tensor, voxels_PDHW: Tensor) -> Tensor:
        """One full cube's worth of the pair's usual covariance stands beside each cube's own.

        Pairs come from different subjects and need not fit together: the nearest correlations that do, and a ridge.
        """
        voxels_P = voxels_PDHW.clamp(min=0)
        whole_P = voxels_P.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        usual_P = products_PDHW.sum(dim=(1, 2, 3), keepdim=True) / whole_P
        prior = self.cube**3
        covariance_P = (products_PDHW + prior * usual_P) / (voxels_P + prior)
        one, other = self._pairs
        whole = covariance_P.new_zeros(self.covariance_MMDHW.shape)
        whole[one, other] = covariance_P
        whole[other, one] = covariance_P
        cov_NMM = whole.flatten(2).permute(2, 0, 1)
        spread_NM = cov_NMM.diagonal(dim1=1, dim2=2).clamp(min=1e-8).sqrt()
        both_NMM = spread_NM[:, :, None] * spread_NM[:, None]
        fits_NMM = _fitting(cov_NMM / both_NMM)
        eye_MM = torch.eye(len(self.mean_MDHW), dtype=fits_NMM.dtype, device=fits_NMM.device)
        settled = (fits_NMM + RIDGE * eye_MM) * both_NMM
        return settled.permute(1, 2, 0).reshape(self.covariance_MMDHW.shape)

    def _cubes(self, x_BPDHW: Tensor) -> Tensor:
        """Add up the voxels of each cube; what it reaches beyond the volume is empty."""
        pads = [pad for n in reversed(self.shape_DHW) for pad in (0, -n % self.cube)]
        sums: Tensor = F.avg_pool3d(F.pad(x_BPDHW, pads), self.cube, divisor_override=1)
        return sums


def _fitting(correlations_NMM: Tensor) -> Tensor:
    """The nearest that is positive, where one is not: seldom, so the others are not taken apart."""
    unfit_N = torch.linalg.cholesky_ex(correlations_NMM)[1] != 0
    values_NM, vectors_NMM = torch.linalg.eigh(correlations_NMM[unfit_N])
    fits_NMM = correlations_NMM.clone()
    fits_NMM[unfit_N] = (vectors_NMM * values_NM.clamp(min=0)[:, None]) @ vectors_NMM.mT
    return fits_NMM
