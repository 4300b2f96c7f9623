"""What is hidden, told by kinds of tissue: a mixture of Gaussians over all modalities, fitted where some are missing.

Each component is a kind of tissue: a mean and a covariance of every modality's intensity and of its mean over 3 x 3
pixels. Given its component, what a pixel shows tells of the rest linearly; which component it is, every modality has a
say in. So subjects with T1, T2 and FLAIR and subjects with T1, T1CE and FLAIR together teach FLAIR from T1, T1CE and
T2, which nobody has: a regression knows pairs of modalities only (docs/methods/amm_diff.md, "The mixture").

Fitted by expectation and maximisation with what is missing integrated out. An iteration needs sums alone, so sites pool
them exactly: one round of a phase of sums each.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.base.records import Batch
from shared.methods.nets.spectral import brain
from shared.methods.threads import threads

COMPONENTS, ITERATIONS = 48, 40  # what it usually has, and rounds of sums after the first
FEATURES = 2  # of a modality: its intensity, and the mean around it
LEAST = 0.02  # standard deviation that every component has at least, in intensity
FEW = 20.0  # pixels: a component of fewer stays as it was
LATTICE = (2, 5)  # of the pixels those are used whose row + 2 column is a multiple of 5
HOPELESS = -14.0  # a log share, below the likeliest, from which nothing is told apart
START = 0.8  # of the pooled standard deviation: how far apart the components begin


CELLS = dict.fromkeys(("pixels", "x", "xx", "seen"), ("seen", 1))  # a component, with all that fills it


class Mixture(nn.Module):
    """Every modality from any shown subset, in the brain; a shown one is itself.

    Holds agreed constants only (buffers): `settle` fills them, before that all hidden is blank.
    """

    weight_K: Tensor
    mean_KD: Tensor  # before the first sums: where each component will begin, in standard deviations
    cov_KDD: Tensor  # all 0 before the first sums

    def __init__(self, modalities: int, components: int) -> None:
        super().__init__()
        self.modalities, D = modalities, modalities * FEATURES
        self.register_buffer("weight_K", torch.full((components,), 1 / components))
        self.register_buffer("mean_KD", torch.randn(components, D))
        self.register_buffer("cov_KDD", torch.zeros(components, D, D))
        self._kept: dict[tuple[int, ...], Given] = {}
        self._of: tuple[object, ...] = ()

    @property
    def fitted(self) -> bool:
        return bool(self.cov_KDD.any())

    # --- one iteration -------------------------------------------------------------------------------------------

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Total what each component explains of the batch: pixels, features and their products, the missing expected.

        At first, when there are no components yet, the same of what is seen, evenly: the scale they begin at.
        """
        with threads(1):
            return self._sums(batch)

    def _sums(self, batch: Batch) -> dict[str, Tensor]:
        K, D = self.mean_KD.shape
        exists_BM = batch.exists_BM
        images = torch.where(exists_BM[:, :, None, None], batch.images_BMHW.float(), 0.0)
        inside_BHW = brain(images, exists_BM)[:, 0] & _lattice(images)
        features_BDHW = features(images)
        zeros = images.new_zeros
        total = {
            "pixels": zeros(K).double(),
            "x": zeros(K, D).double(),
            "xx": zeros(K, D, D).double(),
            "seen": zeros(K, D).double(),
        }
        for pattern in torch.unique(exists_BM, dim=0):
            here = (exists_BM == pattern).all(dim=1)
            seen = _places(pattern)
            x_NO = features_BDHW[here].movedim(1, -1)[inside_BHW[here]][:, seen]
            if len(seen) == 0 or len(x_NO) == 0:
                continue
            if not self.fitted:
                total["seen"][:, seen] += len(x_NO) / K
                total["x"][:, seen] += x_NO.double().sum(0) / K
                total["xx"][:, seen, seen] += x_NO.double().square().sum(0) / K
                continue
            self._explain(total, x_NO, seen)
        return total

    def _explain(self, total: dict[str, Tensor], x_NO: Tensor, seen: Tensor) -> None:
        """Given a component, the missing is linear in the seen: so sums over the seen alone say it all."""
        given, wide = self.given(seen), len(seen)
        products_FN = _products(x_NO.double().T)
        sums_KF = given.share(products_FN) @ products_FN.T
        n_K, x_KO = sums_KF[:, -1], sums_KF[:, -1 - wide : -1]
        xx_KOO = sums_KF.new_zeros(len(n_K), wide, wide)
        rows, columns = pairs(wide, x_NO.device)
        xx_KOO[:, rows, columns] = xx_KOO[:, columns, rows] = sums_KF[:, : len(rows)]
        total["pixels"] += n_K
        total["seen"][:, seen] += n_K[:, None]
        mean_KD = torch.einsum("kdo,ko->kd", given.gain_KDO, x_KO)
        total["x"] += mean_KD + given.offset_KD * n_K[:, None]
        cross_KDD = mean_KD[:, :, None] * given.offset_KD[:, None]
        square_KDD = given.offset_KD[:, :, None] * given.offset_KD[:, None] + given.left_KDD
        total["xx"] += given.gain_KDO @ xx_KOO @ given.gain_KDO.transpose(1, 2)
        total["xx"] += cross_KDD + cross_KDD.transpose(1, 2) + square_KDD * n_K[:, None, None]

    def settle(self, sums: Mapping[str, Tensor]) -> None:
        """Take the step: components are what they explain."""
        n_K, x_KD, xx_KDD = (sums[name].double().cpu() for name in ("pixels", "x", "xx"))
        K, D = x_KD.shape
        if not self.fitted:
            seen_D = sums["seen"].double().cpu().sum(0)
            mean_D = x_KD.sum(0) / seen_D.clamp(min=1)
            var_D = (xx_KDD.sum(0).diagonal() / seen_D.clamp(min=1) - mean_D.square()).clamp(min=LEAST**2)
            begin_KD = mean_D + START * var_D.sqrt() * self.mean_KD.double().cpu()
            self.mean_KD.copy_(torch.where(seen_D > 0, begin_KD, 0.5))  # what nobody summed tells components apart ...
            self.cov_KDD.copy_(torch.diag(torch.where(seen_D > 0, var_D / 2, 1.0)).expand(K, D, D))  # ... in nothing
            return
        enough_K = n_K >= FEW
        n_K1 = n_K.clamp(min=FEW)[:, None]
        mean_KD = (x_KD / n_K1).clamp(-1, 2)  # of images in [0, 1]: only wrong sums lie beyond
        cov_KDD = xx_KDD / n_K1[..., None] - mean_KD[:, :, None] * mean_KD[:, None]
        cov_KDD = _positive((cov_KDD + cov_KDD.transpose(1, 2)) / 2) + LEAST**2 * torch.eye(D, dtype=torch.float64)
        self.mean_KD.copy_(torch.where(enough_K[:, None], mean_KD, self.mean_KD.double().cpu()))
        self.cov_KDD.copy_(torch.where(enough_K[:, None, None], cov_KDD, self.cov_KDD.double().cpu()))
        self.weight_K.copy_((n_K.clamp(min=0) + 1) / (n_K.clamp(min=0) + 1).sum())

    # --- what it says --------------------------------------------------------------------------------------------

    def forward(self, images_BMHW: Tensor, shown_BM: Tensor) -> Tensor:
        """All modalities in [0, 1]; 0 outside the brain. What is hidden is never looked at."""
        return self.tell(images_BMHW, shown_BM).mean_BMHW

    @torch.no_grad()
    def tell(self, images_BMHW: Tensor, shown_BM: Tensor) -> "Told":
        """Say all that it makes of the shown, each image by itself: no bit of another's."""
        with torch.autocast(images_BMHW.device.type, enabled=False), threads(1):  # many small sums: more only wait
            images = torch.where(shown_BM[:, :, None, None], images_BMHW.float(), 0.0)
            B, M, H, W = images.shape
            mean_BMP, sd_BMP = images.flatten(2).clone(), images.new_zeros(B, M, H * W)
            share_BKP = images.new_zeros(B, len(self.weight_K), H * W)
            features_BDP, inside_BP = features(images).flatten(2), brain(images, shown_BM)[:, 0].flatten(1)
            rows: list[Row | None] = []
            for b in range(B):
                row = self._row(features_BDP[b], inside_BP[b].nonzero().flatten(), shown_BM[b])
                rows.append(row)
                if row is None:
                    continue
                share_KN = torch.softmax(row.score_KN, 0)
                each_KTN = (row.gain_KTC.flatten(0, 1) @ row.seen_CN).view(*row.gain_KTC.shape[:2], -1)
                mean_TN = (share_KN[:, None] * each_KTN).sum(0)
                square_TN = (share_KN[:, None] * (each_KTN.square() + row.left_KT[:, :, None])).sum(0)
                places = (row.hidden_T[:, None], row.inside_N)
                mean_BMP[b][places] = mean_TN.clamp(0, 1)
                sd_BMP[b][places] = (square_TN - mean_TN.square()).clamp(min=0).sqrt()
                share_BKP[b].index_copy_(1, row.inside_N, share_KN)
            mean, sd, share = (v.reshape(B, -1, H, W) for v in (mean_BMP, sd_BMP, share_BKP))
            return Told(mean_BMHW=mean, sd_BMHW=sd, share_BKHW=share, rows=tuple(rows))

    def _row(self, features_DP: Tensor, inside_N: Tensor, shown_M: Tensor) -> "Row | None":
        """Work out what one image shows; None where nothing is hidden, or nothing is known."""
        seen, hidden = _places(shown_M), (~shown_M).nonzero().flatten()
        if not self.fitted or len(seen) == 0 or len(hidden) == 0:
            return None
        given, wanted = self.given(seen), hidden * FEATURES  # of the hidden, the intensities themselves
        x_ON = features_DP[seen][:, inside_N]
        score_KN = given.score(_products(x_ON))
        return Row(
            inside_N=inside_N,
            hidden_T=hidden,
            score_KN=(score_KN - score_KN.amax(0)).clamp(min=HOPELESS),
            gain_KTC=torch.cat([given.gain_KDO[:, wanted], given.offset_KD[:, wanted, None]], 2).float(),
            left_KT=given.left_KDD[:, wanted, wanted].float(),
            seen_CN=torch.cat([x_ON, torch.ones_like(x_ON[:1])]),
        )

    def given(self, seen: Tensor) -> "Given":
        """What each component makes of features `seen`; worked out once for as long as the components stay."""
        of = tuple((v.data_ptr(), v.device, v._version) for v in (self.weight_K, self.mean_KD, self.cov_KDD))
        if of != self._of:
            self._kept, self._of = {}, of
        key = tuple(seen.tolist())
        if key not in self._kept:
            self._kept[key] = self._given(seen)
        return self._kept[key]

    def _given(self, seen: Tensor) -> "Given":
        mean_KD, cov_KDD = self.mean_KD.double(), self.cov_KDD.double()
        eye = torch.eye(len(seen), dtype=torch.float64, device=seen.device)
        seen_KOO, all_KDO = cov_KDD[:, seen][:, :, seen], cov_KDD[:, :, seen]
        gain_KDO = torch.linalg.solve(seen_KOO, all_KDO.transpose(1, 2)).transpose(1, 2)
        gain_KDO[:, seen] = eye
        offset_KD = mean_KD - (gain_KDO @ mean_KD[:, seen, None])[..., 0]
        offset_KD[:, seen] = 0.0
        left_KDD = cov_KDD - gain_KDO @ all_KDO.transpose(1, 2)
        left_KDD[:, seen] = 0.0
        left_KDD[:, :, seen] = 0.0
        root_KOO = torch.linalg.cholesky(seen_KOO)
        sizes_K = root_KOO.diagonal(dim1=1, dim2=2).log().sum(1) + len(seen) / 2 * math.log(2 * math.pi)
        inverse_KOO = torch.cholesky_inverse(root_KOO)
        pull_KO = (inverse_KOO @ mean_KD[:, seen, None])[..., 0]
        rows, columns = pairs(len(seen), seen.device)
        twice = torch.where(rows == columns, 0.5, 1.0)
        constant_K = self.weight_K.double().log() - sizes_K - (pull_KO * mean_KD[:, seen]).sum(1) / 2
        return Given(
            gain_KDO=gain_KDO,
            offset_KD=offset_KD,
            left_KDD=left_KDD,
            score_KF=torch.cat([-inverse_KOO[:, rows, columns] * twice, pull_KO, constant_K[:, None]], 1),
        )


