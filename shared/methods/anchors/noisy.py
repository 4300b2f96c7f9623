"""The mixture of tissues as a denoiser: what noisy images of all modalities are expected to be, each at its own level.

With noise of variance s^2 in each pixel, a modality's features (intensity, mean over 3 x 3) have noise of covariance
s^2 (1, 1/9; 1/9, 1/9), so given its component what is seen is N(mu_k, C_k + S), and

    E[x | y] = sum_k r_k (mu_k + C_k (C_k + S)^-1 (y - mu_k)),    r_k ~ w_k N(y; mu_k, C_k + S)

in closed form at every level: s = 0 is an image that is told, s without end one that is not there. What lies outside of
the brain is one more component, black.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shared.methods.anchors.mixture import FEATURES, LEAST, Mixture, features, pairs

OUTSIDE = 0.5  # of the pixels, before any is seen
FAR = 1e3  # standard deviation of noise through which nothing is seen, for images in [0, 1]


class Expected(NamedTuple):
    mean_BMHW: Tensor  # in [0, 1]
    sd_BMHW: Tensor


class _Level(NamedTuple):
    """What the components make of features at one set of noise levels."""

    score_KF: Tensor
    gain_KMC: Tensor  # an intensity, given its component: gain . (features, 1)
    left_KM: Tensor  # ... with this variance


def expected(mixture: Mixture, y_BMHW: Tensor, noise_BM: Tensor) -> Expected:
    """`noise_BM`: standard deviation in y_BMHW, images in [0, 1] and beyond. Gradients go through y."""
    B, M, H, W = y_BMHW.shape
    if not mixture.fitted:
        return Expected(torch.zeros_like(y_BMHW), torch.zeros_like(y_BMHW))
    with torch.autocast(y_BMHW.device.type, enabled=False):
        rows, which_B = torch.unique(noise_BM.double().clamp(max=FAR), dim=0, return_inverse=True)
        levels = [_level(mixture, row) for row in rows]
        heard_BMHW = torch.where((noise_BM < FAR)[:, :, None, None], y_BMHW.float(), 0.0)
        features_BDN = features(heard_BMHW).flatten(2)
        made = [_one(levels[int(w)], x_DN) for w, x_DN in zip(which_B.tolist(), features_BDN, strict=True)]
        mean, sd = (torch.stack(parts).view(B, M, H, W) for parts in zip(*made, strict=True))
        return Expected(mean, sd)


def _one(level: _Level, x_DN: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = pairs(len(x_DN), x_DN.device)
    ones_1N = torch.ones_like(x_DN[:1])
    score_KN = level.score_KF @ torch.cat([x_DN[rows] * x_DN[columns], x_DN, ones_1N])
    share_KN = torch.softmax(score_KN, 0)
    each_KMN = (level.gain_KMC.flatten(0, 1) @ torch.cat([x_DN, ones_1N])).view(*level.gain_KMC.shape[:2], -1)
    mean_MN = (share_KN[:, None] * each_KMN).sum(0)
    square_MN = (share_KN[:, None] * (each_KMN.square() + level.left_KM[:, :, None])).sum(0)
    return mean_MN, (square_MN - mean_MN.square()).clamp(min=1e-12).sqrt()


def _level(mixture: Mixture, noise_M: Tensor) -> _Level:
    weight_K = torch.cat([mixture.weight_K.double() * (1 - OUTSIDE), mixture.weight_K.new_tensor([OUTSIDE]).double()])
    mean_KD, cov_KDD = mixture.mean_KD.double(), mixture.cov_KDD.double()
    D = mean_KD.shape[1]
    eye = torch.eye(D, dtype=torch.float64, device=mean_KD.device)
    mean_KD = torch.cat([mean_KD, torch.zeros_like(mean_KD[:1])])
    cov_KDD = torch.cat([cov_KDD, LEAST**2 * eye[None]])
    root_KDD = torch.linalg.cholesky(cov_KDD + _noise(noise_M))
    inverse_KDD = torch.cholesky_inverse(root_KDD)
    gain_KMD = cov_KDD[:, ::FEATURES] @ inverse_KDD
    offset_KM = mean_KD[:, ::FEATURES] - (gain_KMD @ mean_KD[:, :, None])[..., 0]
    left_KM = (cov_KDD - cov_KDD @ inverse_KDD @ cov_KDD).diagonal(dim1=1, dim2=2)[:, ::FEATURES].clamp(min=0)
    pull_KD = (inverse_KDD @ mean_KD[:, :, None])[..., 0]
    rows, columns = pairs(D, mean_KD.device)
    twice = torch.where(rows == columns, 0.5, 1.0)
    constant_K = weight_K.log() - root_KDD.diagonal(dim1=1, dim2=2).log().sum(1) - (pull_KD * mean_KD).sum(1) / 2
    score_KF = torch.cat([-inverse_KDD[:, rows, columns] * twice, pull_KD, constant_K[:, None]], 1)
    return _Level(score_KF.float(), torch.cat([gain_KMD, offset_KM[..., None]], 2).float(), left_KM.float())


def _noise(noise_M: Tensor) -> Tensor:
    """Covariance of the noise in all features."""
    one = noise_M.new_tensor([[1.0, 1 / 9], [1 / 9, 1 / 9]])
    return torch.kron(noise_M.square().diag(), one)


def in_images(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise's standard deviation in x_t / alpha, for images in [0, 1] instead of [-1, 1]."""
    return sigma / (2 * alpha).clamp(min=1 / (4 * FAR))
