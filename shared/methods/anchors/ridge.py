"""Floors: ridge regression from the shown modalities' patches, and the mean image.

Both come from sums alone, so sites can pool them exactly in one round. The ridge's normal equations are kept per
*pair* of modalities, over the pixels of the slices in which both exist, each pair with its own count: hospitals with
different missing patterns add up to the whole covariance, though no subject may have all modalities.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.records import Batch
from shared.methods.nets.iffn import hats
from shared.methods.nets.spectral import brain

CELLS = dict.fromkeys(("gram", "total", "pixels"), ("pixels", 2))  # a pair of modalities


class PatchRidge(nn.Module):
    """Every modality from the patches of any shown subset, in the brain; a shown one is itself.

    Holds agreed constants only (buffers), one row per shown pattern: `settle` fills them, before that all is blank.
    """

    weights_PMF: Tensor  # P shown patterns, M targets, F = M * patch^2 features
    offsets_PM: Tensor

    def __init__(self, modalities: int, *, patch: int = 3, levels: int = 0, strength: float = 0.1) -> None:
        """With `levels`, a pixel and its patch's mean are told as so many hats besides: any curve, not lines alone."""
        super().__init__()
        assert patch % 2 == 1, "a patch has a centre"
        self.modalities, self.patch, self.levels, self.strength = modalities, patch, levels, strength
        features = patch**2 + 2 * levels
        self.register_buffer("weights_PMF", torch.zeros(2**modalities, modalities, modalities * features))
        self.register_buffer("offsets_PM", torch.zeros(2**modalities, modalities))

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """fp64 moments of the in-brain features of every pair (i, j) of modalities, where both exist.

        gram[i, j] = sum x_i x_j^T; total[i, j] = sum x_i; pixels[i, j] = how many.
        """
        M = self.modalities
        exists_BM = batch.exists_BM
        images = torch.where(exists_BM[:, :, None, None], batch.images_BMHW.double(), 0.0)
        inside_BHW = brain(images, exists_BM)[:, 0]
        features_BMKHW = self._features(images)
        K = features_BMKHW.shape[2]
        gram = images.new_zeros(M, K, M, K)
        total = images.new_zeros(M, M, K)
        pixels = images.new_zeros(M, M)
        for pattern in torch.unique(exists_BM, dim=0):
            here = (exists_BM == pattern).all(dim=1)
            have = pattern.nonzero().flatten()
            x_NF = features_BMKHW[here][:, have].permute(0, 3, 4, 1, 2)[inside_BHW[here]].flatten(1)
            both = (have[:, None], have[None, :])
            gram_ = (x_NF.T @ x_NF).reshape(len(have), K, len(have), K)
            gram[have[:, None], :, have[None, :], :] += gram_.permute(0, 2, 1, 3)
            total[both] += x_NF.sum(0).reshape(len(have), 1, K)
            pixels[both] += len(x_NF)
        return {"gram": gram.permute(0, 2, 1, 3).contiguous(), "total": total, "pixels": pixels}

    def settle(self, sums: Mapping[str, Tensor]) -> None:
        """Solve every shown pattern, and write the table."""
        moments = {name: value.double().cpu() for name, value in sums.items()}
        weights = torch.zeros(self.weights_PMF.shape, dtype=torch.float64)
        offsets = torch.zeros(self.offsets_PM.shape, dtype=torch.float64)
        for code in range(1, 2**self.modalities):
            shown = [m for m in range(self.modalities) if code >> m & 1]
            for target in range(self.modalities):
                if target not in shown:
                    weight_MK, offset = solve(moments, shown, target, self.patch**2 // 2, self.strength)
                    weights[code, target] = weight_MK.flatten()
                    offsets[code, target] = offset
        self.weights_PMF.copy_(weights)
        self.offsets_PM.copy_(offsets)

    def forward(self, images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        """All modalities in [0, 1]; 0 outside the brain. What is hidden is never looked at."""
        shown_BM11 = shown_BM[:, :, None, None]
        images_BMHW = torch.where(shown_BM11, images_BMHW.float(), 0.0)
        powers_M = 2 ** torch.arange(self.modalities, device=shown_BM.device)
        code_B = (shown_BM * powers_M).sum(1)
        with torch.autocast(images_BMHW.device.type, enabled=False):
            x_BFP = self._features(images_BMHW).flatten(1, 2).flatten(2)
            y_BMP = self.weights_PMF[code_B] @ x_BFP + self.offsets_PM[code_B][:, :, None]
        y_BMHW = y_BMP.reshape(images_BMHW.shape).clamp(0, 1)
        return torch.where(shown_BM11, images_BMHW, torch.where(brain(images_BMHW, shown_BM), y_BMHW, 0.0))

    def _features(self, images_BMHW: Tensor) -> Tensor:
        """The patch around each pixel, then its hats: BMKHW."""
        B, M, H, W = images_BMHW.shape
        x_BMKHW = F.unfold(images_BMHW, self.patch, padding=self.patch // 2).view(B, M, self.patch**2, H, W)
        if self.levels == 0:
            return x_BMKHW
        coded = [hats(x, self.levels) for x in (images_BMHW, x_BMKHW.mean(2))]
        return torch.cat([x_BMKHW, *coded], dim=2)


def solve(
    sums: Mapping[str, Tensor], shown: list[int], target: int, centre: int, strength: float
) -> tuple[Tensor, float]:
    """(C_SS + lambda I) w = C_St and its offset. `strength` is lambda as a part of the patches' mean variance.

    Blocks that come from different hospitals need not fit together: the joint covariance is brought to the nearest
    positive one first, which changes nothing when one cohort gave all blocks; and lambda must be strong, for what no
    block pins down (at 0.001 a phantom federation lost 7 dB on T2; at 0.1 it lost nothing). A target that never
    existed beside any shown modality is predicted blank.
    """
    pixels, total = sums["pixels"], sums["total"]
    M, _, K = total.shape
    weight_MK = torch.zeros(M, K, dtype=torch.float64)
    known = [m for m in shown if pixels[m, target] > 0]
    if not known:
        return weight_MK, 0.0
    order = [*known, target]
    n = pixels[order][:, order].clamp(min=1)
    mean = total[order][:, order] / n[:, :, None]  # of i's patch, over the pixels that i and j share
    cross = sums["gram"][order][:, order] / n[:, :, None, None]
    cov = cross - mean[..., None] * mean.transpose(0, 1)[:, :, None, :]
    cov = torch.where((pixels[order][:, order] > 0)[:, :, None, None], cov, 0.0)
    cov_FF = _positive(cov.permute(0, 2, 1, 3).reshape(len(order) * K, len(order) * K))

    S, t = len(known) * K, len(known) * K + centre  # the features, and the target's pixel
    lambda_ = strength * cov_FF[:S, :S].diagonal().mean().clamp(min=1e-12)
    w_F = torch.linalg.solve(cov_FF[:S, :S] + lambda_ * torch.eye(S, dtype=torch.float64), cov_FF[:S, t])
    weight_MK[known] = w_F.reshape(len(known), K)
    beside = pixels[known, target] / pixels[known, target].sum()  # the means where the target exists too
    mean_target = (beside * total[target, known, centre] / pixels[known, target]).sum()
    mean_shown = total[known, target] / pixels[known, target][:, None]
    return weight_MK, float(mean_target - (weight_MK[known] * mean_shown).sum())


class MeanImage(nn.Module):
    """The mean of each modality's training slices, whatever is shown."""

    mean_MHW: Tensor

    def __init__(self, modalities: int, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_MHW", torch.zeros(modalities, height, width))

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        exists = batch.exists_BM[:, :, None, None]
        return {
            "image": torch.where(exists, batch.images_BMHW.double(), 0.0).sum(0),
            "slices": batch.exists_BM.sum(0).double(),
        }

    def settle(self, sums: Mapping[str, Tensor]) -> None:
        self.mean_MHW.copy_(sums["image"] / sums["slices"].clamp(min=1)[:, None, None])

    def forward(self, images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        return torch.where(shown_BM[:, :, None, None], images_BMHW.float(), self.mean_MHW)


def _positive(matrix: Tensor) -> Tensor:
    """The nearest positive semi-definite matrix; one that is so already is handed back as it is."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] >= 0:
        return matrix
    nearest: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
    return nearest