class Given(NamedTuple):
    """The components, once some features are seen."""

    gain_KDO: Tensor  # every feature is expected to be gain x + offset ...
    offset_KD: Tensor
    left_KDD: Tensor  # ... with this covariance
    score_KF: Tensor  # the log density, as a linear function of x's products

    def score(self, products_FN: Tensor) -> Tensor:
        """log(weight) + log density of each component, K N."""
        return self.score_KF.to(products_FN.dtype) @ products_FN

    def share(self, products_FN: Tensor) -> Tensor:
        """How likely each component is, K N."""
        return torch.softmax(self.score(products_FN), dim=0)


class Row(NamedTuple):
    """One image: what its pixels in the brain show, and what each component makes of it."""

    inside_N: Tensor  # places in the flat image
    hidden_T: Tensor
    score_KN: Tensor  # log shares, up to a constant for each pixel
    gain_KTC: Tensor  # a hidden modality, given its component: gain . (seen features, 1)
    left_KT: Tensor  # ... with this variance
    seen_CN: Tensor

    def weighed(self, by_KN: Tensor) -> Tensor:
        """Expect the hidden, T N, with the components' log shares moved by so much."""
        share_KN = torch.softmax(self.score_KN + by_KN, 0)
        _, T, C = self.gain_KTC.shape
        gain_NTC = (share_KN.T @ self.gain_KTC.flatten(1)).view(-1, T, C)
        return torch.einsum("ntc,cn->tn", gain_NTC, self.seen_CN)


class Told(NamedTuple):
    """What the mixture makes of the shown images."""

    mean_BMHW: Tensor  # in [0, 1]; a shown one is itself
    sd_BMHW: Tensor  # how far the hidden may lie from it; 0 for the shown
    share_BKHW: Tensor  # how likely each component is
    rows: tuple[Row | None, ...]

    def weighed(self, by_BKHW: Tensor) -> Tensor:
        """The mean, had another (a network that sees more than a pixel) a say in what kind of tissue it is."""
        made, by_BKP = [], by_BKHW.flatten(2)
        for mean_MP, by_KP, row in zip(self.mean_BMHW.flatten(2), by_BKP, self.rows, strict=True):
            if row is None:
                made.append(mean_MP)
                continue
            told_TN = row.weighed(by_KP[:, row.inside_N])
            told_TP = mean_MP.new_zeros(len(told_TN), mean_MP.shape[1]).index_copy(1, row.inside_N, told_TN)
            made.append(mean_MP.index_copy(0, row.hidden_T, told_TP))
        return torch.stack(made).view_as(self.mean_BMHW)


def pairs(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(n, n, device=device)
    return rows, columns


def _products(x_ON: Tensor) -> Tensor:
    """x_i x_j for i <= j, x_i, and 1: a Gaussian's log density is linear in them, and so are its sums. F N."""
    rows, columns = pairs(len(x_ON), x_ON.device)
    return torch.cat([x_ON[rows] * x_ON[columns], x_ON, torch.ones_like(x_ON[:1])])


def features(images_BMHW: Tensor) -> Tensor:
    """Intensity and mean over 3 x 3 pixels of each modality, side by side: B D H W."""
    return torch.stack([images_BMHW, F.avg_pool2d(images_BMHW, 3, stride=1, padding=1)], dim=2).flatten(1, 2)


def _places(pattern_M: Tensor) -> Tensor:
    """Which features a pattern of modalities has."""
    first = pattern_M.nonzero().flatten()[:, None] * FEATURES
    return (first + torch.arange(FEATURES, device=pattern_M.device)).flatten()


def _lattice(images_BMHW: Tensor) -> Tensor:
    """A fifth of the pixels, evenly spread, the same wherever they are summed."""
    rows, columns = (torch.arange(n, device=images_BMHW.device) for n in images_BMHW.shape[-2:])
    step, every = LATTICE
    return (rows[:, None] + step * columns[None]) % every == 0


def _positive(matrix_KDD: Tensor) -> Tensor:
    """The nearest positive semi-definite matrices, no wider than images in [0, 1] can be; wrong sums need not be so."""
    values, vectors = torch.linalg.eigh(matrix_KDD)
    nearest: Tensor = (vectors * values.clamp(0, len(values[0]))[:, None]) @ vectors.transpose(1, 2)
    return nearest
